"""How things look when nobody said so: colours of channels, contrast, units, sizes."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

__all__ = [
    "Contrast",
    "contrast_of",
    "known_colormap",
    "known_unit",
]

_log = logging.getLogger(__name__)

#: What ImageJ calls its lookup tables.
_IMAGEJ_LUTS = {
    "grays": "gray",
    "grey": "gray",
    "greys": "gray",
}


def known_colormap(name: str) -> str | None:
    """napari's name of a colormap, or None (and a line in the log) where it has no such."""
    from napari.utils.colormaps import AVAILABLE_COLORMAPS, ensure_colormap

    for candidate in (name, name.lower(), _IMAGEJ_LUTS.get(name.lower(), "")):
        if not candidate:
            continue
        if candidate in AVAILABLE_COLORMAPS:
            return candidate
        try:
            return str(ensure_colormap(candidate).name)
        except (KeyError, ValueError, TypeError):
            continue
    _log.warning("napari has no colormap %r: the viewer chooses one", name)
    return None


def known_unit(name: str) -> str:
    """A unit that napari can scale, "pixel" where there is none (or it is unknown)."""
    if not name:
        return "pixel"
    import pint

    plain = {"micron": "um", "microns": "um", "\N{GREEK SMALL LETTER MU}m": "um"}.get(name, name)
    try:
        return str(pint.get_application_registry().Unit(plain))
    except (pint.UndefinedUnitError, ValueError, AttributeError, TypeError):
        _log.warning("unknown unit %r: sizes are shown without a unit", name)
        return "pixel"


class Contrast:
    """Contrast limits, the range of their slider, and whether the data said anything about them."""

    __slots__ = ("informed", "limits", "range")

    def __init__(
        self, limits: tuple[float, float], range_: tuple[float, float], *, informed: bool
    ) -> None:
        self.limits = limits
        self.range = range_
        #: False: every sampled pixel had the same value, so the next data may decide.
        self.informed = informed


def contrast_of(planes: Iterable[npt.NDArray[Any]], dtype: np.dtype[Any]) -> Contrast:
    """Contrast from a sample of at most some 256 x 256 pixels of each plane.

    The limits are the 0.1 and 99.9 percentiles, so that a few hot pixels don't darken the rest;
    the slider reaches over the whole bit depth that the data seems to have.
    """
    samples = [_sample(plane) for plane in planes]
    values = np.concatenate(samples) if samples else np.zeros(0)
    values = values[np.isfinite(values)]
    if dtype.kind == "b":
        return Contrast((0.0, 1.0), (0.0, 1.0), informed=True)
    if values.size == 0:
        return Contrast((0.0, 1.0), (0.0, 1.0), informed=False)
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        limits = (min(lowest, 0.0), max(highest, 1.0))
        return Contrast(limits, _reach(limits, dtype), informed=False)
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    if high <= low:  # fewer than one pixel in a thousand differs: they are what matters
        low, high = lowest, highest
    return Contrast((low, high), _reach((lowest, highest), dtype), informed=True)


def _sample(plane: npt.NDArray[Any], most: int = 256) -> npt.NDArray[np.float64]:
    steps = tuple(slice(None, None, max(1, length // most)) for length in plane.shape[:2])
    return np.asarray(plane[steps], dtype=np.float64).ravel()


def _reach(limits: tuple[float, float], dtype: np.dtype[Any]) -> tuple[float, float]:
    """The range of the contrast slider: whole bits for integers (12-bit data: 0 to 4095)."""
    low, high = limits
    if dtype.kind not in "iu":
        return low, high
    top = float(2 ** math.ceil(math.log2(max(abs(low), abs(high), 1.0) + 1)) - 1)
    return (0.0, top) if low >= 0 else (-top - 1, top)
