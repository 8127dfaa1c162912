"""A thread that does what it is given, rests otherwise, and ends with its owner."""

from __future__ import annotations

import threading
import weakref
from _queue import SimpleQueue  # the module queue takes many times as long to import
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Helper"]


class Helper:
    """The thread of an owner.

    It is kept, for who starts a thread waits until that runs: milliseconds on a busy machine. To
    wake one is a matter of microseconds. At rest it holds no reference to its owner.

    Parameters
    ----------
    owner : object
        With whose end it ends, if not before.
    name : str
        Of the thread.

    Raises
    ------
    RuntimeError
        No more threads, or the interpreter is going down.
    """

    def __init__(self, owner: object, name: str) -> None:
        #: None: end.
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.thread = threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True)
        self.thread.start()
        weakref.finalize(owner, self._calls.put, None).atexit = False

    def give(self, call: Callable[[], object]) -> None:
        """Have it do something, after what it was given before; takes no lock."""
        self._calls.put(call)

    def end(self) -> None:
        """Have it end after its work, and wait for that, unless it is the caller itself."""
        self._calls.put(None)
        if self.thread is not threading.current_thread():
            self.thread.join(timeout=10.0)


def _work(calls: SimpleQueue[Callable[[], object] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it may hold its owner, and arrays
