"""Colours that people expect for channels by their names: one table for all viewers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["channel_colormap"]

#: Usual names of channels, as regular expressions, and the colormap that people expect for them.
#: ~ stands for any separator. "bop blue", since pure blue is too dark for the eye on black.
_CHANNELS: tuple[tuple[str, str], ...] = (
    (r"dapi|hoechst|bfp|nuclei|nuclear|dna|af?405|alexa~(fluor~)?405", "bop blue"),
    (r"e?cfp|cerulean|turquoise", "cyan"),
    (r"e?yfp|venus|citrine", "yellow"),
    (r"e?gfp|fitc|af?488|alexa~(fluor~)?488|m?neon~green|syto|calcein", "green"),
    (r"rfp|tritc|cy~3|af?(546|555|568)|alexa~(fluor~)?(546|555|568)|phalloidin", "bop orange"),
    (r"m?cherry|td~tomato|texas~red|af?594|alexa~(fluor~)?594|mito~tracker|ds~red", "red"),
    (r"cy~(5|5~5|7)|af?(633|647|680|750)|alexa~(fluor~)?(633|647|680|750)|far~red", "magenta"),
    (r"bf|bright~field|phase|dic|transmitted|trans|tl", "gray"),
)

#: For channels of other names, in the order in which they come.
_CYCLE = ("cyan", "magenta", "yellow", "green", "red", "bop blue")


def channel_colormap(channel: str, taken: Collection[str] = ()) -> str:
    """Choose a colormap for a channel: by its name, else the first of a cycle that is not `taken`.

    The names are napari's: "gray", "red", ..., "bop blue", "bop orange".
    """
    for pattern, colormap in _CHANNELS:
        # A whole word, digits beside it or not: "w1DAPI", "GFP 2"; "transfected" is no "trans".
        whole = rf"(?<![a-z])({pattern.replace('~', r'[^a-z0-9]*')})(?![a-z])"
        if re.search(whole, channel.lower()):
            return colormap
    free = [colormap for colormap in _CYCLE if colormap not in taken]
    return free[0] if free else _CYCLE[len(taken) % len(_CYCLE)]
