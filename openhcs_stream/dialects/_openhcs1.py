"""OpenHCS, generation 1: what its released packages 0.3.8 to 0.5.0 send, and expect back.

A REQ socket sends one JSON object. Image pixels lie in named shared memory, one block an image;
whoever receives them copies, removes the name, and answers. Later, what became of each item is
pushed to a port that the sender listens on.

What is told here differs from the original in two points, on purpose: the answer is "success"
only if every item was read, and an acknowledgement means that the item is on the screen.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct

from openhcs_stream.dialects._base import Dialect, ForeignBatch, ForeignItem
from openhcs_stream.dialects._segments import Segment
from openhcs_stream.dialects._vocabulary import (
    contrast_limits,
    is_showable,
    read_axes,
    read_colormap,
    read_modes,
    read_place,
)
from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.messages import MAX_ITEMS, MAX_NDIM, LayerSpec, canonical_component
from openhcs_stream.rois import Roi, from_imagej

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.messages import Kind, Mode

__all__ = ["OpenHCS1", "ipc_address"]

#: The port on which every sender of this generation collects acknowledgements.
ACK_PORT = 7555
#: Bytes of one frame: far above any batch of names, and enough for inline pixels and outlines.
MAX_FRAME_NBYTES = 64 << 20
#: Pixels of one image that is written out as nested lists.
MAX_INLINE_PIXELS = 1 << 22
#: Outlines in one item.
MAX_ROIS = 1 << 20


def ipc_address(port: int, *, make_folder: bool = False) -> str:
    """Return where an OpenHCS viewer of this port binds its ipc socket, and its senders connect.

    Parameters
    ----------
    port : int
        The viewer's port.
    make_folder : bool
        Make the folder that the socket lies in, for this user only: for who binds. Where OpenHCS
        was never run it is not there.
    """
    folder = Path.home() / ".openhcs" / "ipc"
    if make_folder:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"ipc://{folder / f'openhcs-zmq-{port}.sock'}"


# --- what is on the wire, bounded ---------------------------------------------------------------

_Name = Annotated[str, Meta(max_length=256)]
_Text = Annotated[str, Meta(max_length=4096)]
_Point = Annotated[tuple[float, ...], Meta(min_length=2, max_length=3)]


#: What a field that may be anything holds where it was not sent; `Raw | None` is always None.
_ABSENT = Raw()


class _Display(Struct):
    component_modes: Annotated[dict[_Name, _Name], Meta(max_length=64)] = {}
    component_order: Annotated[list[_Name], Meta(max_length=64)] = []
    lut: _Text | None = None
    colormap: _Text | None = None
    auto_contrast: bool | None = True


class _Envelope(Struct):
    # The items stay undecoded here: one that is wrong must not take the others with it.
    type: _Name | None = None
    images: list[Raw] | None = None
    images_dir: _Text | None = None
    display_config: Raw = Raw(b"null")


class _Image(Struct):
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**40)], ...], Meta(max_length=MAX_NDIM)]
    dtype: Annotated[str, Meta(max_length=16)]
    shm_name: _Text | None = None
    data: Raw = _ABSENT


class _ImageJRois(Struct):
    rois: Annotated[list[str], Meta(max_length=MAX_ROIS)]


class _Shape(Struct):
    type: _Name
    #: Vertices, or the one position of a point.
    coordinates: Annotated[list[_Point | float], Meta(max_length=1 << 20)] = []
    center: _Point | None = None
    radii: _Point | None = None
    metadata: Annotated[dict[_Name, Any], Meta(max_length=256)] | None = None


class _Shapes(Struct):
    shapes: Annotated[list[_Shape], Meta(max_length=MAX_ROIS)]


class _Common(Struct):
    path: _Text | None = None
    image_id: Annotated[str, Meta(max_length=128)] | None = None
    data_type: _Name = "image"
    metadata: Annotated[dict[_Name, Any], Meta(max_length=256)] | None = None
    # Only later generations have it; their senders remove their blocks themselves.
    producer_identity: Raw = _ABSENT


class _Identity(Struct):
    image_id: Annotated[str, Meta(max_length=128)] | None = None
    path: _Text | None = None


#: One key that every item has, whatever it is: a frame with none of them is no item.
class _Bare(Struct):
    shm_name: Raw = _ABSENT
    data: Raw = _ABSENT
    rois: Raw = _ABSENT
    shapes: Raw = _ABSENT


# --- reading --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Settings:
    """The batch's display settings in our words."""

    modes: dict[str, Mode] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    colormap: str = ""
    auto_contrast: bool = True
    images_dir: str = ""
    problem: str = ""  #: fails every item, after its block was taken over


class OpenHCS1(Dialect):
    """Generation 1: REQ to REP, one JSON object, pixels in a named shared-memory block."""

    name = "openhcs1"

    def recognises(self, frame: bytes | memoryview) -> bool:
        """Whether the frame is a JSON object."""
        return bytes(frame[:1]) == b"{"

    def read(
        self, frame: bytes | memoryview, *, viewer: str, viewer_port: int, local_ipc: bool
    ) -> ForeignBatch:
        """Decode a batch, or a single item without envelope, and map its images.

        See `Dialect.read`. Names of shared memory whose owner, kind or size is wrong are left
        alone. One that is in order belongs to the receiver, as this generation has it, and is
        removed by `ForeignItem.finish`, or at once where its image can't be shown.
        """
        envelope = _decode_envelope(frame)
        settings = _read_settings(envelope, viewer)
        batch = ForeignBatch([], [], viewer=viewer, viewer_port=viewer_port)
        acknowledged = False
        for number, raw in enumerate(envelope.images or ()):
            identity = _read_identity(raw)
            acknowledged = acknowledged or identity.image_id is not None
            item_id = identity.image_id or identity.path or f"item {number}"
            try:
                batch.items.append(_read_item(raw, item_id, settings))
            except _UNREADABLE as error:
                batch.failures.append((item_id, _reason(error)))
        if acknowledged:
            batch.ack_address = (
                ipc_address(ACK_PORT) if local_ipc else f"tcp://127.0.0.1:{ACK_PORT}"
            )
        return batch


#: What strict decoding raises: for wrong types, bytes that are no UTF-8, and nesting bombs.
_UNREADABLE = (msgspec.DecodeError, InvalidItem, UnicodeDecodeError, RecursionError)


def _decode_envelope(frame: bytes | memoryview) -> _Envelope:
    if len(frame) > MAX_FRAME_NBYTES:
        raise ProtocolViolation(
            f"a message of {len(frame)} bytes is beyond {MAX_FRAME_NBYTES}.",
            cure="Pass pixels by shared memory, and outlines in several batches.",
        )
    try:
        frame = _without_nan(frame)
        envelope = msgspec.json.decode(frame, type=_Envelope)
        if envelope.images is None:
            bare = msgspec.json.decode(frame, type=_Bare)
            if any(len(memoryview(each)) for each in msgspec.structs.astuple(bare)):
                envelope.images = [Raw(bytes(frame))]
    except _UNREADABLE as error:
        raise ProtocolViolation(
            f"a message of {len(frame)} bytes is no OpenHCS batch: {_reason(error)}.",
            cure='Send {"type": "batch", "images": [...]} as one JSON object.',
        ) from error
    if envelope.images is None:
        raise ProtocolViolation(
            f"a message of type {envelope.type!r} has no images.",
            cure='Send {"type": "batch", "images": [...]} as one JSON object.',
        )
    if len(envelope.images) > MAX_ITEMS:
        raise ProtocolViolation(
            f"a batch of {len(envelope.images)} items is beyond {MAX_ITEMS}.",
            cure="Send it as several batches.",
        )
    return envelope


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


def _read_settings(envelope: _Envelope, viewer: str) -> _Settings:
    try:
        display = msgspec.json.decode(envelope.display_config, type=_Display | None) or _Display()
        return _Settings(
            modes=read_modes(
                display.component_modes,
                fiji=viewer == "fiji" or (display.lut is not None and display.colormap is None),
            ),
            order=tuple(dict.fromkeys(map(canonical_component, display.component_order))),
            colormap=read_colormap(display.colormap or display.lut),
            auto_contrast=display.auto_contrast is not False,
            images_dir=envelope.images_dir or "",
        )
    except _UNREADABLE as error:
        return _Settings(problem=_reason(error))


def _read_identity(raw: Raw) -> _Identity:
    try:
        return msgspec.json.decode(raw, type=_Identity)
    except _UNREADABLE:
        return _Identity()


def _read_item(raw: Raw, item_id: str, settings: _Settings) -> ForeignItem:
    common = msgspec.json.decode(raw, type=_Common)
    info: dict[str, str | int | float | bool | None] = {"id": item_id}
    if common.path is not None:
        info["path"] = common.path
    match common.data_type:
        case "image":
            return _read_image(raw, item_id, common, settings, info)
        case "rois":
            encoded = msgspec.json.decode(raw, type=_ImageJRois).rois
            rois = [_imagej_roi(index, text) for index, text in enumerate(encoded)]
        case "shapes" | "points":
            shapes = msgspec.json.decode(raw, type=_Shapes).shapes
            rois = [_napari_roi(index, shape) for index, shape in enumerate(shapes)]
        case other:
            raise InvalidItem(
                f"items of data_type {other!r} are unknown.",
                cure="Send image, rois, shapes or points.",
            )
    spec, place = _declare("rois", "YX", common, settings, info, limits=None)
    return ForeignItem(item_id, spec, place, rois, info)


def _read_image(
    raw: Raw,
    item_id: str,
    common: _Common,
    settings: _Settings,
    info: dict[str, str | int | float | bool | None],
) -> ForeignItem:
    image = msgspec.json.decode(raw, type=_Image)
    dtype = _read_dtype(image.dtype)
    nbytes = math.prod(image.shape) * dtype.itemsize
    if nbytes == 0:
        raise InvalidItem(
            f"an image of shape {image.shape} is empty.", cure="Send at least one pixel."
        )
    release: Callable[[], None] | None = None
    if image.shm_name is not None:
        segment = Segment.attach(image.shm_name, nbytes)
        # From here on the block is ours to remove: with its name it was handed over.
        if not len(memoryview(common.producer_identity)):
            release = segment.unlink
        octets = segment.octets
    elif len(memoryview(image.data)):
        octets = _inline(image.data, image.shape, dtype)
    else:
        raise InvalidItem("an image has no pixels.", cure="Give shm_name or data.")
    try:
        pixels = _pixels(octets, image.shape, dtype)
        limits = contrast_limits(dtype, auto_contrast=settings.auto_contrast)
        spec, place = _declare("image", image.shape, common, settings, info, limits=limits)
    except InvalidItem:
        if release is not None:
            release()
        raise
    return ForeignItem(item_id, spec, place, pixels, info, release)


def _declare(
    kind: Kind,
    shape: tuple[int, ...] | str,
    common: _Common,
    settings: _Settings,
    info: dict[str, str | int | float | bool | None],
    *,
    limits: tuple[float, float] | None,
) -> tuple[LayerSpec, tuple[int | str, ...]]:
    """Say which layer an item is of and where in it; adds to `info` what places nothing."""
    if settings.problem:
        raise InvalidItem(
            f"the batch's display_config can't be read: {settings.problem}.",
            cure="Give component_modes, component_order, and lut or colormap.",
        )
    where = read_place(common.metadata or {}, kind=kind, modes=settings.modes, order=settings.order)
    info.update({name: value for name, value in where.rest.items() if name not in info})
    spec = LayerSpec(
        kind=kind,
        name=where.name,
        axes=shape if isinstance(shape, str) else read_axes(shape, where.components),
        components=where.components,
        source=where.source,
        modes=settings.modes,
        order=settings.order,
        colormap=settings.colormap,
        contrast_limits=limits,
        images_dir=settings.images_dir,
    )
    return spec, where.place


_DTYPE = re.compile(r"[<>|=]?[a-z]+[0-9]*")


def _read_dtype(text: str) -> np.dtype[Any]:
    """Parse a dtype of plain numbers: one whose size can be trusted."""
    try:
        dtype = np.dtype(text) if _DTYPE.fullmatch(text) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "biufc":
        raise InvalidItem(f"{text!r} is no numeric dtype.", cure="Send str(array.dtype).")
    return dtype


def _pixels(
    octets: npt.NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if not is_showable(dtype):
        raise InvalidItem(
            f"pixels of dtype {dtype} can't be shown.",
            cure="Convert them to an integer, a real or a boolean type of up to 64 bits.",
        )
    if dtype.kind == "b":
        # Memory that says it is bool may hold any byte, which numpy must never see as one.
        return np.asarray(octets != 0).reshape(shape)
    pixels = octets.view(dtype).reshape(shape)
    return pixels.astype(dtype.newbyteorder("="), copy=False)


def _inline(raw: Raw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[np.uint8]:
    count = math.prod(shape)
    # Each pixel takes two characters at least, so that the text bounds what decoding allocates.
    if count > MAX_INLINE_PIXELS or len(memoryview(raw)) > 64 * count + 4096:
        raise InvalidItem(
            f"{len(memoryview(raw))} characters of inline data for {count} pixels are too many.",
            cure=f"Send up to {MAX_INLINE_PIXELS} pixels inline, larger images by shared memory.",
        )
    try:
        array = np.array(msgspec.json.decode(raw, type=list[Any] | float | int), dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidItem(
            f"inline data is no array of {dtype}: {_reason(error)}.",
            cure="Send rectangular nested lists of numbers.",
        ) from error
    if array.size != count:
        raise InvalidItem(
            f"inline data has {array.size} pixels, and shape {shape} has {count}.",
            cure="Send array.tolist() with array.shape.",
        )
    return np.frombuffer(array.tobytes(), np.uint8)


def _imagej_roi(index: int, encoded: str) -> Roi:
    try:
        return from_imagej(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:  # InvalidItem is a ValueError
        raise InvalidItem(
            f"outline {index} can't be read: {_reason(error)}.",
            cure="Send the bytes of one ImageJ .roi file in base64 for each outline.",
        ) from error


def _napari_roi(index: int, shape: _Shape) -> Roi:
    """One shape as napari has it: y, x, whole numbers at pixel centres."""
    label = (shape.metadata or {}).get("label")
    name = "" if label is None else str(label)[:256]
    try:
        match shape.type:
            case "polygon":
                return Roi.polygon(_vertices(shape), name=name)
            case "path":
                return Roi.polyline(_vertices(shape), name=name)
            case "point" | "points":
                return Roi.points(_vertices(shape), name=name)
            case "ellipse" if shape.center is not None and shape.radii is not None:
                (y, x), (radius_y, radius_x) = _yx(shape.center), _yx(shape.radii)
                # An oval's bounds count from pixel corners, its centre here from pixel centres.
                top, left = y + 0.5 - radius_y, x + 0.5 - radius_x
                return Roi.oval(top, left, top + 2 * radius_y, left + 2 * radius_x, name=name)
    except InvalidItem as error:
        raise InvalidItem(f"shape {index}: {error.what}", cure=error.cure) from error
    raise InvalidItem(
        f"shape {index} of type {shape.type!r} is unknown or incomplete.",
        cure="Send polygon, path or points with coordinates, ellipse with center and radii.",
    )


def _vertices(shape: _Shape) -> npt.NDArray[np.float64]:
    """The vertices as (N, 2) y, x; of a vertex with three coordinates the last two count."""
    pairs = [_yx(point) for point in shape.coordinates if isinstance(point, tuple)]
    if not pairs:
        pairs = [_yx(tuple(each for each in shape.coordinates if isinstance(each, float)))]
    return np.array(pairs, np.float64)


def _yx(point: tuple[float, ...]) -> tuple[float, float]:
    if len(point) < 2:
        raise InvalidItem(f"{len(point)} coordinates are no point.", cure="Send y, x.")
    return point[-2], point[-1]


def _reason(error: BaseException) -> str:
    """One line, bounded: it goes into replies and logs."""
    text = str(error) or type(error).__name__
    return (text if len(text) <= 500 else text[:497] + "...").rstrip(".")
