"""Have Qt's thread do something soon, from any thread, and once for many times asked."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Waker"]


class Waker:
    """Calls `work` in the event loop of the thread that made this.

    Parameters
    ----------
    work : callable
    """

    def __init__(self, work: Callable[[], None]) -> None:
        core: Any = import_module("qtpy.QtCore")  # whose types don't know of Signal

        class Signals(core.QObject):  # type: ignore[misc]
            woken = core.Signal()

        self._work = work
        self._is_woken = False
        self._signals: Any = Signals()
        self._signals.woken.connect(self._on_woken, core.Qt.ConnectionType.QueuedConnection)

    def wake(self) -> None:
        """Have the work done; nothing where it is about to be. Callable from any thread."""
        if not self._is_woken:
            self._is_woken = True
            self._signals.woken.emit()

    def _on_woken(self) -> None:
        self._is_woken = False  # first: what is asked from here on is asked anew
        self._work()
