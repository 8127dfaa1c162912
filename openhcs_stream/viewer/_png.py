"""PNG files from screenshots, with nothing but zlib: a viewer needs no image library for that."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import InvalidItem

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["encode_png"]

#: Fast and nearly as small as the default for screenshots.
_LEVEL = 3
#: PNG's colour types by the number of samples.
_COLOUR_TYPES = {3: 2, 4: 6}


def encode_png(rgba: npt.NDArray[Any]) -> bytes:
    """Encode an image as a PNG file.

    Parameters
    ----------
    rgba : (Y, X, 4) or (Y, X, 3) uint8
        Any strides; at least one pixel.

    Returns
    -------
    bytes
        The whole file.

    Raises
    ------
    InvalidItem
        Another shape or dtype.
    """
    shape = rgba.shape
    if len(shape) != 3 or shape[2] not in _COLOUR_TYPES or 0 in shape or rgba.dtype != "|u1":
        raise InvalidItem(
            f"an array of shape {shape} and dtype {rgba.dtype} can't become a PNG file.",
            cure="Give (Y, X, 4) or (Y, X, 3) uint8 with at least one pixel.",
        )
    height, width, samples = shape
    # Each row begins with its filter's number; 0 is "none".
    rows = b"".join(b"\0" + row.tobytes() for row in rgba)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[samples], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows, _LEVEL))
        + _chunk(b"IEND", b"")
    )


def _chunk(tag: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(tag))
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", checksum)
