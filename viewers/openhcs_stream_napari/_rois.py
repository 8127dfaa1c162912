"""Outlines of the current place as napari's shapes, and what a person makes of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from openhcs_stream.viewer import Change
from openhcs_stream_napari._crowd import Crowd
from openhcs_stream_napari._hand import drop_drag
from openhcs_stream_napari._shape import STROKE
from openhcs_stream_napari._sheet import Sheet
from openhcs_stream_napari._shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openhcs_stream.rois import Roi
    from openhcs_stream.viewer import Coords
    from openhcs_stream_napari._shown import View

__all__ = ["Rois"]

#: napari's features table writes into the layer without a word: we look for new names so often.
NAMES_S = 0.3


class Rois(Shown):
    """Shapes, one for each ROI; of very many, those in view, and an overview of all of them."""

    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Shapes

        self._stroke_width = width = max(1.0, view.extent_px / 700)
        native = Shapes(
            ndim=2,
            edge_color=STROKE,
            face_color="transparent",
            edge_width=width,
            **self._common(view, opacity=1.0, blending="translucent"),
            **self._flat(view),
        )
        self.native = native
        self._looked = time.monotonic()
        self._sheet = Sheet(native, self.layer.title, width)
        self._crowd = Crowd(self)
        self._take_base(view)
        native.events.data.connect(self._on_data)
        events = native.events
        for looks in (events.edge_color, events.face_color, events.edge_width, events.features):
            looks.connect(self._on_looks)
        return native

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self.restyle()
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self._swap(view)

    def moved(self, view: View) -> None:
        if view.coords(self.layer.components) != self._here:
            self._swap(view)

    def gone(self, places: Sequence[Coords]) -> None:
        if self._here in places:
            self._swap(self.view)

    @property
    def natives(self) -> tuple[Any, ...]:
        return (self.native, *self._crowd.natives)

    def entered(self) -> None:
        self._crowd.show()

    def leave(self) -> None:
        self._crowd.close()

    def look(self) -> bool:
        now = time.monotonic()
        if now - self._looked > NAMES_S:
            self._looked = now
            if not self.is_busy and self._sheet.is_renamed():
                self._touched()
        hand = self.view.hand
        if hand.is_down or self.is_busy or not self._crowd.wants_others(self._base):
            return False
        self.finish()
        self._draw()
        return True

    def _swap(self, view: View) -> None:
        self.finish_drawing()
        self.finish()
        self._take_base(view)

    def _take_base(self, view: View) -> None:
        """Begin with what the current place holds."""
        self._here = view.coords(self.layer.components)
        self._base: list[Roi] = self.layer.items.get(self._here, [])
        self._draw()

    def _draw(self) -> None:
        """Show what is to be shown of the list; what a person did to it is reported already."""
        self.view.hand.forget(self)
        drop_drag(self.native)
        # Nobody edited: who listens for edits must not hear of this.
        with self._by_us(), self.native.events.data.blocker():
            chosen = self._crowd.choose(self._base)
            self._sheet.width = min(self._stroke_width, self._crowd.stroke)
            self._sheet.fill([(at, self._base[at]) for at in chosen])
        self.native.refresh(thumbnail=False)
        self.notice = self._crowd.notice

    # --- what a person does ---------------------------------------------------------------------

    def _on_data(self, event: Any) -> None:
        if str(event.action) in ("added", "changed", "removed"):
            self._touched()

    def _on_looks(self, event: object = None) -> None:
        self._touched(burst=True)

    @property
    def is_busy(self) -> bool:
        # A polygon is drawn with many clicks. napari has no public word for it.
        return bool(self.native._is_creating)  # noqa: SLF001

    def finish_drawing(self) -> None:
        if self.is_busy:
            self.native._finish_drawing()  # noqa: SLF001

    def finish(self) -> None:
        reading = self._sheet.read()
        if not (reading.is_changed or reading.is_stale):
            return
        base = self._base
        items: list[Roi] = []
        places: dict[int, int] = {}
        for at, roi in enumerate(base):
            if at not in reading.removed:
                places[at] = len(items)
                items.append(reading.kept.get(at, roi))
        origins = [*places, *[None] * len(reading.added)]
        items += reading.added
        for lost in reading.lost:
            self.view.tell(f"{self.layer.title}: {lost}.")
        if reading.is_changed:
            # Where nothing had arrived there is a list from now on.
            self.layer.items.setdefault(self._here, base)
            # First, so that what can't be told is tried again with the next edit.
            self.view.report(Change(self.layer, self._here, base, items, origins))
            self._base = items
            self._crowd.follow(
                base,
                items,
                removed=sorted(reading.removed),
                changed={at: roi for at, roi in reading.kept.items() if roi is not base[at]},
                added=reading.added,
            )
        if reading.is_stale:
            self._draw()
        else:
            with self._by_us():
                self._sheet.rebase(items, places)
