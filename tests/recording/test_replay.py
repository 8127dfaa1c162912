"""Streams into a recorder and back into a viewer: the same picture, at its own pace or faster."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import ItemFailed, UsageError
from openhcs_stream.recording import (
    DamagedRecording,
    Recorder,
    Recording,
    Replayed,
    create_recorder,
    replay,
)
from openhcs_stream.recording import _replay as replay_module
from openhcs_stream.rois import Roi
from openhcs_stream.stream import connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer, create

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from openhcs_stream.stream import Stream


def fill(connect_to: Callable[[str], Stream]) -> None:
    """Everything that can be streamed, by two workers."""
    rng = np.random.default_rng(0)
    with connect_to("worker 1") as one, connect_to("worker 2") as two:
        for z in range(3):
            place: dict[str, int | str] = {"well": "A01", "site": 1, "channel": "DAPI", "z": z}
            one.image(
                rng.integers(0, 4096, (40, 30), dtype=np.uint16), name="raw", place=place,
                colormap="green", contrast_limits=(0, 4095), pixel_size=0.65, opacity=0.5,
                source="plate 1", metadata={"id": f"raw-{z}", "gain": 2},
            )  # fmt: skip
            two.labels(rng.integers(0, 9, (40, 30), dtype=np.uint32), name="cells", place=place)
        two.image(rng.random((2, 8, 9, 3)).astype("f4"), name="rgb", axes="ZYXS", visible=False)
        two.image(np.zeros((4, 4), bool), name="mask", modes={"well": "split"}, place={"well": 1})
        two.rois([Roi.oval(1, 2, 9, 8, name="a"), Roi.points([[1, 2]])], name="rois")
        two.rois([], name="none")
        one.points(rng.random((5, 3)), name="spots", axes="ZYX", order=("z", "well"))
        one.tracks(np.array([[1.0, 0, 2, 3], [1, 1, 3, 4]]), name="tracks")


def shown(viewer: MemoryViewer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for layer in viewer.layers.values():
        for coords in layer.places:
            key = f"{layer.title} {layer.kind} {layer.components} {coords}"
            raster = layer.kind in ("image", "labels")
            data = layer.stack.planes[coords] if raster else layer.items[coords]
            content = data.tobytes() if hasattr(data, "tobytes") else data
            found[key] = (layer.specs[coords], layer.infos[coords], content)
    return found


def to(address: str) -> Callable[[str], Stream]:
    return lambda name: connect(address, name=name, launch=False)


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "it.rec"
    with run_receiver(Recorder(path)) as running:
        fill(to(running.address))
    return path


def test_what_is_replayed_is_what_was_streamed(recorded: Path) -> None:
    with run_receiver(MemoryViewer()) as direct:
        fill(to(direct.address))
        expected = shown(direct.viewer)
    with Recording(recorded) as recording, run_receiver(MemoryViewer()) as running:
        assert recording.summary().complete
        done = replay(recording, to(running.address), speed=None)
        wait_for(lambda: running.receiver.status()["streams"] == [])
        names = {row["name"] for row in running.receiver.status()["ended"]}
        assert shown(running.viewer) == expected
    assert done == Replayed(sent=12, displayed=12)
    assert names == {"worker 1", "worker 2"}


def test_what_the_viewer_cannot_hold_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Napari(MemoryViewer):
        name = "napari"

    path = tmp_path / "it.rec"
    with run_receiver(Recorder(path)) as running, to(running.address)("w") as stream:
        assert stream.rois([Roi.arrow((0, 0), (9, 9))], name="look").remarks == ()
    with Recording(path) as recording, run_receiver(Napari()) as napari:
        with caplog.at_level("INFO", "openhcs_stream.recording"):
            replay(recording, to(napari.address), speed=None)
    (line,) = [each.getMessage() for each in caplog.records if "arrow" in each.getMessage()]
    assert line.startswith("rois 'look', in napari: 1 arrow: it becomes a path")


def test_the_recorder_keeps_nothing_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "it.rec"
    with run_receiver(Recorder(path)) as running:
        with connect(running.address, name="w", launch=False) as stream:
            for z in range(300):
                receipt = stream.image(np.zeros((64, 64), np.uint8), place={"z": z})
            assert receipt.wait().state == "displayed"
        status = running.receiver.status()
        assert (status["layers"], status["items"], status["nbytes"]) == (0, 300, 300 * 4096)
        assert status["file"] == str(path)
        assert running.viewer.layers == {}
    with pytest.raises(Exception, match="the recording has ended"):
        running.viewer.take_item("w", None, (), np.zeros(1), {})  # type: ignore[arg-type]


def test_an_item_that_can_not_be_written_fails_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    path = tmp_path / "it.rec"
    real = os.writev
    with run_receiver(Recorder(path)) as running:
        with connect(running.address, launch=False) as stream:
            stream.image(np.zeros((4, 4), np.uint8), name="a").wait()

            def full(fd: int, pieces: Any) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "writev", full)
            bad = stream.image(np.zeros((4, 4), np.uint8), name="b")
            with pytest.raises(ItemFailed, match="no room for"):
                stream.flush()
            assert bad.state == "failed"
            monkeypatch.setattr(os, "writev", real)
            stream.image(np.zeros((4, 4), np.uint8), name="c").wait()
    with Recording(path) as recording:
        assert [entry.spec.name for entry in recording.entries()] == ["a", "c"]


@pytest.mark.parametrize("speed", [1.0, 4.0, 0.5])
def test_the_pace_is_that_of_the_recording(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, speed: float
) -> None:
    """By what it waits for; nobody sleeps here."""
    waited: list[float] = []
    monkeypatch.setattr(replay_module, "_wait_until", waited.append)
    with Recording(recorded) as recording, run_receiver(MemoryViewer()) as running:
        times = [entry.time_s for entry in recording.entries()]
        replay(recording, to(running.address), speed=speed)
    assert len(waited) == len(times)
    np.testing.assert_allclose(np.diff(waited), np.diff(times) / speed, rtol=0, atol=1e-6)


def test_it_waits_for_nothing_before_the_first_item(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    waited: list[float] = []
    monkeypatch.setattr(replay_module, "_wait_until", waited.append)
    with Recording(recorded) as recording, run_receiver(MemoryViewer()) as running:
        with monkeypatch.context() as patch:
            patch.setattr("openhcs_stream.recording._replay.time.monotonic", lambda: now)
            patch.setattr(replay_module, "_send", lambda *_: None)
            patch.setattr(replay_module, "_finish", lambda *_: None)
            replay(recording, to(running.address), speed=2)
    assert waited[0] == now


def test_a_damaged_item_is_left_out_and_told(recorded: Path) -> None:
    with Recording(recorded) as recording:
        entries = list(recording.entries())
        victim = entries[2]
    content = bytearray(recorded.read_bytes())
    content[victim._offset] ^= 1
    recorded.write_bytes(bytes(content))
    with Recording(recorded) as recording, run_receiver(MemoryViewer()) as running:
        done = replay(recording, to(running.address), speed=None)
    assert (done.sent, done.displayed, done.damaged) == (11, 11, 1)
    assert "is damaged" in done.failures[0]


def test_a_damaged_record_ends_it_after_those_before(recorded: Path) -> None:
    with Recording(recorded) as recording:
        entries = list(recording.entries())
    content = bytearray(recorded.read_bytes())
    at = entries[4]._offset + -(-entries[4].nbytes // 64) * 64
    content[at : at + 4] = b"XXXX"
    recorded.write_bytes(bytes(content))
    with Recording(recorded) as recording, run_receiver(MemoryViewer()) as running:
        with pytest.raises(DamagedRecording, match=f"at byte {at} is no record"):
            replay(recording, to(running.address), speed=None)
        wait_for(lambda: running.receiver.status()["streams"] == [])
        assert sum(row["displayed"] for row in running.receiver.status()["ended"]) == 5


def test_what_this_viewer_refuses_is_told(recorded: Path) -> None:
    with (
        Recording(recorded) as recording,
        run_receiver(MemoryViewer(), required=("channel",)) as running,
    ):
        done = replay(recording, to(running.address), speed=None)
    assert (done.sent, done.displayed, done.failed) == (6, 6, 6)
    assert "lacks 'channel'" in done.failures[0]


def test_many_streams_share_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "MAX_STREAMS", 2)
    path = tmp_path / "it.rec"
    with run_receiver(Recorder(path)) as recorder, contextlib.ExitStack() as stack:
        for number in range(5):
            stream = stack.enter_context(connect(recorder.address, name=f"w{number}", launch=False))
            stream.image(np.full((4, 4), number, np.uint8), name=f"i{number}")
    opened: list[str] = []
    with Recording(path) as recording, run_receiver(MemoryViewer()) as running:

        def open_one(name: str) -> Stream:
            opened.append(name)
            return connect(running.address, name=name, launch=False)

        done = replay(recording, open_one, speed=None)
    assert (done.sent, done.displayed) == (5, 5)
    assert len(opened) == 2


def test_an_array_that_no_slot_holds_goes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it.rec"
    image = np.arange(1 << 20, dtype=np.uint8).reshape(1024, 1024)
    with run_receiver(Recorder(path)) as recorder:
        with connect(recorder.address, launch=False) as stream:
            stream.image(image)
    with Recording(path) as recording, run_receiver(MemoryViewer()) as running:
        from openhcs_stream.errors import OutOfSpace
        from openhcs_stream.stream import Stream

        def refuse(*_: object) -> None:
            raise OutOfSpace("too large")

        monkeypatch.setattr(Stream, "allocate", refuse)
        replay(recording, to(running.address), speed=None)
        ((_, _, content),) = shown(running.viewer).values()
    assert content == image.tobytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "which file"), ({"file": "x", "colour": "blue"}, "no option colour")],
)
def test_options_of_the_recorder(options: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        create_recorder(headless=True, title="", options=options)


def test_it_is_registered_like_every_viewer(tmp_path: Path) -> None:
    viewer = create("recorder", options={"file": str(tmp_path / "it.rec")})
    assert isinstance(viewer, Recorder)
    viewer.close()
    viewer.close()
    with pytest.raises(UsageError, match="is there already"):
        create("recorder", options={"file": str(tmp_path / "it.rec")})
    with pytest.raises(UsageError, match="no screen"):
        viewer.screenshot()
