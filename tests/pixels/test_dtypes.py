"""Names of dtypes on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.messages import DTYPES
from openhcs_stream.pixels import numpy_dtype, wire_dtype


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_wire_name_is_its_own(name: str) -> None:
    assert wire_dtype(np.dtype(name)) == name
    assert wire_dtype(name) == name
    assert wire_dtype(np.dtype(name).newbyteorder(">")) == name
    assert numpy_dtype(name).str == name


@pytest.mark.parametrize(
    ("given", "name"),
    [(np.uint16, "<u2"), ("float32", "<f4"), (bool, "|b1"), (int, "<i8"), (np.longlong, "<i8")],
)
def test_what_numpy_takes_for_a_dtype(given: Any, name: str) -> None:
    assert wire_dtype(given) == name


@pytest.mark.parametrize(
    ("dtype", "named", "cure"),
    [
        ("O", "object", "np.stack"),
        ("U3", "str", "numbers"),
        ("S3", "bytes", "numbers"),
        (np.dtypes.StringDType(), "StringDType", "numbers"),
        ("M8[s]", "datetime64", "astype('int64')"),
        ("m8[s]", "timedelta64", "astype('int64')"),
        ("c8", "complex64", "np.abs"),
        (">c16", "complex128", "np.abs"),
        (np.longdouble, np.dtype(np.longdouble).name, "astype('float64')"),
        ([("x", "f4"), ("y", "f4")], "void", "array['x']"),
        ("V4", "void", "astype('float32')"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_others_are_named_with_a_cure(dtype: Any, named: str, cure: str) -> None:
    with pytest.raises(InvalidItem) as caught:
        wire_dtype(np.dtype(dtype))
    assert named in caught.value.what
    assert cure in caught.value.cure


@pytest.mark.parametrize("nonsense", ["no such dtype", 3.5, [("x",)]], ids=str)
def test_nonsense_is_no_dtype(nonsense: Any) -> None:
    with pytest.raises(InvalidItem, match="no dtype that numpy knows"):
        wire_dtype(nonsense)


@pytest.mark.parametrize("name", [">u2", "uint16", "|O8", "<c8", ""])
def test_only_wire_names_come_in(name: str) -> None:
    with pytest.raises(ProtocolViolation, match="is no dtype of this protocol"):
        numpy_dtype(name)
