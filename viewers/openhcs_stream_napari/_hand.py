"""What the person's hand is doing, to know when an edit is finished."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from openhcs_stream_napari._shown import Shown

__all__ = ["BURST_S", "Hand", "drop_drag"]

#: Keys that repeat and sliders that are pulled make one edit: it is finished when nothing more
#: happens for so long.
BURST_S = 0.4


class Hand:
    """Which layers were touched, and whether the mouse is still at it.

    Parameters
    ----------
    before_press : callable
        Is called when a button goes down on the canvas: what was done before is finished.
    clock : callable
        Seconds, steady.
    """

    def __init__(
        self, before_press: Callable[[], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        #: Whether a button is down on the canvas.
        self.is_down = False
        self._before_press = before_press
        self._clock = clock
        self._touched: dict[Shown, float] = {}

    def touched(self, shown: Shown, *, burst: bool = False) -> None:
        """A person changed something of a layer; more of the same may follow in a `burst`."""
        self._touched[shown] = self._clock() + (BURST_S if burst else 0.0)

    def finished(self, *, early: bool = False) -> list[Shown]:
        """The layers in which something was done and is finished; they are forgotten with it.

        With `early`, also those where a burst may go on.
        """
        if self.is_down or not self._touched:
            return []
        now = self._clock()
        found = [
            shown
            for shown, at in self._touched.items()
            if (early or at <= now) and not shown.is_busy
        ]
        for shown in found:
            del self._touched[shown]
        return found

    def forget(self, shown: Shown) -> None:
        """Nothing more is to be told of this layer."""
        self._touched.pop(shown, None)

    def on_drag(self, model: Any, event: Any) -> Generator[None, None, None]:
        """A mouse callback of the viewer, which comes before those of its layers."""
        self._before_press()
        self.is_down = True
        try:
            yield
            while event.type == "mouse_move":
                yield
        finally:
            self.is_down = False


def drop_drag(native: Any) -> None:
    """End what the mouse drags in a layer: the data under it is about to be replaced.

    napari has no public word for it. It would go on, with indices of what is not there any more,
    until the button is let go of.
    """
    for generator in list(native._mouse_drag_gen.values()):  # noqa: SLF001
        generator.close()
    native._mouse_drag_gen.clear()  # noqa: SLF001
    native._persisted_mouse_event.clear()  # noqa: SLF001
