"""Other people's wires: read at the edge, and turned into our own items there."""

from __future__ import annotations

from openhcs_stream.dialects._base import (
    Dialect,
    ForeignBatch,
    ForeignFailure,
    ForeignItem,
    SenderRoute,
)
from openhcs_stream.dialects._families import FAMILIES, Family, family_of, ipc_address
from openhcs_stream.dialects._openhcs import OpenHCS
from openhcs_stream.dialects._openhcs_answers import (
    Acknowledgement,
    OpenHCSViewer,
    control_request,
    read_acknowledgement,
    read_batch_reply,
    read_control_answer,
    read_settlement,
    read_viewer,
)
from openhcs_stream.dialects._openhcs_control import (
    Heartbeat,
    Progress,
    control_answer,
    pong,
    read_command,
    refusal,
)
from openhcs_stream.dialects._openhcs_out import AckRoute, OpenHCSOut, Piece
from openhcs_stream.dialects._pickles import dump_plain, load_plain
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
    "FAMILIES",
    "AckRoute",
    "Acknowledgement",
    "Dialect",
    "Family",
    "ForeignBatch",
    "ForeignFailure",
    "ForeignItem",
    "Heartbeat",
    "ItemPlace",
    "OpenHCS",
    "OpenHCSOut",
    "OpenHCSViewer",
    "Piece",
    "Progress",
    "SenderRoute",
    "contrast_limits",
    "control_answer",
    "control_request",
    "dialect_for",
    "dump_plain",
    "family_of",
    "ipc_address",
    "load_plain",
    "pong",
    "read_acknowledgement",
    "read_axes",
    "read_batch_reply",
    "read_colormap",
    "read_command",
    "read_control_answer",
    "read_modes",
    "read_place",
    "read_settlement",
    "read_viewer",
    "refusal",
]
