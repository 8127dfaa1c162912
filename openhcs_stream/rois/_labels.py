"""Outlines of label images, on the pixels' corners: they enclose exactly those pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._model import Roi

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["from_labels"]


def from_labels(labels: npt.ArrayLike, *, simple: bool = False) -> list[Roi]:
    """Outline each label of a label image.

    Parameters
    ----------
    labels : (Y, X) array of integers or bool
        0 is background. Pixels of one label that touch at a corner belong together.
    simple : bool
        Leave out holes and all parts but the largest, so that each label is one plain polygon.

    Returns
    -------
    list of Roi
        One for each label, in the order of the labels, named by its number: a polygon, or a
        composite where the label has holes or several parts. Vertices are pixel corners, so that
        ImageJ's rule (and any even-odd rule at pixel centres) gives back exactly its pixels.

    Raises
    ------
    InvalidItem
        The array is no label image.
    """
    image = np.asarray(labels)
    if image.ndim != 2 or image.dtype.kind not in "biu":
        raise InvalidItem(
            f"an array of shape {image.shape} and dtype {image.dtype} is no label image.",
            cure="Pass one (Y, X) plane of integers, 0 where there is nothing.",
        )
    if image.dtype.kind == "b":
        image = image.view(np.uint8)
    if not image.any():
        return []
    corners, starts, numbers = _Edges(image).loops()
    ends = np.append(starts[1:], len(corners))
    after = np.arange(1, len(corners) + 1)
    after[ends - 1] = starts
    x, y = corners[:, 0], corners[:, 1]
    # Outer boundaries run clockwise (y points down) and are positive here, holes negative.
    areas = np.add.reduceat(x * y[after] - y * x[after], starts)
    # Sorted by label, then by falling area: the first loop of each label is its largest.
    order = np.lexsort((-areas, numbers))
    found, first = np.unique(numbers[order], return_index=True)
    corners.setflags(write=False)
    bounds = [*first.tolist(), len(order)]
    made: list[Roi] = []
    for i, label in enumerate(found.tolist()):
        loops = order[bounds[i] : bounds[i + 1]].tolist()
        if len(loops) == 1 or simple:
            vertices = corners[starts[loops[0]] : ends[loops[0]]]
            made.append(
                Roi.unchecked("polygon", vertices, str(label), "", "", 0.0, 0, (0, 0, 0), {})
            )
        else:
            parts = [corners[starts[loop] : ends[loop]] for loop in loops]
            made.append(Roi.of_rings(parts, name=str(label)))
    return made


class _Edges:
    """The pixel edges between a label and anything else, each linked to the one that follows.

    The sides of a pixel are walked clockwise: 0 along the top to the right, 1 down the right side,
    2 along the bottom to the left, 3 up the left side. The pixel is always on the right hand, so
    outer boundaries run clockwise and holes the other way round. An edge is named by its pixel
    (in the padded image, flattened) times 4 plus its side.
    """

    def __init__(self, image: npt.NDArray[Any]) -> None:
        padded = np.zeros((image.shape[0] + 2, image.shape[1] + 2), image.dtype)
        padded[1:-1, 1:-1] = image
        width = padded.shape[1]
        flat = padded.ravel()
        # Only pixels that have a neighbour of another label: most of a large label have none.
        core = flat[width:-width]
        border = np.zeros(len(core), np.bool_)
        for step in (-width, -1, 1, width):
            border |= core != flat[width + step : len(flat) - width + step]
        inside = np.flatnonzero(border & (core != 0)) + width
        #: Steps to the neighbour beyond each side, and forward along each side.
        beyond = np.array([-width, 1, width, -1])
        forward = np.array([1, width, -1, -width])
        different = flat[inside[:, None] + beyond] != flat[inside][:, None]
        which, side = np.nonzero(different)
        pixel = inside[which]
        label = flat[pixel]
        ahead_right = pixel + forward[side]
        ahead_left = ahead_right + beyond[side]
        turns_left = flat[ahead_left] == label
        goes_on = ~turns_left & (flat[ahead_right] == label)
        next_pixel = np.where(turns_left, ahead_left, np.where(goes_on, ahead_right, pixel))
        next_side = (side + np.where(turns_left, 3, np.where(goes_on, 0, 1))) % 4
        names = pixel * 4 + side
        # The edges are in the order of their names, as flatnonzero and nonzero give them.
        self._next = np.searchsorted(names, next_pixel * 4 + next_side)
        self._turns = ~goes_on
        self._label = label
        # The corner where an edge ends, counted in the image without its padding.
        row, column = np.divmod(pixel, width)
        self._end_x = (column - 1) + np.isin(side, (0, 1))
        self._end_y = (row - 1) + np.isin(side, (1, 2))

    def loops(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp], npt.NDArray[Any]]:
        """Walk every boundary once.

        Returns
        -------
        corners : (N, 2) float64
            x, y of the turns of all boundaries, one boundary after the other.
        starts : (M,) int
            Where each boundary begins in `corners`.
        labels : (M,) int
            The label that each boundary belongs to.
        """
        follows, turns = self._next.tolist(), self._turns.tolist()
        seen = bytearray(len(follows))
        order: list[int] = []
        starts: list[int] = []
        for first in range(len(follows)):
            if seen[first]:
                continue
            starts.append(len(order))
            edge = first
            while not seen[edge]:
                seen[edge] = 1
                if turns[edge]:
                    order.append(edge)
                edge = follows[edge]
        at = np.array(order)
        begins = np.array(starts)
        corners = np.stack([self._end_x[at], self._end_y[at]], axis=1).astype(np.float64)
        return corners, begins, self._label[at[begins]]
