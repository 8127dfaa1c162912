"""More than the shared memory that a stream may use: a stack goes through it plane by plane."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream import Stream

MIB = 1 << 20
QUOTA = 8 * MIB
SHAPE = (192, 512, 512)  # 96 MiB of uint16


def plane(z: int) -> npt.NDArray[np.uint16]:
    """Another one at each z."""
    return np.random.default_rng(z).integers(0, 65536, SHAPE[1:], np.uint16)


def shared_nbytes(stream: Stream) -> int:
    """Memory that the stream's arenas take up, as the kernel counts it."""
    return sum(512 * os.fstat(arena.fd).st_blocks for arena in stream._pool.arenas())


def read(stream: Stream, **where: Any) -> dict[str, Any]:
    found: dict[str, Any] = stream.request("read", **where)
    return found


@pytest.mark.parametrize("side_lane", [True, False], ids=["shared-memory", "zeromq"])
def test_a_stack_of_twelve_times_the_quota_goes_through_it(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]], side_lane: bool
) -> None:
    _, address = viewer_process()
    with openhcs_stream.connect(address, quota_nbytes=QUOTA, side_lane=side_lane) as stream:
        receipts = []
        for z in range(SHAPE[0]):
            receipts.append(stream.image(plane(z), name="stack", place={"z": z}))
            assert stream._pool.stats().reserved_nbytes <= QUOTA
            if side_lane:
                assert shared_nbytes(stream) <= QUOTA
        stream.flush()
        assert {receipt.state for receipt in receipts} == {"displayed"}
        for z in range(SHAPE[0]):
            found = read(stream, name="stack", place={"z": z})
            assert found["shape"] == list(SHAPE[1:])
            assert zlib.crc32(found["data"]) == zlib.crc32(plane(z).tobytes()), z


def test_a_stack_that_is_sent_as_one_array_goes_through_it_too(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    _, address = viewer_process()
    stack = np.stack([plane(z) for z in range(SHAPE[0])])
    with openhcs_stream.connect(address, quota_nbytes=QUOTA) as stream:
        stream.image(stack, name="stack", axes="ZYX").wait()
        assert shared_nbytes(stream) <= QUOTA
        for z in (0, 1, SHAPE[0] // 2, SHAPE[0] - 1):
            found = read(stream, name="stack", place={"z": z})
            assert zlib.crc32(found["data"]) == zlib.crc32(plane(z).tobytes()), z


def test_labels_of_32_bits_are_exact_over_all_of_their_range(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    _, address = viewer_process()
    labels = np.random.default_rng(0).integers(0, 2**32, (2048, 2048), np.uint32)
    labels[0, :4] = 0, 2**24 + 1, 2**31, 2**32 - 1
    with openhcs_stream.connect(address, quota_nbytes=QUOTA) as stream:
        assert labels.nbytes > stream._pool.chunk_limit
        stream.labels(labels, name="nuclei").wait()
        found = stream.get_labels("nuclei")
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, labels)
