"""More outlines at one place than napari can show as shapes.

A shape costs napari some 0.4 ms and 40 KB, so that 100 000 of them take the window away for a
minute. From `MANY` on, a picture of all of them, a labels layer without tools, gives the overview;
where no more than `IN_VIEW` are in view, these become shapes, which can be edited as always.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.rois import to_labels, to_mask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.rois import Roi
    from openhcs_stream_napari._shown import Shown

__all__ = ["IN_VIEW", "MANY", "Crowd"]

#: From so many at one place on there is an overview.
MANY = 2000
#: So many shapes are drawn at a time then.
IN_VIEW = 1000
#: The camera must stand still for so long before shapes are drawn for what is in view.
STILL_S = 0.25
#: Rows and columns up to which the overview reaches; what lies beyond is drawn as shapes.
FARTHEST = 1 << 16
#: Pixels of the overview; a larger one shows boxes, on a coarser grid.
MOST_PIXELS = 1 << 26
#: Changes that are painted into the overview one by one.
FEW_CHANGES = 500
#: Overviews that are kept for when the slider comes back.
KEPT = 3


@dataclass(slots=True)
class _Picture:
    """The overview of one list."""

    rois: Sequence[Roi]
    boxes: npt.NDArray[np.float64]  #: (N, 4): left, top, right, bottom
    inside: npt.NDArray[np.bool_]  #: which lie in it as a whole
    labels: npt.NDArray[Any]
    stride: int


class Crowd:
    """Decides which ROIs of a list are shown as shapes, and shows an overview of the others.

    Parameters
    ----------
    shown : Shown
        The layer whose shapes they are.
    """

    def __init__(self, shown: Shown) -> None:
        self.notice = ""
        self._shown = shown
        self._pictures: list[_Picture] = []
        self._native: Any = None
        self._is_wanted = False
        #: What part of the world was looked at last, since when, and for what shapes are drawn.
        self._window: Any = None
        self._since = 0.0
        self._drawn: npt.NDArray[np.float64] | None = None
        #: Of strokes without a width of their own, pixels: thinner where the camera is near.
        self.stroke = float("inf")

    @property
    def natives(self) -> tuple[Any, ...]:
        """The overview's napari layer, where there is one."""
        return () if self._native is None else (self._native,)

    # --- which shapes ---------------------------------------------------------------------------

    def choose(self, rois: Sequence[Roi]) -> Sequence[int]:
        """Tell which ROIs of a list are to be shapes now, and show the overview of the others."""
        self.stroke = float("inf")
        if len(rois) < MANY:
            self._drawn = None
            self._set(None)
            self.notice = ""
            return range(len(rois))
        picture = self._picture(rois)
        window = self._in_pixels()
        chosen = _touching(picture.boxes, window)
        title = self._shown.layer.title
        if len(chosen) <= IN_VIEW:
            around = _grown(window)
            more = _touching(picture.boxes, around)
            self._drawn, chosen = (around, more) if len(more) <= IN_VIEW else (window, chosen)
            self.stroke = float(window[3] - window[1]) / 300
            self._set(None)
            self.notice = f"{title}: {len(chosen)} of {len(rois)} outlines are near and drawn"
        else:
            self._drawn = None
            chosen = np.flatnonzero(~picture.inside)[:IN_VIEW]
            self._set(picture)
            self.notice = (
                f"{title}: {len(rois)} outlines in an overview; zoom in to {IN_VIEW} to edit them"
            )
        return [int(at) for at in chosen]

    def wants_others(self, rois: Sequence[Roi]) -> bool:
        """Whether other shapes should be drawn now: the camera was moved, and stands still."""
        if len(rois) < MANY:
            return False
        is_visible = self._shown.native.visible
        if self._is_wanted and self._native is not None and self._native.visible != is_visible:
            self._native.visible = is_visible
        window = self._in_pixels()
        now = time.monotonic()
        if self._window is None or not np.array_equal(window, self._window):
            self._window, self._since = window, now
            return False
        if now - self._since < STILL_S:
            return False
        self._since = float("inf")  # once each time it stands still
        if self._drawn is not None and _contains(self._drawn, window):
            return False
        is_near = len(_touching(self._picture(rois).boxes, window)) <= IN_VIEW
        return is_near or self._drawn is not None

    def follow(
        self,
        before: Sequence[Roi],
        now: Sequence[Roi],
        *,
        removed: Sequence[int],
        changed: Mapping[int, Roi],
        added: Sequence[Roi],
    ) -> None:
        """A person has changed the list; numbers are places in it before."""
        picture = next((each for each in self._pictures if each.rois is before), None)
        if picture is None or len(now) < MANY:
            return
        self._pictures.remove(picture)
        if picture.stride > 1 or len(removed) + len(changed) + len(added) > FEW_CHANGES:
            return
        for at in (*removed, *changed):
            _paint(picture.labels, before[at], None)
        new = [*changed.values(), *added]
        free = int(picture.labels.max()) + 1
        if free + len(new) > np.iinfo(picture.labels.dtype).max:
            picture.labels = picture.labels.astype(np.uint32)
        for number, roi in enumerate(new, start=free):
            _paint(picture.labels, roi, number)
        picture.boxes[list(changed)] = _boxes(list(changed.values()))
        picture.boxes = np.vstack([np.delete(picture.boxes, removed, axis=0), _boxes(added)])
        picture.inside = _is_inside(picture.boxes)
        picture.rois = now
        self._pictures.insert(0, picture)
        if self._is_wanted:
            self._set(picture)

    # --- the overview ---------------------------------------------------------------------------

    def show(self) -> None:
        """The layer of shapes is in the viewer now: so may be the overview."""
        if self._is_wanted and self._native is not None:
            self._insert()

    def close(self) -> None:
        """Take the overview out of the viewer."""
        layers = self._shown.view.layers
        if self._native is not None and self._native in layers:
            layers.remove(self._native)
        self._native = None

    def _set(self, picture: _Picture | None) -> None:
        self._is_wanted = picture is not None
        layers = self._shown.view.layers
        if picture is None:
            if self._native is not None:
                self._native.visible = False
            return
        if self._native is not None and self._native not in layers:
            self._native = None  # a person took it away
        shape = self._shown.native
        scale = np.asarray(shape.scale) * picture.stride
        shift = np.asarray(shape.scale) * (picture.stride - 1) / 2
        if self._native is None:
            from napari.layers import Labels

            self._native = Labels(
                picture.labels,
                name=f"{self._shown.layer.title} (overview)",
                opacity=0.5,
                visible=shape.visible,
                scale=scale,
                translate=shift,
                units=shape.units,
                axis_labels=shape.axis_labels,
            )
            self._native.editable = False
        else:
            self._native.data = picture.labels
            self._native.scale, self._native.translate = scale, shift
            self._native.editable = False
            self._native.visible = shape.visible
        if shape in layers:
            self._insert()

    def _insert(self) -> None:
        layers = self._shown.view.layers
        if self._native not in layers:
            chosen = layers.selection.active
            layers.insert(layers.index(self._shown.native), self._native)
            layers.selection.active = chosen

    def _picture(self, rois: Sequence[Roi]) -> _Picture:
        for picture in self._pictures:
            if picture.rois is rois:
                return picture
        boxes = _boxes(rois)
        inside = _is_inside(boxes)
        width, height = np.ceil(boxes[inside, 2:].max(axis=0, initial=1)).astype(int).tolist()
        stride = int(np.ceil(np.sqrt(width * height / MOST_PIXELS)))
        if stride == 1:
            labels = to_labels(rois, (height, width), warn=False)
        else:
            labels = np.zeros((-(-height // stride), -(-width // stride)), np.uint32)
            parts = np.clip(boxes / stride, 0, None).astype(int)
            for number, (left, top, right, bottom) in enumerate(parts.tolist(), start=1):
                labels[top : bottom + 1, left : right + 1] = number
        made = _Picture(rois, boxes, inside, labels, stride)
        self._pictures = [made, *self._pictures[: KEPT - 1]]
        return made

    def _in_pixels(self) -> npt.NDArray[np.float64]:
        """What is on the canvas, as left, top, right, bottom in pixels of the shapes."""
        corners = np.asarray(self._shown.view.window()) / np.asarray(self._shown.native.scale)
        (top, left), (bottom, right) = corners
        return np.array([left, top, right, bottom], np.float64)


def _boxes(rois: Sequence[Roi]) -> npt.NDArray[np.float64]:
    """(N, 4): left, top, right, bottom of each."""
    if not rois:
        return np.zeros((0, 4))
    everything = np.concatenate([roi.coordinates for roi in rois])
    starts = np.cumsum([0, *(len(roi.coordinates) for roi in rois[:-1])])
    return np.hstack(
        [np.minimum.reduceat(everything, starts), np.maximum.reduceat(everything, starts)]
    )


def _is_inside(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = np.all((boxes >= 0) & (boxes <= FARTHEST), axis=1)
    return inside


def _touching(boxes: npt.NDArray[np.float64], window: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    left, top, right, bottom = window
    return np.flatnonzero(
        (boxes[:, 0] <= right)
        & (boxes[:, 2] >= left)
        & (boxes[:, 1] <= bottom)
        & (boxes[:, 3] >= top)
    )


def _grown(window: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half = (window[2:] - window[:2]) / 2
    return np.concatenate([window[:2] - half, window[2:] + half])


def _contains(outer: npt.NDArray[np.float64], inner: npt.NDArray[np.float64]) -> bool:
    return bool((outer[:2] <= inner[:2]).all() and (outer[2:] >= inner[2:]).all())


def _paint(labels: npt.NDArray[Any], roi: Roi, number: int | None) -> None:
    """Paint one ROI into the overview, or what it had there away."""
    low = np.maximum(np.floor(roi.coordinates.min(axis=0)) - 1, 0).astype(int)
    high = np.minimum(np.ceil(roi.coordinates.max(axis=0)) + 2, labels.shape[::-1]).astype(int)
    if (high <= low).any():
        return
    part = labels[low[1] : high[1], low[0] : high[0]]
    mask = to_mask(roi.replace(coordinates=roi.coordinates - low), part.shape)
    if number is not None:
        part[mask] = number
    elif mask.any():
        values, counts = np.unique(part[mask], return_counts=True)
        part[mask & (part == values[counts.argmax()])] = 0
