from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.viewer import encode_png


@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (200, 301)])
def test_another_reader_reads_what_was_written(shape: tuple[int, int], samples: int) -> None:
    imageio = pytest.importorskip("imageio.v3")
    image = np.random.default_rng(1).integers(0, 256, (*shape, samples), dtype=np.uint8)
    assert np.array_equal(imageio.imread(encode_png(image), extension=".png"), image)


def test_any_strides() -> None:
    imageio = pytest.importorskip("imageio.v3")
    image = np.arange(6 * 8 * 4, dtype=np.uint8).reshape(8, 6, 4).transpose(1, 0, 2)[::-1, ::2]
    assert np.array_equal(imageio.imread(encode_png(image), extension=".png"), image)


def test_structure() -> None:
    """Without an image library: the signature, the size, each chunk's checksum."""
    data = encode_png(np.zeros((2, 3, 4), np.uint8))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    tags, offset = [], 8
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        body = data[offset + 4 : offset + 8 + length]
        assert struct.unpack_from(">I", data, offset + 8 + length)[0] == zlib.crc32(body)
        tags.append(body[:4])
        if body[:4] == b"IHDR":
            assert struct.unpack_from(">II", body, 4) == (3, 2)
        offset += 12 + length
    assert tags == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2, 4), np.uint8),
        np.zeros((2, 2, 4), np.uint16),
        np.zeros((2, 2, 4), np.float32),
    ],
    ids=lambda image: f"{image.shape}-{image.dtype}",
)
def test_what_is_no_picture(image: np.ndarray) -> None:
    with pytest.raises(InvalidItem, match="PNG"):
        encode_png(image)
