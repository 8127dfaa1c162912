"""A thread that works when it is woken, rests otherwise, and ends with its owner."""

from __future__ import annotations

import threading
import weakref
from _queue import SimpleQueue  # the module queue takes many times as long to import
from typing import Protocol

__all__ = ["Filler"]


class _Owner(Protocol):
    def fill_spare(self) -> None:
        """Do what is to be done now."""


class Filler:
    """The thread of an owner's `fill_spare`.

    It is kept, for who starts a thread waits until that runs: milliseconds on a busy machine. To
    wake one is a matter of microseconds. At rest it holds no reference to its owner.

    Parameters
    ----------
    owner : object with a method fill_spare()

    Raises
    ------
    RuntimeError
        No more threads, or the interpreter is going down.
    """

    def __init__(self, owner: _Owner) -> None:
        #: True: work; False: end.
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self.thread = threading.Thread(
            target=_work,
            args=(weakref.ref(owner), self._calls),
            name="openhcs-stream-pixels",
            daemon=True,
        )
        self.thread.start()
        weakref.finalize(owner, self._calls.put, False).atexit = False

    def wake(self) -> None:
        """Have it work, again if it works now; takes no lock."""
        self._calls.put(True)

    def end(self) -> None:
        """Have it end after its work, and wait for that, unless it is the caller itself."""
        self._calls.put(False)
        if self.thread is not threading.current_thread():
            self.thread.join(timeout=10.0)


def _work(ref: weakref.ref[_Owner], calls: SimpleQueue[bool]) -> None:
    while calls.get():
        owner = ref()
        if owner is None:
            return
        owner.fill_spare()
        del owner
