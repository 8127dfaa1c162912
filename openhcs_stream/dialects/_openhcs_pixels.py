"""Pixels of an OpenHCS item: where they lie, what they are, and which of their axes is what."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from openhcs_stream.dialects._openhcs_wire import UNREADABLE, decode_part, is_absent, reason_of
from openhcs_stream.dialects._segments import Segment, discard
from openhcs_stream.dialects._vocabulary import is_showable, read_axes
from openhcs_stream.errors import InvalidItem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    from msgspec import Raw

    from openhcs_stream.dialects._openhcs_wire import Common, Image
    from openhcs_stream.messages import PlaceValue

__all__ = ["Layout", "channel_axis", "discard_refused", "lay_out", "on_canvas", "open_pixels"]

#: Pixels of one image that is written out as nested lists.
MAX_INLINE_PIXELS = 1 << 22
#: Pixels of the plane in which an image with an origin is put at its place.
MAX_CANVAS_PIXELS = 1 << 28
#: Planes that one item may be taken apart into.
MAX_PARTS = 4096

#: What senders of the first generation call their blocks, which the receiver removes: a prefix
#: and 32 bits of an MD5 sum (openhcs 0.3.8 to 0.5.0, polystore 0.1.9).
_HANDED_OVER = re.compile(r"(?:fiji|napari)_[0-9a-f]{8}")
_NAMED = re.compile(rb'"shm_name"\s*:\s*"((?:fiji|napari)_[0-9a-f]{8})"')
_DTYPE = re.compile(r"[<>|=]?[a-z]+[0-9]*")


# --- where they lie -------------------------------------------------------------------------------


def open_pixels(
    image: Image, *, takes_over: bool
) -> tuple[npt.NDArray[Any], Callable[[], None] | None]:
    """Map or decode an image's pixels.

    Parameters
    ----------
    image : Image
        As it came.
    takes_over : bool
        Whether the sender leaves the removal of its block to the receiver.

    Returns
    -------
    pixels : ndarray, read-only
        Of the image's shape and dtype, in native byte order.
    release : callable or None
        Removes the block; to be called when the pixels are not needed any more.

    Raises
    ------
    InvalidItem
        There are no such pixels, or none that can be shown. A block that was handed over is
        removed then.
    """
    dtype = _read_dtype(image.dtype)
    nbytes = math.prod(image.shape) * dtype.itemsize
    if nbytes == 0:
        raise InvalidItem(
            f"an image of shape {image.shape} is empty.", cure="Send at least one pixel."
        )
    release: Callable[[], None] | None = None
    if image.shm_name is not None:
        segment = Segment.attach(image.shm_name, nbytes)
        if takes_over and _HANDED_OVER.fullmatch(image.shm_name):
            segment.take_over()
            release = segment.unlink
        octets = segment.octets
    elif not is_absent(image.data):
        octets = _inline(image.data, image.shape, dtype)
    else:
        raise InvalidItem("an image has no pixels.", cure="Give shm_name or data.")
    try:
        return _pixels(octets, image.shape, dtype), release
    except InvalidItem:
        if release is not None:
            release()
        raise


def discard_refused(octets: bytes | memoryview) -> None:
    """Remove the blocks that a refused item, or a whole refused frame, has handed over.

    Nobody else would: a sender of the first generation has let go of them.
    """
    refused = bytes(octets)
    if b'"producer_identity"' in refused or b'"return_route"' in refused:
        return
    for match in _NAMED.finditer(refused):
        discard(match.group(1).decode())


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
        array = np.array(decode_part(raw, list[Any] | float | int), dtype=dtype)
    except (*UNREADABLE, ValueError, TypeError, OverflowError) as error:
        raise InvalidItem(
            f"inline data is no array of {dtype}: {reason_of(error)}.",
            cure="Send rectangular nested lists of numbers.",
        ) from error
    if array.size != count:
        raise InvalidItem(
            f"inline data has {array.size} pixels, and shape {shape} has {count}.",
            cure="Send array.tolist() with array.shape.",
        )
    return np.frombuffer(array.tobytes(), np.uint8)


# --- which axis is what ---------------------------------------------------------------------------


@dataclass(slots=True)
class Layout:
    """An image's axes, and what of its place lies in them.

    Attributes
    ----------
    axes : str
        A letter for each axis of each part.
    components : tuple of str
        Of the place: those of the item, and those that planes have values of.
    parts : list of (place, pixels)
    """

    axes: str
    components: tuple[str, ...]
    parts: list[tuple[tuple[PlaceValue, ...], npt.NDArray[Any]]]


def channel_axis(common: Common, ndim: int) -> int | None:
    """Which axis holds a pixel's colours, as the sender declared it; None: none does.

    Raises
    ------
    InvalidItem
        There is no such axis.
    """
    axis = common.source_channel_axis
    if axis is None and common.image_metadata is not None:
        try:
            axis = msgspec.convert(common.image_metadata.get("source_channel_axis"), int | None)
        except msgspec.ValidationError as error:
            raise InvalidItem(
                f"image_metadata has a source_channel_axis that is no number: {error}.",
                cure="Give the number of the array's axis, or null.",
            ) from error
    if axis is None:
        return None
    if not -ndim <= axis < ndim or ndim < 3:
        raise InvalidItem(
            f"source_channel_axis {axis} is no axis beside Y and X of an image of {ndim} axes.",
            cure="Give the number of the array's axis, or leave it out.",
        )
    return axis % ndim


def lay_out(
    pixels: npt.NDArray[Any],
    components: tuple[str, ...],
    place: tuple[PlaceValue, ...],
    *,
    colours: int | None,
    planes: Mapping[str, Sequence[PlaceValue]],
) -> Layout:
    """Say what each axis is, and take apart along those whose planes have values of their own.

    Parameters
    ----------
    pixels : ndarray
        Of any number of axes.
    components, place : tuple
        Where the item belongs, as far as its metadata tell.
    colours : int or None
        The axis of a pixel's colours: three or four of them are RGB or RGBA, any other number are
        channels.
    planes : mapping of component to values
        What the planes along the leading axes are, in the order of the axes.

    Raises
    ------
    InvalidItem
        Axes and values don't fit together.
    """
    rgb = colours is not None and pixels.shape[colours] in (3, 4)
    if colours is not None:
        pixels = np.moveaxis(pixels, colours, -1 if rgb else 0)
        if not rgb:
            planes = {"channel": tuple(range(1, pixels.shape[0] + 1)), **planes}
    flat = 3 if rgb else 2
    if not planes:
        axes = (
            read_axes(pixels.shape[:-1], components, rgb=False) + "S"
            if rgb
            else read_axes(pixels.shape, components)
        )
        return Layout(axes, components, [(place, _contiguous(pixels))])
    extents = pixels.shape[: len(planes)]
    if pixels.ndim - flat < len(planes) or extents != tuple(map(len, planes.values())):
        raise InvalidItem(
            f"an image of shape {pixels.shape} has not the planes "
            f"{ {name: len(values) for name, values in planes.items()} } of its metadata.",
            cure="Give one value for each plane along the leading axes.",
        )
    if math.prod(extents) > MAX_PARTS:
        raise InvalidItem(
            f"an image of {math.prod(extents)} planes is beyond {MAX_PARTS}.",
            cure="Send it in several items.",
        )
    at = {name: value for name, value in zip(components, place, strict=True) if name not in planes}
    names = (*at, *planes)
    axes = read_axes(pixels.shape[len(planes) : pixels.ndim - flat + 2], names, rgb=False)
    parts: list[tuple[tuple[PlaceValue, ...], npt.NDArray[Any]]] = []
    for index in product(*map(range, extents)):
        values = (values[i] for values, i in zip(planes.values(), index, strict=True))
        parts.append(((*at.values(), *values), _contiguous(pixels[index])))
    return Layout(axes + ("S" if rgb else ""), names, parts)


def _contiguous(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return pixels if pixels.flags.c_contiguous else pixels.copy(order="C")


def on_canvas(
    pixels: npt.NDArray[Any],
    *,
    origin_yx: tuple[int, ...] | None,
    shape_yx: tuple[int, ...] | None,
    colours: int | None,
) -> npt.NDArray[Any]:
    """Put an image where it lies in the one that it was cut from; zeros around it.

    Raises
    ------
    InvalidItem
        It does not lie inside, or what it was cut from is larger than can be shown.
    """
    if origin_yx is None and shape_yx is None:
        return pixels
    spatial = [axis for axis in range(pixels.ndim) if axis != colours][-2:]
    if len(spatial) < 2:
        raise InvalidItem(
            f"an image of shape {pixels.shape} has a spatial origin and not two axes.",
            cure="Leave out spatial_origin_yx.",
        )
    origin = origin_yx or (0, 0)
    inner = tuple(pixels.shape[axis] for axis in spatial)
    outer = shape_yx or tuple(at + length for at, length in zip(origin, inner, strict=True))
    ends = tuple(at + length for at, length in zip(origin, inner, strict=True))
    if min(origin) < 0 or any(end > limit for end, limit in zip(ends, outer, strict=True)):
        raise InvalidItem(
            f"an image of {inner[0]} x {inner[1]} at {tuple(origin)} does not lie inside of "
            f"{outer[0]} x {outer[1]}.",
            cure="Send spatial_origin_yx and source_spatial_shape_yx of the image that it is of.",
        )
    if outer == inner:
        return pixels
    shape = list(pixels.shape)
    where: list[slice] = [slice(None)] * pixels.ndim
    for axis, at, length, limit in zip(spatial, origin, inner, outer, strict=True):
        shape[axis] = limit
        where[axis] = slice(at, at + length)
    if math.prod(shape) > MAX_CANVAS_PIXELS:
        raise InvalidItem(
            f"an image at its place in {outer[0]} x {outer[1]} has {math.prod(shape)} pixels, more "
            f"than {MAX_CANVAS_PIXELS}.",
            cure="Send it without source_spatial_shape_yx.",
        )
    canvas = np.zeros(shape, pixels.dtype)
    canvas[tuple(where)] = pixels
    return canvas
