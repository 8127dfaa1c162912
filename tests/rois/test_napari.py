"""napari's shapes and back."""

from __future__ import annotations

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Arrow, Roi, from_napari, to_mask, to_napari


def bare(roi: Roi) -> Roi:
    return Roi(roi.kind, roi.coordinates)


def test_there_and_back(any_roi: Roi) -> None:
    """napari has fewer kinds: freehand comes back as a polygon, an angle as a polyline."""
    shape_type, yx = to_napari(any_roi)
    back = from_napari(shape_type, yx)
    same = {
        "freehand": "polygon", "traced": "polygon", "freeline": "polyline", "angle": "polyline",
        "ellipse": "oval", "text": "rectangle", "rotated rectangle": "rectangle",
        "rounded rectangle": "polygon", "arrow": "polyline", "composite": "polygon",
    }  # fmt: skip
    assert back.kind == same.get(any_roi.kind, any_roi.kind)
    if any_roi.kind not in (
        "ellipse",
        "rotated rectangle",
        "rounded rectangle",
        "arrow",
        "composite",
    ):
        np.testing.assert_array_equal(back.coordinates, any_roi.coordinates)
    again, yx_again = to_napari(back)
    assert again == shape_type
    np.testing.assert_allclose(np.sort(yx_again, axis=0), np.sort(yx, axis=0))


def test_areas_are_half_a_pixel_nearer() -> None:
    shape_type, yx = to_napari(Roi.rectangle(2, 3, 9, 18))
    assert shape_type == "rectangle"
    assert yx.tolist() == [[1.5, 2.5], [1.5, 17.5], [8.5, 17.5], [8.5, 2.5]]
    assert to_napari(Roi.polygon([(0, 0), (0, 4), (3, 0)]))[1].tolist() == [[0, 0], [0, 4], [3, 0]]


def test_lines_and_points_have_the_same_numbers() -> None:
    assert to_napari(Roi.line((2, 3), (4, 5)))[1].tolist() == [[2, 3], [4, 5]]
    shape_type, yx = to_napari(Roi.points([(2, 3)]))
    assert (shape_type, yx.tolist()) == ("points", [[2, 3]])


def test_the_data_is_the_callers_own() -> None:
    for roi in (Roi.points([(2, 3)]), Roi.polygon([(0, 0), (0, 4), (3, 0)])):
        to_napari(roi)[1][:] = 0


@pytest.mark.parametrize("swap", [False, True], ids=["wide", "tall"])
def test_a_turned_ellipse(swap: bool) -> None:
    centre, along, across = np.array([10.0, 20]), np.array([3.0, 4]), np.array([-1.6, 1.2])
    corners = np.array(
        [
            centre - along - across,
            centre + along - across,
            centre + along + across,
            centre - along + across,
        ]
    )
    if swap:
        corners = np.roll(corners, 1, axis=0)
    roi = from_napari("ellipse", corners)
    assert roi.kind == "ellipse"
    (x1, y1), (x2, y2), _ = roi.coordinates
    assert np.hypot(x2 - x1, y2 - y1) == pytest.approx(10)
    shape_type, yx = to_napari(roi)
    assert shape_type == "ellipse"
    np.testing.assert_allclose(sorted(yx.tolist()), sorted(corners.tolist()))


def test_a_turned_rectangle() -> None:
    corners = np.array([(0.0, 2), (2, 4), (4, 2), (2, 0)])
    roi = from_napari("rectangle", corners)
    assert roi.kind == "rotated rectangle"
    shape_type, yx = to_napari(roi)
    assert shape_type == "rectangle"
    assert sorted(yx.tolist()) == sorted(corners.tolist())


def test_a_sheared_rectangle_is_a_polygon() -> None:
    corners = np.array([(0.0, 0), (0, 4), (2, 5), (2, 1)])
    roi = from_napari("rectangle", corners)
    assert roi.kind == "polygon"
    np.testing.assert_array_equal(to_napari(roi)[1], corners)


RINGS = [
    np.array([(0.0, 0), (0, 9), (9, 9), (9, 0)]),
    np.array([(2.0, 2), (2, 4), (4, 4), (4, 2)]),
    np.array([(20.0, 20), (20, 24), (24, 24)]),
]


@pytest.mark.parametrize("count", [2, 3])
def test_a_composite_is_one_polygon_and_comes_back(count: int) -> None:
    roi = Roi.composite(RINGS[:count])
    shape_type, yx = to_napari(roi)
    assert shape_type == "polygon"
    assert from_napari(shape_type, yx) == roi
    # The way in and out encloses nothing: the pixels are the same as those of the one polygon.
    np.testing.assert_array_equal(to_mask(Roi.polygon(yx), (30, 30)), to_mask(roi, (30, 30)))


def test_a_polygon_that_merely_touches_itself_stays_one() -> None:
    yx = [(0, 0), (0, 4), (4, 4), (0, 0), (-4, -4), (0, -4)]
    assert from_napari("polygon", yx).kind == "polygon"


def test_an_arrow_draws_its_head() -> None:
    shape_type, yx = to_napari(Roi.arrow((0, 0), (0, 20), Arrow(head_size=10)))
    assert shape_type == "path"
    assert yx.tolist()[:2] == [[0, 0], [0, 20]]
    assert yx.min(axis=0)[0] < 0 < yx.max(axis=0)[0]
    assert len(to_napari(Roi.arrow((0, 0), (0, 0)))[1]) == 2


@pytest.mark.parametrize(
    ("shape_type", "data", "told"),
    [
        ("blob", [(0, 0)], "'blob'"),
        ("rectangle", [(0, 0), (1, 1)], "no four corners"),
        ("line", [(0, 0)], "1 coordinate pairs"),
        ("line", [0, 0], r"shape \(2,\)"),
        ("polygon", [(0, 0, 0)] * 3, r"shape \(3, 3\)"),
    ],
    ids=str,
)
def test_what_is_refused(shape_type: str, data: list[object], told: str) -> None:
    with pytest.raises(InvalidItem, match=told):
        from_napari(shape_type, data)  # type: ignore[arg-type]
