"""A recording as a file: what is written is read; a kill or a fault costs no more than it must."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openhcs_stream.errors import OutOfSpace, UsageError
from openhcs_stream.messages import LayerSpec
from openhcs_stream.recording import DamagedRecording, Recording, Writer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SPEC = LayerSpec(kind="image", name="raw", axes="YX", components=("well", "z"))


def written(path: Path, count: int = 3, shape: tuple[int, ...] = (5, 7)) -> Path:
    with Writer(path, program="tests 1") as writer:
        for z in range(count):
            writer.add("worker 1", SPEC, ("A01", z), np.full(shape, z, "<u2"), {"id": f"i{z}"})
    return path


def read(path: Path) -> list[tuple[tuple[Any, ...], npt.NDArray[Any]]]:
    with Recording(path) as recording:
        return [(entry.place, entry.read()) for entry in recording.entries()]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "it.rec"
    other = LayerSpec(kind="points", name="spots", axes="YX", pixel_size=(0.5, 0.5), unit="um")
    table = np.arange(6.0).reshape(3, 2)
    with Writer(path, program="tests 1") as writer:
        writer.add("worker 1", SPEC, ("A01", 0), np.arange(35, dtype="<u2").reshape(5, 7), {})
        writer.add("worker 2", SPEC, ("A01", 1), np.zeros((0, 7), "<u2"), {"id": "empty"})
        writer.add("worker 1", other, (), table, {"score": 0.5, "none": None, "ok": True})
        writer.add("worker 1", SPEC, ("A02", 0), np.array(True), {})
        assert writer.items == 4
        assert writer.nbytes == 70 + 48 + 1
    with Recording(path) as recording:
        first, empty, spots, scalar = recording.entries()
        assert (first.stream, first.spec, first.place) == ("worker 1", SPEC, ("A01", 0))
        np.testing.assert_array_equal(first.read(), np.arange(35).reshape(5, 7))
        assert first.read().dtype == np.dtype("<u2")
        assert (empty.stream, empty.shape, empty.nbytes) == ("worker 2", (0, 7), 0)
        assert empty.read().shape == (0, 7)
        assert spots.spec == other
        assert spots.info == {"score": 0.5, "none": None, "ok": True}
        np.testing.assert_array_equal(spots.read(), table)
        assert scalar.read() == np.array(True)
        assert 0 <= first.time_s <= empty.time_s <= spots.time_s
        summary = recording.summary()
    assert summary.streams == {
        "worker 1": {"image raw": 2, "points spots": 1},
        "worker 2": {"image raw": 1},
    }
    assert (summary.items, summary.nbytes) == (4, 70 + 48 + 1)
    assert (summary.complete, summary.torn_nbytes) == (True, 0)
    assert summary.program == "tests 1"
    assert 0 <= time.time() - summary.started < 600
    assert path.stat().st_size % 64 == 0


def test_every_record_begins_at_a_multiple_of_64_bytes(tmp_path: Path) -> None:
    """As the document says it, read with nothing of ours."""
    content = written(tmp_path / "it.rec").read_bytes()
    assert content.startswith(b"OHSREC1\n")
    at, kinds = 64, []
    while at < len(content):
        magic, length, nbytes, _, _ = struct.unpack_from("<4sIQII", content, at)
        assert magic == b"REC1"
        header = content[at + 24 : at + 24 + length]
        kinds.append(
            header[2 : 2 + header[1] - 0xA0].decode()
        )  # a short text follows the array's mark
        at += -(-(24 + length) // 64) * 64
        at += -(-nbytes // 64) * 64
    assert kinds == ["begin", "layer", "item", "item", "item", "end"]


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "it.rec"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"is there already.*another name"):
        Writer(path, program="x")
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="No such file"):
        Writer(tmp_path / "nowhere" / "it.rec", program="x")


def test_what_is_being_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "it.rec"
    with Writer(path, program="x") as writer:
        with Recording(path) as recording:
            assert list(recording.entries()) == []
            writer.add("w", SPEC, ("A01", 0), np.zeros((2, 2), "<u2"), {})
            assert len(list(recording.entries())) == 1
            assert recording.summary().complete is False


@given(cut=st.integers(0, 3000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_ends_anywhere_gives_what_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "whole.rec"
    if not path.exists():
        written(path, count=4, shape=(10, 20))
    content = path.read_bytes()
    short = tmp_path / "short.rec"
    short.write_bytes(content[: max(0, len(content) - cut)])
    try:
        found = read(short)
    except DamagedRecording:
        assert len(content) - cut < 200  # not even its beginning is there
        return
    assert [place for place, _ in found] == [("A01", z) for z in range(len(found))]
    for (_, z), array in found:
        np.testing.assert_array_equal(array, np.full((10, 20), z))


@given(at=st.integers(0, 2500), value=st.integers(0, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_noticed_or_means_nothing(tmp_path: Path, at: int, value: int) -> None:
    path = tmp_path / "whole.rec"
    if not path.exists():
        written(path, count=4, shape=(10, 20))
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    changed = tmp_path / "changed.rec"
    changed.write_bytes(bytes(content))
    before = read(path)
    try:
        with Recording(changed) as recording:
            for entry, (place, array) in zip(recording.entries(), before, strict=False):
                try:
                    entry.check()
                except DamagedRecording:
                    with pytest.raises(DamagedRecording):
                        entry.read()
                    continue
                assert entry.place == place
                np.testing.assert_array_equal(entry.read(), array)
    except DamagedRecording:
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4", b"OHSREC1\n", b"OHSREC1\n" + b"\0" * 500, b"OHSREC2\n" + b"\0" * 56],
    ids=["empty", "zip", "magic", "zeros", "later"],
)
def test_what_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "it.rec"
    path.write_bytes(content)
    with pytest.raises(DamagedRecording):
        Recording(path)
    with pytest.raises(UsageError, match="can't be read"):
        Recording(tmp_path / "absent.rec")


def test_lengths_beyond_all_bounds_allocate_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "it.rec")
    content = bytearray(path.read_bytes())
    struct.pack_into("<4sIQ", content, 64, b"REC1", 0xFFFFFFFF, 1 << 63)
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedRecording, match="at byte 64"):
        Recording(path)


def test_a_full_disk_costs_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it.rec"
    real = os.writev
    with Writer(path, program="x") as writer:
        writer.add("w", SPEC, ("A01", 0), np.zeros((50, 50), "<u2"), {})

        def full(fd: int, pieces: list[memoryview]) -> int:
            if os.fstat(fd).st_size > 6000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, [pieces[0][:500]])  # as much as there is room for

        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            with pytest.raises(OutOfSpace, match=r"no room for \d+ bytes more.*items before"):
                writer.add("w", SPEC, ("A01", 1), np.zeros((50, 50), "<u2"), {})
        writer.add("w", SPEC, ("A01", 2), np.zeros((50, 50), "<u2"), {})
    assert [place for place, _ in read(path)] == [("A01", 0), ("A01", 2)]
    with Recording(path) as recording:
        assert recording.summary().complete


def test_a_write_that_is_done_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, pieces: real(fd, [pieces[0][:13]]))
    path = written(tmp_path / "it.rec")
    assert [place for place, _ in read(path)] == [("A01", z) for z in range(3)]


KILLED = """
import sys
import numpy as np
from pathlib import Path
from openhcs_stream.messages import LayerSpec
from openhcs_stream.recording import Writer
spec = LayerSpec(kind="image", name="raw", axes="YX", components=("z",))
writer = Writer(Path(sys.argv[1]), program="x")
print("ready", flush=True)
for z in range(10**9):
    writer.add("w", spec, (z,), np.full((256, 1024), z % 251, np.uint16), {})
"""


def test_a_kill_at_any_moment_loses_no_item_before(tmp_path: Path) -> None:
    torn = 0
    for number in range(8):
        path = tmp_path / f"{number}.rec"
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 20
            while path.stat().st_size < 4 << 20:
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGKILL)
            process.wait()
        with Recording(path) as recording:
            places = []
            for entry in recording.entries():
                entry.check()
                places.append(entry.place)
            summary = recording.summary()
        assert places == [(z,) for z in range(len(places))]
        assert len(places) >= 6
        assert not summary.complete
        torn += summary.torn_nbytes > 0
        path.unlink()


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "it.rec"
    with Writer(path, program="x") as writer:
        pixels = np.zeros((16, 16), np.uint8)
        for z in range(5000):
            writer.add("w", SPEC, ("A01", z), pixels, {})
    with Recording(path) as recording:
        tracemalloc.start()
        count = sum(1 for _ in recording.entries())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 5000
    assert peak < 1 << 20
