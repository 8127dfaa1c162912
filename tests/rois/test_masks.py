"""Pixels by ImageJ's own rule.

``imagej_masks.npz`` was written by `make_imagej_masks.py` with ImageJ 1.54p: files of random ROIs
of every kind that ImageJ saved, each with the pixels that ImageJ gives it. Texts are not among
them, because ImageJ measures these anew with the fonts that it finds.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, from_imagej, to_imagej, to_mask

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
@settings(deadline=None)
def test_a_part_of_an_image_is_a_part_of_the_mask(xy: Any, high: int, wide: int) -> None:
    roi = Roi("polygon", xy)
    np.testing.assert_array_equal(to_mask(roi, (high, wide)), to_mask(roi, (30, 30))[:high, :wide])


@pytest.mark.parametrize("shape", [(3,), (3, 3, 3), (-1, 3), "ab", None], ids=str)
def test_what_is_no_shape(shape: Any) -> None:
    with pytest.raises(InvalidItem, match="no shape"):
        to_mask(Roi.rectangle(0, 0, 1, 1), shape)
