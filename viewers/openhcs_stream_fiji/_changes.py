"""What a person made of a ROI or of points, with everything that was left alone exactly as it was.

A ROI goes to ImageJ and back with small losses (float32, Latin-1, a group's colour). So it is
compared with what ImageJ had of it before, and only what differs is taken over.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.rois import Roi
from openhcs_stream_fiji._reading import as_color, as_properties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._hyperstack import Hyperstack
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._reading import NativeReader

__all__ = ["Comparison", "Positions", "aligned", "close", "points_of"]

#: What tells that a ROI was moved or reshaped.
_GEOMETRY: Final = (
    "getXBase", "getYBase", "getFloatWidth", "getFloatHeight", "getLength", "getCornerDiameter",
    "getType",
)  # fmt: skip
#: Fields of a ROI that ImageJ tells one by one.
_ATTRIBUTES: Final[Mapping[str, str]] = {
    "name": "getName",
    "group": "getGroup",
    "stroke_width": "getStrokeWidth",
    "stroke_color": "getStrokeColor",
    "fill_color": "getFillColor",
    "properties": "getProperties",
}
#: Fields of a ROI that make up its shape.
_SHAPE: Final = ("kind", "coordinates", "details", "imagej_options")
_FIELDS: Final = tuple(each.name for each in dataclasses.fields(Roi))
_POSITION: Final = ("getPosition", "getCPosition", "getZPosition", "getTPosition")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares ImageJ's ROIs with what they were.

    Attributes
    ----------
    java : Java
    bulk : Bulk
    reader : NativeReader
    """

    java: Java
    bulk: Bulk
    reader: NativeReader

    def changed(
        self,
        bases: Sequence[Roi],
        before: Any,
        now: Any,
        deep: npt.NDArray[np.bool_],
    ) -> list[Roi]:
        """Give each ROI as it is now: the very object of `bases` where nothing was changed.

        Positions are left as they were.

        Parameters
        ----------
        bases : list of Roi
            As they were.
        before : Java array
            What ImageJ made of `bases`.
        now : Java array
            What it has of them now.
        deep : (N,) bool
            Those whose vertices are to be compared, whatever else tells of them.
        """
        made: list[dict[str, Any]] = [{} for _ in bases]
        for field, getter in _ATTRIBUTES.items():
            old, new = self.bulk.numbers(before, getter), self.bulk.numbers(now, getter)
            for index in np.flatnonzero(old != new).tolist():
                match field:
                    case "name":
                        value: Any = str(now[index].getName() or "")
                    case "properties":
                        was, has = (
                            as_properties(str(natives[index].getProperties() or ""))
                            for natives in (before, now)
                        )
                        value = _merged(bases[index].properties, was, has)
                    case "group":
                        value = int(new[index])
                    case "stroke_width":
                        value = float(new[index])
                    case _:
                        value = as_color(int(new[index]))
                made[index][field] = value
        moved = deep.copy()
        for getter in _GEOMETRY:
            moved |= self.bulk.numbers(before, getter) != self.bulk.numbers(now, getter)
        indices = np.flatnonzero(moved)
        shapes = (self.reader.shapes(self.bulk.take(each, indices)) for each in (before, now))
        for index, was, has in zip(indices.tolist(), *shapes, strict=True):
            if was is not None and has is not None:
                made[index] |= _reshaped(bases[index], was, has)
        usual = as_color(int(self.java.Roi.getColor().getRGB()))
        return [
            _applied(base, fields, usual) if fields else base
            for base, fields in zip(bases, made, strict=True)
        ]


def _reshaped(base: Roi, before: Roi, now: Roi) -> dict[str, Any]:
    """Fields of the shape that differ; vertices that were not moved stay exactly as they were."""
    fields = {field: getattr(now, field) for field in _SHAPE}
    if before.kind != now.kind:
        return fields
    fields = {
        field: value
        for field, value in fields.items()
        if not np.array_equal(getattr(before, field), value)
    }
    xy = fields.get("coordinates")
    if xy is not None and len(xy) == len(base.coordinates):
        fields["coordinates"] = np.where(close(base.coordinates, xy)[:, None], base.coordinates, xy)
    return fields


def _applied(base: Roi, fields: Mapping[str, Any], usual_color: str) -> Roi:
    """A ROI with some fields changed; itself where that changes nothing."""
    if fields.keys() == {"stroke_color"} and not (base.stroke_color or base.fill_color):
        # To look at a ROI's properties gives it the colour that it is drawn in.
        if fields["stroke_color"] == usual_color:
            return base
    if fields.keys().isdisjoint(_SHAPE):
        # ImageJ's own values need no checks.
        every = {name: getattr(base, name) for name in _FIELDS} | dict(fields)
        return Roi.unchecked(**every)
    made = base.replace(**fields)
    return base if made == base else made


def _merged(
    base: Mapping[str, str], before: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, str]:
    """Properties with what differs between before and now."""
    made = {key: value for key, value in base.items() if key in now or key not in before}
    return made | {key: value for key, value in now.items() if before.get(key) != value}


# --- places -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Positions:
    """Where ImageJ has ROIs on an image: 0 for any, and where the image has but one.

    Attributes
    ----------
    bulk : Bulk
    image : Hyperstack or None
    """

    bulk: Bulk
    image: Hyperstack | None

    def of(self, natives: Any) -> list[Position]:
        """Of each ROI."""
        told = np.stack([self.bulk.numbers(natives, name) for name in _POSITION], axis=1)
        rows, inverse = np.unique(told, axis=0, return_inverse=True)
        found = [self._plain(flat, czt) for flat, *czt in rows.tolist()]
        return [found[index] for index in inverse.ravel().tolist()]

    def of_slice(self, number: int) -> Position:
        """Of a slice of the stack."""
        return self._plain(number, (0, 0, 0))

    def plain(self, position: Sequence[int]) -> Position:
        """Without what says nothing, because the image has but one."""
        lengths = (2, 2, 2) if self.image is None else self.image.extent.shape
        c, z, t = (
            0 if length == 1 else number for number, length in zip(position, lengths, strict=True)
        )
        return c, z, t

    def _plain(self, flat: int, czt: Sequence[int]) -> Position:
        if flat > 0 and not any(czt):
            if self.image is None:
                return (0, flat, 0)
            czt = [int(number) for number in self.image.imp.convertIndexToPosition(flat)]
        return self.plain(czt)


# --- points -----------------------------------------------------------------------------------


def points_of(native: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """(N, 2) y, x of a multi-point, and the number of the slice of each, 0 for all."""
    polygon = native.getFloatPolygon()
    count = int(polygon.npoints)
    xy = np.array([np.array(polygon.xpoints), np.array(polygon.ypoints)], np.float64)
    slices = np.zeros(count, np.intp)
    if int(native.getPosition()) != 0:
        slices[:] = [int(native.getPointPosition(index)) for index in range(count)]
    return np.ascontiguousarray(xy[::-1, :count].T), slices


def aligned(base: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> list[int | None]:
    """For each point the one of `base` that it was; None for those that are new.

    Those that are where they were are found in order; of the others as many as there were between
    them before are taken for the same, moved.
    """
    origins: list[int | None] = [None] * len(now)
    shorter = min(len(base), len(now))
    start = _leading(close(base[:shorter], now[:shorter]))
    rest = shorter - start
    end = _leading(close(base[len(base) - rest :], now[len(now) - rest :])[::-1])
    origins[:start] = range(start)
    origins[len(now) - end :] = range(len(base) - end, len(base))
    old, new = range(start, len(base) - end), range(start, len(now) - end)
    if len(old) == len(new):
        origins[new.start : new.stop] = old
        return origins
    at = old.start
    for index in new:
        found = np.flatnonzero(close(base[at : old.stop], now[index]))
        if len(found):
            origins[index] = at + int(found[0])
            at += int(found[0]) + 1
    return origins


def close(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether points are the same but for ImageJ's arithmetic: (N,) bool.

    It keeps vertices in float32 relative to their bounds, which move when one of them does.
    """
    if not one.size:
        return np.zeros(len(one), np.bool_)
    largest = np.float32(max(1.0, float(np.abs(one).max())))
    return np.asarray((np.abs(one - other) <= 4 * np.spacing(largest)).all(axis=-1), np.bool_)


def _leading(same: npt.NDArray[np.bool_]) -> int:
    """How many of the first are."""
    return len(same) if same.all() else int(np.argmin(same))
