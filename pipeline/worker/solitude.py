"""Beginnings in, let through, but for the time in which one record has the process for itself.

The workers of a process share one of these. While one of them has claimed it nothing begins in any: so whatever ends
the process then is that record, or came from outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Solitude"]


class Solitude:
    """Thread-safe. ``who`` is any object that stands for a worker."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._idle: dict[int, Callable[[], bool]] = {}
        self._owner: int | None = None

    def join(self, who: object, idle: Callable[[], bool]) -> None:
        """Take a worker in; ``idle`` tells whether nothing of it is in a handler or about to be."""
        with self._lock:
            self._idle[id(who)] = idle

    def leave(self, who: object) -> None:
        """A worker has ended."""
        with self._lock:
            self._idle.pop(id(who), None)
            self.release(who)

    def admit(self, begin: Callable[[], None]) -> bool:
        """Begin something; False, and nothing is begun, while there is a claim."""
        with self._lock:
            if self._owner is not None:
                return False
            begin()
            return True

    def claim(self, who: object) -> bool:
        """Let nothing begin from now on; False where another worker has claimed that. What runs goes on."""
        with self._lock:
            if self._owner is None:
                self._owner = id(who)
            return self._owner == id(who)

    def release(self, who: object) -> None:
        """Let things begin again."""
        with self._lock:
            if self._owner == id(who):
                self._owner = None

    def taken_from(self, who: object) -> bool:
        """Whether another worker has claimed that nothing begins."""
        return self._owner not in {None, id(who)}

    def quiet(self) -> bool:
        """Whether nothing runs in any worker. Holds for as long as there is a claim."""
        with self._lock:
            return all(idle() for idle in self._idle.values())
