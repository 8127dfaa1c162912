"""Blocks that Ctrl-C does not cut in two: what is noted here and what the viewers know belong
together.

Python raises KeyboardInterrupt between any two steps of the main thread: an item could be noted and
not sent, or a report read and not noted, and its end would never be told.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module signal takes ten times as long
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Uninterrupted"]


class Uninterrupted:
    """A block at whose end an interrupt (SIGINT) is handled that came in it.

    On the main thread, where alone one can come; on others it does nothing. The block must not wait
    for long.
    """

    __slots__ = ("_before", "_came")

    def __init__(self) -> None:
        self._before: Any = None
        self._came = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        before = _signal.getsignal(_signal.SIGINT)
        if not callable(before):  # ignored, or none of Python's
            return
        self._before = before
        try:
            _signal.signal(_signal.SIGINT, self._note)
        except ValueError:  # a thread of another interpreter in this process
            self._before = None

    def __exit__(self, *_: object) -> None:
        before = self._before
        if before is None:
            return
        _signal.signal(_signal.SIGINT, before)
        if self._came:
            _signal.raise_signal(_signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
