"""GeoJSON as QuPath writes and reads it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, Spline, from_geojson, from_labels, to_geojson, to_mask

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 2]]
FAR = [[20, 20], [24, 20], [24, 24], [20, 20]]


def feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def test_each_kind_there_and_back(any_roi: Roi) -> None:
    document = json.loads(json.dumps(to_geojson([any_roi])))
    assert from_geojson(document) == [any_roi]


@pytest.mark.parametrize("kind", ["polygon", "polyline"])
def test_splines_there_and_back(kind: Any) -> None:
    roi = Roi(kind, np.array([(3, 2), (18, 2), (18, 9)]), details=Spline())
    document = to_geojson([roi])
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
            "measurements": {"Area": 12.5},
            "metadata": {"plate": "A"},
        },
    }  # fmt: skip
    [roi] = from_geojson([given_feature])
    assert roi.name == "cell 1"
    assert roi.stroke_color == "#0102ffff"
    assert roi.position == (0, 3, 1)
    assert roi.properties == {
        "id": "0f6c-1", "objectType": "detection", "classification": "Tumor",
        "classification_color": "#c80000ff", "plate": "A", "Area": "12.5",
    }  # fmt: skip
    [written] = to_geojson([roi])["features"]
    assert written["id"] == "0f6c-1"
    assert written["geometry"] == given_feature["geometry"]
    for name in ("objectType", "name", "color", "classification"):
        assert written["properties"][name] == given_feature["properties"][name]  # type: ignore[index]


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
        {"type": "Polygon", "coordinates": []}, {"type": "Polygon", "coordinates": [[]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, "1"], [1, 2]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, float("nan")], [1, 2]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 10**400], [1, 2]]]},
        {"type": "Polygon", "coordinates": [SQUARE, [[0, 0]]]},
        {"type": "Polygon", "coordinates": [7]},
        {"type": "MultiPolygon", "coordinates": []}, {"type": "MultiPolygon", "coordinates": [7]},
        {"type": "LineString", "coordinates": [[1, 2]]}, {"type": "Point", "coordinates": []},
        {"type": "Point", "coordinates": DEEP}, {"type": "MultiPoint", "coordinates": []},
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
@settings(deadline=None)
def test_any_json_is_rois_or_a_clear_error(document: Any) -> None:
    try:
        from_geojson(document)
    except InvalidItem:
        pass
    try:
        from_geojson(feature("Polygon", [SQUARE], imagej=document, color=document, name=document))
    except InvalidItem:
        pytest.fail("properties never make a geometry unreadable")
