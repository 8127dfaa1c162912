"""Tracks: lines through time, which stand on the time slider where they can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream_napari._shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from openhcs_stream.viewer import Axis, Coords
    from openhcs_stream_napari._shown import View

__all__ = ["Tracks"]

#: napari 0.9 takes 8 bytes for each number up to the largest, and no more than 32 bits of it.
_MAX_NUMBER = 1 << 20


class Tracks(Shown):
    """Tracks have their time in the data; it stands on the world's time slider where it can.

    napari aligns the last axes of a layer with those of the world, and a tracks layer has at most
    (time, z, y, x). So time must be the last slider, or the one before z. Where it is not, all
    of each track is shown at any time.
    """

    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Tracks as Native

        self._here = self._now(view)
        rows = self._rows(view)
        return Native(
            rows,
            tail_width=3,
            **self._common(view, opacity=1.0, blending="translucent"),
            **self._geometry(view, rows.shape[1] - 1),
        )

    def _geometry(self, view: View, ndim: int) -> dict[str, Any]:
        spec = self.layer.spec
        units = view.units(spec.pixel_size, spec.unit)
        # Columns for which there is no slider.
        own = ("time", "z")[: max(0, ndim - len(view.axes) - 2)]
        sized = "z" in own and len(spec.pixel_size) > 2
        z = (float(spec.pixel_size[0]), units[-1]) if sized else (1.0, "pixel")
        steps = [z if name == "z" else (1.0, "pixel") for name in own]
        return {
            "scale": (*(size for size, _ in steps), *view.scale(spec.pixel_size))[-ndim:],
            "units": (*(unit for _, unit in steps), *units)[-ndim:],
            "axis_labels": (*own, *view.labels)[-ndim:],
        }

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self.restyle()
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self._swap(view)

    def moved(self, view: View) -> None:
        if self._now(view) != self._here:
            self._swap(view)

    def fit(self, view: View) -> bool:
        self._swap(view)
        return True

    def _now(self, view: View) -> tuple[object, ...]:
        return (view.coords(self.layer.components), view.here.get("z"), view.axes)

    def _swap(self, view: View) -> None:
        self._here = self._now(view)
        rows = self._rows(view)
        self.native.data = rows
        for name, value in self._geometry(view, rows.shape[1] - 1).items():
            setattr(self.native, name, value)

    def _rows(self, view: View) -> npt.NDArray[Any]:
        """(N, 4 or 5): track, time, (z,) y, x, in steps of the sliders."""
        components = tuple(axis.component for axis in view.axes)
        found = self.layer.items.get(view.coords(self.layer.components))
        deep = "Z" in self.layer.spec.axes  # columns: track, T, Z where there is one, Y, X
        rows = np.zeros((0, 5 if deep else 4)) if found is None else np.asarray(found, np.float64)
        zeros = np.zeros(len(rows))
        time = _to_steps(rows[:, 1], "time", view.axes)
        z = _to_steps(rows[:, 2], "z", view.axes) if deep else None
        has_z = components[-1:] == ("z",)
        before_y = components[-2:-1] if has_z else components[-1:]
        if not components:
            columns = [time, *([z] if z is not None else [])]
        else:
            if before_y != ("time",):  # timeless: at whatever step that slider has
                time = zeros
            columns = [time]
            if has_z:
                here = view.here.get("z")
                step = view.axes[-1].values.index(here) if here is not None else 0
                columns.append(np.full(len(rows), float(step)) if z is None else z)
        if len(rows) == 0:
            # napari 0.9 can't take tracks without any; a track of one vertex draws no line.
            return np.zeros((1, 3 + len(columns)))
        return np.column_stack([_numbers(rows[:, 0]), *columns, rows[:, -2:]])


def _numbers(sent: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Tracks' numbers as napari can take them: the worker's, or 0, 1, 2, ... in their order."""
    if np.all((sent >= 0) & (sent <= _MAX_NUMBER) & (sent == np.rint(sent))):
        return sent
    return np.unique(sent, return_inverse=True)[1].astype(np.float64)


def _to_steps(values: npt.NDArray[Any], component: str, axes: tuple[Axis, ...]) -> npt.NDArray[Any]:
    """Values of a component as steps of its slider, between them where a value lies between."""
    for axis in axes:
        if axis.component == component:
            known = np.array([v for v in axis.values if isinstance(v, int)], dtype=np.float64)
            if known.size:
                steps: npt.NDArray[Any] = np.interp(
                    values, known, np.arange(known.size, dtype=np.float64)
                )
                return steps
    return values
