"""The worker's face: `connect` to a viewer, send to the `Stream`, keep the `Receipt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream.later import import_later
from openhcs_stream.stream._connect import ask, connect, view
from openhcs_stream.stream._edits import Edits
from openhcs_stream.stream._feedback import Answer
from openhcs_stream.stream._layers import Common
from openhcs_stream.stream._receipt import Receipt
from openhcs_stream.stream._room import WhenFull
from openhcs_stream.stream._stream import Stream

if TYPE_CHECKING:
    from openhcs_stream.stream._edit import Edit

__all__ = [
    "Answer",
    "Common",
    "Edit",
    "Edits",
    "Receipt",
    "Stream",
    "WhenFull",
    "ask",
    "connect",
    "view",
]

import_later(__name__, {"_edit": ("Edit",)})  # for workers that listen
