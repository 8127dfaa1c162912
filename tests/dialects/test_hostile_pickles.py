"""What pickles can do to whoever unpickles them, and can't do to whoever interprets them."""

from __future__ import annotations

import decimal
import enum
import pickle
import struct
import sys
import types
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.dialects import load_plain, read_control_answer
from openhcs_stream.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Each a few bytes.
BOMBS = {
    # The C unpickler makes a memo of twice that many entries: 34 GB.
    "memo": b"\x80\x04}r" + struct.pack("<I", 2**31 - 1) + b".",
    # The hash of a tuple is that of all in it: 2 ** 60 of them.
    "hash": b"\x80\x04}N\x85" + b"2\x86" * 60 + b"Ns.",
    "copies": b"\x80\x04]" + b"2\x86\x94" * 60 + b".",
    "announced": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "number": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "command": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "old command": b"cos\nsystem\n(S'true'\ntR.",
    "persistent": b"\x80\x04Pname\n.",
    "class as a value": b"\x80\x04}\x8c\x01k\x8c\x08openhcs.\x8c\x01C\x93s.",
    "class as a key": b"\x80\x04}\x8c\x08openhcs.\x8c\x01C\x93Ns.",
    "class alone": b"\x80\x04\x8c\x08openhcs.\x8c\x01C\x93.",
    "class called with itself": b"\x80\x04\x8c\x08openhcs.\x8c\x01C\x93\x94h\x00\x85R.",
    "class called with nothing": b"\x80\x04\x8c\x08openhcs.\x8c\x01C\x93)R.",
    "class called with two": b"\x80\x04\x8c\x08openhcs.\x8c\x01C\x93K\x01K\x02\x86R.",
    "like a package of theirs": b"\x80\x04\x8c\x09openhcs_x\x8c\x06system\x93K\x01\x85R.",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_are_refused_at_once(bomb: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        load_plain(bomb)
    with pytest.raises(ProtocolViolation) as caught:
        read_control_answer(bomb)
    assert caught.value.cure


@pytest.fixture
def their_enum() -> Iterator[type[enum.Enum]]:
    package, module = types.ModuleType("openhcs"), types.ModuleType("openhcs.constants")
    Kind = enum.Enum("Kind", {"NAPARI": "napari", "FIJI": "fiji"}, module="openhcs.constants")
    module.Kind = Kind  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openhcs", package)
        patch.setitem(sys.modules, "openhcs.constants", module)
        yield Kind


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_enumeration_of_theirs_is_its_value(their_enum: type[enum.Enum], protocol: int) -> None:
    told = {"viewer": their_enum["NAPARI"], "both": [their_enum["FIJI"], their_enum["NAPARI"]]}
    frame = pickle.dumps(told, protocol=protocol)
    assert read_control_answer(frame) == {"viewer": "napari", "both": ["fiji", "napari"]}
    with pytest.raises(ProtocolViolation, match=r"openhcs\.constants\.Kind"):
        load_plain(frame)


def test_anybody_else_s_class_is_refused_by_its_name() -> None:
    frame = pickle.dumps({"number": decimal.Decimal(1)}, protocol=4)
    with pytest.raises(ProtocolViolation, match=r"decimal\.Decimal"):
        read_control_answer(frame)
