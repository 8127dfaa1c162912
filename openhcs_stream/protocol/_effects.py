"""What the protocol core asks its shell to do. Plain data: the core itself does no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from openhcs_stream.errors import StreamError
    from openhcs_stream.messages import (
        EditRecord,
        FileShown,
        Item,
        LayerSpec,
        Message,
        Part,
        Request,
        Welcome,
    )

__all__ = [
    "Answer",
    "Away",
    "EditCame",
    "Effect",
    "Ended",
    "MapArena",
    "Moved",
    "OpenLane",
    "Opened",
    "Replied",
    "Resend",
    "SendControl",
    "SendData",
    "Take",
    "TakeFile",
    "TakePart",
    "Taken",
    "UnmapArena",
]


class SendControl(msgspec.Struct, frozen=True):
    """Send this message on the control lane."""

    message: Message


class SendData(msgspec.Struct, frozen=True):
    """Send this message on the data lane."""

    message: Message


class OpenLane(msgspec.Struct, frozen=True):
    """Sender: connect to `address` and send `message` there first; then tell the core."""

    address: str
    message: Message


class Opened(msgspec.Struct, frozen=True):
    """The session is open; items may flow. The viewer's greeting is None on the viewer's side."""

    welcome: Welcome | None


class Moved(msgspec.Struct, frozen=True):
    """Sender: items changed state. Every item of the first three was outstanding until now."""

    received: list[int]
    displayed: list[int]
    failed: list[tuple[int, str]]
    leases: list[int]  #: memory that this viewer does not need any more
    gone: tuple[int, ...] = ()  #: had to make room for later ones, after they were displayed


class Away(msgspec.Struct, frozen=True):
    """Sender: the viewer is lost and may come back; `start` then greets it anew."""

    error: StreamError


class Resend(msgspec.Struct, frozen=True):
    """Sender: the session goes on; these items were not taken and go out again, in this order."""

    seqs: list[int]


class Replied(msgspec.Struct, frozen=True):
    """Sender: the viewer answered request `number`."""

    number: int
    ok: bool
    value: object
    what: str
    cure: str


class EditCame(msgspec.Struct, frozen=True):
    """Sender: a person changed something in the viewer."""

    edit: EditRecord
    listeners: tuple[int, ...]  #: who asked for it


class Taken(msgspec.Struct, frozen=True):
    """Viewer: the sender has dealt with these edits."""

    numbers: tuple[int, ...]


class MapArena(msgspec.Struct, frozen=True):
    """Viewer: map the shared memory whose descriptor came with this message."""

    arena: int
    nbytes: int


class UnmapArena(msgspec.Struct, frozen=True):
    """Viewer: the sender will not name this arena again."""

    arena: int


class Take(msgspec.Struct, frozen=True):
    """Viewer: an item whose bytes are all here, in at most one part."""

    item: Item
    spec: LayerSpec


class TakeFile(msgspec.Struct, frozen=True):
    """Viewer: an image that stays in the file whose descriptor came with this message."""

    message: FileShown
    spec: LayerSpec


class TakePart(msgspec.Struct, frozen=True):
    """Viewer: copy `part` to `offset` of the item's private memory, then say so to the core.

    The part with `last` completes the item; the shell shows it as it would a `Take`.
    """

    item: Item
    spec: LayerSpec
    part: Part
    offset: int
    last: bool


class Answer(msgspec.Struct, frozen=True):
    """Viewer: do what is asked and send a Reply of the same number."""

    request: Request


class Ended(msgspec.Struct, frozen=True):
    """The session is over. `error` is None when the peer said goodbye."""

    error: StreamError | None


Effect: TypeAlias = (
    SendControl
    | SendData
    | OpenLane
    | Opened
    | Moved
    | Away
    | Resend
    | Replied
    | EditCame
    | Taken
    | MapArena
    | UnmapArena
    | Take
    | TakeFile
    | TakePart
    | Answer
    | Ended
)
