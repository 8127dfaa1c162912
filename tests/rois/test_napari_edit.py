"""What a ROI becomes when the napari shape that shows it is moved, resized, turned, reshaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhcs_stream.rois import (
    KINDS,
    POINTS_PER_MARK,
    Arrow,
    Corners,
    Markers,
    Path,
    Roi,
    Spline,
    Text,
    follow_napari,
    to_mask,
    to_napari,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

FINE = np.array([(3.1, 4.2), (9.3, 5.4), (7.55, 11.65), (2.7, 9.8)])
RING = np.array([(0.3, 0.1), (0.2, 9.7), (9.9, 9.6), (9.4, 0.5)])
HOLE = np.array([(2.3, 2.1), (2.2, 4.7), (4.9, 4.6), (4.4, 2.5)])


def shown(roi: Roi, *, closed: bool = False) -> tuple[str, Array]:
    """A ROI as napari has it: in float32; an outline perhaps as a closed path."""
    shape_type, yx = to_napari(roi, warn=False)
    if shape_type == "points":
        around = np.array([(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 0)], np.float64) * 3
        shape_type, yx = "path", np.concatenate([point + around for point in yx])
    elif closed:
        shape_type, yx = "path", np.vstack([yx, yx[:1]])
    return shape_type, yx.astype(np.float32).astype(np.float64)


def dragged(yx: Array, by: tuple[float, float], steps: int = 40) -> Array:
    """As napari drags: many small steps, each rounded."""
    now = yx.astype(np.float32)
    for _ in range(steps):
        now = (now + np.array(by) / steps).astype(np.float32)
    return now.astype(np.float64)


def turned(yx: Array, degrees: float, centre: Array | None = None) -> Array:
    """Counter-clockwise on the screen, where y points down."""
    angle = np.radians(degrees)
    matrix = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    about = yx.mean(axis=0) if centre is None else centre
    made: Array = ((yx - about) @ matrix.T + about).astype(np.float32).astype(np.float64)
    return made


def test_nothing_was_done(any_roi: Roi) -> None:
    shape_type, yx = shown(any_roi)
    same, lost = follow_napari(any_roi, shape_type, yx, shape_type, yx)
    assert same is any_roi
    assert not lost


def test_every_kind_stays_what_it_is_when_it_is_moved(any_roi: Roi) -> None:
    shape_type, yx = shown(any_roi)
    moved, lost = follow_napari(any_roi, shape_type, yx, shape_type, dragged(yx, (20.5, -3.25)))
    assert not lost
    steps = moved.coordinates - any_roi.coordinates
    np.testing.assert_allclose(steps, np.tile((-3.25, 20.5), (len(steps), 1)), atol=1e-3)
    assert np.ptp(steps, axis=0).max() < 1e-12  # not distorted
    assert moved.replace(coordinates=any_roi.coordinates) == any_roi


@given(
    st.sampled_from(sorted(KINDS)),
    st.floats(-3000, 3000),
    st.floats(-3000, 3000),
    st.floats(-5000, 5000),
)
@settings(max_examples=60)
def test_moved_anywhere_by_anything(kind: str, down: float, right: float, at: float) -> None:
    if max(abs(down), abs(right)) < 0.01:
        down = 1.0
    roi = KIND_EXAMPLES[kind]
    roi = roi.replace(coordinates=roi.coordinates + at)
    shape_type, yx = shown(roi)
    moved, lost = follow_napari(roi, shape_type, yx, shape_type, dragged(yx, (down, right)))
    assert (moved.kind, moved.details, lost) == (roi.kind, roi.details, "")
    steps = moved.coordinates - roi.coordinates
    np.testing.assert_allclose(steps, np.tile((right, down), (len(steps), 1)), atol=0.05)


KIND_EXAMPLES: dict[str, Roi] = {
    "polygon": Roi.polygon(FINE),
    "freehand": Roi("freehand", FINE),
    "traced": Roi("traced", FINE),
    "polyline": Roi.polyline(FINE),
    "freeline": Roi("freeline", FINE),
    "angle": Roi("angle", FINE[:3]),
    "line": Roi.line((1.1, 2.2), (9.3, 5.4)),
    "rectangle": Roi.rectangle(1.25, 2.5, 9.75, 12.125),
    "oval": Roi.oval(1.25, 2.5, 9.75, 12.125),
    "ellipse": Roi("ellipse", np.array([(2.1, 10.0), (10.0, 12.0), (5.0, 13.5)])),
    "rotated rectangle": Roi("rotated rectangle", np.array([(2.0, 10.0), (10.0, 14), (4.8, 14.4)])),
    "rounded rectangle": Roi.rounded_rectangle(1.1, 2.2, 19.3, 25.4, 5),
    "composite": Roi.composite([RING, HOLE]),
    "arrow": Roi.arrow((1.1, 2.2), (9.3, 25.4), Arrow("open", double_headed=True)),
    "text": Roi.text(1.1, 2.2, 9.3, 25.4, Text("here", angle=10.0)),
    "point": Roi.points(FINE, details=Markers("dot", counters=(1, 2, 3, 4))),
}


def test_there_is_an_example_of_every_kind() -> None:
    assert set(KIND_EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("closed", [False, True], ids=["polygon", "path"])
@pytest.mark.parametrize("kind", ["polygon", "freehand", "traced"])
def test_vertices_that_nobody_touched_stay_to_the_last_bit(kind: str, closed: bool) -> None:
    roi = KIND_EXAMPLES[kind]
    shape_type, was = shown(roi, closed=closed)
    now = was.copy()
    now[2] = (20.0, 21.0)
    moved, _ = follow_napari(roi, shape_type, was, shape_type, now)
    assert moved.kind == kind
    assert moved.coordinates[2].tolist() == [21.5, 20.5]
    np.testing.assert_array_equal(moved.coordinates[[0, 1, 3]], roi.coordinates[[0, 1, 3]])
    more, _ = follow_napari(roi, shape_type, was, shape_type, np.insert(was, 1, (6.0, 7.0), axis=0))
    np.testing.assert_array_equal(more.coordinates[[0, 2, 3, 4]], roi.coordinates)
    fewer, _ = follow_napari(roi, shape_type, was, shape_type, np.delete(was, 1, axis=0))
    np.testing.assert_array_equal(fewer.coordinates, roi.coordinates[[0, 2, 3]])
    first, _ = follow_napari(roi, shape_type, was, shape_type, np.delete(was, 0, axis=0))
    np.testing.assert_array_equal(
        first.coordinates, roi.coordinates[[1, 2, 3, *([0] if closed else [])]]
    )


def test_the_first_vertex_of_a_closed_path() -> None:
    """napari drags the last one with it."""
    roi = KIND_EXAMPLES["polygon"]
    shape_type, was = shown(roi, closed=True)
    now = was.copy()
    now[[0, -1]] = (-1.0, -2.0)
    moved, _ = follow_napari(roi, shape_type, was, shape_type, now)
    assert moved.coordinates[0].tolist() == [-1.5, -0.5]
    np.testing.assert_array_equal(moved.coordinates[1:], roi.coordinates[1:])


def test_a_triangle_of_which_a_vertex_was_taken_away_is_a_line() -> None:
    roi = Roi.polygon(FINE[:3], name="x")
    shape_type, was = shown(roi, closed=True)
    line, lost = follow_napari(roi, shape_type, was, shape_type, was[[0, 1, 3]])
    assert (line.kind, line.name) == ("polyline", "x")
    assert "line" in lost


@pytest.mark.parametrize("kind", ["polyline", "freeline", "angle", "line"])
def test_lines(kind: str) -> None:
    roi = KIND_EXAMPLES[kind]
    shape_type, was = shown(roi)
    now = was.copy()
    now[-1] = (20.0, 21.0)
    moved, _ = follow_napari(roi, shape_type, was, shape_type, now)
    assert moved.kind == kind
    assert moved.coordinates[-1].tolist() == [21.0, 20.0]
    np.testing.assert_array_equal(moved.coordinates[:-1], roi.coordinates[:-1])
    longer, _ = follow_napari(roi, shape_type, was, "path", np.vstack([was, [(8, 8)]]))
    assert longer.kind == {"angle": "polyline", "line": "polyline"}.get(kind, kind)
    np.testing.assert_array_equal(longer.coordinates[:-1], roi.coordinates)


def test_a_box_that_is_resized_keeps_the_sides_that_stay() -> None:
    for kind in ("rectangle", "oval", "text", "rounded rectangle"):
        roi = KIND_EXAMPLES[kind].replace(coordinates=np.array([(2.1, 1.1), (25.3, 19.3)]))
        shape_type, was = shown(roi)
        left_top = was.min(axis=0)
        now = ((was - left_top) * (2.0, 1.5) + left_top).astype(np.float32)
        made, lost = follow_napari(roi, shape_type, was, shape_type, now)
        assert (made.kind, made.details, lost) == (kind, roi.details, "")
        assert made.coordinates[0].tolist() == [2.1, 1.1]
        np.testing.assert_allclose(made.coordinates[1], (2.1 + 23.2 * 1.5, 1.1 + 18.2 * 2), 1e-5)


def test_a_box_that_is_turned() -> None:
    for kind, becomes in (("rectangle", "rotated rectangle"), ("oval", "ellipse")):
        roi = KIND_EXAMPLES[kind].replace(name="x")
        shape_type, was = shown(roi)
        made, lost = follow_napari(roi, shape_type, was, shape_type, turned(was, 30))
        assert (made.kind, made.name, lost) == (becomes, "x", "")
        again_type, again = shown(made)
        back, _ = follow_napari(made, again_type, again, again_type, turned(again, -30))
        np.testing.assert_allclose(
            sorted(to_napari(back, warn=False)[1].tolist()), sorted(was.tolist()), atol=1e-4
        )


def test_a_corner_of_a_rectangle_makes_a_polygon() -> None:
    roi = KIND_EXAMPLES["rectangle"]
    _, was = shown(roi)
    now = was.copy()
    now[2] = (20.0, 21.0)
    made, lost = follow_napari(roi, "rectangle", was, "polygon", now)
    assert (made.kind, lost) == ("polygon", "")
    assert made.coordinates.tolist() == [[2.5, 1.25], [12.125, 1.25], [21.5, 20.5], [2.5, 9.75]]


def test_a_rounded_rectangle_that_is_turned_or_reshaped_tells_what_is_lost() -> None:
    roi = KIND_EXAMPLES["rounded rectangle"]
    for closed in (False, True):
        shape_type, was = shown(roi, closed=closed)
        now = was.copy()
        now[3] += 4
        for edited in (turned(was, 45), now):
            made, lost = follow_napari(roi, shape_type, was, shape_type, edited)
            assert made.kind == "polygon"
            assert "round corners" in lost


def test_a_text_keeps_its_words() -> None:
    roi = KIND_EXAMPLES["text"]
    shape_type, was = shown(roi)
    made, lost = follow_napari(roi, shape_type, was, shape_type, turned(was, 25))
    assert (made.kind, lost) == ("text", "")
    assert isinstance(made.details, Text)
    assert made.details.text == "here"
    assert made.details.angle == pytest.approx(35, abs=1e-3)
    np.testing.assert_allclose(made.coordinates, roi.coordinates, atol=1e-4)
    now = was.copy()
    now[0] = (-5.0, -6.0)
    reshaped, lost = follow_napari(roi, shape_type, was, "polygon", now)
    assert (reshaped.details, lost) == (roi.details, "")
    assert reshaped.coordinates[0].tolist() == [-5.5, -4.5]
    np.testing.assert_array_equal(reshaped.coordinates[1], roi.coordinates[1])


@pytest.mark.parametrize("double", [False, True])
def test_an_arrow_follows_its_tip_its_tail_and_both(double: bool) -> None:
    roi = Roi.arrow((1.1, 2.2), (9.3, 25.4), Arrow("open", double_headed=double))
    shape_type, was = shown(roi)
    tail_row, tip_rows = (1, (4, 6)) if double else (0, (1, 3))
    for tip_row in tip_rows:
        now = was.copy()
        now[tip_row] = (30.0, 31.0)
        made, lost = follow_napari(roi, shape_type, was, shape_type, now)
        assert (made.details, lost) == (roi.details, "")
        assert made.coordinates.tolist() == [[2.2, 1.1], [31, 30]]
    now = was.copy()
    now[tail_row] = (30.0, 31.0)
    made, _ = follow_napari(roi, shape_type, was, shape_type, now)
    assert made.coordinates.tolist() == [[31, 30], [25.4, 9.3]]
    around, _ = follow_napari(roi, shape_type, was, shape_type, turned(was, 90))
    assert around.details == roi.details
    np.testing.assert_allclose(np.diff(around.coordinates, axis=0), [[8.2, -23.2]], atol=1e-3)
    longer, lost = follow_napari(roi, shape_type, was, "path", np.vstack([was, [(50, 50)]]))
    assert longer.kind == "polyline"
    assert "head" in lost


@pytest.mark.parametrize("closed", [False, True], ids=["polygon", "path"])
def test_a_composite_keeps_its_rings(closed: bool) -> None:
    roi = KIND_EXAMPLES["composite"]
    shape_type, was = shown(roi, closed=closed)
    hole = 4 + 1  # the first vertex of the hole, after the way to it
    for row in (hole, hole + 4):  # where the hole begins, and where it is closed
        now = was.copy()
        now[row] = (3.0, 3.5)
        made, lost = follow_napari(roi, shape_type, was, shape_type, now)
        assert (made.kind, made.details, lost) == ("composite", roi.details, "")
        expected = roi.coordinates.copy()
        expected[4] = (4.0, 3.5)
        np.testing.assert_array_equal(made.coordinates, expected)
    around, lost = follow_napari(roi, shape_type, was, shape_type, turned(was, 90))
    assert (around.details, lost) == (roi.details, "")
    fewer, lost = follow_napari(roi, shape_type, was, shape_type, np.delete(was, 2, axis=0))
    assert (fewer.kind, lost) == ("composite", "")
    assert len(fewer.coordinates) == 7
    broken, lost = follow_napari(roi, shape_type, was, shape_type, np.delete(was, hole, axis=0))
    assert broken.kind == "polygon"
    assert "rings" in lost


def test_curves_follow_and_are_lost_only_when_they_are_reshaped() -> None:
    curve = np.array([(2, 2), (6, -2), (10, 2), (10, 10), (2, 10)], np.float64)
    for roi in (
        Roi("composite", curve, details=Path(b"\0\2\1\1\4")),
        Roi("polygon", curve, details=Spline()),
    ):
        shape_type, was = shown(roi)
        made, lost = follow_napari(roi, shape_type, was, shape_type, was * 2)
        assert (made.details, lost) == (roi.details, "")
        assert to_mask(made, (30, 30)).sum() == pytest.approx(4 * to_mask(roi, (30, 30)).sum(), 0.1)
        now = was.copy()
        now[3] += 5
        reshaped, lost = follow_napari(roi, shape_type, was, shape_type, now)
        assert reshaped.kind == roi.kind
        assert "straight pieces" in lost
        assert len(reshaped.coordinates) >= len(was) - 1  # a spline ends where it began


def test_the_mark_of_a_point_carries_it_along() -> None:
    roi = KIND_EXAMPLES["point"]
    shape_type, was = shown(roi)
    now = was.copy()
    now[POINTS_PER_MARK + 2] += (4.0, -5.0)
    made, _ = follow_napari(roi, shape_type, was, shape_type, now)
    assert made.details == roi.details
    np.testing.assert_allclose(made.coordinates[1], roi.coordinates[1] + (-5, 4))
    np.testing.assert_array_equal(made.coordinates[[0, 2, 3]], roi.coordinates[[0, 2, 3]])
    fewer, _ = follow_napari(
        roi, shape_type, was, shape_type, np.delete(was, POINTS_PER_MARK, axis=0)
    )
    np.testing.assert_array_equal(fewer.coordinates, roi.coordinates[[0, 2, 3]])
    assert isinstance(fewer.details, Markers)
    assert fewer.details.counters == (1, 3, 4)
    alone = Roi.points([(4, 4)])
    shape_type, was = shown(alone)
    same, _ = follow_napari(alone, shape_type, was, shape_type, was[1:])
    assert same == alone


def test_a_rounded_rectangle_of_few_vertices() -> None:
    """Whatever is too thin to find the map of is made of what is shown."""
    roi = Roi("rounded rectangle", np.array([(2.0, 2.0), (2.0, 9.0)]), details=Corners(4))
    shape_type, was = shown(roi)
    made, _ = follow_napari(roi, shape_type, was, shape_type, was * (2.0, 1.0))
    assert made.kind in ("rounded rectangle", "polygon")
