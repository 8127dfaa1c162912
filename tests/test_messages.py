"""The native wire: strict, bounded, and kind to other minor versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhcs_stream import messages
from openhcs_stream.errors import ProtocolMismatch, ProtocolViolation
from openhcs_stream.messages import (
    AXES,
    MAJOR,
    MAX_ITEMS,
    MAX_NDIM,
    MESSAGES,
    MINOR,
    ArenaOffer,
    ArenaRetired,
    Bye,
    Edited,
    EditRecord,
    EditsTaken,
    Failure,
    FileShown,
    Hello,
    Item,
    Items,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Message,
    More,
    Part,
    Ping,
    Pong,
    Refusal,
    Reply,
    Report,
    Request,
    Welcome,
    canonical_component,
    decode,
    encode,
    is_native,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pack = msgspec.msgpack.Encoder().encode

SPEC = LayerSpec("image", "raw", "YX", ("well", "z"), source="plate 1", modes={"z": "stack"})
ITEM = Item(7, 0, ("A01", -3), (256, 128), "<u2", 65536, (Part(2, 4096, 65536, 91),), {"n": 1})

FILE = Item(8, 0, ("A01", 0), (256, 128), "<u2", 65536, ())

EDIT = EditRecord(
    9, 1.5, "ada", "painted", "labels", "nuclei", "plate 1", {"z": 3}, (2,), b"\0", b"\1",
    (4, 5, 1, 1), "|u1", 2,
)  # fmt: skip

#: One of each top-level message, with values that are not the defaults.
EXAMPLES: tuple[Message, ...] = (
    Hello(MAJOR, MINOR, "5e55", "stream", "worker 3", "ada", "boot:net", 4711, "t", ("unix",)),
    Welcome(MAJOR, MINOR, "napari", "napari-2", 12, "unix:x", "k", ("image",), {"z": "stack"}),
    Refusal("the token is wrong.", "Pass it."),
    LaneOpened("5e55", "k"),
    ArenaOffer(2, 1 << 30),
    ArenaRetired(2),
    LayerDeclared(0, SPEC),
    Items((ITEM,)),
    More(7, (Part(-1, 0, 12, 92),)),
    FileShown(FILE, "zarr", 8, True, ("0", "1")),
    Report((1, 2), (1,), (Failure(3, "no such axis"),), (90,)),
    Ping(4),
    Pong(4),
    Request(5, "read", {"layer": "raw", "place": {"z": 3}}),
    Reply(5, True, {"shape": [2, 2]}),
    Edited(EDIT, (1, 4)),
    EditsTaken((9, 10)),
    Bye("done"),
)


def test_there_is_an_example_of_each_message() -> None:
    assert tuple(type(each) for each in EXAMPLES) == MESSAGES


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_a_message_comes_back(message: Message, form: Callable[[bytes], Any]) -> None:
    assert decode(form(encode(message))) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_message_is_an_array_that_begins_with_its_tag(message: Message) -> None:
    frame = encode(message)
    tag, *fields = msgspec.msgpack.decode(frame)
    assert tag == type(message).__struct_config__.tag
    assert len(fields) == len(message.__struct_fields__)
    assert is_native(frame)


@pytest.mark.parametrize(
    ("frame", "native"),
    [
        (b"", False),
        (b'{"type": "batch"}', False),
        (b"\x8f", False),
        (b"\x90", True),
        (b"\x9f", True),
        (b"\xa0", False),
        (b"\xdc\x00\x10", True),
        (b"\xdd", True),
        (b"\xde", False),
    ],
)
def test_native_frames_are_told_from_json(frame: bytes, native: bool) -> None:
    assert is_native(frame) is native
    assert is_native(memoryview(frame)) is native


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_fields_of_a_later_minor_version_are_skipped(message: Message) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    assert decode(pack([*fields, "new", {"and": "more"}])) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_fields_that_an_earlier_minor_version_lacks_get_their_defaults(message: Message) -> None:
    required = [field for field in msgspec.structs.fields(type(message)) if field.required]
    fields = msgspec.msgpack.decode(encode(message))[: 1 + len(required)]
    short = decode(pack(fields))
    for field in msgspec.structs.fields(type(message)):
        expected = getattr(message, field.name) if field.required else field.default
        if not field.required and field.default is msgspec.NODEFAULT:
            expected = field.default_factory()
        assert getattr(short, field.name) == expected


def test_nested_fields_of_a_later_minor_version_are_skipped() -> None:
    tag, items = msgspec.msgpack.decode(encode(Items((ITEM,))))
    items[0][6][0].append("new in a part")
    items[0].append("new in an item")
    assert decode(pack([tag, items])) == Items((ITEM,))


@pytest.mark.parametrize("tag", ["hello", "welcome"])
@pytest.mark.parametrize(
    "rest", [[], ["other", ["fields", 3]]], ids=["nothing else", "other fields"]
)
def test_another_major_version_is_refused_with_both_versions(tag: str, rest: list[Any]) -> None:
    with pytest.raises(ProtocolMismatch, match=rf"{MAJOR + 1}\.7.*{MAJOR}\.{MINOR}") as caught:
        decode(pack([tag, MAJOR + 1, 7, *rest]))
    assert caught.value.cure


@pytest.mark.parametrize("message", EXAMPLES[:2], ids=["hello", "welcome"])
def test_another_major_version_of_the_same_form_is_refused(message: Hello | Welcome) -> None:
    other = msgspec.structs.replace(message, major=MAJOR + 1, minor=4)
    with pytest.raises(ProtocolMismatch, match=rf"{MAJOR + 1}\.4"):
        decode(encode(other))


@pytest.mark.parametrize("message", EXAMPLES[:2], ids=["hello", "welcome"])
def test_another_minor_version_is_welcome(message: Hello | Welcome) -> None:
    other = msgspec.structs.replace(message, minor=MINOR + 9)
    assert decode(encode(other)) == other


def test_a_malformed_greeting_of_our_own_version_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        decode(pack(["hello", MAJOR, MINOR, 3]))


@dataclass(frozen=True)
class Bad:
    name: str
    frame: bytes


def _item(**changes: Any) -> bytes:
    return encode(Items((msgspec.structs.replace(ITEM, **changes),)))


def _spec(**changes: Any) -> bytes:
    return encode(LayerDeclared(0, msgspec.structs.replace(SPEC, **changes)))


BAD = [
    Bad("nothing", b""),
    Bad("JSON", b'{"type": "batch"}'),
    Bad("a number", pack(3)),
    Bad("an empty array", pack([])),
    Bad("no tag", pack([1, 2])),
    Bad("an unknown tag", pack(["greeting", 1])),
    Bad("a map", pack({"type": "ping", "number": 1})),
    Bad("too few fields", pack(["ping"])),
    Bad("trailing bytes", encode(Ping(1)) + b"\x00"),
    Bad("cut off", encode(Items((ITEM,)))[:-1]),
    Bad("a text where a number belongs", pack(["ping", "1"])),
    Bad("a float where a number belongs", pack(["ping", 1.0])),
    Bad("a bool where a number belongs", pack(["ping", True])),
    Bad("a negative number", pack(["ping", -1])),
    Bad("a number beyond 2**53", pack(["ping", 2**53 + 1])),
    Bad("text that is not UTF-8", b"\x92\xa3bye\xa2\xff\xfe"),
    Bad("a key that is not UTF-8", b"\x94\xa7request\x01\xa1v\x81\xa2\xff\xfe\x01"),
    Bad("a key that can't be one", b"\x94\xa7request\x01\xa1v\x81\xa1a\x81\x80\x01"),
    Bad("deep nesting", b"\x94\xa7request\x01\xa1v\x81\xa1a" + b"\x91" * 100_000 + b"\x01"),
    Bad("a length without its bytes", b"\xdd\xff\xff\xff\xff"),
    Bad("a list without its items", b"\x92\xa6report\xdd\xff\xff\xff\xff"),
    Bad("a long text", pack(["bye", "x" * 4097])),
    Bad("a long session name", encode(LaneOpened("x" * 65, ""))),
    Bad("a long key", encode(LaneOpened("", "x" * 65))),
    Bad("a long token", encode(msgspec.structs.replace(EXAMPLES[0], token="x" * 257))),
    Bad("many lanes", encode(msgspec.structs.replace(EXAMPLES[0], lanes=("unix",) * 9))),
    Bad("an unknown role", pack(["hello", 1, 0, "s", "spy", "n", "u", "h", 1])),
    Bad("an unknown kind", _spec(kind="movie")),
    Bad("an unknown mode", _spec(modes={"z": "spread"})),
    Bad("many axes", _spec(axes=AXES[: MAX_NDIM + 2])),
    Bad("many components", _spec(components=("c",) * 33)),
    Bad("four pixel sizes", _spec(pixel_size=(1.0,) * 4)),
    Bad("one contrast limit", _spec(contrast_limits=(1.0,))),
    Bad("no items at once", pack(["items", None])),
    Bad("many items", encode(Items((ITEM,) * (MAX_ITEMS + 1)))),
    Bad("many dimensions", _item(shape=(1,) * (MAX_NDIM + 2))),
    Bad("a negative length", _item(shape=(-1,))),
    Bad("a long dtype", _item(dtype="float32")),
    Bad("a place of floats", _item(place=(1.5,))),
    Bad("a long place value", _item(place=("x" * 257,))),
    Bad("a large place value", _item(place=(2**53 + 1,))),
    Bad("many place values", _item(place=(1,) * 33)),
    Bad("metadata that is a list", _item(info={"a": [1]})),
    Bad("an arena below -1", _item(parts=(Part(-2, 0, 1, 0),))),
    Bad("many parts", _item(parts=(Part(-1, 0, 1, 0),) * 4097)),
    Bad("many more parts", encode(More(0, (Part(-1, 0, 1, 0),) * 4097))),
    Bad("a long verb", encode(Request(1, "x" * 65))),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_what_is_no_message_is_a_violation(bad: Bad) -> None:
    with pytest.raises(ProtocolViolation, match=f"{len(bad.frame)} bytes") as caught:
        decode(bad.frame)
    assert caught.value.cure


@settings(deadline=None)  # a busy machine is slow
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_ours(frame: bytes) -> None:
    _decode_or_refuse(frame)


_TAGS = [str(each.__struct_config__.tag) for each in MESSAGES]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary() | st.sampled_from(["stream", "image", "YX", "<u2", "stack"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)  # a busy machine is slow
@given(st.sampled_from(_TAGS), st.lists(_VALUES, max_size=10))
def test_any_fields_are_a_message_or_an_error_of_ours(tag: str, fields: list[Any]) -> None:
    _decode_or_refuse(pack([tag, *fields]))


@settings(deadline=None)  # a busy machine is slow
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_damaged_message_is_a_message_or_an_error_of_ours(
    message: Message, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    _decode_or_refuse(bytes(frame))


def _decode_or_refuse(frame: bytes) -> None:
    try:
        message = decode(frame)
    except (ProtocolViolation, ProtocolMismatch):
        return
    assert isinstance(message, MESSAGES)
    assert is_native(frame)


def test_components_of_others_get_our_names() -> None:
    assert canonical_component("z_index") == "z"
    assert canonical_component("timepoint") == "time"
    assert canonical_component("well") == "well"


def test_a_descriptor_is_a_few_dozen_bytes() -> None:
    """What travels for each image: 50 bytes here, whatever the image's size."""
    assert len(encode(Items((msgspec.structs.replace(ITEM, info={}),)))) < 64


def test_axes_are_letters_named_once() -> None:
    assert len(set(AXES)) == len(AXES)
    assert AXES.isupper()


def test_public_names_are_there() -> None:
    assert [name for name in messages.__all__ if not hasattr(messages, name)] == []
