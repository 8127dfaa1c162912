"""Whatever people have becomes ROIs, or an error that names its type."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from roifile import ImagejRoi

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, coerce, looks_like_rois, to_imagej

TRIANGLE = [(0, 0), (0, 4), (3, 0)]
ROI = Roi.polygon(TRIANGLE)
ARRAY = np.array(TRIANGLE)
OPENHCS = SimpleNamespace(
    metadata={"label": 7},
    shapes=[
        SimpleNamespace(coordinates=ARRAY),
        SimpleNamespace(coordinates=ARRAY, shape_type=SimpleNamespace(value="polyline")),
        SimpleNamespace(center=(5, 6), radii=(2, 3)),
        SimpleNamespace(mask=np.ones((2, 3)), bbox=(10, 20, 12, 23)),
        SimpleNamespace(y=3, x=4),
    ],
)


def shapely(*interiors: object) -> SimpleNamespace:
    coords = [(0.5, 0.5), (4.5, 0.5), (0.5, 3.5), (0.5, 0.5)]
    return SimpleNamespace(exterior=SimpleNamespace(coords=coords), interiors=interiors)


@pytest.mark.parametrize(
    "given",
    [
        ROI,
        [ROI],
        (ROI,),
        iter([ROI]),
        ARRAY,
        [ARRAY],
        ARRAY[None],
        TRIANGLE,
        [TRIANGLE],
        [np.array(pair) for pair in TRIANGLE],
        to_imagej(ROI),
        [to_imagej(ROI)],
        bytearray(to_imagej(ROI)),
        ImagejRoi.frombytes(to_imagej(ROI)),
        shapely(),
        [shapely()],
        SimpleNamespace(geoms=[shapely()]),
        np.array([ROI, None], object)[:1],
    ],
)
def test_one_triangle(given: Any) -> None:
    assert coerce(given) == [ROI]


def test_a_shapely_polygon_with_a_hole_is_a_composite() -> None:
    hole = SimpleNamespace(coords=[(1, 1), (2, 1), (1, 2), (1, 1)])
    [roi] = coerce(shapely(hole))
    assert roi == Roi.of_rings([ROI.coordinates, np.array([(1, 1), (2, 1), (1, 2)], float)])


def test_an_empty_list_is_allowed() -> None:
    assert coerce([]) == []


def test_openhcs_objects() -> None:
    polygon, polyline, oval, mask, point = coerce([OPENHCS])
    assert polygon == ROI.replace(name="7")
    assert polyline == Roi.polyline(TRIANGLE, name="7")
    assert oval == Roi.oval(3.5, 3.5, 7.5, 9.5, name="7")
    assert sorted(mask.coordinates.tolist()) == [[20, 10], [20, 12], [23, 10], [23, 12]]
    assert point == Roi.points([(3, 4)], name="7")


def test_an_ellipse_of_openhcs_names_its_centre_in_two_ways() -> None:
    ellipse = SimpleNamespace(center_y=5, center_x=6, radius_y=2, radius_x=3)
    assert coerce([SimpleNamespace(shapes=[ellipse])]) == [Roi.oval(3.5, 3.5, 7.5, 9.5)]


def test_openhcs_objects_without_a_label() -> None:
    shapes = [SimpleNamespace(y=3, x=4)]
    for metadata in (None, {}, {"label": None}):
        assert coerce(SimpleNamespace(shapes=shapes, metadata=metadata))[0].name == ""
    assert coerce(SimpleNamespace(shapes=shapes))[0].name == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (7, "type int"),
        ("polygon", "type str"),
        ({"a": 1}, "type dict"),
        ([ROI, 7], "item 1, of type int"),
        ([[]], "item 0, of type list"),
        ([["a"]], "item 0, of type list"),
        (np.zeros((5, 5), int), "Send a label image as labels"),
        (np.zeros(3), "item 0, of type numpy.float64"),
        (SimpleNamespace(shapes=[object()]), "shape of type object in a types.SimpleNamespace"),
        (b"PK", "no ImageJ ROI"),
    ],
)
def test_what_is_no_roi(given: Any, told: str) -> None:
    with pytest.raises(InvalidItem, match=told):
        coerce(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], True),
        (ROI, True),
        ([ROI, ROI], True),
        ([ARRAY], True),
        (to_imagej(ROI), True),
        (OPENHCS, True),
        ([OPENHCS], True),
        (shapely(), True),
        (ARRAY, False),
        (np.zeros((5, 5)), False),
        ([np.zeros((5, 5))], False),
        ([[1, 2], [3, 4]], False),
        (b"PK", False),
        (None, False),
    ],
    ids=str,
)
def test_what_looks_like_rois(given: Any, expected: bool) -> None:
    assert looks_like_rois(given) is expected
