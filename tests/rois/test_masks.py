"""Pixels by ImageJ's own rule.

``imagej_masks.npz`` was written by `make_imagej_masks.py` with ImageJ 1.54p: files of random ROIs
of every kind that ImageJ saved, each with the pixels that ImageJ gives it. Texts are not among
them, because ImageJ measures these anew with the fonts that it finds.
"""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois import (
    Roi,
    Spline,
    _outline,
    from_imagej,
    from_labels,
    to_geojson,
    to_imagej,
    to_labels,
    to_mask,
    to_napari,
)

TABLE = FilePath(__file__).with_name("imagej_masks.npz")


def cases() -> dict[str, tuple[bytes, Any]]:
    with np.load(TABLE) as table:
        shape = tuple(table["shape"].tolist())
        count = shape[0] * shape[1]
        return {
            name.removesuffix("-roi"): (
                table[name].tobytes(),
                np.unpackbits(table[name.removesuffix("roi") + "mask"])[:count].reshape(shape) > 0,
            )
            for name in table.files
            if name.endswith("-roi")
        }


CASES = cases()
MAKERS = sorted({name.rpartition("-")[0] for name in CASES})


@pytest.mark.parametrize("maker", MAKERS)
def test_the_pixels_are_imagejs(maker: str) -> None:
    mine = {name: case for name, case in CASES.items() if name.rpartition("-")[0] == maker}
    assert len(mine) >= 8
    for name, (data, expected) in mine.items():
        roi = from_imagej(data)
        np.testing.assert_array_equal(to_mask(roi, expected.shape), expected, err_msg=name)
        again = from_imagej(to_imagej(roi))
        np.testing.assert_array_equal(to_mask(again, expected.shape), expected, err_msg=name)


@pytest.mark.parametrize("maker", MAKERS)
def test_files_of_imagej_are_kept(maker: str) -> None:
    for name, (data, _) in CASES.items():
        if name.rpartition("-")[0] == maker:
            roi = from_imagej(data)
            back = from_imagej(to_imagej(roi))
            if roi.kind in ("ellipse", "rotated rectangle"):
                np.testing.assert_allclose(back.coordinates, roi.coordinates, atol=1e-4)
                back = back.replace(coordinates=roi.coordinates)
            assert back == roi, name


def drawn(roi: Roi, *shape: int) -> str:
    rows = to_mask(roi, shape).astype(int)  # type: ignore[arg-type]
    return "\n".join("".join(".#"[pixel] for pixel in row) for row in rows)


def test_ties_left_and_top_exclude_right_and_bottom_include() -> None:
    half = Roi("polygon", np.array([(1.5, 1.5), (4.5, 1.5), (4.5, 3.5), (1.5, 3.5)]))
    assert drawn(half, 5, 6) == "......\n......\n..###.\n..###.\n......"


def test_boxes_are_cut_toward_zero_and_rounded_up() -> None:
    box = Roi("rectangle", np.array([(-0.5, 1.9), (1.7, 3.0)]))
    assert drawn(box, 4, 4) == "....\n###.\n###.\n...."


def test_an_oval_of_three() -> None:
    assert drawn(Roi.oval(0, 0, 3, 3), 3, 3) == "###\n###\n###"
    assert drawn(Roi.oval(0, 0, 4, 4), 4, 4) == ".##.\n####\n####\n.##."


def test_holes_and_islands() -> None:
    boxes = [[(a, a), (a, b), (b, b), (b, a)] for a, b in ((-0.5, 6.5), (0.5, 5.5), (2.5, 3.5))]
    assert drawn(Roi.composite(boxes), 7, 7) == (
        "#######\n#.....#\n#.....#\n#..#..#\n#.....#\n#.....#\n#######"
    )


def test_lines_and_points() -> None:
    assert drawn(Roi.line((0, 0), (1, 3)), 2, 4) == "##..\n..##"
    assert drawn(Roi.points([(0, 1.5), (1.4, -0.5)]), 2, 4) == "..#.\n#..."
    assert drawn(Roi.polyline([(0, 0), (0, 2), (2, 2)]), 3, 3) == "###\n..#\n..#"


@pytest.mark.parametrize("far", [0, 1e5, -1e5, 1e12, 1e300])
def test_what_lies_outside_is_cut_off(any_roi: Roi, far: float) -> None:
    moved = any_roi.replace(coordinates=any_roi.coordinates + far)
    assert to_mask(moved, (30, 30)).any() == (far == 0)
    assert to_mask(moved, (0, 5)).shape == (0, 5)


def test_something_huge_takes_no_more_than_the_image() -> None:
    angle = np.linspace(0, 2 * np.pi, 10_000)
    xy = 1e8 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert to_mask(Roi("polygon", xy), (50, 50)).all()
    assert to_mask(Roi("rectangle", np.array([(-1e8, -1e8), (1e8, 1e8)])), (50, 50)).all()
    assert to_mask(Roi("oval", np.array([(-1e8, -1e8), (1e8, 1e8)])), (50, 50)).all()
    assert drawn(Roi.line((-1e8, -1e8), (1e8, 1e8)), 2, 2) == "#.\n.#"


SPLINED = ["polygon", "freehand", "traced", "polyline", "freeline"]
#: A small .roi with one changed byte: a traced outline to 1.7e38, splined, all in one place.
CHANGED = bytes.fromhex(
    "496f757400e508000001000100040004000300000000000000000000000000000000000000000000000000000000"
    "000000007fffffff0000000000000000004c000000000003000000030003000000008100000000000000000000ff"
    "ff0000000000000000000000002100000000000000000000000000000000000000000000000000000000000000000000"
)


@pytest.mark.parametrize("far", [1e6, 1e9, 1e300])
@pytest.mark.parametrize("kind", SPLINED)
def test_a_far_vertex_of_a_spline_takes_no_more_than_the_image(kind: Any, far: float) -> None:
    roi = Roi(kind, np.array([(0, 0), (0, far), (far, 0)]), details=Spline())
    to_mask(roi, (1, 1))
    tracemalloc.start()
    mask = to_mask(roi, (8, 8))
    data = to_napari(roi)[1]
    geometry = to_geojson([roi])["features"][0]["geometry"]
    nbytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert nbytes < 40 << 20
    assert mask.shape == (8, 8)
    assert len(data) <= 1024
    assert np.isfinite(data).all()
    assert np.isfinite(np.ravel(geometry["coordinates"])).all()


def test_a_far_vertex_of_a_spline_leaves_the_others_as_they_are() -> None:
    angle = np.linspace(0, 2 * np.pi, 40)[:-1]
    near = 30 + 20 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    cell = Roi("polygon", near, details=Spline())
    reaching = Roi("polygon", np.vstack([near, [(2e6, 30)]]), details=Spline())
    # Where it reaches out, and the two knots beside, it is another curve.
    np.testing.assert_array_equal(
        to_mask(reaching, (60, 60))[:, :40], to_mask(cell, (60, 60))[:, :40]
    )


def test_a_spline_without_room_between_its_knots_is_the_polygon_of_its_vertices() -> None:
    roi = from_imagej(CHANGED)
    assert roi.details == Spline()
    assert not to_mask(roi, (8, 8)).any()
    assert len(to_napari(roi)[1]) == len(roi.coordinates)
    assert np.isfinite(to_napari(roi)[1]).all()
    # The last two vertices are one in float32, after a way of some 20 000 roots of pixels.
    xy = np.array([(1, 1), (1e9, 1), (1e9, 6), (1, 6), (1, 6)])
    np.testing.assert_array_equal(
        to_mask(Roi("polygon", xy, details=Spline()), (8, 8)), to_mask(Roi("polygon", xy), (8, 8))
    )


@pytest.mark.parametrize("far", [1e9, 1e38, 1e300, 1.7e308])
@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.filterwarnings("ignore::openhcs_stream.errors.LossyConversion")
def test_numbers_without_bounds_stay_numbers(any_roi: Roi, far: float, is_wide: bool) -> None:
    # From one end of what there is to the other: differences are infinite.
    low, high = any_roi.coordinates.min(), any_roi.coordinates.max()
    moved = any_roi.replace(
        coordinates=((any_roi.coordinates - low) / (high - low) * 2 - 1) * far
        if is_wide
        else any_roi.coordinates / high * far
    )
    assert to_mask(moved, (3, 3)).shape == (3, 3)
    assert np.isfinite(to_napari(moved)[1]).all()
    assert "NaN" not in repr(to_geojson([moved]))


def test_very_many_curves_are_cut_less_often() -> None:
    n = 20_000
    points = np.random.default_rng(1).uniform(-1e6, 1e6, (1 + 3 * n, 2))
    (ring,) = _outline.path_rings(points, b"\0" + b"\3" * n)
    assert len(ring) <= 1 << 20


def test_a_line_to_and_fro_takes_no_more_than_the_image() -> None:
    n = 20_000
    xy = np.stack([np.where(np.arange(n) % 2, 0, 500), np.arange(n) % 500], axis=1).astype(float)
    roi = Roi("polyline", xy)
    tracemalloc.start()
    mask = to_mask(roi, (500, 501))
    nbytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.any()
    assert nbytes < 200 << 20  # all pixels of all pieces would be 160 MB, three times over


def test_one_roi_and_several() -> None:
    one, other = Roi.rectangle(0, 0, 2, 2, name="3"), Roi.oval(1, 1, 4, 4, name="5")
    both = to_mask([one, other], (5, 5))
    np.testing.assert_array_equal(both, to_mask(one, (5, 5)) | to_mask(other, (5, 5)))
    assert not to_mask([], (5, 5)).any()
    np.testing.assert_array_equal(to_labels(one, (5, 5)), to_labels([one], (5, 5)))
    wrong: Any
    for wrong in ([1], "ab", 5, np.zeros((3, 2))):
        for use in (to_mask, to_labels):
            with pytest.raises(InvalidItem, match=r"no Roi|no list of ROIs"):
                use(wrong, (5, 5))


def test_a_number_that_is_taken_is_given_to_the_first(caplog: Any) -> None:
    square = Roi.rectangle(0, 0, 1, 1, name="4")
    rois = [square, Roi.rectangle(0, 1, 1, 2, name="4"), Roi.rectangle(0, 2, 1, 3), square]
    with caplog.at_level(logging.WARNING):
        assert to_labels(rois[:3], (1, 3)).tolist() == [[4, 5, 6]]
        assert "1 of 3 ROIs are named by a number that another has" in caplog.text
        caplog.clear()
        assert to_labels(rois, (1, 3), warn=False).tolist() == [[7, 5, 6]]
        assert to_labels(rois[1:3], (1, 3)).tolist() == [[0, 4, 5]]
    assert not caplog.records


@pytest.mark.parametrize("label", [70_000, 999_999_999, 2**31, 2**32 - 1, 2**40, 2**63 - 1])
def test_large_labels_are_kept(label: int) -> None:
    labels = np.zeros((4, 4), np.int64)
    labels[1:3, 1:3] = label
    back = to_labels(from_labels(labels), labels.shape)
    assert back.max() == label
    assert back.dtype == (np.uint32 if label < 2**32 else np.uint64)
    whole = Roi.rectangle(0, 0, 1, 1)
    both = to_labels([whole.replace(name=str(label)), Roi.rectangle(0, 1, 1, 2)], (1, 2))
    assert both.tolist() == [[label, label + 1]]
    assert to_labels(whole.replace(name=str(2**64)), (1, 1)).tolist() == [[1]]


def test_words_and_heads_do_not_become_labels_without_a_word() -> None:
    with pytest.warns(LossyConversion, match="1 arrow"):
        to_labels(Roi.arrow((0, 0), (3, 3)), (4, 4))
    to_labels(Roi.arrow((0, 0), (3, 3)), (4, 4), warn=False)


def test_a_zigzag_with_very_many_crossings() -> None:
    x = np.arange(0, 4000, dtype=float)
    y = np.where(x % 2, 0, 1200)
    assert to_mask(Roi("polygon", np.stack([x, y], axis=1)), (1200, 4000)).any()


@given(
    arrays(
        np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(-9, 29, width=32)
    ),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_a_part_of_an_image_is_a_part_of_the_mask(xy: Any, high: int, wide: int) -> None:
    roi = Roi("polygon", xy)
    np.testing.assert_array_equal(to_mask(roi, (high, wide)), to_mask(roi, (30, 30))[:high, :wide])


@pytest.mark.parametrize("shape", [(3,), (3, 3, 3), (-1, 3), "ab", None], ids=str)
def test_what_is_no_shape(shape: Any) -> None:
    with pytest.raises(InvalidItem, match="no shape"):
        to_mask(Roi.rectangle(0, 0, 1, 1), shape)
