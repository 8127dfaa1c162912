"""What callers hand over: what is taken, and what is refused in which words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.stream._payload import (
    as_array,
    as_info,
    as_limits,
    as_pixel_size,
    as_place,
    as_table,
    with_axes,
)


class OnHost:
    """As torch, cupy and jax show an array on the host: DLPack, and nothing of theirs imported."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


def test_dlpack_on_the_host_is_not_copied() -> None:
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert np.shares_memory(as_array(OnHost(array)), array)


def test_nested_lists_are_arrays() -> None:
    assert as_array([[1, 2], [3, 4]]).shape == (2, 2)


@pytest.mark.parametrize(
    "data",
    [None, "text", b"bytes", {"a": 1}, [[1], [2, 3]], object()],
    ids=lambda data: type(data).__name__,
)
def test_no_array_is_refused_by_its_type(data: Any) -> None:
    with pytest.raises(InvalidItem, match=type(data).__name__):
        as_array(data)


@dataclass(frozen=True)
class Axes:
    name: str
    shape: tuple[int, ...]
    axes: str | None
    expected: str
    dtype: str = "uint16"


GOOD_AXES = [
    Axes("scalar", (), None, ""),
    Axes("line", (5,), None, "X"),
    Axes("plane", (4, 5), None, "YX"),
    Axes("stack", (3, 4, 5), None, "ZYX"),
    Axes("channels", (2, 3, 4, 5), None, "CZYX"),
    Axes("time", (2, 2, 3, 4, 5), None, "TCZYX"),
    Axes("eight", (1, 1, 1, 1, 1, 1, 4, 5), None, "EBATCZYX"),
    Axes("rgb-guessed", (9, 8, 3), None, "YXS", "uint8"),
    Axes("rgb-too-small-to-guess", (4, 4, 3), None, "ZYX", "uint8"),
    Axes("rgb-said", (4, 4, 4), "YXS", "YXS", "float32"),
    Axes("transposed", (5, 4), "XY", "YX"),
    Axes("samples-first", (3, 4, 5), "SYX", "YXS"),
    Axes("z-last", (4, 5, 3), "YXZ", "ZYX"),
]


@pytest.mark.parametrize("case", GOOD_AXES, ids=lambda case: case.name)
def test_axes_come_in_order(case: Axes) -> None:
    array = np.zeros(case.shape, case.dtype)
    got, axes = with_axes(array, case.axes)
    assert axes == case.expected
    said = case.axes or case.expected
    assert got.shape == tuple(case.shape[said.index(letter)] for letter in axes)
    assert np.shares_memory(got, array)


@dataclass(frozen=True)
class Refused:
    name: str
    shape: tuple[int, ...]
    axes: Any
    words: str


BAD_AXES = [
    Refused("unknown-letter", (4, 5), "Y?", r"'\?'"),
    Refused("lower-case", (4, 5), "yx", "'x', 'y'"),
    Refused("too-few", (3, 4, 5), "YX", r"names 2 axes, the array has 3"),
    Refused("too-many", (4, 5), "ZYX", r"names 3 axes, the array has 2"),
    Refused("twice", (4, 5), "XX", "twice"),
    Refused("no-y", (4, 5), "ZX", "no Y"),
    Refused("no-x", (4, 5), "YZ", "no X"),
    Refused("five-samples", (4, 5, 5), "YXS", "5 samples"),
    Refused("empty", (0, 5), None, r"shape \(0, 5\) has no pixels"),
    Refused("nine", (1,) * 9, None, "9 dimensions"),
    Refused("nine-said", (1,) * 9, "EBATCZVYX", "9 dimensions"),
    Refused("no-text", (4, 5), 7, "axes=7"),
]


@pytest.mark.parametrize("case", BAD_AXES, ids=lambda case: case.name)
def test_bad_axes_are_refused(case: Refused) -> None:
    with pytest.raises(InvalidItem, match=case.words):
        with_axes(np.zeros(case.shape, np.uint16), case.axes)


def test_place_takes_other_spellings_and_numpy_numbers() -> None:
    place = as_place({"well": "A01", "z_index": np.int64(3), "timepoint": 0}, "YX")
    assert place == {"well": "A01", "z": 3, "time": 0}
    assert all(type(value) in (int, str) for value in place.values())
    assert as_place(None, "YX") == {}


@pytest.mark.parametrize(
    ("place", "axes", "words"),
    [
        ({"z": 1}, "ZYX", "axis Z of its own"),
        ({"z": 1.5}, "YX", r"z=1.5 \(float\)"),
        ({"z": None}, "YX", "z=None"),
        ({"z": True}, "YX", "z=True"),
        ({"well": ""}, "YX", "well=''"),
        ({"z": 2**60}, "YX", "z="),
        ({1: 2}, "YX", "named 1"),
        ({"z": 1, "z_index": 2}, "YX", "'z' twice"),
        ("A01", "YX", "no mapping"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_places_are_refused(place: Any, axes: str, words: str) -> None:
    with pytest.raises(InvalidItem, match=words):
        as_place(place, axes)


def test_pixel_sizes() -> None:
    assert as_pixel_size(None) == ()
    assert as_pixel_size(0.5) == (0.5, 0.5)
    assert as_pixel_size((2, 0.5, 0.25)) == (2.0, 0.5, 0.25)


@pytest.mark.parametrize("size", [0, -1, (1,), (1, 2, 3, 4), ("a", "b"), (1, np.nan), object()])
def test_bad_pixel_sizes_are_refused(size: Any) -> None:
    with pytest.raises(InvalidItem, match="pixel_size"):
        as_pixel_size(size)


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (0,), "ab", (0, np.inf), 3])
def test_bad_contrast_limits_are_refused(limits: Any) -> None:
    with pytest.raises(InvalidItem, match="contrast_limits"):
        as_limits(limits)


def test_metadata_is_plain() -> None:
    info = as_info({"path": "a.tif", "gain": np.float32(0.5), "on": True, "none": None})
    assert info == {"path": "a.tif", "gain": 0.5, "on": True, "none": None}
    assert type(info["gain"]) is float
    for bad in ({"a": [1]}, {1: "a"}, {"a": "b" * 20_000}, {str(i): i for i in range(300)}):
        with pytest.raises(InvalidItem, match="metadata has"):
            as_info(bad)


@pytest.mark.parametrize(
    ("kind", "shape", "axes", "expected"),
    [
        ("points", (5, 2), None, "YX"),
        ("points", (5, 3), None, "ZYX"),
        ("points", (5, 3), "TYX", "TYX"),
        ("points", (0,), None, "YX"),
        ("tracks", (5, 4), None, "TYX"),
        ("tracks", (5, 5), None, "TZYX"),
        ("tracks", (0,), None, "TYX"),
    ],
)
def test_tables(kind: Any, shape: tuple[int, ...], axes: str | None, expected: str) -> None:
    table, got = as_table(np.zeros(shape, np.int32), kind=kind, axes=axes)
    assert got == expected
    assert table.dtype == np.float64
    assert table.shape[1] == len(expected) + (kind == "tracks")


@pytest.mark.parametrize(
    ("kind", "data", "axes", "words"),
    [
        ("points", np.zeros(4), None, "table"),
        ("points", np.zeros((4, 7)), None, "7 columns"),
        ("points", np.zeros((4, 2)), "XY", "axes='XY'"),
        ("points", np.zeros((4, 2)), "ZYX", "3 coordinates"),
        ("points", np.full((4, 2), np.nan), None, "8 values that are not finite"),
        ("points", np.full((4, 2), "a"), None, "dtype <U1"),
        ("tracks", np.zeros((4, 4)), "ZYX", "no T"),
    ],
    ids=lambda value: str(value)[:12].replace("\n", " "),
)
def test_bad_tables_are_refused(kind: Any, data: Any, axes: str | None, words: str) -> None:
    with pytest.raises(InvalidItem, match=words):
        as_table(data, kind=kind, axes=axes)
