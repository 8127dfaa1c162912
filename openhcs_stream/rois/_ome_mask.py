"""The pixels of an OME mask: one bit or one byte for each, packed or not."""

from __future__ import annotations

import bz2
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["mask_of"]

#: What a mask may have: a few bytes can stand for any number of pixels, and of holes.
MAX_PIXELS: Final = 1 << 27
MAX_EDGES: Final = 1 << 22


def mask_of(shape: Any) -> npt.NDArray[np.bool_]:
    """Unpack the pixels of an ``ome_types`` mask.

    Returns
    -------
    (Y, X) bool array

    Raises
    ------
    InvalidItem
        Its size is none, or larger than any plane, its data don't fit, or its outline is longer
        than any.
    """
    width, height = _size(shape.width), _size(shape.height)
    n_pixels = width * height
    if n_pixels > MAX_PIXELS:
        raise InvalidItem(
            f"a mask of {width} x {height} pixels is larger than any plane.", cure="Leave it out."
        )
    data = _unpacked(shape.bin_data, n_pixels)
    if len(data) == -(-n_pixels // 8):
        # As the schema has it, and OMERO writes it: row by row, the first pixel the highest bit.
        pixels = np.unpackbits(np.frombuffer(data, np.uint8), count=n_pixels).astype(np.bool_)
    elif len(data) == n_pixels:
        pixels = np.frombuffer(data, np.uint8) != 0
    else:
        raise InvalidItem(
            f"a mask of {width} x {height} pixels has {len(data)} bytes of data.",
            cure="Export it anew.",
        )
    plane = pixels.reshape(height, width)
    n_edges = np.count_nonzero(plane[1:] != plane[:-1])
    n_edges += np.count_nonzero(plane[:, 1:] != plane[:, :-1])
    if n_edges > MAX_EDGES:
        raise InvalidItem(
            f"a mask's outline is {n_edges} pixels long.", cure="Send it as a label image."
        )
    return plane


def _size(number: float) -> int:
    if not (0 < number < 1 << 31 and number == int(number)):
        raise InvalidItem(f"a mask can't be {number:g} pixels long.", cure="Leave it out.")
    return int(number)


def _unpacked(bin_data: Any, most: int) -> bytes:
    """Unpack at most one byte more than there may be."""
    packed, method = bin_data.value, bin_data.compression.value
    try:
        if method == "zlib":
            return zlib.decompressobj().decompress(packed, most + 1)
        if method == "bzip2":
            return bz2.BZ2Decompressor().decompress(packed, most + 1)
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise InvalidItem(f"a mask's data are damaged: {error}.", cure="Export it anew.") from error
    return bytes(packed)
