"""Pixels on their way into Java: which types, exactly or not at all, and how fast."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem, OutOfSpace
from openhcs_stream.messages import LayerSpec
from openhcs_stream_fiji._pixels import Keeper

if TYPE_CHECKING:
    import numpy.typing as npt

IMAGE = LayerSpec("image", "raw", "YX")
STACK = LayerSpec("image", "raw", "ZYX")
COLOUR = LayerSpec("image", "raw", "YXS")
LABELS = LayerSpec("labels", "nuclei", "YX")


@pytest.fixture
def keeper(java: Any) -> Keeper:
    return Keeper(java)


@pytest.mark.parametrize(
    ("dtype", "java_type", "as_imagej"),
    [
        ("|b1", "byte", [0, 1]),
        ("|u1", "byte", [0, 255]),
        ("<u2", "short", [0, 65535]),
        ("<f4", "float", [-1e30, 0.1]),
        ("<f2", "float", [-65504, 0.1]),
        ("|i1", "float", [-128, 127]),
        ("<i2", "float", [-32768, 32767]),
        ("<u4", "float", [0, 2**24]),
        ("<i4", "float", [-(2**24), 2**24 + 2]),
        ("<u8", "float", [0, 2**60]),
        ("<i8", "float", [-(2**63), 2**62 + 2**40]),
        ("<f8", "float", [-0.5, 1e-3 * 0 + 2.0**100]),
    ],
)
def test_types(keeper: Keeper, dtype: str, java_type: str, as_imagej: list[float]) -> None:
    pixels = np.array([as_imagej, as_imagej[::-1]], dtype=dtype)
    kept = keeper.keep(pixels, None, IMAGE)
    assert kept.form.java == java_type
    assert (kept.shape, kept.dtype) == (pixels.shape, pixels.dtype)
    back = np.asarray(kept)
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("<u4", 2**24 + 1),
        ("<i4", -(2**24) - 1),
        ("<u8", 2**64 - 1),
        ("<i8", 2**63 - 1),
        ("<f8", 0.1),
        ("<f8", 1e300),
    ],
)
def test_what_a_float_can_not_hold_is_refused_with_the_value(
    keeper: Keeper, java: Any, dtype: str, value: float
) -> None:
    pixels = np.zeros((600, 700), dtype)  # the value is not in the first piece
    pixels[-1, -1] = value
    with pytest.raises(InvalidItem) as caught:
        keeper.keep(pixels, None, IMAGE)
    assert str(pixels[-1, -1]) in caught.value.what
    assert "float32" in caught.value.cure
    assert np.asarray(Keeper(java, rounds=True).keep(pixels, None, IMAGE))[0, 0] == 0


def test_not_a_number_is_kept(keeper: Keeper) -> None:
    pixels = np.array([[np.nan, np.inf, -np.inf, 0.0]])
    np.testing.assert_array_equal(np.asarray(keeper.keep(pixels, None, IMAGE)), pixels)


def test_labels_beyond_what_imagej_counts_are_refused(keeper: Keeper) -> None:
    with pytest.raises(InvalidItem, match="label 16777217") as caught:
        keeper.keep(np.full((2, 2), 2**24 + 1, np.uint32), None, LABELS)
    assert "relabel" in caught.value.cure


def test_colour_has_no_alpha(keeper: Keeper) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    kept = keeper.keep(rgba, None, COLOUR)
    assert kept.shape == (5, 7, 3)
    np.testing.assert_array_equal(np.asarray(kept), rgba[..., :3])
    red, green, blue = rgba[0, 0, :3].tolist()
    assert kept.array[0] & 0xFFFFFFFF == 0xFF000000 | red << 16 | green << 8 | blue


def test_colour_of_more_bits_is_refused(keeper: Keeper) -> None:
    with pytest.raises(InvalidItem, match="8 bits"):
        keeper.keep(np.zeros((5, 7, 3), np.uint16), None, COLOUR)


def test_planes_are_arrays_of_their_own(keeper: Keeper) -> None:
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    kept = keeper.keep(pixels, None, LayerSpec("image", "raw", "TZYX"))
    assert len(kept.arrays) == 6
    assert kept[1, 2].shape == (4, 5)
    np.testing.assert_array_equal(np.asarray(kept[1, 2]), pixels[1, 2])
    np.testing.assert_array_equal(np.asarray(kept), pixels)


def test_any_layout(keeper: Keeper) -> None:
    whole = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)
    for part in (whole[::2, ::3], whole.T, whole[::-1], np.broadcast_to(whole[:1], (40, 50))):
        np.testing.assert_array_equal(np.asarray(keeper.keep(part, None, IMAGE)), part)


def test_memory_is_written_over_where_the_form_is_the_same(keeper: Keeper) -> None:
    first: npt.NDArray[Any] = np.full((2, 4, 5), 7, np.uint16)
    kept = keeper.keep(first, None, STACK)
    again = keeper.keep(first + 1, kept, STACK)
    assert again is kept
    np.testing.assert_array_equal(np.asarray(again), first + 1)


def test_what_does_not_fit_is_refused_and_leaves_room(keeper: Keeper, java: Any) -> None:
    nothing = np.broadcast_to(np.zeros((), np.uint16), (750, 2048, 2048))  # 6 GB
    began = time.monotonic()
    with pytest.raises(OutOfSpace, match="6,000 MiB") as caught:
        keeper.keep(nothing, None, STACK)
    assert time.monotonic() - began < 10
    assert "memory=" in caught.value.cure
    assert np.asarray(keeper.keep(np.ones((512, 512), np.uint8), None, IMAGE)).all()


def test_memory_that_fills_up_plane_by_plane(keeper: Keeper, java: Any) -> None:
    plane = np.ones((4096, 4096), np.uint16)
    kept = []
    with pytest.raises(OutOfSpace):
        for _ in range(100):  # 3.2 GB, where there is 1 GB
            kept.append(keeper.keep(plane, None, IMAGE))  # noqa: PERF401 - it must end by raising
    assert 15 < len(kept) < 31
    free, _ = java.free_nbytes()
    assert free > 50 << 20  # ImageJ can still draw
    kept.clear()
    assert np.asarray(keeper.keep(plane, None, IMAGE)).all()
