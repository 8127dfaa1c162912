"""OpenHCS's batches as they are on the wire, decoded strictly and with a bound on every size.

One JSON object for a batch. Its items stay undecoded at first: one that is wrong must not take
the others with it. Fields of all generations are here; what a field means to which of them is said
where it is used.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.messages import MAX_ITEMS, MAX_NDIM

__all__ = [
    "ABSENT",
    "UNREADABLE",
    "Common",
    "Display",
    "Envelope",
    "Image",
    "ImageJRois",
    "Producer",
    "Shape",
    "Shapes",
    "Tracking",
    "decode_envelope",
    "decode_part",
    "is_absent",
    "reason_of",
]

#: Bytes of one frame: far above any batch of names, and enough for inline pixels and outlines.
MAX_FRAME_NBYTES = 64 << 20
#: Outlines in one item.
MAX_ROIS = 1 << 20
#: Objects in one frame: two for each outline, and some for each item.
MAX_OBJECTS = 4 << 20
#: Frames up to this many bytes are decoded without a look at how much they will become.
_HARMLESS_NBYTES = 1 << 20

_Name = Annotated[str, Meta(max_length=256)]
_Text = Annotated[str, Meta(max_length=4096)]
_Id = Annotated[str, Meta(max_length=128)]
_Number = Annotated[int, Meta(ge=-(2**53), le=2**53)]
_Point = Annotated[tuple[float, ...], Meta(min_length=2, max_length=3)]
_Pair = Annotated[tuple[_Number, ...], Meta(min_length=2, max_length=2)]
_PlaceValue = str | int | float | bool | list[Any] | None

#: What a field that may be anything holds where it was not sent; `Raw | None` is always None.
ABSENT = Raw()

#: What strict decoding raises: for wrong types, bytes that are no UTF-8, and nesting bombs.
UNREADABLE = (msgspec.DecodeError, InvalidItem, UnicodeDecodeError, RecursionError)


class Display(Struct):
    """``display_config``."""

    component_modes: Annotated[dict[_Name, _Name], Meta(max_length=64)] = {}
    component_order: Annotated[list[_Name], Meta(max_length=64)] = []
    lut: _Text | None = None  #: Fiji
    auto_contrast: bool | None = True  #: Fiji
    colormap: _Text | None = None  #: napari
    variable_size_handling: _Name | None = None  #: napari


class Envelope(Struct):
    """A batch, or where `images` is absent a single item of the first generation."""

    type: _Name | None = None
    images: list[Raw] | None = None
    images_dir: Raw = ABSENT
    display_config: Raw = Raw(b"null")
    component_names_metadata: Raw = ABSENT
    component_value_domain: Raw = ABSENT


class Tracking(Struct):
    """What tells an item's sender about it, also where the rest of the item can't be read."""

    image_id: _Id | None = None
    path: _Text | None = None
    return_route: Raw = ABSENT  #: generation 3
    producer: Raw = ABSENT  #: generation 3


class Common(Struct):
    """What all items have."""

    path: _Text | None = None
    data_type: _Name = "image"
    metadata: Annotated[dict[_Name, Any], Meta(max_length=256)] | None = None
    # Generations 2 and 3:
    producer_identity: Raw = ABSENT
    plane_component_values: (
        Annotated[dict[_Name, Annotated[list[Any], Meta(max_length=65536)]], Meta(max_length=8)]
        | None
    ) = None
    plane_axis: Any = None
    source_channel_axis: Annotated[int, Meta(ge=-MAX_NDIM, lt=MAX_NDIM)] | None = None
    image_metadata: Annotated[dict[_Name, Any], Meta(max_length=64)] | None = None
    spatial_origin_yx: _Pair | None = None
    source_spatial_shape_yx: _Pair | None = None


class Producer(Struct):
    """``producer_identity``."""

    origin: _Name
    output_kind: _Name
    output_key: _Name
    projection_key: _Name
    step_name: _Name | None = None
    pipeline_position: _Number | None = None
    step_scope_id: _Name | None = None
    artifact_kind: _Name | None = None


class Image(Struct):
    """An image's own fields."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**40)], ...], Meta(max_length=MAX_NDIM)]
    dtype: Annotated[str, Meta(max_length=16)]
    shm_name: _Text | None = None
    data: Raw = ABSENT


class ImageJRois(Struct):
    """Outlines for Fiji: the bytes of one .roi file each, in base64."""

    rois: Annotated[list[str], Meta(max_length=MAX_ROIS)]


class Shape(Struct):
    """One shape for napari."""

    type: _Name
    #: Vertices, or the one position of a point.
    coordinates: Annotated[list[_Point | float], Meta(max_length=1 << 20)] = []
    center: _Point | None = None
    radii: _Point | None = None
    metadata: Annotated[dict[_Name, Any], Meta(max_length=256)] | None = None


class Shapes(Struct):
    """Outlines or points for napari."""

    shapes: Annotated[list[Shape], Meta(max_length=MAX_ROIS)]


class _Object(Struct, gc=False):
    """Any object, nothing of it kept."""


class _Count(Struct):
    images: list[_Object] | None = None


#: One key that every item has, whatever it is: a frame with none of them is no item.
class _Bare(Struct):
    shm_name: Raw = ABSENT
    data: Raw = ABSENT
    rois: Raw = ABSENT
    shapes: Raw = ABSENT


def is_absent(raw: Raw) -> bool:
    """Whether a field was not sent, or sent as null."""
    return bytes(memoryview(raw)) in (b"", b"null")


def decode_part(raw: Raw, type_: Any) -> Any:
    """Decode an undecoded part.

    Raises
    ------
    msgspec.DecodeError, UnicodeDecodeError, RecursionError
        See `UNREADABLE`.
    """
    return msgspec.json.decode(raw, type=type_)


def decode_envelope(frame: bytes | memoryview) -> Envelope:
    """Decode a frame, down to its undecoded items.

    Raises
    ------
    ProtocolViolation
        It is no batch, or too large.
    """
    if len(frame) > MAX_FRAME_NBYTES:
        raise ProtocolViolation(
            f"a message of {len(frame)} bytes is beyond {MAX_FRAME_NBYTES}.",
            cure="Pass pixels by shared memory, and outlines in several batches.",
        )
    try:
        frame = _without_nan(frame)
        _check_count(frame)
        envelope = msgspec.json.decode(frame, type=Envelope)
        if envelope.images is None:
            bare = msgspec.json.decode(frame, type=_Bare)
            if any(len(memoryview(each)) for each in msgspec.structs.astuple(bare)):
                envelope.images = [Raw(bytes(frame))]
    except UNREADABLE as error:
        raise ProtocolViolation(
            f"a message of {len(frame)} bytes is no OpenHCS batch: {reason_of(error)}.",
            cure='Send {"type": "batch", "images": [...]} as one JSON object.',
        ) from error
    if envelope.images is None:
        raise ProtocolViolation(
            f"a message of type {envelope.type!r} has no images.",
            cure='Send {"type": "batch", "images": [...]} as one JSON object.',
        )
    if len(envelope.images) > MAX_ITEMS:
        raise _too_many(len(envelope.images))
    return envelope


def _check_count(frame: bytes | memoryview) -> None:
    """Refuse what would take much more memory than it has bytes: two bytes may be an item."""
    if len(frame) <= _HARMLESS_NBYTES:
        return
    if bytes(frame).count(b"{") > MAX_OBJECTS:
        raise InvalidItem(f"it holds more than {MAX_OBJECTS} objects.")
    count = len(msgspec.json.decode(frame, type=_Count).images or ())
    if count > MAX_ITEMS:
        raise _too_many(count)


def _too_many(count: int) -> ProtocolViolation:
    return ProtocolViolation(
        f"a batch of {count} items is beyond {MAX_ITEMS}.", cure="Send it as several batches."
    )


def _without_nan(frame: bytes | memoryview) -> bytes | memoryview:
    """Write null for NaN and infinities, which Python's json sends though JSON has none.

    A measurement of an object may well be NaN, and its sender never learns that it sent one.
    """
    octets = bytes(frame)
    if b"NaN" not in octets and b"Infinity" not in octets:
        return frame
    try:
        return msgspec.json.encode(json.loads(octets))
    except (ValueError, OverflowError):
        return frame  # wrong in another way as well: the strict decoder says how


def reason_of(error: BaseException) -> str:
    """One line, bounded: it goes into replies and logs."""
    text = str(error) or type(error).__name__
    return (text if len(text) <= 500 else text[:497] + "...").rstrip(".")
