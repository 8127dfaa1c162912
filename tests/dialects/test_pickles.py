"""Pickles that are read without unpickling: plain ones whole, all others refused unread."""

from __future__ import annotations

import collections
import contextlib
import datetime
import enum
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhcs_stream.dialects import dump_plain, load_plain
from openhcs_stream.errors import ProtocolViolation

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**250), 2**250)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
KEYS = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.binary(max_size=9)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.sets(KEYS, max_size=5)
        | st.frozensets(KEYS, max_size=5)
    ),
    max_leaves=30,
)


class Colour(enum.Enum):
    RED = "red"


class Runs:
    """What a hostile client would send."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


@given(PLAIN, st.sampled_from([4, 5]))
def test_plain_data_comes_through(value: Any, protocol: int) -> None:
    assert load_plain(pickle.dumps(value, protocol)) == value
    assert pickle.loads(dump_plain(value)) == value


@pytest.mark.parametrize("protocol", [2, 3])
def test_older_protocols(protocol: int) -> None:
    value = {"type": "ping", "counts": [1, -2, 300, 70_000, 2**40, 0.5], "who": (None, True)}
    assert load_plain(pickle.dumps(value, protocol)) == value


def test_what_is_shared_stays_shared() -> None:
    inner = ["a"]
    loaded = load_plain(pickle.dumps([inner, inner, {"again": inner}]))
    assert loaded[0] is loaded[1]
    assert loaded[2]["again"] is loaded[0]


def test_a_large_dictionary_in_several_groups() -> None:
    value = {f"key {number}": number for number in range(1200)}
    assert load_plain(pickle.dumps(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        Runs(),
        Colour.RED,
        collections.OrderedDict(a=1),
        datetime.date(2020, 1, 1),
        Path("/tmp"),
        os.system,
        bytearray(b"abc"),
        object(),
        range(3),
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", range(2, 6))
def test_everything_else_is_refused(
    value: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProtocolViolation, match=r"wants to run|has the opcode"):
        load_plain(pickle.dumps({"type": "ping", "payload": value}, protocol))
    assert not list(tmp_path.iterdir())


def test_a_refusal_names_the_class() -> None:
    with pytest.raises(ProtocolViolation, match=r"of collections\.OrderedDict"):
        load_plain(pickle.dumps(collections.OrderedDict()))


def test_the_protocol_of_text_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        load_plain(pickle.dumps({"type": "ping"}, 0))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def laughs(levels: int) -> Any:
    value: Any = ["lol"]
    for _ in range(levels):
        value = [value] * 10
    return value


def loop() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def roundabout() -> Any:
    value: dict[str, Any] = {}
    value["list"] = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [nested(17), nested(300), laughs(30), loop(), roundabout(), [0] * 5000, 2**300, b"x" * 70_000],
    ids=["deep", "deeper", "laughs", "loop", "roundabout", "many", "number", "long"],
)
def test_what_is_too_much_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolViolation):
        load_plain(pickle.dumps(value))


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b".",
        b"\x80\x04.",
        b"\x80\x04N",
        b"\x80\x04N.x",
        b"\x80\x04NN.",
        b"\x80\x04(.",
        b"\x80\x04(N.",
        b"\x80\x04t.",
        b"\x80\x04a.",
        b"\x80\x04]s.",
        b"\x80\x04}Nu.",
        b"\x80\x04}(Nu.",
        b"\x80\x04}(]Nu.",
        b"\x80\x04h\x00.",
        b"\x80\x04\x94.",
        b"\x80\x04(\x94.",
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x04X\xff\xff\xff\xffab.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.",
        b"\x80\x04B\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x8b\xff\xff\xff\xff.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
        b"\x80\x04\x8c\x02\xff\xfe.",
        b"\x80\x04G\x00.",
        b"\x80\x06N.",
        b"\x80\x04" + b"(" * 60_000,
        b"\x80\x04]\x94" + b"h\x00" * 30_000 + b".",
        b"\x80\x04]\x94h\x00a.",
        b"\x80\x04]]\x94ah\x01a.",
    ],
    ids=repr,
)
def test_what_is_no_pickle_is_refused(octets: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ProtocolViolation) as caught:
        load_plain(octets)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 500


def test_a_container_can_not_grow_after_it_was_put_into_another() -> None:
    """Else depth could be made out of order, and would not be counted."""
    outer, inner = b"]\x94", b"]\x94"
    octets = b"\x80\x04" + outer + inner + b"a" + b"h\x01" + b"N" + b"a" + b"."
    with pytest.raises(ProtocolViolation, match="in another already"):
        load_plain(octets)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes(octets: bytes) -> None:
    for data in (octets, b"\x80\x04" + octets, b"\x80\x04" + octets + b"."):
        with contextlib.suppress(ProtocolViolation):
            load_plain(data)


OPCODES = st.sampled_from(
    [bytes([code]) for code in b"N()]}.aelstud\x85\x86\x87\x88\x89\x8f\x90\x91\x94cRbiQP\x81\x93"]
    + [b"K\x01", b"M\x01\x02", b"h\x00", b"h\x01", b"q\x00", b"\x8c\x01a", b"C\x01b"]
    + [b"\x8a\x01\x05", b"G" + struct.pack(">d", 1.5), b"X\x01\x00\x00\x00c"]
)


@settings(max_examples=500)
@given(st.lists(OPCODES, max_size=40).map(b"".join))
def test_any_opcodes(octets: bytes) -> None:
    try:
        value = load_plain(b"\x80\x04" + octets + b".")
    except ProtocolViolation:
        return
    waiting, met = [value], 0
    while waiting:  # what was built is plain, and ends
        each = waiting.pop()
        met += 1
        assert met < 10_000
        assert type(each) in (type(None), bool, int, float, str, bytes, list, tuple, dict, set,
                              frozenset)  # fmt: skip
        if type(each) is dict:
            waiting += [*each.keys(), *each.values()]
        elif type(each) in (list, tuple, set, frozenset):
            waiting += list(each)
