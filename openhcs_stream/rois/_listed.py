"""Lists: of what was given as ROIs, one or several and nothing else, and of what is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._model import Roi

__all__ = ["first_few", "listed_rois"]

#: So many of what is left out are told one by one.
_NAMED: Final = 5

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


def first_few(told: list[str], separator: str = "; ") -> str:
    """Join the first of some texts, and say how many more there are."""
    more = [f"{len(told) - _NAMED} more"] if len(told) > _NAMED else []
    return separator.join([*told[:_NAMED], *more])


def _type(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
