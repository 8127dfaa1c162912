"""Outlines of label images enclose exactly the label's pixels, by ImageJ's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, _labels, from_labels, to_labels, to_mask

Array = np.ndarray[Any, Any]


def filled(roi: Roi, shape: tuple[int, ...]) -> Array:
    """Pixels inside, by the even-odd rule at pixel centres."""
    y, x = (grid + 0.5 for grid in np.indices(shape))
    inside = np.zeros(shape, bool)
    corners = roi.coordinates
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            assert x0 == x1, "outlines of pixels are upright"
            inside ^= (min(y0, y1) < y) & (y < max(y0, y1)) & (x0 > x)
    return inside


def largest_part_filled(mask: Array) -> Array:
    """The mask's largest 8-connected part with its holes, found by flooding; no library."""
    padded = np.pad(mask, 1)
    best = np.zeros_like(padded)
    left = padded.copy()
    while left.any():
        part = flooded(left, tuple(np.argwhere(left)[0]), corners=True)
        left &= ~part
        whole = ~flooded(~part, (0, 0), corners=False)
        if whole.sum() > best.sum():
            best = whole
    return best[1:-1, 1:-1]


def flooded(free: Array, start: tuple[int, ...], *, corners: bool) -> Array:
    found = np.zeros_like(free)
    todo = [start]
    while todo:
        y, x = todo.pop()
        if not (0 <= y < free.shape[0] and 0 <= x < free.shape[1]) or found[y, x] or not free[y, x]:
            continue
        found[y, x] = True
        todo += [
            (y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if corners or 0 in (dy, dx)
        ]
    return found


@given(
    arrays(np.uint8, st.tuples(st.integers(0, 7), st.integers(0, 7)), elements=st.integers(0, 2))
)
@settings(max_examples=200)
def test_any_label_image(labels: Array) -> None:
    rois = from_labels(labels, simple=True)
    assert all(roi.kind == "polygon" for roi in rois)
    assert [roi.name for roi in rois] == [str(n) for n in np.unique(labels) if n]
    for roi in rois:
        expected = largest_part_filled(labels == int(roi.name))
        # Two parts may be equally large; then either will do.
        assert filled(roi, labels.shape).sum() == expected.sum()
        assert (filled(roi, labels.shape) & (labels == int(roi.name))).any()


@given(
    arrays(np.uint16, st.tuples(st.integers(0, 9), st.integers(0, 9)), elements=st.integers(0, 3))
)
@settings(max_examples=200)
def test_there_and_back(labels: Array) -> None:
    np.testing.assert_array_equal(to_labels(from_labels(labels), labels.shape), labels)


def test_many_polygons_are_painted_as_one_by_one() -> None:
    random = np.random.default_rng(5)
    rois = []
    for i in range(900):
        xy = random.uniform(-9, 60, 2) + random.uniform(-9, 9, (random.integers(3, 9), 2))
        xy = np.rint(xy * 2) / 2 if i % 3 else xy
        rois.append(Roi("polygon", xy.round() if i % 3 == 1 else xy))
        if i % 200 == 7:
            rois.append(Roi.oval(i % 30, 5, i % 30 + 9, 20))
        if i % 333 == 0:
            rois.append(Roi("freehand", xy * 20))
    expected = np.zeros((50, 55), np.uint16)
    for number, roi in enumerate(rois, 1):
        expected[to_mask(roi, expected.shape)] = number
    np.testing.assert_array_equal(to_labels(rois, expected.shape), expected)
    assert to_labels(rois, (0, 5)).shape == (0, 5)


def test_numbers_and_order() -> None:
    square = Roi.rectangle(0, 0, 2, 2)
    rois = [square.replace(name="7"), square, square.replace(name="007")]
    labels = to_labels([rois[0], Roi.rectangle(1, 1, 3, 3), Roi.points([(0, 0)])], (4, 4))
    assert labels.tolist() == [[9, 7, 0, 0], [7, 8, 8, 0], [0, 8, 8, 0], [0, 0, 0, 0]]
    assert to_labels(rois, (1, 1)).tolist() == [[9]]
    assert to_labels([square.replace(name="70000")], (1, 1)).dtype == np.uint32
    assert to_labels([], (2, 3)).dtype == np.uint16


DTYPES: list[Any] = [np.uint8, np.int16, np.uint32, np.int64, np.uint64]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays(
            dtype,
            st.tuples(st.integers(0, 5), st.integers(0, 5)),
            elements=st.sampled_from([0, 1, 2, 127, int(np.iinfo(dtype).max)]),
        )
    )
)
@settings(max_examples=200)
def test_labels_of_any_type_keep_their_numbers(labels: Array) -> None:
    np.testing.assert_array_equal(to_labels(from_labels(labels), labels.shape), labels)


def test_nothing_follows_the_largest_label() -> None:
    square = Roi.rectangle(0, 0, 1, 1)
    names = [str(2**64 - 1), "", "1", str(2**64), "-3"]
    rois = [Roi.rectangle(0, n, 1, n + 1, name=name) for n, name in enumerate(names)]
    labels = to_labels(rois, (1, 5))
    assert labels.dtype == np.uint64
    assert labels.tolist() == [[2**64 - 1, 2, 1, 3, 4]]
    assert to_labels([square.replace(name=str(2**63))] * 2, (1, 1)).tolist() == [[2**63 + 1]]


def test_only_pixels_at_a_border_are_looked_at() -> None:
    labels = np.ones((300, 300), np.uint8)
    assert len(_labels._Edges(labels)._next) == 1200
    labels[100, 100] = 2
    assert [len(roi.coordinates) for roi in from_labels(labels)] == [8, 4]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64])
def test_a_block(dtype: Any) -> None:
    labels = np.zeros((5, 6), dtype)
    labels[1:3, 2:5] = 1
    (roi,) = from_labels(labels)
    assert roi.kind == "polygon"
    assert sorted(roi.coordinates.tolist()) == [[2, 1], [2, 3], [5, 1], [5, 3]]
    assert not roi.coordinates.flags.writeable


def test_pixels_that_touch_at_a_corner_belong_together() -> None:
    labels = np.eye(3, dtype=int)
    (roi,) = from_labels(labels)
    np.testing.assert_array_equal(filled(roi, (3, 3)), labels == 1)


def test_a_hole_makes_a_composite() -> None:
    labels = np.ones((3, 3), int)
    labels[1, 1] = 0
    [roi] = from_labels(labels)
    assert (roi.kind, roi.name, len(roi.coordinates)) == ("composite", "1", 8)
    assert len(from_labels(labels, simple=True)[0].coordinates) == 4


def test_large_and_negative_numbers_are_labels() -> None:
    assert [roi.name for roi in from_labels(np.array([[2**40, 0, -3]]))] == ["-3", str(2**40)]


def test_no_labels() -> None:
    assert from_labels(np.zeros((4, 4), int)) == []
    assert from_labels(np.zeros((0, 4), int)) == []


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2)), np.zeros((2, 2, 2), int)], ids=["float", "3d"]
)
def test_what_is_no_label_image(labels: Array) -> None:
    with pytest.raises(InvalidItem, match="no label image"):
        from_labels(labels)
