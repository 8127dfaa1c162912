"""The native wire, version 1: every message, and the only place that knows its bytes.

Messages are MessagePack, encoded and decoded by msgspec with strict types and a bound on every
size and count. A message is an array whose first element is its tag; the rest are its fields in
the order below. Fields are only ever added at the end, with a default: a peer of another *minor*
version skips what it does not know and fills in what it misses. Another *major* version is
refused with both versions in the text. ``WIRE.md`` is rendered from this module.

A frame of this protocol never begins with ``{``, so that a receiver can tell it from the JSON of
an OpenHCS sender on the same socket.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from openhcs_stream.errors import ProtocolMismatch, ProtocolViolation

__all__ = [
    "AXES",
    "CHUNK_NBYTES",
    "COMPONENT_ORDER",
    "DTYPES",
    "MAJOR",
    "MAX_EDIT_NBYTES",
    "MAX_ITEMS",
    "MAX_NDIM",
    "MESSAGES",
    "MINOR",
    "ArenaOffer",
    "ArenaRetired",
    "Bye",
    "EditAction",
    "EditRecord",
    "Edited",
    "EditsTaken",
    "Failure",
    "FileShown",
    "Hello",
    "Item",
    "Items",
    "Kind",
    "LaneOpened",
    "LayerDeclared",
    "LayerSpec",
    "Message",
    "Mode",
    "More",
    "Part",
    "Ping",
    "PlaceValue",
    "Pong",
    "Refusal",
    "Reply",
    "Report",
    "Request",
    "Welcome",
    "canonical_component",
    "decode",
    "encode",
    "is_native",
]

MAJOR = 1
MINOR = 0

#: Array dimensions that an item may have.
MAX_NDIM = 8
#: Items that one message may carry.
MAX_ITEMS = 4096
#: Bytes of what was before an edit, and of what is there after it.
MAX_EDIT_NBYTES = 1 << 30
#: Bytes of one inline part, where pixels travel in the message itself.
CHUNK_NBYTES = 8 << 20

#: Axis letters, as tifffile and OME write them. S is samples: red, green, blue (alpha) of a pixel.
AXES = "TCZYXS" + "ABEFGHIKLMNPQRUVW"

#: Components of a place in their default order, slowest first. Others come before ``channel``.
COMPONENT_ORDER = ("well", "site", "channel", "time", "z")

#: Other people's names of our components: OpenHCS and its microscope handlers.
_COMPONENT_ALIASES = {"z_index": "z", "timepoint": "time"}

#: dtypes on the wire: numpy's names with byte order; always native little-endian or one byte.
DTYPES = frozenset(
    ["|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"]
)

Kind: TypeAlias = Literal["image", "labels", "rois", "points", "tracks"]

#: What becomes of a component: ``split`` makes a layer (napari) or window (Fiji) for each value;
#: ``stack`` a slider; ``channel`` a composite channel (in napari: a layer with its own colormap);
#: ``slice`` and ``frame`` are sliders that Fiji shows as Z and T.
Mode: TypeAlias = Literal["split", "stack", "channel", "slice", "frame"]

#: What a person did: drew, moved or reshaped or recoloured, deleted, renamed, painted labels.
EditAction: TypeAlias = Literal["added", "changed", "removed", "renamed", "painted"]

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
PlaceValue: TypeAlias = (
    Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[str, Meta(max_length=256)]
)


class _Message(Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages; ``array_like`` keeps a descriptor at a few dozen bytes."""


class Hello(_Message, tag="hello", frozen=True):
    """Sender to viewer, first message of a session, on the control lane."""

    major: Count
    minor: Count
    session: Annotated[str, Meta(max_length=64)]  #: random name of this session, hexadecimal
    role: Literal["stream", "control"]
    name: Text  #: what a person calls this stream: "worker 3"
    user: Text
    host: Text  #: identity of the machine and its boot, to know whether memory can be shared
    pid: Count
    token: Annotated[str, Meta(max_length=256)] = ""
    lanes: Annotated[tuple[Text, ...], Meta(max_length=8)] = ()  #: side lanes it can use: "unix"
    #: how often this session was begun before: it goes on after its lanes were lost
    attempt: Count = 0


class Welcome(_Message, tag="welcome", frozen=True):
    """Viewer to sender: the session is open."""

    major: Count
    minor: Count
    viewer: Text  #: "napari", "fiji", ...
    name: Text  #: name of this running viewer
    pid: Count
    lane: Text = ""  #: "unix:NAME" of the data lane to open next; empty: stay on this lane
    key: Annotated[str, Meta(max_length=64)] = ""  #: to be shown when the data lane is opened
    kinds: tuple[Kind, ...] = ("image", "labels", "rois", "points", "tracks")
    #: the viewer's own component modes; a stream's take precedence
    modes: Annotated[dict[Text, Mode], Meta(max_length=64)] = {}
    #: components that every place must have
    required: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    #: items of this session with lower numbers were taken already, over lanes that were lost
    taken: Count = 0
    run: Annotated[str, Meta(max_length=64)] = ""  #: random name of this run of the viewer
    #: formats of files that it reads itself, by a descriptor on its data lane: "raw", "zarr"
    files: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()


class Refusal(_Message, tag="refusal", frozen=True):
    """Viewer to sender: no session, and why."""

    what: Text
    cure: Text = ""
    major: Count = MAJOR
    minor: Count = MINOR


class LaneOpened(_Message, tag="lane", frozen=True):
    """Sender to viewer, first message on a data lane: which session it belongs to."""

    session: Annotated[str, Meta(max_length=64)]
    key: Annotated[str, Meta(max_length=64)]


class ArenaOffer(_Message, tag="arena", frozen=True):
    """Sender to viewer: a piece of shared memory, its file descriptor beside this message."""

    arena: Count
    nbytes: Count


class ArenaRetired(_Message, tag="retired", frozen=True):
    """Sender to viewer: no later item names this arena; unmap it when its last item is read."""

    arena: Count


class LayerSpec(_Message, frozen=True):
    """What the items of one layer have in common; declared once, then named by a number."""

    kind: Kind
    name: Text
    axes: Annotated[str, Meta(max_length=MAX_NDIM + 1)]  #: a letter per array axis: "ZYX"
    components: Annotated[
        tuple[Text, ...], Meta(max_length=32)
    ] = ()  #: names of the place's values
    source: Text = ""  #: pipeline, plate or step that made it; layers are grouped by it
    modes: Annotated[dict[Text, Mode], Meta(max_length=64)] = {}
    #: component order, slowest first; empty: COMPONENT_ORDER
    order: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    pixel_size: Annotated[tuple[float, ...], Meta(max_length=3)] = ()  #: (Y, X) or (Z, Y, X)
    unit: Text = ""  #: of pixel_size: "um"
    colormap: Text = ""  #: empty: the viewer chooses
    contrast_limits: tuple[float, float] | None = None  #: None: from the first data
    opacity: float | None = None
    blending: Text = ""
    visible: bool = True
    images_dir: Text = ""  #: folder of the images that ROIs belong to
    #: of the layer or window; empty: made of source, name and the values that it is split by
    title: Text = ""


class LayerDeclared(_Message, tag="layer", frozen=True):
    """Sender to viewer: items may now name this layer."""

    layer: Count
    spec: LayerSpec


class Part(_Message, frozen=True):
    """Some of an item's bytes, in C order, following on the part before."""

    arena: Annotated[int, Meta(ge=-1, le=2**53)]  #: -1: the bytes are a frame of this message
    offset: Count  #: in the arena; for arena -1 the number of the frame
    nbytes: Count
    lease: Count  #: a number for this use of the memory, never used again; 0: a later item's


class Item(_Message, frozen=True):
    """One image, label image or list: where it belongs, what it is, and where its bytes are."""

    seq: Count  #: number of the item in its session, counting up
    layer: Count
    place: Annotated[tuple[PlaceValue, ...], Meta(max_length=32)]  #: one value per component
    shape: Annotated[tuple[Count, ...], Meta(max_length=MAX_NDIM + 1)]
    dtype: Annotated[str, Meta(max_length=4)]
    nbytes: Count  #: of the whole item; parts may follow in `More`
    parts: Annotated[tuple[Part, ...], Meta(max_length=4096)]
    #: id, path and other metadata
    info: Annotated[dict[Text, str | int | float | bool | None], Meta(max_length=256)] = {}


class Items(_Message, tag="items", frozen=True):
    """Sender to viewer: new items."""

    items: Annotated[tuple[Item, ...], Meta(max_length=MAX_ITEMS)]


class More(_Message, tag="more", frozen=True):
    """Sender to viewer: further parts of an item that did not fit into memory at once."""

    seq: Count
    parts: Annotated[tuple[Part, ...], Meta(max_length=4096)]


class FileShown(_Message, tag="file", frozen=True):
    """Sender to viewer: a new image that stays in its file, whose descriptor is beside this.

    On a unix lane alone, and of a format that the viewer named in its welcome.
    """

    item: Item  #: without parts; `nbytes` is what the whole image would have in memory
    #: raw: the file, with the pixels in C order; zarr: the folder of an OME-Zarr image
    format: Literal["raw", "zarr"]
    offset: Count = 0  #: raw: where the pixels begin
    swapped: bool = False  #: raw: they are big-endian, whatever the item's dtype says
    #: zarr: names of the arrays in the folder, the largest first
    levels: Annotated[tuple[Text, ...], Meta(max_length=32)] = ()


class Failure(_Message, frozen=True):
    """An item that could not be shown."""

    seq: Count
    reason: Text


class Report(_Message, tag="report", frozen=True):
    """Viewer to sender: what became of items. Whatever waits is told together."""

    received: tuple[Count, ...] = ()  #: copied out: every part of the item is free again
    displayed: tuple[Count, ...] = ()  #: on the screen, or in the headless viewer's data
    failed: tuple[Failure, ...] = ()  #: will not be shown; memory is free as well
    released: tuple[Count, ...] = ()  #: leases of parts of an item that is still arriving
    gone: tuple[Count, ...] = ()  #: were displayed, and had to make room for later ones


class Ping(_Message, tag="ping", frozen=True):
    """Either way, on the control lane: are you there?"""

    number: Count


class Pong(_Message, tag="pong", frozen=True):
    """The answer to a Ping, with its number."""

    number: Count


class Request(_Message, tag="request", frozen=True):
    """Sender to viewer, on the control lane: do something that is no item."""

    number: Count
    verb: Annotated[str, Meta(max_length=64)]
    args: dict[Text, Any] = {}


class Reply(_Message, tag="reply", frozen=True):
    """Viewer to sender: the answer to a Request."""

    number: Count
    ok: bool
    value: Any = None
    what: Text = ""  #: where not ok: what happened
    cure: Text = ""


class EditRecord(_Message, frozen=True):
    """One change that a person made in a layer, at one place.

    Of rois, `before` and `after` are blocks as they travel in an item; of points float64 rows of
    `columns` numbers, y and x last; of labels the pixels of the region that was painted, in C
    order.
    """

    number: Count  #: of the edit in this viewer, counting up
    time_s: float  #: when it was finished, seconds since 1970 (UTC)
    who: Text  #: the user whose viewer it is
    action: EditAction
    kind: Kind
    name: Text  #: of the layer
    source: Text
    place: dict[Text, PlaceValue]
    #: Positions in the list: of those that were there before; of added ones, where they are now.
    indices: tuple[Count, ...] = ()
    before: Annotated[bytes, Meta(max_length=MAX_EDIT_NBYTES)] = b""
    after: Annotated[bytes, Meta(max_length=MAX_EDIT_NBYTES)] = b""
    region: tuple[Count, ...] = ()  #: labels: (top, left, height, width) of what was painted
    dtype: Annotated[str, Meta(max_length=4)] = ""  #: of the labels
    columns: Count = 0  #: of the points


class Edited(_Message, tag="edited", frozen=True):
    """Viewer to sender, on the control lane, where it asked for edits: a person changed this."""

    edit: EditRecord
    listeners: Annotated[tuple[Count, ...], Meta(max_length=256)]  #: the sender's own numbers


class EditsTaken(_Message, tag="taken", frozen=True):
    """Sender to viewer, on the control lane: these edits are dealt with and need not be kept."""

    numbers: Annotated[tuple[Count, ...], Meta(max_length=MAX_ITEMS)]


class Bye(_Message, tag="bye", frozen=True):
    """Either way: this session ends."""

    reason: Text = ""
    #: closed: on purpose; lost: only these lanes are given up, greet anew and the session goes on;
    #: refused: the peer broke the rules, and should not come back
    why: Literal["closed", "lost", "refused"] = "closed"


Message: TypeAlias = (
    Hello
    | Welcome
    | Refusal
    | LaneOpened
    | ArenaOffer
    | ArenaRetired
    | LayerDeclared
    | Items
    | More
    | FileShown
    | Report
    | Ping
    | Pong
    | Request
    | Reply
    | Edited
    | EditsTaken
    | Bye
)

#: All top-level messages, in the order of a session's life.
MESSAGES: tuple[type[Struct], ...] = (
    Hello,
    Welcome,
    Refusal,
    LaneOpened,
    ArenaOffer,
    ArenaRetired,
    LayerDeclared,
    Items,
    More,
    FileShown,
    Report,
    Ping,
    Pong,
    Request,
    Reply,
    Edited,
    EditsTaken,
    Bye,
)

_encoder = msgspec.msgpack.Encoder()
_loose_decoder = msgspec.msgpack.Decoder(list[Any])


@cache
def _decoder() -> msgspec.msgpack.Decoder[Message]:
    """Make the decoder with the first message: it takes as long as all else in this file."""
    return msgspec.msgpack.Decoder(Message)


def canonical_component(name: str) -> str:
    """Return our name of a component; OpenHCS says ``z_index`` for z, ``timepoint`` for time."""
    return _COMPONENT_ALIASES.get(name, name)


def encode(message: Message) -> bytes:
    """Encode one message."""
    return _encoder.encode(message)


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Decode one message, strictly.

    Raises
    ------
    ProtocolMismatch
        The frame is a greeting of another major version.
    ProtocolViolation
        The frame is no message of this protocol, or a value is out of its bounds.
    """
    try:
        message = _decoder().decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse_other_major(frame)
        raise ProtocolViolation(
            f"a frame of {len(frame)} bytes is no message of protocol {MAJOR}.{MINOR}: {error}.",
            cure="Make sure that both ends are openhcs-stream, and of the same major version.",
        ) from error
    match message:
        case Hello(major=major, minor=minor) | Welcome(major=major, minor=minor) if major != MAJOR:
            raise _mismatch(major, minor)
        case _:
            return message


def is_native(frame: bytes | bytearray | memoryview) -> bool:
    """Whether a frame can be native: MessagePack arrays never begin as JSON does."""
    return len(frame) > 0 and (0x90 <= frame[0] <= 0x9F or frame[0] in (0xDC, 0xDD))


def _refuse_other_major(frame: bytes | bytearray | memoryview) -> None:
    """A greeting of another major version may have other fields; its first three never change."""
    try:
        fields = _loose_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    match fields:
        case ["hello" | "welcome", int(major), int(minor), *_] if major != MAJOR:
            raise _mismatch(major, minor)


def _mismatch(major: int, minor: int) -> ProtocolMismatch:
    return ProtocolMismatch(
        f"the peer speaks protocol {major}.{minor}, this side speaks {MAJOR}.{MINOR}.",
        cure="Install the same major version of openhcs-stream on both sides.",
    )
