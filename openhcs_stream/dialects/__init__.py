"""Other people's wires: read at the edge, and turned into our own items there."""

from __future__ import annotations

from openhcs_stream.dialects._base import Dialect, ForeignBatch, ForeignItem
from openhcs_stream.dialects._openhcs1 import OpenHCS1, ipc_address
from openhcs_stream.dialects._registry import DIALECTS, dialect_for
from openhcs_stream.dialects._vocabulary import (
    ItemPlace,
    contrast_limits,
    read_axes,
    read_colormap,
    read_modes,
    read_place,
)

__all__ = [
    "DIALECTS",
    "Dialect",
    "ForeignBatch",
    "ForeignItem",
    "ItemPlace",
    "OpenHCS1",
    "contrast_limits",
    "dialect_for",
    "ipc_address",
    "read_axes",
    "read_colormap",
    "read_modes",
    "read_place",
]
