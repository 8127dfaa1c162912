"""A session's rules as pure state machines: no socket, no clock, no thread, no numpy.

`SenderSession` is the worker's half, `ReceiverSession` the viewer's. A shell feeds them messages
and the time and carries out the effects that come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream.later import import_later
from openhcs_stream.protocol._account import MAX_OUTSTANDING, Account, Accounts
from openhcs_stream.protocol._effects import (
    Answer,
    Away,
    EditCame,
    Effect,
    Ended,
    MapArena,
    Moved,
    Opened,
    OpenLane,
    Replied,
    Resend,
    SendControl,
    SendData,
    Take,
    TakeFile,
    Taken,
    TakePart,
    UnmapArena,
)
from openhcs_stream.protocol._sender import (
    HEARTBEAT_S,
    SILENCE_S,
    SenderPhase,
    SenderSession,
)

if TYPE_CHECKING:
    from openhcs_stream.protocol._receiver import (
        MAX_LAYERS,
        ReceiverPhase,
        ReceiverSession,
        ViewerFacts,
    )

__all__ = [
    "HEARTBEAT_S",
    "MAX_LAYERS",
    "MAX_OUTSTANDING",
    "SILENCE_S",
    "Account",
    "Accounts",
    "Answer",
    "Away",
    "EditCame",
    "Effect",
    "Ended",
    "MapArena",
    "Moved",
    "OpenLane",
    "Opened",
    "ReceiverPhase",
    "ReceiverSession",
    "Replied",
    "Resend",
    "SendControl",
    "SendData",
    "SenderPhase",
    "SenderSession",
    "Take",
    "TakeFile",
    "TakePart",
    "Taken",
    "UnmapArena",
    "ViewerFacts",
]

# What a worker does not need.
import_later(
    __name__,
    {
        "_receiver": ("MAX_LAYERS", "ReceiverPhase", "ReceiverSession", "ViewerFacts"),
    },
)
