"""A ROI as a shape of napari, and the looks that a shape has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.rois import to_napari

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from openhcs_stream.rois import Roi

__all__ = ["STROKE", "Shape", "can_fill", "fills_are_cheap", "forget_dump", "hex_of"]

#: Vertices of areas that are painted at one place where napari has no compiled backend: it takes
#: some 0.3 ms for each, and more for each of a long outline.
MOST_FILLED = 3000
#: Pixels from the origin to where shapes are drawn. Qt counts the steps of an axis in 32 bits, and
#: another layer's pixels may be 200 times smaller; no slide is so wide. What lies farther away is
#: cut off, in the drawing alone.
FARTHEST = 4e6
#: Straight pieces of an ellipse that reaches farther.
_AROUND = 1024
#: Differences of numbers that are no larger are finite.
_FINITE = 1e300
#: The colour of outlines that have none of their own.
STROKE = "#ffff00ff"


@dataclass(frozen=True, slots=True)
class Shape:
    """One ROI as a shape of napari: a type, (N, 2) y, x, and looks."""

    type: str
    data: npt.NDArray[Any]
    width: float
    edge: str
    face: str

    @classmethod
    def of(cls, roi: Roi, width: float, *, filled: bool, faces: bool = True) -> Shape:
        """Draw a ROI.

        Parameters
        ----------
        roi : Roi
            Of any kind.
        width : float
            Of strokes that have none of their own, pixels.
        filled : bool
            Whether outlines that are not filled are areas to napari too, or closed paths.
        faces : bool
            Whether outlines that are filled are painted, or closed paths as well.
        """
        kind, data = to_napari(roi, warn=False)  # who sent it was told
        if np.abs(data).max(initial=0) > FARTHEST:
            kind, data = _cut(kind, data)
        own_width = roi.stroke_width or width
        face = roi.fill_color or "transparent"
        if kind == "points":  # a Shapes layer has no points: small diamonds
            kind, data = "path", _diamonds(data, 3 * own_width)
        elif kind == "polygon" and not (faces and roi.fill_color) and not (faces and filled):
            # An outline looks the same and costs a twentieth: without a compiled backend napari
            # takes 20 ms to triangulate an area of 60 vertices, although it is not painted.
            kind, data, face = "path", np.vstack([data, data[:1]]), "transparent"
        return cls(kind, data, own_width, roi.stroke_color or STROKE, face)

    def looks_like(self, data: npt.NDArray[Any]) -> bool:
        """Whether a shape of napari has these vertices, but for what dragging rounds."""
        mine, yours = _open(self.data), _open(data)
        return mine.shape == yours.shape and bool(np.abs(mine - yours).max(initial=0) < 0.05)


def _open(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return data[:-1] if len(data) > 2 and np.array_equal(data[0], data[-1]) else data


def _cut(kind: str, data: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any]]:
    """Cut off what reaches beyond `FARTHEST`: what is nearer stays where it is.

    Each edge gets a vertex where it leaves that square, then what is outside is moved to its rim.
    """
    data = np.clip(data, -_FINITE, _FINITE)
    if kind == "ellipse":
        angle = np.linspace(0, 2 * np.pi, _AROUND, endpoint=False)[:, None]
        along, across = (data[1] - data[0]) / 2, (data[3] - data[0]) / 2
        data = data[0] + along + across + along * np.cos(angle) + across * np.sin(angle)
        kind = "polygon"
    upright = kind == "rectangle" and not np.abs(data - np.roll(data, 1, axis=0)).min(axis=1).any()
    if not (upright or kind == "points"):
        kind = {"rectangle": "polygon", "line": "path"}.get(kind, kind)
        ends = np.roll(data, -1, axis=0) if kind == "polygon" else data[1:]
        vertices = []
        for start, end in zip(data, ends, strict=False):
            step = end - start
            rims = [
                (rim - start[axis]) / step[axis]
                for axis in np.flatnonzero(step)
                for rim in (-FARTHEST, FARTHEST)
            ]
            vertices += [start, *(start + at * step for at in sorted(rims) if 0 < at < 1)]
        data = np.array(vertices if kind == "polygon" else [*vertices, data[-1]])
    return kind, np.clip(data, -FARTHEST, FARTHEST)


def _diamonds(points: npt.NDArray[Any], radius: float) -> npt.NDArray[Any]:
    """(N, 2) y, x to one path that goes around each: there is one shape for each ROI."""
    around = np.array([(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 0)], dtype=np.float64) * radius
    return np.concatenate([point + around for point in points])


def hex_of(rgba: npt.NDArray[Any]) -> str:
    """napari's colour, four numbers from 0 to 1, as ROIs have it."""
    return "#" + "".join(f"{round(min(max(float(part), 0.0), 1.0) * 255):02x}" for part in rgba)


def can_fill(rois: Iterable[Roi]) -> bool:
    """Whether napari can paint the areas of a list without keeping a person waiting."""
    vertices = sum(
        len(roi.coordinates) for roi in rois if roi.fill_color and roi.row.napari == "polygon"
    )
    return vertices <= MOST_FILLED or fills_are_cheap()


def fills_are_cheap() -> bool:
    """Whether one of napari's compiled triangulation backends is there: ``napari[bermuda]``."""
    from importlib.util import find_spec

    return any(find_spec(name) for name in ("bermuda", "PartSegCore_compiled_backend", "triangle"))


def forget_dump(text: str) -> None:
    """Remove the files into which napari writes a polygon that it could not cut."""
    for path in re.findall(r"\S*napari_\w*_triang_\S*?\.(?:npz|txt)", text):
        Path(path).unlink(missing_ok=True)
