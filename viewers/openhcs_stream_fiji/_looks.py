"""Lookup tables: ImageJ's own, those that napari's users name, and plain colours."""

from __future__ import annotations

import colorsys
import logging
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from openhcs_stream_fiji._java import Java

__all__ = ["label_lut", "lut", "parse_color"]

_log = logging.getLogger(__name__)

#: Ramps from black to a colour.
_COLORS: Final[dict[str, str]] = {
    "gray": "#ffffff",
    "red": "#ff0000",
    "green": "#00ff00",
    "blue": "#0000ff",
    "cyan": "#00ffff",
    "magenta": "#ff00ff",
    "yellow": "#ffff00",
    "orange": "#ff8000",
    "bop blue": "#20adf8",
    "bop orange": "#f8ad20",
    "bop purple": "#ad20f8",
    "white": "#ffffff",
}

#: What others call them.
_ALIASES: Final[dict[str, str]] = {
    "grays": "gray",
    "grey": "gray",
    "greys": "gray",
    "r": "red",
    "g": "green",
    "b": "blue",
    "c": "cyan",
    "m": "magenta",
    "y": "yellow",
    "k": "gray",
}

#: matplotlib's, at equal steps: straight lines between them differ by less than the eye sees.
_STOPS: Final[dict[str, tuple[str, ...]]] = {
    "viridis": ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779",
                "#6ece58", "#b5de2b", "#fde725"),
    "magma": ("#000004", "#180f3d", "#440f76", "#721f81", "#9e2f7f", "#cd4071", "#f1605d",
              "#fd9668", "#feca8d", "#fcfdbf"),
    "inferno": ("#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925",
                "#fb9b06", "#f7d13d", "#fcffa4"),
    "plasma": ("#0d0887", "#46039f", "#7201a8", "#9c179e", "#bd3786", "#d8576b", "#ed7953",
               "#fb9f3a", "#fdca26", "#f0f921"),
}  # fmt: skip

_HEX: Final = re.compile(r"#[0-9a-fA-F]{6}(?:[0-9a-fA-F]{2})?")


def lut(java: Java, name: str) -> Any:
    """ImageJ's `LUT` for a name: ImageJ's own, napari's, a colour's or "#rrggbb".

    A name that nobody knows gives grey levels, and a line in the log.
    """
    plain = " ".join(name.lower().split())
    plain = _ALIASES.get(plain, plain)
    if plain in _COLORS:
        return _to_java(java, _ramp(_rgb(_COLORS[plain])))
    if _HEX.fullmatch(name):
        return _to_java(java, _ramp(_rgb(name)))
    for candidate in (plain, plain.removeprefix("mpl-")):
        if candidate in _STOPS:
            return _to_java(java, _between([_rgb(stop) for stop in _STOPS[candidate]]))
    # Fire, Ice, Spectrum ..., and what lies in the luts folder of a Fiji.
    for candidate in (plain, name, name.title(), f"mpl-{plain}"):
        model = java.LutLoader.getLut(candidate)
        if model is not None:
            return java.LUT(model, 0.0, 0.0)
    _log.warning("ImageJ has no lookup table %r: it is shown in grey", name)
    return _to_java(java, _ramp((255, 255, 255)))


def label_lut(java: Java) -> Any:
    """For label images: black, then 255 colours of which neighbours differ."""
    table = np.zeros((256, 3), np.uint8)
    for number in range(1, 256):
        # The golden angle never comes near a hue that it just had.
        hue = number * 0.618034 % 1.0
        saturation = (0.95, 0.6, 0.8)[number % 3]
        value = (1.0, 0.9, 0.7)[number // 3 % 3]
        table[number] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)]
    return _to_java(java, table)


def parse_color(java: Java, color: str) -> Any:
    """java.awt.Color of "#rrggbbaa"; None of an empty text."""
    if not color:
        return None
    red, green, blue, alpha = bytes.fromhex(color[1:])
    return java.Color(red, green, blue, alpha)


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color[1:7])
    return red, green, blue


def _ramp(color: Sequence[int]) -> npt.NDArray[np.uint8]:
    return _between([(0, 0, 0), color])


def _between(stops: Sequence[Sequence[int]]) -> npt.NDArray[np.uint8]:
    at = np.linspace(0, 255, len(stops))
    columns = np.asarray(stops, np.float64).T
    table = np.stack([np.interp(np.arange(256), at, column) for column in columns], axis=1)
    return np.asarray(np.rint(table), np.uint8)


def _to_java(java: Java, table: npt.NDArray[np.uint8]) -> Any:
    return java.LUT(*(java.bytes(np.ascontiguousarray(column).view(np.int8)) for column in table.T))
