"""A worker process's state in, lines of JSON for its supervisor out; the end of the supervisor in, a drain out."""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipeline.errors import PipelineError

__all__ = ["telling"]


@contextmanager
def telling(fd: int | None, until: threading.Event) -> Iterator[Callable[[dict[str, object]], None]]:
    """Give what takes states, for the supervisor at the other end of ``fd``; None: nobody hears them.

    ``until`` is set when the supervisor is gone. It is told what is raised here: after an error in the application's
    own module, or one that says what to do, starting again would not help.
    """
    if fd is None:
        yield lambda _state: None
        return
    begun = False
    said: dict[str, object] = {}
    with socket.socket(fileno=fd) as pipe:

        def tell(line: dict[str, object]) -> None:
            with suppress(OSError):  # it is gone: this process drains
                pipe.sendall(json.dumps(line).encode() + b"\n")

        def listen() -> None:
            with suppress(OSError):
                pipe.recv(1)  # nothing is ever sent
            until.set()

        def on_state(state: dict[str, object]) -> None:
            nonlocal begun, said
            begun = True
            if state != said:
                said = state
                tell(state)

        threading.Thread(target=listen, name="supervisor", daemon=True).start()
        try:
            yield on_state
        except PipelineError as error:
            tell({"failed": error.what, "remedy": error.remedy})
            raise
        except Exception as error:
            if not begun:
                tell({"failed": "".join(traceback.format_exception_only(error)).strip(), "remedy": ""})
            raise
