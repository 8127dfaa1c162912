"""What was given as ROIs, as a list: one ROI or several, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._model import Roi

__all__ = ["listed_rois"]

_CURE = "Pass Roi objects; rois.coerce makes them of arrays and of other packages' objects."


def listed_rois(rois: Any) -> list[Roi]:
    """Give a list of one ROI, or of several.

    Raises
    ------
    InvalidItem
        Something is no `Roi`; the text names its type.
    """
    if isinstance(rois, Roi):
        return [rois]
    if isinstance(rois, (str, bytes)) or not isinstance(rois, Iterable):
        raise InvalidItem(f"an object of type {_type(rois)} is no list of ROIs.", cure=_CURE)
    listed = list(rois)
    for number, roi in enumerate(listed):
        if not isinstance(roi, Roi):
            raise InvalidItem(f"item {number}, of type {_type(roi)}, is no Roi.", cure=_CURE)
    return listed


def _type(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
