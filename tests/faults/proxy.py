"""TCP connections in, the same connections out, cut when somebody asks for it.

A link can refuse, be silent in one direction or both, and come back in three ways: with all that was on its way, with
a reset of what was open, or with what was open silent for ever, as a firewall does that forgot it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Literal

__all__ = ["Direction", "Link", "Proxies"]

Direction = Literal["out", "back"]
_CHUNK = 65_536


class _Pair:
    """One connection. Bytes pass in a direction while its gate is open."""

    def __init__(self) -> None:
        self.server = asyncio.current_task()  # nobody else keeps it
        self.gates = {"out": asyncio.Event(), "back": asyncio.Event()}
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    def abort(self) -> None:
        for writer in self.writers:
            with contextlib.suppress(OSError):
                writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class Link:
    """One way from a client to a server: ``port`` is where clients connect. Methods are called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, target: tuple[str, int]) -> None:
        self.name = name
        self.target = target
        self._loop = loop
        self._pairs: set[_Pair] = set()
        self._forgotten: list[_Pair] = []
        self._closed: set[Direction] = set()
        self._refusing = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, sock=self._socket)

    def unlisten(self) -> None:
        """Take no more connections, for good."""
        self._server.close()

    def refuse(self) -> int:
        """Reset all connections and every new one; return how many there were."""
        return int(self._call(self._refuse()))

    def silence(self, *directions: Direction) -> int:
        """Let nothing pass in these directions (both where none is named), say nothing; return how many are open."""
        return int(self._call(self._silence(directions or ("out", "back"))))

    def forget(self, share: float = 1.0) -> int:
        """Silence what is open for ever, or a ``share`` of it, the oldest first; new connections pass."""
        return int(self._call(self._forget(share)))

    def restore(self, *, reset: bool = False) -> None:
        """Let all pass again; with ``reset`` what was open is reset first."""
        self._call(self._restore(reset))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _refuse(self) -> int:
        self._refusing = True
        count = len(self._pairs)
        for pair in list(self._pairs):
            pair.abort()
        return count

    async def _silence(self, directions: tuple[Direction, ...]) -> int:
        self._closed |= set(directions)
        for pair in self._pairs:
            for direction in directions:
                pair.gates[direction].clear()
        return len(self._pairs)

    async def _forget(self, share: float) -> int:
        pairs = list(self._pairs)
        chosen = pairs[: max(1, round(len(pairs) * share))] if pairs else []
        for pair in chosen:
            self._pairs.discard(pair)
            self._forgotten.append(pair)
            for gate in pair.gates.values():
                gate.clear()
        return len(chosen)

    async def _restore(self, reset: bool) -> None:
        self._refusing = False
        self._closed.clear()
        for pair in list(self._pairs):
            if reset:
                pair.abort()
            for gate in pair.gates.values():
                gate.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        pair = _Pair()
        pair.writers.append(writer)
        for direction, gate in pair.gates.items():
            if direction not in self._closed:
                gate.set()
        self._pairs.add(pair)
        try:
            await pair.gates["out"].wait()
            try:
                there, onward = await asyncio.open_connection(*self.target)
            except OSError:
                writer.transport.abort()
                return
            pair.writers.append(onward)
            pair.tasks = [
                asyncio.create_task(_pump(pair, reader, onward, pair.gates["out"])),
                asyncio.create_task(_pump(pair, there, writer, pair.gates["back"])),
            ]
            await asyncio.wait(pair.tasks)
        finally:
            self._pairs.discard(pair)
            pair.abort()


class Proxies:
    """All links, served by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self.links: dict[str, Link] = {}

    def link(self, name: str, target: tuple[str, int]) -> Link:
        """Make a link to ``target``, host and port."""
        made = self.links[name] = Link(self._loop, name, target)
        asyncio.run_coroutine_threadsafe(made.listen(), self._loop).result(10)
        return made

    def close(self) -> None:
        """End all connections and the thread."""

        async def cancel() -> None:
            for link in self.links.values():
                link.unlisten()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def restore(self) -> None:
        """Let all pass everywhere."""
        for link in self.links.values():
            link.restore()


async def _pump(pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    """Pass bytes on in one direction; an end is passed on as an end, a reset as a reset."""
    try:
        while data := await reader.read(_CHUNK):
            await gate.wait()
            writer.write(data)
            await writer.drain()
        await gate.wait()
        writer.write_eof()
    except OSError:
        await gate.wait()
        pair.abort()
