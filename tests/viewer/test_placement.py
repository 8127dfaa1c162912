"""Placement: axes and places in, layers and coordinates out; nothing else involved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import LayerSpec, Mode, PlaceValue
from openhcs_stream.rois import Roi
from openhcs_stream.viewer._placement import (
    LayerKey,
    Placement,
    component_order,
    layer_title,
    place,
    sort_key,
)

WELL_DAPI = ("well", "channel")


@dataclass(frozen=True)
class Case:
    name: str
    axes: str
    shape: tuple[int, ...]
    place: dict[str, PlaceValue]
    components: tuple[str, ...]
    #: coords -> (split, index into the array)
    planes: dict[tuple[Any, ...], tuple[Any, ...]]
    modes: dict[str, Mode] = field(default_factory=dict)
    order: tuple[str, ...] = ()


DAPI = (("channel", "DAPI"),)
CASES = [
    Case("a plane", "YX", (2, 3), {}, (), {(): ((), (...,))}),
    Case("a row", "X", (3,), {}, (), {(): ((), (None, ...))}),
    Case("a column", "Y", (3,), {}, (), {(): ((), (..., None))}),
    Case("one value", "", (), {}, (), {(): ((), (None, None))}),
    Case("one value with samples", "S", (3,), {}, (), {(): ((), (None, None))}),
    Case("rgb", "YXS", (2, 3, 4), {"z": 7}, ("z",), {(7,): ((), (...,))}),
    Case(
        "channel is a layer",
        "YX",
        (2, 3),
        {"channel": "DAPI", "z": 4, "well": "A1"},
        ("well", "z"),
        {("A1", 4): (DAPI, (...,))},
    ),
    Case(
        "channel stacked by mode",
        "YX",
        (2, 3),
        {"channel": "DAPI", "well": "A1"},
        ("well", "channel"),
        {("A1", "DAPI"): ((), (...,))},
        modes={"channel": "stack"},
    ),
    Case(
        "well split by mode",
        "YX",
        (2, 3),
        {"channel": "DAPI", "well": "A1"},
        (),
        {(): ((("well", "A1"), ("channel", "DAPI")), (...,))},
        modes={"well": "split"},
    ),
    Case(
        "an array's own z",
        "ZYX",
        (2, 2, 3),
        {"well": "A1"},
        ("well", "z"),
        {("A1", 0): ((), (0,)), ("A1", 1): ((), (1,))},
    ),
    Case(
        "sliders in component order, whatever the array's",
        "ZTYX",
        (1, 2, 2, 3),
        {},
        ("time", "z"),
        {(0, 0): ((), (0, 0)), (1, 0): ((), (0, 1))},
    ),
    Case(
        "an array's channels are layers",
        "CYX",
        (2, 2, 3),
        {"z": 1},
        ("z",),
        {(1,): ((("channel", 0),), (0,)), (1, "b"): ((("channel", 1),), (1,))},
    ),
    Case("x before y", "XY", (2, 3), {}, (), {(): ((), "transposed")}),
    Case(
        "z after the plane",
        "YXZ",
        (2, 3, 2),
        {},
        ("z",),
        {(0,): ((), (..., 0)), (1,): ((), (..., 1))},
    ),
    Case(
        "a letter of its own",
        "QYX",
        (1, 2, 3),
        {"channel": "DAPI", "z": 1},
        ("q", "z"),
        {(0, 1): (DAPI, (0,))},
    ),
    Case("rows by z", "ZX", (2, 3), {}, ("z",), {(0,): ((), (0, None)), (1,): ((), (1, None))}),
    Case(
        "an order of the caller's",
        "YX",
        (2, 3),
        {"well": "A1", "site": 2, "z": 5},
        ("z", "well", "site"),
        {(5, "A1", 2): ((), (...,))},
        order=("z",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_images(case: Case) -> None:
    array = np.arange(np.prod(case.shape, dtype=int), dtype=np.uint16).reshape(case.shape)
    spec = LayerSpec(
        "image", "raw", case.axes, tuple(case.place), "src", dict(case.modes), case.order
    )
    placed = place(spec, tuple(case.place.values()), array)
    assert len(placed) == len(case.planes)
    for item, (coords, (split, index)) in zip(placed, case.planes.items(), strict=True):
        assert item.components == case.components
        assert item.coords == coords[: len(case.components)]
        assert item.key == LayerKey("src", "raw", "image", split)
        expected = array.T if index == "transposed" else array[index]
        np.testing.assert_array_equal(item.payload, expected, strict=True)
        assert np.shares_memory(item.payload, array)


def test_the_streams_modes_beat_the_viewers() -> None:
    spec = LayerSpec("image", "raw", "YX", ("well", "z"), "", {"well": "stack"})
    modes: dict[str, Mode] = {"well": "split", "z": "split"}
    (item,) = place(spec, ("A1", 2), np.zeros((2, 2)), modes=modes)
    assert item.components == ("well",)
    assert item.key.split == (("z", 2),)


def test_a_viewer_that_has_composites_splits_no_channels() -> None:
    spec = LayerSpec("image", "raw", "CYX")
    items = place(spec, (), np.zeros((2, 2, 2)), splits=frozenset({"split"}))
    assert [item.coords for item in items] == [(0,), (1,)]
    assert {item.key for item in items} == {LayerKey("", "raw", "image", ())}


def test_items_of_one_layer_share_their_key() -> None:
    placement = Placement(LayerSpec("image", "raw", "YX", WELL_DAPI))
    first, second = (placement.place((well, "DAPI"), np.zeros((2, 2)))[0] for well in ("A", "B"))
    assert first.key is second.key
    assert placement.components == ("well",)


def test_bool_labels_become_numbers_without_a_copy() -> None:
    mask = np.eye(3, dtype=bool)
    (item,) = place(LayerSpec("labels", "m", "YX"), (), mask)
    assert item.payload.dtype == np.uint8
    assert np.shares_memory(item.payload, mask)


def test_labels_of_numbers_stay_what_they_are() -> None:
    labels = np.eye(3, dtype=np.int64)
    (item,) = place(LayerSpec("labels", "m", "YX"), (), labels)
    assert item.payload is labels


def test_rois_stay_a_list() -> None:
    rois = [Roi.points([(1, 2)])]
    (item,) = place(LayerSpec("rois", "cells", "", WELL_DAPI), ("A1", "DAPI"), rois)
    assert item.payload is rois
    assert item.coords == ("A1",)
    assert item.key.split == DAPI


@pytest.mark.parametrize("axes", ["YX", "XY"])
def test_points_of_a_plane(axes: str) -> None:
    yx = np.array([(1.5, 2), (3, 4)])
    points = yx if axes == "YX" else yx[:, ::-1]
    (item,) = place(LayerSpec("points", "spots", axes, ("z",)), (3,), points)
    assert item.coords == (3,)
    np.testing.assert_array_equal(item.payload, yx)


def test_points_go_to_their_planes() -> None:
    points = np.array([(0.6, 10, 11), (0, 20, 21), (1.4, 30, 31)])
    items = place(LayerSpec("points", "spots", "ZYX", ("well",)), ("A1",), points)
    assert [(item.coords, item.payload.tolist()) for item in items] == [
        (("A1", 0), [[20, 21]]),
        (("A1", 1), [[10, 11], [30, 31]]),
    ]


def test_points_go_to_their_channels() -> None:
    points = np.array([(0, 1, 2), (1, 3, 4)])
    items = place(LayerSpec("points", "spots", "CYX"), (), points)
    assert [item.key.split for item in items] == [(("channel", 0),), (("channel", 1),)]


def test_no_points_are_no_planes_where_z_is_a_column() -> None:
    assert place(LayerSpec("points", "spots", "ZYX"), (), np.empty((0, 3))) == ()
    (item,) = place(LayerSpec("points", "spots", "YX"), (), np.empty((0, 2)))
    assert item.payload.shape == (0, 2)


def test_tracks_stay_whole_in_napari_order() -> None:
    tracks = np.array([(7, 1.0, 2.0, 3.0, 4.0)])
    (item,) = place(LayerSpec("tracks", "paths", "YXTZ", ("well",)), ("A1",), tracks)
    assert item.components == ("well",)
    assert item.payload.tolist() == [[7, 3, 4, 1, 2]]


@pytest.mark.parametrize(
    ("spec", "values", "payload", "told"),
    [
        (LayerSpec("image", "raw", "ZYX", ("z",)), (1,), np.zeros((2, 2, 2)), "'z' in its place"),
        (LayerSpec("image", "raw", "YX", ("z", "z")), (1, 1), np.zeros((2, 2)), "'z' twice"),
        (LayerSpec("image", "raw", "YX", ("z",)), (), np.zeros((2, 2)), "0|place values"),
        (LayerSpec("image", "raw", "ZYX"), (), np.zeros((2, 2)), "not the axes 'ZYX'"),
        (LayerSpec("image", "raw", "YX"), (), np.zeros((0, 2)), "is empty"),
        (LayerSpec("image", "raw", "?X"), (), np.zeros((2, 2)), "'\\?' is unknown"),
        (LayerSpec("image", "raw", "YY"), (), np.zeros((2, 2)), "comes twice"),
        (LayerSpec("image", "raw", "SYX"), (), np.zeros((3, 2, 2)), "not last"),
        (LayerSpec("image", "raw", "YXS"), (), np.zeros((2, 2, 2)), "2 samples"),
        (LayerSpec("labels", "m", "YX"), (), np.zeros((2, 2)), "dtype float64"),
        (LayerSpec("labels", "m", "YXS"), (), np.zeros((2, 2, 3), int), "leave out S"),
        (LayerSpec("points", "p", "ZY"), (), np.zeros((2, 2)), "columns 'ZY'"),
        (LayerSpec("points", "p", "YXS"), (), np.zeros((2, 3)), "columns 'YXS'"),
        (LayerSpec("points", "p", "YX"), (), np.zeros((2, 3)), r"not \(N, 2\)"),
        (LayerSpec("points", "p", "YX"), (), np.zeros(2), r"shape \(2,\)"),
        (LayerSpec("points", "p", "YX"), (), np.full((2, 2), np.nan), "no numbers"),
        (LayerSpec("tracks", "t", "ZYX"), (), np.zeros((2, 4)), "columns 'ZYX'"),
        (LayerSpec("tracks", "t", "TCYX"), (), np.zeros((2, 5)), "columns 'TCYX'"),
        (LayerSpec("tracks", "t", "TYX"), (), np.zeros((2, 3)), "number first"),
        (LayerSpec("tracks", "t", "TYX", ("time",)), (1,), np.zeros((2, 4)), "'time' in its"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_with_a_cure(
    spec: LayerSpec, values: tuple[PlaceValue, ...], payload: Any, told: str
) -> None:
    with pytest.raises(InvalidItem, match=told) as caught:
        place(spec, values, payload)
    assert caught.value.cure


def test_component_order() -> None:
    names = ("channel", "zeta", "z", "well", "dose", "time", "site")
    assert component_order(names) == ("well", "site", "dose", "zeta", "channel", "time", "z")
    assert component_order(names, ("z", "dose"))[:2] == ("z", "dose")


def test_values_are_sorted_as_people_do() -> None:
    values: list[PlaceValue] = ["B1", "A10", "A2", 10, 9, "A2b", "", "2", "10", -1, "A02", "٣"]
    assert sorted(values, key=sort_key)[:3] == [-1, 9, 10]
    assert sorted(["A10", "A2", "A1"], key=sort_key) == ["A1", "A2", "A10"]
    backwards = values[::-1]
    assert sorted(backwards, key=sort_key) == sorted(values, key=sort_key)


@given(st.lists(st.integers() | st.text(max_size=6)))
def test_any_values_have_an_order(values: list[int | str]) -> None:
    backwards = values[::-1]
    assert sorted(values, key=sort_key) == sorted(backwards, key=sort_key)


@pytest.mark.parametrize(
    ("key", "title"),
    [
        (LayerKey("", "raw", "image"), "raw"),
        (LayerKey("plate", "raw", "image"), "plate / raw"),
        (LayerKey("", "raw", "image", (("well", "A1"), ("channel", 0))), "raw [A1, channel 0]"),
        (LayerKey("plate", "raw", "image", DAPI), "plate / raw [DAPI]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_titles(key: LayerKey, title: str) -> None:
    assert layer_title(key) == title
