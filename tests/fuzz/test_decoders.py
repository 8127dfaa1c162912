"""Every decoder, fed with what nobody would send: an answer or a refusal, and nothing else."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts._fuzz.decoders import Findings, fuzz, try_one
from scripts._fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scripts._fuzz.targets import Target

# What is lost is told: that is an answer.
pytestmark = pytest.mark.filterwarnings("ignore::openhcs_stream.errors.LossyConversion")

#: Each target is bounded by its number of inputs; `scripts/fuzz` goes on for as long as one likes.
EXAMPLES = 150


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_right_is_taken(name: str) -> None:
    target = TARGETS[name]
    samples = target.samples()
    assert samples
    told = [try_one(target, sample) for sample in samples]
    assert not [said for what, said in told if what == "finding"]
    assert any(what == "accepted" for what, _ in told)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
@given(
    data=st.binary(max_size=400),
    seed=st.integers(0, 2**32),
    which=st.integers(0, 100),
    how=st.sampled_from(["bytes", "cut", "joined", "changed", "changed more"]),
)
def test_what_is_wrong_is_refused(name: str, data: bytes, seed: int, which: int, how: str) -> None:
    target = TARGETS[name]
    samples = target.samples()
    sample, random = samples[which % len(samples)], Random(seed)
    match how:
        case "cut":
            data = sample[: seed % (len(sample) + 1)]
        case "joined":
            at = seed % (len(sample) + 1)
            data = sample[:at] + data + sample[at:]
        case "changed":
            data = target.mutation(sample, random, samples)
        case "changed more":
            data = target.mutation(target.mutation(sample, random, samples), random, samples)
        case _:
            pass
    what, said = try_one(target, data)
    assert what != "finding", said


@pytest.mark.parametrize("name", TARGETS)
def test_truncated_anywhere(name: str) -> None:
    target = TARGETS[name]
    for sample in target.samples():
        step = max(1, len(sample) // 150)
        for end in range(0, len(sample), step):
            what, said = try_one(target, sample[:end])
            assert what != "finding", f"{end} of {len(sample)} bytes: {said}"


#: Inputs that found something once, or would in a decoder that trusts what it reads.
NAMED = {
    "native messages": [
        b"",
        b"\x90",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xa5items",
        b"\x92\xa5items\xdd\xff\xff\xff\xff",
        b"\x92\xa5items" + b"\x91" * 5000,
        b"\x93\xa5hello\xcd\xff\xff\x00",
        b"\x92\xa3bye\xdb\xff\xff\xff\xff",
        b"\x93\xa7request\x01\xa1x\x81" + b"\x81\xa1a" * 3000 + b"\xc0",
    ],
    "ROI blocks": [
        b"\x96\x02\xce\x01\x00\x00\x00\xc4\x00\xc4\x00\x04\xc4\x00",
        b"\x97\x02\x00\xc4\x00\xc4\x00\x04\xc4\x00\xdd\x00\xff\xff\xff",
    ],
    # A table that begins before its file does.
    "ImageJ .zip files": [
        b"PK\x05\x06" + bytes(4) + struct.pack("<HHIIH", 1, 1, 46, 2**31, 0),
        b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(4)
        + struct.pack("<HHIIH", 1, 1, 10, 2**32 - 1, 0),
    ],
    "GeoJSON": [b"[" * 100_000, b'{"type":"Feature","geometry":null}', b"1e999", b"[NaN]"],
    "OpenHCS batches": [
        b"{",
        b'{"images":' + b"[" * 100_000,
        b'{"images":[{"shape":[1099511627776,1099511627776],"dtype":"uint8","data":[]}]}',
        b'{"type":"batch","images":[{"data":[1],"shape":[2],"dtype":"O"}],"display_config":NaN}',
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, data) for name, inputs in NAMED.items() for data in inputs],
    ids=[f"{name}-{n}" for name, inputs in NAMED.items() for n in range(len(inputs))],
)
def test_by_name(name: str, data: bytes) -> None:
    what, said = try_one(TARGETS[name], data)
    assert what != "finding", said


class TestTheLoopItself:
    """It must be able to find something."""

    def test_finds_an_error_that_is_no_refusal(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def broken(data: bytes) -> None:
            if len(data) % 7 == 3:
                raise KeyError(data[:4])

        target = TARGETS["addresses"]
        monkeypatch.setitem(TARGETS, "addresses", _with(target, broken))
        found = fuzz(0.5, 1, ["addresses"], tmp_path / "kept")["addresses"]
        assert found.findings
        assert "KeyError" in found.findings[0]["what"]
        kept = [path.read_bytes() for path in (tmp_path / "kept").iterdir()]
        assert kept
        assert all(len(data) % 7 == 3 for data in kept)

    def test_finds_what_takes_long_and_what_takes_much(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = itertools.count(0.0, 10.0)
        monkeypatch.setattr("scripts._fuzz.decoders.time.monotonic", lambda: next(times))
        target = _with(TARGETS["addresses"], len)
        assert try_one(target, b"") == ("finding", "it took 10.0 s")

        def greedy(data: bytes) -> None:
            raise MemoryError

        what, said = try_one(_with(target, greedy), b"")
        assert what == "finding"
        assert "MemoryError" in said

    def test_counts(self) -> None:
        found = fuzz(0.4, 1, ["addresses", "pickles"])
        for counts in found.values():
            assert isinstance(counts, Findings)
            assert counts.inputs == counts.accepted + counts.refused > 0
            assert counts.findings == []


def _with(target: Target, decode: Callable[[bytes], object]) -> Target:
    return replace(target, decode=decode)
