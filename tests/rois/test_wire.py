"""The block: what goes in comes out; anything else is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.rois import Roi, Spline, decode, encode, estimated_nbytes
from openhcs_stream.rois._wire import MAX_EXACT_NBYTES

CORNERS = {"type": "corners", "diameter": 2}
SQUARE = [(0, 0), (0, 4), (4, 4), (4, 0)]


def test_each_kind(any_roi: Roi) -> None:
    assert decode(encode([any_roi])) == [any_roi]


def test_an_empty_list() -> None:
    assert decode(encode([])) == []


def test_defaults_take_no_room() -> None:
    plain = [Roi.polygon(SQUARE)] * 100
    size = len(encode(plain))
    assert size < 100 * (4 * 8 + 5) + 50
    for field, value in {
        "name": "a",
        "stroke_color": "#ff0000ff",
        "fill_color": "#ff0000ff",
        "stroke_width": 1.5,
        "group": 3,
        "position": (0, 0, 1),
        "properties": {"a": "b"},
        "details": Spline(),
        "flat_position": True,
        "imagej_options": 8,
    }.items():
        one = [plain[0].replace(**{field: value}), *plain[1:]]
        assert len(encode(one)) > size
        assert decode(encode(one)) == one


@pytest.mark.parametrize("value", [0.1, 1e300, 2.0**24 + 1], ids=["tenth", "huge", "odd"])
def test_what_float32_can_not_hold_goes_as_float64(value: float) -> None:
    roi = Roi.points([(value, 1)])
    assert decode(encode([roi])) == [roi]


def outlines(count: int, spread: float = 2048) -> list[Roi]:
    """Circles as people compute them: float64, 32 vertices."""
    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    centres = random.uniform(-spread, spread, (count, 1, 2))
    radii = random.uniform(3, 60, (count, 32, 1))
    xy = centres + radii * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [Roi("polygon", each) for each in xy]


#: More vertices than go exactly.
MANY = MAX_EXACT_NBYTES // (32 * 16) + 1


def test_up_to_8_mib_every_outline_is_exact() -> None:
    rois = outlines(MANY - 1)
    assert decode(encode(rois)) == rois
    # And so is any number of those that float32 holds.
    rois = [Roi("polygon", roi.coordinates.astype(np.float32)) for roi in outlines(MANY + 999)]
    assert decode(encode(rois)) == rois


@pytest.mark.parametrize("spread", [2048.0, 1e9])
def test_larger_lists_are_exact_to_a_16_millionth_of_the_outline(spread: float) -> None:
    """float32 alone would be off by 64 pixels at 1e9."""
    rois = outlines(MANY, spread)
    block = encode(rois)
    assert len(block) < MANY * (32 * 8 + 16 + 5) + 100
    back = decode(block)
    sent, got = (np.stack([roi.coordinates for roi in each]) for each in (rois, back))
    rounding = np.spacing(np.abs(sent).max())  # of float64 itself, far away
    size = np.ptp(sent, axis=1).max(axis=1)[:, None, None] + 1
    assert (np.abs(got - sent) <= size / 2**24 + rounding).all()
    assert encode(back) == block
    assert estimated_nbytes(block) < 2 * sum(roi.coordinates.nbytes + 300 for roi in rois)


def test_boxes_and_the_like_stay_what_they_are_in_a_large_list() -> None:
    random = np.random.default_rng(1)
    corners = random.uniform(0, 1e4, (2000, 2))
    sizes = random.choice([0, 1e-9, 0.1, 1, 7.3], (2000, 2))
    others = [Roi("rectangle", np.stack(box)) for box in zip(corners, corners + sizes, strict=True)]
    # Whole numbers and halves, and what is plain float32 near its origin, are exact even here.
    exact = [Roi.rectangle(1, 2, 700, 9), Roi.points([(0.5, 7)]), Roi.oval(2.25, 1, 1000, 2000)]
    rois = [*outlines(MANY), *others, *exact]
    back = decode(encode(rois))
    assert back[-3:] == exact
    assert [roi.kind for roi in back] == [roi.kind for roi in rois]


def test_what_no_origin_brings_into_reach_stays_float64() -> None:
    rois = [*outlines(MANY), Roi.points([(0, 0.1), (1e300, 1)])]
    assert decode(encode(rois)) == rois


@given(
    st.lists(
        st.builds(
            lambda xy, name, group: Roi("point", xy, name=name, group=group),
            arrays(
                np.float64,
                st.tuples(st.integers(1, 5), st.just(2)),
                elements=st.floats(allow_nan=False, allow_infinity=False),
            ),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
            st.integers(0, 65535),
        ),
        max_size=5,
    )
)
def test_any_list(rois: list[Roi]) -> None:
    assert decode(encode(rois)) == rois


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, "u1")])
def test_the_block_may_be_any_memory_and_is_copied(form: Any) -> None:
    data = bytearray(encode([Roi.polygon(SQUARE, name="a")]))
    rois = decode(form(data))
    data[:] = bytes(len(data))
    assert rois == [Roi.polygon(SQUARE, name="a")]
    assert not rois[0].coordinates.flags.writeable


def fields() -> list[Any]:
    block: list[Any] = msgspec.msgpack.decode(
        encode(
            [
                Roi.rounded_rectangle(0, 0, 4, 4, 2, name="a", stroke_color="#ff0000ff", group=1),
                Roi.points([(0.1, 0)], stroke_width=1.0, position=(1, 1, 1), properties={"a": "b"}),
            ]
        )
    )
    return block


def float64s(*numbers: float) -> bytes:
    return np.array(numbers, "<f8").tobytes()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        (0, 1, "version 1"),
        (1, 3, "counts have"),
        (1, -1, "can't be read"),
        (2, b"\x01", "kinds have"),
        (2, b"\x01\x63", "kind is unknown"),
        (3, b"", "counts have"),
        (3, np.array([2, 0], "<u4").tobytes(), "too few"),
        (3, np.array([3, 1], "<u4").tobytes(), "too many"),
        (3, np.array([2, 2**32 - 1], "<u4").tobytes(), "coordinates have"),
        (4, 5, "5 bytes"),
        (4, 4, "coordinates have"),
        (5, float64s(0, 0, 4, 4, 0), "coordinates have"),
        (5, float64s(0, 0, 4, 4, 0, np.nan), "infinite or no number"),
        (5, float64s(5, 0, 4, 4, 0, 0), "negative size"),
        (6, b"1", "origins have"),
        (6, float64s(0, 0, 0, np.inf), "infinite or no number"),
        (6, float64s(np.nan, 0, 0, 0), "infinite or no number"),
        (7, ["a"], "names are 1, not 2"),
        (8, ["red", ""], "'red' is no colour"),
        (9, ["#ff0000ff"], "fill_colors are 1"),
        (10, b"123", "stroke_widths have"),
        (10, float64s(-1, 0), "stroke width"),
        (10, float64s(np.nan, 0), "stroke width"),
        (11, b"1", "groups have"),
        (12, b"1", "positions have"),
        (12, b"\xff" * 24, "position is too large"),
        (13, [{}], "properties are 1"),
        (13, [{"a": 1}, {}], "can't be read"),
        (14, {}, "lacks its details"),
        (14, {0: {"type": "corners", "diameter": 0}}, "can't be read"),
        (14, {0: {"type": "spline"}}, "details of another kind"),
        (14, {7: {"type": "spline"}}, "details of ROI 7 of 2"),
        (14, {0: CORNERS, 1: {"type": "markers", "counters": [1, 2]}}, "2 counters for 1 points"),
        (15, b"1", "flat_positions have"),
        (16, b"\x01\x00\x00\x00", "imagej_options have bits"),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused(field: int, value: Any, told: str) -> None:
    block = fields()
    assert len(decode(msgspec.msgpack.encode(block))) == 2
    block[field] = value
    with pytest.raises(ProtocolViolation, match=told):
        decode(msgspec.msgpack.encode(block))


@given(st.binary(max_size=200))
def test_random_bytes_never_end_otherwise(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolViolation:
        pass


@given(st.data())
def test_changed_bytes_never_end_otherwise(data: st.DataObject) -> None:
    block = bytearray(msgspec.msgpack.encode(fields()))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(block)))
    for changed in (block, block[:cut]):
        try:
            decode(changed)
        except ProtocolViolation:
            pass
