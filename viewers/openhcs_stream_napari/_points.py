"""Points of the current place, which a person may add, move and take away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.viewer import Change
from openhcs_stream_napari._hand import drop_drag
from openhcs_stream_napari._shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from openhcs_stream.viewer import Coords
    from openhcs_stream_napari._shown import View

__all__ = ["Points"]


class Points(Shown):
    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Points as Native

        size = max(5.0, view.extent_px / 100)
        native = Native(
            self._take_base(view),
            size=size,
            face_color=self.layer.spec.colormap or "orange",
            border_color="black",
            **self._common(view, opacity=1.0, blending="translucent"),
            **self._flat(view),
        )
        native.events.data.connect(self._on_data)
        native.events.set_data.connect(self._on_refresh)
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

    def _swap(self, view: View) -> None:
        self.finish()
        self.view.hand.forget(self)
        drop_drag(self.native)
        # Nobody edited: who listens for edits must not hear of this.
        with self._by_us(), self.native.events.data.blocker():
            self.native.selected_data = set()
            self.native.data = self._take_base(view)
        self.native.refresh(thumbnail=False)

    def _take_base(self, view: View) -> npt.NDArray[Any]:
        """Begin with what the current place holds: (N, 2) as Y, X, a copy that napari may change.

        What was there is kept to tell later what a person has changed.
        """
        self._here = view.coords(self.layer.components)
        self._base: Any = self.layer.items.get(self._here)
        base = np.zeros((0, 2)) if self._base is None else np.asarray(self._base, np.float64)
        #: Where in the base each of napari's points was; None: it was added.
        self._origins: list[int | None] = list(range(len(base)))
        self._rows = base.copy()
        return base.copy()

    # --- what a person does ---------------------------------------------------------------------

    def _on_data(self, event: Any) -> None:
        action = str(event.action)
        if self._ours or action in ("adding", "changing", "removing"):
            return
        if action == "removed":
            gone = set(event.data_indices)
            if len(gone) == len(self._origins) - len(self.native.data):
                self._origins = [
                    origin for at, origin in enumerate(self._origins) if at not in gone
                ]
        self._touched()

    def _on_refresh(self, event: object = None) -> None:
        # What is pasted is told in no other way.
        if not self._ours and len(self.native.data) != len(self._origins):
            self._touched()

    def finish(self) -> None:
        now = np.array(self.native.data, np.float64)
        added = len(now) - len(self._origins)
        if added >= 0:  # new ones come last
            origins = self._origins + [None] * added
        else:
            origins = _origins_by_value(self._rows, now)
        if np.array_equal(now, self._rows) and origins == list(range(len(self._rows))):
            return
        if self._base is None:
            self._base = self.layer.items.setdefault(self._here, np.zeros((0, 2)))
        # First, so that what can't be told is tried again with the next edit.
        self.view.report(Change(self.layer, self._here, self._base, now, origins))
        self._base, self._rows, self._origins = now, now.copy(), list(range(len(now)))


def _origins_by_value(rows: npt.NDArray[Any], now: npt.NDArray[Any]) -> list[int | None]:
    """Which points are left, where nothing tells it but their coordinates."""
    where: dict[bytes, list[int]] = {}
    for at in reversed(range(len(rows))):
        where.setdefault(rows[at].tobytes(), []).append(at)
    return [
        found.pop() if (found := where.get(row.tobytes())) else None
        for row in np.ascontiguousarray(now)
    ]
