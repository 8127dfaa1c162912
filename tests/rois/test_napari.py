"""napari's shapes and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois import Arrow, Roi, from_napari, losses, to_mask, to_napari


def bare(roi: Roi) -> Roi:
    return Roi(roi.kind, roi.coordinates)


def test_there_and_back(any_roi: Roi) -> None:
    """napari has fewer kinds: freehand comes back as a polygon, an angle as a polyline."""
    shape_type, yx = to_napari(any_roi, warn=False)
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
    shape_type, yx = to_napari(Roi.arrow((0, 0), (0, 20), Arrow(head_size=10)), warn=False)
    assert shape_type == "path"
    assert yx.tolist()[:2] == [[0, 0], [0, 20]]
    assert yx.min(axis=0)[0] < 0 < yx.max(axis=0)[0]
    assert len(to_napari(Roi.arrow((0, 0), (0, 0)), warn=False)[1]) == 2


@pytest.mark.parametrize(
    ("shape_type", "data", "told"),
    [
        ("blob", [(0, 0)], "'blob'"),
        ("rectangle", [(0, 0)] * 3, "no four corners"),
        ("rectangle", ["a"], "no array of numbers"),
        ("rectangle", [(0, 0), (1, np.inf)], "infinite"),
        ("line", ["a"], "no array of numbers"),
        ("line", [[0, 1], [2]], "no array of numbers"),
        ("line", 5, r"shape \(\)"),
        ("line", {}, "no array of numbers"),
        ("line", [(0, 0)], "1 coordinate pairs"),
        ("line", [0, 0], r"shape \(2,\)"),
        ("polygon", [(0,)] * 3, r"shape \(3, 1\)"),
        ("polygon", [], r"shape \(0,\)"),
    ],
    ids=str,
)
def test_what_is_refused(shape_type: str, data: list[object], told: str) -> None:
    with pytest.raises(InvalidItem, match=told):
        from_napari(shape_type, data)


# --- the forms in which shapes are given ----------------------------------------------------------

TRIANGLE = [(0.0, 0), (0, 4), (3, 0)]
POLYGON, PATH = Roi.polygon(TRIANGLE), Roi.polyline(TRIANGLE)


@pytest.mark.parametrize(
    "roi",
    [
        from_napari("polygon", TRIANGLE),
        from_napari(TRIANGLE, "polygon"),
        from_napari(np.array(TRIANGLE), "Polygon"),
        from_napari(("polygon", TRIANGLE)),
        from_napari((np.array(TRIANGLE), "POLYGON")),
        from_napari(TRIANGLE, shape_type="polygon"),
        from_napari("polygon", data=TRIANGLE),
        from_napari(data=TRIANGLE, shape_type="polygon"),
        from_napari(to_napari(POLYGON)),
        from_napari(*to_napari(POLYGON)),
    ],
)
def test_one_shape_in_every_form(roi: Roi) -> None:
    assert roi == POLYGON


DATA, TYPES = [np.array(TRIANGLE)] * 2, ["polygon", "path"]


@pytest.mark.parametrize(
    "rois",
    [
        from_napari(TYPES, DATA),
        from_napari(DATA, TYPES),
        from_napari(np.array(DATA), tuple(TYPES)),
        from_napari(data=DATA, shape_type=TYPES),
        from_napari((DATA, TYPES)),
        from_napari([(TRIANGLE, "polygon"), ("path", TRIANGLE)]),
        from_napari(to_napari([POLYGON, PATH])),
        [*from_napari("polygon", DATA[:1]), *from_napari(DATA[:1], "path")],
    ],
)
def test_lists_of_shapes_in_every_form(rois: list[Roi]) -> None:
    assert rois == [POLYGON, PATH]


def test_no_shapes_at_all() -> None:
    assert from_napari([]) == from_napari([], []) == to_napari([]) == []
    assert from_napari(data=[], shape_type=[]) == []


def test_names() -> None:
    assert from_napari("polygon", TRIANGLE, name="x").name == "x"
    assert [roi.name for roi in from_napari(TYPES, DATA, name=["a", "b"])] == ["a", "b"]
    assert [roi.name for roi in from_napari(TYPES, DATA, name="c")] == ["c", "c"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "no shape type|0 shape types"),
        ((5,), "no shape type"),
        ((TRIANGLE,), "no shape type"),
        (("polygon",), "no shape type"),
        ((TRIANGLE, TRIANGLE), "0 shape types"),
        (("polygon", "path"), "no array of numbers"),
        (("polygon", TRIANGLE, 3), "2 sets of data"),
        ((TYPES, DATA[:1]), "2 shape types are given for the data of 1"),
        ((TYPES, 5), "int is no list of data"),
        ((["a", "b"], DATA), "'a'"),
        (([("polygon", TRIANGLE), (TRIANGLE, TRIANGLE)],), "no shape type"),
        (([("polygon", DATA)],), "no shape type"),
        ((SimpleNamespace(data=TRIANGLE),), "no shape type"),
    ],
    ids=str,
)
def test_what_is_no_shape(given: tuple[Any, ...], told: str) -> None:
    with pytest.raises(InvalidItem, match=told):
        from_napari(*given)
    with pytest.raises(InvalidItem):
        from_napari(*given, name=["a", "b", "c"])


def test_two_corners_as_napari_takes_them() -> None:
    shapes = pytest.importorskip("napari.layers").Shapes
    corners = [np.array([(2.0, 3), (7, 9)]), np.array([(12.0, 13), (3, 4)])]
    for data in corners:
        for shape_type in ("rectangle", "ellipse"):
            layer = shapes([data], shape_type=shape_type)
            assert from_napari(shape_type, data) == from_napari(shape_type, layer.data[0])
            assert from_napari(layer)[0].kind == {"ellipse": "oval"}.get(shape_type, shape_type)


def in_stack(*leading: float) -> list[tuple[float, ...]]:
    return [(*leading, *pair) for pair in TRIANGLE]


def test_a_shape_of_a_stack_has_its_position() -> None:
    assert from_napari("polygon", in_stack(4)) == POLYGON.replace(position=(0, 5, 0))
    assert from_napari("polygon", in_stack(1, 4)).position == (2, 5, 0)
    assert from_napari("polygon", in_stack(1, 4), axes="TZYX").position == (0, 5, 2)
    assert from_napari("polygon", in_stack(7, 1, 4.2)).position == (2, 5, 8)
    box = from_napari("rectangle", [(5, 2, 3), (5, 7, 9)])
    assert (box.kind, box.position) == ("rectangle", (0, 6, 0))
    oval = from_napari("ellipse", [(5, 12, 13), (0, 3, 4)])
    assert (oval.kind, oval.position) == ("oval", (0, 6, 0))
    (point,) = from_napari([[(3, 1, 1)]], "points", axes="TYX")
    assert point == Roi.points([(1, 1)], position=(0, 0, 4))


@pytest.mark.parametrize(
    ("data", "axes", "told"),
    [
        ([(0, 1, 1), (1, 4, 4), (0, 3, 3)], None, "several planes.*Z is not the same"),
        (in_stack(np.nan), None, "several planes"),
        (in_stack(-3), None, "before its stack"),
        (in_stack(1e300), None, "no place in a stack"),
        (in_stack(1), "ZZYX", "columns"),
        (in_stack(1), "WYX", "columns"),
        (in_stack(1, 2), "ZZYX", "columns"),
        (in_stack(1), "ZXY", "columns"),
        (in_stack(1, 2, 3, 4), None, "6 columns"),
        (np.zeros((0, 3)), None, "0 coordinate pairs"),
    ],
    ids=str,
)
def test_what_lies_in_no_one_plane(data: Any, axes: str | None, told: str) -> None:
    with pytest.raises(InvalidItem, match=told):
        from_napari("polygon", data, axes=axes)


def test_a_shapes_layer() -> None:
    layers = pytest.importorskip("napari.layers")
    data = [np.array(TRIANGLE), np.array([(0.0, 0), (5, 6)])]
    layer = layers.Shapes(
        data,
        shape_type=["polygon", "line"],
        edge_color=["#ff0000", "#00ff0080"],
        face_color=["transparent", "blue"],
        edge_width=[3, 0.5],
        features={"name": ["nucleus", None]},
    )
    look = {"stroke_color": "#ff0000ff", "stroke_width": 3}
    first, second = from_napari(layer)
    assert first == POLYGON.replace(name="nucleus", **look)
    line = Roi.line((0, 0), (5, 6), stroke_color="#00ff0080", fill_color="#0000ffff")
    assert second == line.replace(stroke_width=0.5)
    assert from_napari(layer.data, layer.shape_type) == [POLYGON, Roi.line((0, 0), (5, 6))]
    assert from_napari(layer.shape_type, layer.data, name=["a", "b"])[1].name == "b"
    assert [roi.name for roi in from_napari(layer, name="all")] == ["all"] * 2
    assert [roi.name for roi in from_napari(layers.Shapes(data[:1], shape_type="path"))] == [""]
    assert from_napari(layers.Shapes()) == []


def test_a_layer_takes_what_to_napari_gives_of_a_list() -> None:
    layers = pytest.importorskip("napari.layers")
    rois = [
        POLYGON,
        PATH,
        Roi.oval(1, 2, 5, 9),
        Roi.rectangle(0, 0, 4, 5),
        Roi.line((0, 0), (1, 2)),
    ]
    layer = layers.Shapes(to_napari(rois))
    assert list(layer.shape_type) == ["polygon", "path", "ellipse", "rectangle", "line"]
    back = from_napari(layer)
    assert [(roi.kind, roi.coordinates.tolist()) for roi in back] == [
        (roi.kind, roi.coordinates.tolist()) for roi in rois
    ]


def test_a_points_layer_is_one_roi_for_each_point() -> None:
    layers = pytest.importorskip("napari.layers")
    layer = layers.Points(
        [(4, 1, 2), (0, 3, 4.5)], face_color=["red", "#0000ff80"], features={"name": ["a", "b"]}
    )
    assert from_napari(layer) == [
        Roi.points([(1, 2)], name="a", stroke_color="#ff0000ff", position=(0, 5, 0)),
        Roi.points([(3, 4.5)], name="b", stroke_color="#0000ff80", position=(0, 1, 0)),
    ]
    assert [roi.position for roi in from_napari(layer, axes="TYX")] == [(0, 0, 5), (0, 0, 1)]


# --- what is lost ---------------------------------------------------------------------------------


def test_one_warning_for_a_list_at_the_callers_line() -> None:
    rois = [Roi.arrow((0, 0), (1, 9)), POLYGON, Roi.arrow((0, 0), (9, 1))]
    with pytest.warns(LossyConversion, match="2 arrows: each becomes a path") as issued:
        shapes = to_napari(rois)
    assert [each.filename for each in issued] == [__file__]
    assert [shape_type for _, shape_type in shapes] == ["path", "polygon", "path"]
    with pytest.warns(LossyConversion, match="1 text: .* the words are not shown"):
        to_napari(Roi.text(0, 0, 9, 9, "a"))


def test_what_is_no_roi_is_told() -> None:
    for wrong in (5, [POLYGON, TRIANGLE], "polygon"):
        with pytest.raises(InvalidItem, match=r"no Roi|no list of ROIs"):
            to_napari(wrong)  # type: ignore[arg-type]


# --- properties -----------------------------------------------------------------------------------

#: Halves of pixels: what areas and lines differ by is exact for these.
NUMBERS = st.integers(-(1 << 20), 1 << 20).map(lambda n: n / 2)
ANY_NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
PAIRS = st.tuples(NUMBERS, NUMBERS)
BOX = st.tuples(NUMBERS, NUMBERS, st.integers(1, 999), st.integers(1, 999)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
PLAIN = st.one_of(
    st.lists(PAIRS, min_size=2, max_size=9).map(Roi.polyline),
    st.lists(PAIRS, min_size=1, max_size=9).map(Roi.points),
    st.tuples(PAIRS, PAIRS).map(lambda ends: Roi.line(*ends)),
    BOX.map(lambda box: Roi.rectangle(*box)),
    BOX.map(lambda box: Roi.oval(*box)),
    # A polygon that returns to a vertex may be read as rings: `test_a_composite_...` has these.
    st.lists(PAIRS, min_size=3, max_size=9, unique=True).map(Roi.polygon),
)


@given(PLAIN)
def test_plain_kinds_come_back_exactly(roi: Roi) -> None:
    assert losses(roi, "napari") is None
    assert from_napari(*to_napari(roi)) == roi
    assert from_napari(to_napari([roi])) == [roi]


@given(st.lists(PAIRS, min_size=3, max_size=12))
def test_every_polygon_comes_back_with_its_pixels(vertices: list[tuple[float, float]]) -> None:
    """One may be closed on purpose, return to a vertex, or have no area."""
    roi = Roi("polygon", np.array(vertices) % 16)
    back = from_napari(to_napari(roi))
    assert back.kind in ("polygon", "composite")
    np.testing.assert_array_equal(to_mask(back, (18, 18)), to_mask(roi, (18, 18)))


@given(st.lists(st.lists(PAIRS, min_size=3, max_size=5, unique=True), min_size=1, max_size=4))
@example([[(0.0, 16.0), (0.0, 0.5), (0.0, 0.0)]])  # closed, and then of two vertices
@example([[(1.0, 1.0), (17.0, 1.0), (1.0, 17.0)]])  # of one
def test_rings_come_back_with_their_pixels(rings: list[list[tuple[float, float]]]) -> None:
    roi = Roi.composite([np.array(ring) % 16 for ring in rings])
    back = from_napari(*to_napari(roi))
    np.testing.assert_array_equal(to_mask(back, (18, 18)), to_mask(roi, (18, 18)))


@given(
    st.sampled_from(["rectangle", "ellipse"]),
    st.tuples(ANY_NUMBERS, ANY_NUMBERS),
    st.floats(0.01, 1e3),
    st.floats(0.01, 1e3),
    st.floats(0, 2 * np.pi),
)
def test_turned_boxes_come_back(
    shape_type: str, centre: tuple[float, float], half: float, other: float, angle: float
) -> None:
    along = half * np.array([np.sin(angle), np.cos(angle)])
    across = other * np.array([np.cos(angle), -np.sin(angle)])
    corners = np.add(centre, [-along - across, along - across, along + across, across - along])
    roi = from_napari(shape_type, corners)
    again, yx = to_napari(roi)
    assert again == shape_type
    assert from_napari(again, yx).kind == roi.kind
    assert from_napari(again, corners.astype(np.float32)).kind != "polygon"
    distances = np.hypot(*(yx[:, None] - corners[None]).transpose(2, 0, 1))
    assert distances.min(axis=1).max() < 1e-4


@given(st.sampled_from(["polygon", "path", "line", "points", "rectangle", "ellipse"]), st.data())
def test_whatever_is_given_is_a_roi_or_a_told_error(shape_type: str, draw: st.DataObject) -> None:
    columns = draw.draw(st.integers(0, 5))
    numbers = st.floats(width=32) | st.integers(-3, 3) | st.sampled_from(["a", None])
    row = st.lists(numbers, min_size=columns, max_size=columns)
    data = draw.draw(st.lists(row, max_size=6))
    try:
        roi = from_napari(shape_type, data)
    except InvalidItem:
        return
    assert isinstance(roi, Roi)
