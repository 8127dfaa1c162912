"""Let other threads run while Qt puts a frame of napari's window on the screen."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["unlocked_window"]

_log = logging.getLogger(__name__)


@contextmanager
def unlocked_window() -> Iterator[Callable[[Any], None]]:
    """Make a window whose frames are drawn without Python's lock.

    napari's window handles every event in Python, also the one by which Qt draws and composes a
    whole frame: for as long as that takes (5 to 50 ms) no other thread gets the interpreter, the
    receiver's no more than any. A binding asks once for each window whether its class has a method
    of Python's for events; so it has none while the window is made. What the method does for four
    kinds of event is done by a filter.

    Yields
    ------
    callable
        To be called with the `napari.components.ViewerModel` of the window that was made.
    """
    from qtpy.QtCore import QEvent, QObject

    try:
        # napari has no public word for its main window.
        from napari._qt.qt_main_window import _QtMainWindow

        handle = vars(_QtMainWindow)["event"]
    except (ImportError, KeyError) as error:
        _log.debug("this napari's window handles no events in Python: %r", error)
        yield lambda model: None
        return
    handled = {
        getattr(QEvent.Type, name)
        for name in ("ToolTip", "WindowActivate", "ZOrderChange", "Close")
    }

    class Filter(QObject):
        def eventFilter(self, window: Any, event: Any) -> bool:
            if event.type() not in handled:
                return False
            handle(window, event)
            return True

    def watch(model: Any) -> None:
        window = model.window._qt_window  # noqa: SLF001
        window.installEventFilter(Filter(window))

    del _QtMainWindow.event
    try:
        yield watch
    finally:
        _QtMainWindow.event = handle
