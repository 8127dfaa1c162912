"""The ROI model: conventions, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import (
    KINDS,
    Arrow,
    Markers,
    Path,
    Roi,
    Text,
    decode,
    encode,
    from_napari,
    to_napari,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TRIANGLE = [(0, 0), (0, 4), (3, 0)]


def test_areas_move_by_half_a_pixel_and_lines_do_not() -> None:
    assert Roi.polygon(TRIANGLE).coordinates.tolist() == [[0.5, 0.5], [4.5, 0.5], [0.5, 3.5]]
    assert Roi.polyline(TRIANGLE).coordinates.tolist() == [[0, 0], [4, 0], [0, 3]]
    assert Roi.line((1, 2), (3, 4)).coordinates.tolist() == [[2, 1], [4, 3]]
    assert Roi.points([(1, 2)]).coordinates.tolist() == [[2, 1]]


def test_bounds_are_those_of_regionprops() -> None:
    for build in (Roi.rectangle, Roi.oval):
        assert build(1, 2, 3, 5).coordinates.tolist() == [[2, 1], [5, 3]]


def test_a_repeated_last_vertex_is_dropped() -> None:
    assert len(Roi.polygon([*TRIANGLE, TRIANGLE[0]]).coordinates) == 3


@pytest.mark.parametrize(
    "vertices",
    [[(3, 3)] * 3, [(3, 3)] * 5, [(0, 0), (5, 5), (0, 0)], [(0, 0), (0, 0), (5, 5)]],
    ids=str,
)
def test_what_has_no_area_is_a_polygon(vertices: Any) -> None:
    roi = Roi.polygon(vertices)
    assert len(roi.coordinates) >= 3
    again = from_napari(*to_napari(roi))
    assert again.kind == "polygon"
    for plain in (Roi("polygon", np.array(vertices)), Roi("freehand", np.array(vertices))):
        assert from_napari(*to_napari(plain)).kind == "polygon"
    assert Roi.composite([vertices, TRIANGLE]).kind == "composite"


def test_it_can_not_be_changed() -> None:
    roi = Roi.polygon(TRIANGLE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        roi.name = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        roi.coordinates[0] = 0


def test_the_callers_array_stays_the_callers() -> None:
    xy = np.array([(0, 0), (4, 0), (0, 3)], float)
    roi = Roi("polygon", xy)
    xy[0] = 9
    assert roi.coordinates[0].tolist() == [0, 0]
    assert xy.flags.writeable


def test_properties_can_not_be_changed_and_are_a_dict_otherwise() -> None:
    given = {"a": "b"}
    roi = Roi.polygon(TRIANGLE, properties=given)
    given["a"] = "c"
    assert roi.properties == {"a": "b"}
    changes: list[Callable[[Any], object]] = [
        lambda kept: kept.__setitem__("a", "c"),
        lambda kept: kept.__delitem__("a"),
        lambda kept: kept.update(a="c"),
        lambda kept: kept.setdefault("d", "c"),
        lambda kept: kept.pop("a"),
        lambda kept: kept.popitem(),
        lambda kept: kept.clear(),
        lambda kept: kept.__ior__({"d": "c"}),
    ]
    for change in changes:
        for each in (roi, Roi.polygon(TRIANGLE), decode(encode([roi]))[0], copy.deepcopy(roi)):
            before = dict(each.properties)
            with pytest.raises(TypeError, match=r"roi\.replace\(properties="):
                change(each.properties)
            assert each.properties == before
    assert {**roi.properties, "d": "e"} == {"a": "b", "d": "e"}
    assert json.loads(json.dumps(roi.properties)) == roi.properties
    assert msgspec.json.decode(msgspec.json.encode(roi.properties)) == roi.properties
    assert copy.copy(roi.properties) == pickle.loads(pickle.dumps(roi.properties)) == {"a": "b"}
    assert roi.replace(name="x").properties is roi.properties


def test_equality_and_hash() -> None:
    roi, same = Roi.polygon(TRIANGLE, name="a"), Roi.polygon(TRIANGLE, name="a")
    assert roi == same
    assert hash(roi) == hash(same)
    assert roi != same.replace(name="b")
    assert roi != Roi.polygon([(0, 0), (0, 4), (3, 1)], name="a")
    assert roi != "a"


def test_it_travels_between_processes() -> None:
    roi = Roi.polygon(TRIANGLE, name="a", properties={"k": "v"})
    assert pickle.loads(pickle.dumps(roi)) == roi
    assert copy.deepcopy(roi) == roi


def test_it_can_be_made_without_checks() -> None:
    roi = Roi.polygon(TRIANGLE, name="a", group=3)
    fields = [getattr(roi, field.name) for field in dataclasses.fields(Roi)]
    made = Roi.unchecked(*fields)
    assert type(made) is Roi
    assert made == roi
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "x"  # type: ignore[misc]


def test_composites() -> None:
    ring = [*TRIANGLE, TRIANGLE[0]]
    roi = Roi.composite([ring, np.array(TRIANGLE) + 1])
    assert roi.details == Path(bytes([0, 1, 1, 4] * 2))
    assert len(roi.coordinates) == 6
    for rings in ([], [TRIANGLE[:2]]):
        with pytest.raises(InvalidItem, match="composite has no ring"):
            Roi.composite(rings)


def test_kind_and_row() -> None:
    assert Roi.polygon(TRIANGLE).is_area
    assert not Roi.points([(0, 0)]).is_area
    assert Roi.points([(0, 0)]).row is KINDS["point"]
    assert len({row.code for row in KINDS.values()}) == len(KINDS)
    assert len({(row.imagej_type, row.imagej_subtype) for row in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("", ""), ("#F00", "#ff0000ff"), ("#f008", "#ff000088"), ("#12aBcD", "#12abcdff")],
)
def test_colours_have_one_form(given: str, kept: str) -> None:
    roi = Roi.polygon(TRIANGLE, stroke_color=given, fill_color=given)
    assert (roi.stroke_color, roi.fill_color) == (kept, kept)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "blob"}, "'blob'"),
        ({"coordinates": [(0, 0), (1, 1)]}, "of 2 coordinate pairs"),
        ({"kind": "line"}, "of 3 coordinate pairs"),
        ({"coordinates": [(0, 0), (1, 1), (np.nan, 0)]}, "infinite"),
        ({"coordinates": [1, 2, 3]}, r"shape \(3,\)"),
        ({"coordinates": "ab"}, "str is no array"),
        ({"coordinates": None}, "shape|no array"),
        ({"kind": "oval", "coordinates": [(5, 5), (4, 6)]}, "negative size"),
        ({"stroke_color": "red"}, "stroke_color 'red'"),
        ({"fill_color": 7}, "fill_color 7"),
        ({"name": 7}, "name 7"),
        ({"name": "\ud800"}, "no text"),
        ({"properties": {"a": "\ud800"}}, "no texts"),
        ({"kind": "text", "coordinates": [(0, 0), (1, 1)], "details": Text("\ud800")}, "no text"),
        ({"stroke_width": -1}, "stroke_width -1"),
        ({"stroke_width": float("inf")}, "stroke_width inf"),
        ({"group": 65536}, "group 65536"),
        ({"stroke_width": "a"}, "stroke_width 'a'"),
        ({"stroke_width": None}, "stroke_width None"),
        ({"group": "a"}, "group 'a'"),
        ({"group": float("inf")}, "group inf"),
        ({"group": float("nan")}, "group nan"),
        ({"imagej_options": "a"}, "imagej_options a"),
        ({"position": 5}, "position 5"),
        ({"position": None}, "position None"),
        ({"position": ("a", 1, 2)}, "position"),
        ({"properties": None}, "properties None"),
        ({"properties": 5}, "properties 5"),
        ({"properties": ["ab", "c"]}, "properties"),
        ({"position": (1, 2)}, r"position \(1, 2\)"),
        ({"position": (1, -2, 0)}, "position"),
        ({"properties": {"a": 1}}, "properties"),
        ({"details": Arrow()}, "can't have the details"),
        ({"kind": "angle", "details": Arrow()}, "can't have the details"),
        ({"kind": "arrow", "coordinates": [(0, 0), (1, 1)]}, "no details"),
        ({"kind": "composite", "details": Path(b"\1\1\1")}, "begins with 0"),
        ({"kind": "composite", "details": Path(b"\0\1\4")}, "takes 2 vertices, there are 3"),
        ({"kind": "composite", "details": Path(b"\0\1\5")}, "segments 0 to 4"),
        ({"kind": "point", "details": Markers(counters=(1,))}, "1 counters for 3 points"),
        ({"kind": "point", "details": Markers(counters=(1, 2, 256))}, "details"),
        ({"imagej_options": 1}, "imagej_options 0x1"),
    ],
    ids=ascii,
)
def test_what_it_refuses(fields: dict[str, Any], told: str) -> None:
    good: dict[str, Any] = {"kind": "polygon", "coordinates": [(0, 0), (1, 0), (0, 1)]}
    with pytest.raises(InvalidItem, match=told) as caught:
        Roi(**(good | fields))
    assert caught.value.cure
