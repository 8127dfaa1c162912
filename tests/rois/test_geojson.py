"""GeoJSON as QuPath writes and reads it."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois import (
    Path as RoiPath,
)
from openhcs_stream.rois import (
    Roi,
    Spline,
    _nesting,
    from_geojson,
    from_labels,
    to_geojson,
    to_mask,
)

if TYPE_CHECKING:
    from pathlib import Path

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 2]]
FAR = [[20, 20], [24, 20], [24, 24], [20, 20]]


def feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def document_of(*rois: Roi) -> dict[str, Any]:
    """What others don't see is no matter here."""
    return to_geojson(rois, warn=False)


def test_each_kind_there_and_back(any_roi: Roi) -> None:
    document = json.loads(json.dumps(document_of(any_roi)))
    assert from_geojson(document) == [any_roi]


def test_one_roi_is_taken_as_a_list_of_one() -> None:
    roi = Roi.polygon([(0, 0), (0, 4), (3, 0)])
    assert to_geojson(roi) == to_geojson([roi])


@pytest.mark.parametrize("given", [5, "abc", [np.zeros((3, 2))], [None]], ids=str)
def test_what_is_no_roi_is_not_written(given: Any) -> None:
    with pytest.raises(InvalidItem, match="coerce"):
        to_geojson(given)


def test_what_others_do_not_see_is_told_once() -> None:
    with pytest.warns(LossyConversion, match="arrow") as told:
        to_geojson([Roi.arrow((0, 0), (1, 1)), Roi.text(0, 0, 9, 9, "a")])
    assert len(told) == 1
    assert told[0].filename == __file__


def test_text_bytes_and_paths_are_read_too(tmp_path: Path) -> None:
    roi = Roi.polygon([(0, 0), (0, 4), (3, 0)], name="µ")
    text = json.dumps(to_geojson(roi), ensure_ascii=False)
    file = tmp_path / "a.geojson"
    file.write_text(text, encoding="utf-8")
    for each in (text, "\ufeff" + text, text.encode(), b"\xef\xbb\xbf" + text.encode(), file):
        assert from_geojson(each) == [roi]


@pytest.mark.parametrize("given", ["cells.geojson", b"", "[" * 100_000, b"\xff\xfe\xff"], ids=repr)
def test_a_text_that_is_no_json(given: Any) -> None:
    with pytest.raises(InvalidItem, match=r"json\.load.*Path"):
        from_geojson(given)


@pytest.mark.parametrize("kind", ["polygon", "polyline"])
def test_splines_there_and_back(kind: Any) -> None:
    roi = Roi(kind, np.array([(3, 2), (18, 2), (18, 9)]), details=Spline())
    document = document_of(roi)
    assert from_geojson(document) == [roi]
    coordinates = document["features"][0]["geometry"]["coordinates"]
    assert len(coordinates[0] if kind == "polygon" else coordinates) >= 100


def test_an_edited_geometry_wins_over_what_lies_beside_it() -> None:
    document = to_geojson([Roi.oval(0, 0, 4, 4, name="a")])
    document["features"][0]["geometry"] = {"type": "Polygon", "coordinates": [SQUARE]}
    [roi] = from_geojson(document)
    assert (roi.kind, roi.name, roi.coordinates.tolist()) == ("polygon", "a", SQUARE[:-1])


@pytest.mark.parametrize(
    "damage", [{"kind": "blob"}, {"kind": 7}, {"coordinates": "x"}, {"details": {"type": "x"}},
               {"position": 5}, {"group": -1}, {"kind": ["a"]}], ids=str,
)  # fmt: skip
def test_damage_beside_the_geometry_leaves_the_geometry(damage: dict[str, Any]) -> None:
    [roi] = from_geojson(feature("Polygon", [SQUARE], imagej=damage))
    assert roi == Roi("polygon", np.array(SQUARE[:-1], float))


def test_qupath_features() -> None:
    given_feature = {
        "type": "Feature",
        "id": "0f6c-1",
        "geometry": {
            "type": "Polygon", "coordinates": [SQUARE], "plane": {"c": -1, "z": 2, "t": 0},
        },
        "properties": {
            "objectType": "detection",
            "name": "cell 1",
            "color": [1, 2, 255],
            "classification": {"name": "Tumor", "color": [200, 0, 0]},
            "isLocked": True,
            "measurements": {"Area": 12.5, "Spots": 3},
            "metadata": {"plate": "A"},
        },
    }  # fmt: skip
    [roi] = from_geojson([given_feature])
    assert roi.name == "cell 1"
    assert roi.stroke_color == "#0102ffff"
    assert roi.position == (0, 3, 1)
    assert roi.properties == {
        "id": "0f6c-1", "objectType": "detection", "classification": "Tumor",
        "classification_color": "#c80000ff", "isLocked": "true",
        "plate": "A", "Area": "12.5", "Spots": "3",
    }  # fmt: skip
    [written] = to_geojson([roi])["features"]
    assert written["id"] == "0f6c-1"
    assert written["geometry"] == given_feature["geometry"]
    rest = written["properties"].pop("imagej")
    assert written == given_feature
    assert set(rest) == {"kind", "position"}


def test_the_nucleus_of_a_cell_is_kept_and_told() -> None:
    nucleus = {"type": "Polygon", "coordinates": [HOLE]}
    cell = feature("Polygon", [SQUARE], objectType="cell")
    cell["nucleusGeometry"] = nucleus
    within = feature("Polygon", [SQUARE], objectType="cell", nucleusGeometry=nucleus)
    with pytest.warns(LossyConversion, match=r"nucleus is kept.*not shown \(2 features\)") as told:
        rois = from_geojson([cell, within])
    assert len(told) == 1
    for written in to_geojson(rois)["features"]:
        assert written["nucleusGeometry"] == nucleus
        assert "metadata" not in written["properties"]


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ("#ff0000", "#ff0000ff"), ("#F00", "#ff0000ff"), ("#ff000080", "#ff000080"),
        ([255, 0, 0, 128], "#ff000080"), ([255, 0, 0], "#ff0000ff"), (-65536, "#ff0000ff"),
        (None, ""), ("", ""),
    ],
)  # fmt: skip
def test_colours(color: Any, expected: str) -> None:
    [roi] = from_geojson(feature("Polygon", [SQUARE], color=color))
    assert roi.stroke_color == expected


@pytest.mark.parametrize("color", ["red", [1, 2], [1, 2, 300], [1.5, 2, 3], {"r": 1}, [True] * 3])
def test_a_colour_that_is_not_known_is_told(color: Any) -> None:
    with pytest.warns(LossyConversion, match="color is left out"):
        [roi] = from_geojson(feature("Polygon", [SQUARE], color=color))
    assert roi.stroke_color == ""


def test_other_properties_are_kept_as_texts_or_told() -> None:
    given = {"area": 12, "sort": "x", "ok": True, "label": "7", "name": "n", "none": None}
    [roi] = from_geojson(feature("Polygon", [SQUARE], **given))
    assert roi.name == "n"
    assert dict(roi.properties) == {"area": "12", "sort": "x", "ok": "true", "label": "7"}
    with pytest.warns(LossyConversion, match=r"'deep' is left out.*\(1 features\)"):
        from_geojson(feature("Polygon", [SQUARE], deep={"a": 1}))


def test_measurements_of_older_versions() -> None:
    [roi] = from_geojson(
        feature("Polygon", [SQUARE], measurements=[{"name": "Area", "value": 1.5}, {"name": "x"}])
    )
    assert dict(roi.properties) == {"Area": "1.5"}


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.floats().map(str), max_size=4))
def test_any_properties_there_and_back(properties: dict[str, str]) -> None:
    roi = Roi.polygon([(0, 0), (0, 4), (3, 0)], properties=properties)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyConversion)
        assert from_geojson(json.dumps(to_geojson(roi))) == [roi]


GOOD = feature("Polygon", [SQUARE], name="good")


@pytest.mark.parametrize(
    "bad",
    [feature("Polygon", [[[0, 0], [1, 1], [0, 0]]]), feature("Circle", [1]), {"type": "Feature"}, 7,
     feature("Point", ["a", "b"])], ids=str,
)  # fmt: skip
def test_features_that_cannot_be_read_are_left_out_and_told(bad: Any) -> None:
    for document in ([GOOD, bad, GOOD], {"type": "FeatureCollection", "features": [GOOD, bad]}):
        with pytest.warns(LossyConversion, match=r"left out: 1 \(") as told:
            rois = from_geojson(document)
        assert [roi.name for roi in rois] == ["good"] * len(rois)
        assert len(told) == 1
        assert told[0].filename == __file__


def test_many_that_cannot_be_read_are_counted() -> None:
    with pytest.warns(LossyConversion, match=r"0 \(.*4 \(.*, 25 more\.$"):
        from_geojson([7] * 30 + [GOOD])
    with pytest.raises(InvalidItem, match=r"GeoJSON, feature 0: .* \(and 29 more\)"):
        from_geojson([7] * 30)


@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString"])
def test_an_empty_geometry_is_no_error(kind: str) -> None:
    assert from_geojson([feature(kind, []), GOOD]) == from_geojson(GOOD)
    assert from_geojson(feature(kind, [])) == []


def test_older_colours_and_newer_classes() -> None:
    [roi] = from_geojson(
        feature("Polygon", [SQUARE], colorRGB=-65536, classification={"names": ["A", "B"]})
    )
    assert roi.stroke_color == "#ff0000ff"
    assert roi.properties["classification"] == "A: B"


def test_holes_and_parts_are_composites() -> None:
    [holed] = from_geojson({"type": "Polygon", "coordinates": [SQUARE, HOLE]})
    [parts] = from_geojson(feature("MultiPolygon", [[SQUARE, HOLE], [FAR]]))
    assert (holed.kind, parts.kind) == ("composite", "composite")
    assert to_mask(parts, (30, 30)).sum() == to_mask(holed, (30, 30)).sum() + 6
    assert to_geojson([holed])["features"][0]["geometry"]["coordinates"] == [SQUARE, HOLE]
    again = to_geojson([parts])["features"][0]["geometry"]
    assert again == {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [FAR]]}


def test_an_island_in_a_hole_is_a_polygon_of_its_own() -> None:
    labels = np.ones((9, 9), int)
    labels[1:8, 1:8] = 0
    labels[3:6, 3:6] = 1
    labels[4, 4] = 0
    [roi] = from_labels(labels)
    geometry = to_geojson([roi])["features"][0]["geometry"]
    assert [len(polygon) for polygon in geometry["coordinates"]] == [2, 2]


def test_the_work_grows_with_the_rings_and_not_with_their_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = 0
    expanded = _nesting._expanded

    def counted(counts: Any) -> Any:
        nonlocal looked_at
        looked_at += int(counts.sum())
        return expanded(counts)

    monkeypatch.setattr(_nesting, "_expanded", counted)
    for n in (41, 161, 601):
        looked_at = 0
        labels = np.ones((n, n), int)
        labels[1::2, 1::2] = 0
        rois = from_labels(labels)
        n_rings = 1 + (n // 2) ** 2
        document = to_geojson(rois)
        assert len(document["features"][0]["geometry"]["coordinates"]) == n_rings
        assert looked_at < 20 * n_rings
        looked_at = 0
        if n < 600:  # the rest is only time
            assert from_geojson(json.loads(json.dumps(document))) == rois
        assert looked_at == 0, "reading sorts nothing"


def nested_one_by_one(parts: list[Any]) -> list[list[int]]:
    """What the fast way must give: each ring is looked up in each other one."""

    def is_in(x: float, y: float, ring: Any) -> bool:
        ends = np.roll(ring, -1, axis=0)
        crossing = (ring[:, 1] <= y) != (ends[:, 1] <= y)
        a, b = ring[crossing], ends[crossing]
        at = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
        return bool(np.count_nonzero(at > x) % 2)

    around = []
    for part in parts:
        ends = np.roll(part, -1, axis=0)
        longest = int(np.argmax(np.hypot(*(ends - part).T)))
        x, y = (part[longest] + ends[longest]) / 2
        around.append([i for i, each in enumerate(parts) if each is not part and is_in(x, y, each)])
    made = {i: [i] for i, outer in enumerate(around) if len(outer) % 2 == 0}
    outers = set(made)
    for i, outer in enumerate(around):
        if i not in outers:
            owners = [j for j in outer if j in outers]
            if owners:
                made[max(owners, key=lambda j: len(around[j]))].append(i)
            else:
                made[i] = [i]
    return list(made.values())


RING = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=st.integers(0, 9))


@given(st.lists(RING, min_size=1, max_size=9))
def test_any_rings_are_sorted_as_one_by_one(parts: list[Any]) -> None:
    assert _nesting.polygons_of(parts) == nested_one_by_one(parts)


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_mask_there_and_back(mask: Any) -> None:
    rois = from_labels(mask)
    document = to_geojson(rois)
    assert from_geojson(document) == rois
    for each in document["features"]:
        del each["properties"]["imagej"]
    found = np.zeros_like(mask)
    for roi in from_geojson(document):
        found |= to_mask(roi, mask.shape)
    np.testing.assert_array_equal(found, mask)


def test_rings_that_enclose_nothing_there_and_back() -> None:
    xy = np.array([(0, 0), (4, 0), (0, 4), (7, 7)], float)
    for coordinates, segments in ((xy, b"\0\1\1\4\0\4"), (xy[:1], b"\0\4")):
        roi = Roi("composite", coordinates, details=RoiPath(segments))
        for ring in to_geojson(roi)["features"][0]["geometry"]["coordinates"]:
            assert len(ring) >= 4
        assert from_geojson(to_geojson(roi)) == [roi]


def test_lines_and_points_move_by_half_a_pixel() -> None:
    pairs = [[1.5, 2.5], [4.5, 2.5]]
    line, path, one, many, *two = from_geojson(
        {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "LineString", "coordinates": pairs},
                {"type": "LineString", "coordinates": [*pairs, [0.5, 0.5, 7]]},
                {"type": "Point", "coordinates": pairs[0]},
                {"type": "MultiPoint", "coordinates": pairs},
                {"type": "MultiLineString", "coordinates": [pairs, pairs]},
            ],
        }
    )
    assert line == Roi.line((2, 1), (2, 4))
    assert path == Roi.polyline([(2, 1), (2, 4), (0, 0)])
    assert one == Roi.points([(2, 1)])
    assert many == Roi.points([(2, 1), (2, 4)])
    assert two == [line, line]


def test_an_ellipse_of_qupath_is_an_oval() -> None:
    [plain] = to_geojson([Roi.oval(1, 2, 11, 8)])["features"]
    del plain["properties"]["imagej"]
    [roi] = from_geojson(plain)
    assert roi.kind == "oval"
    np.testing.assert_allclose(roi.coordinates, [(2, 1), (8, 11)])


def test_a_feature_without_geometry_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    assert from_geojson({"type": "Feature", "geometry": None, "properties": None}) == []
    assert "without a geometry" in caplog.text


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "document",
    [
        7, "x", {}, {"type": "Feature"}, {"type": "Nothing", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, "1"], [1, 2]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, float("nan")], [1, 2]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 10**400], [1, 2]]]},
        {"type": "Polygon", "coordinates": [SQUARE, [[0, 0]]]},
        {"type": "Polygon", "coordinates": [7]},
        {"type": "MultiPolygon", "coordinates": [7]},
        {"type": "LineString", "coordinates": [[1, 2]]}, {"type": "Point", "coordinates": DEEP},
    ],
)  # fmt: skip
def test_what_is_no_geojson(document: Any) -> None:
    with pytest.raises(InvalidItem, match="GeoJSON"):
        from_geojson(document)


def test_depth_costs_no_stack() -> None:
    assert from_geojson(DEEP) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["type", "coordinates", "geometry", "properties", "features", "imagej",
                         "plane", "color", "classification", "metadata", "kind", "z"]),
        inner
        | st.sampled_from(["Feature", "Polygon", "MultiPolygon", "Point", "LineString", "point"]),
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
@pytest.mark.filterwarnings("ignore::openhcs_stream.errors.LossyConversion")
def test_any_json_is_rois_or_a_clear_error(document: Any) -> None:
    try:
        from_geojson(document)
    except InvalidItem:
        pass
    try:
        from_geojson(feature("Polygon", [SQUARE], imagej=document, color=document, name=document))
    except InvalidItem:
        pytest.fail("properties never make a geometry unreadable")
