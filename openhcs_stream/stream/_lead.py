"""Whose turn it is to read the lanes: a lock that is handed on in the order of asking."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lead"]


class Lead:
    """A lock that nobody can take again before those who waited for it.

    With an ordinary lock a thread that releases it and wants it back has it before the others
    are awake: who waits in a loop would keep all others out, whatever their deadlines are.

    Parameters
    ----------
    wake : callable
        Has the holder, who may be polling, come to an end.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def is_wanted(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiting)

    def take_now(self) -> bool:
        """Take it if nobody has it and nobody waits for it."""
        with self._mutex:
            if self._held:
                return False
            self._held = True
            return True

    def take(self, timeout_s: float) -> bool:
        """Take it as soon as it is this thread's turn; False: not within `timeout_s` seconds."""
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        self._wake()
        if turn.acquire(timeout=max(0.0, timeout_s)):
            return True
        with self._mutex:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return False
        return True  # it was handed over in this very moment

    def give(self) -> None:
        """Hand it on."""
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
