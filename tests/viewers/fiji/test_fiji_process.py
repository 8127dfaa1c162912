"""The whole way: the command in a process of its own, real streams, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import ItemFailed, StreamError
from openhcs_stream.rois import Roi
from openhcs_stream.stream import connect
from openhcs_stream.viewer import MemoryViewer, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "openhcs_stream"]


class Running:
    """``openhcs-stream fiji`` in a process of its own."""

    def __init__(self, *options: str) -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "fiji", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"it did not start: {self.process.communicate(timeout=20)[1]}")
        self.started_s = time.monotonic() - began
        self.facts: dict[str, Any] = json.loads(line)
        self.address: str = self.facts["addresses"][0]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; exit status and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def headless() -> Iterator[Running]:
    running = Running("--headless", "--memory", "400m")
    yield running
    running.end()


def command(*words: str) -> str:
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fiji_status() -> dict[str, Any]:
    [told] = json.loads(command("status", "--json"))["viewers"]
    assert told["answers"]
    status: dict[str, Any] = told["status"]
    return status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: int) -> None:
    running = Running("--headless")
    status, errors = running.end(number)
    assert status == 0, errors
    assert "Traceback" not in errors
    assert "fatal error" not in errors


def test_commands_on_windows(display: str, tmp_path: Path) -> None:
    running = Running("--port", "0", "--memory", "400m")
    try:
        image = np.arange(200 * 200, dtype=np.uint16).reshape(200, 200)
        with connect(running.address, source="plate") as stream:
            for channel in ("DAPI", "GFP"):
                stream.image(image, name="raw", place={"channel": channel, "z": 1})
            stream.rois([Roi.rectangle(10, 10, 50, 60)], name="cells", place={"z": 1})
            stream.flush(20)
        status = fiji_status()
        assert (status["viewer"], status["layers"], status["imagej"]) == ("fiji", 2, "1.54p")
        picture = tmp_path / "fiji.png"
        command("screenshot", str(picture), "--to", "fiji")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 5000
        command("clear", "--to", "fiji")
        assert fiji_status()["layers"] == 0
        command("stop", "fiji")
        assert running.process.wait(20) == 0
    finally:
        _, errors = running.end()
    assert "Exception" not in errors


def test_files_are_sent(headless: Running, tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "volume.tif"
    volume = np.zeros((3, 20, 30), np.uint8)
    tifffile.imwrite(path, volume, imagej=True, metadata={"axes": "ZYX"})
    command("send", str(path), "--to", "fiji")
    with connect(headless.address) as stream:
        [layer] = stream.request("layers")
    assert layer["components"] == ["z"]
    assert len(layer["planes"]) == 3


def test_everything_is_saved_at_the_end(tmp_path: Path) -> None:
    import tifffile

    running = Running("--headless", "--save", str(tmp_path))
    volume = np.random.default_rng(0).integers(0, 1000, (3, 20, 30), np.uint16)
    with connect(running.address) as stream:
        stream.image(volume, name="volume", axes="ZYX")
        stream.rois([Roi.rectangle(1, 1, 5, 6)], name="cells", place={"z": 1})
        stream.flush(20)
    status, errors = running.end()
    assert status == 0, errors
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "volume.tif"), volume)
    with tifffile.TiffFile(tmp_path / "volume.tif") as file:
        assert file.imagej_metadata is not None
        assert len(file.imagej_metadata["Overlays"]) > 0


def test_a_stack_that_does_not_fit_is_refused_and_the_viewer_goes_on(headless: Running) -> None:
    with (
        pytest.raises(ItemFailed, match="no room for 545260544") as caught,
        connect(headless.address) as stream,
    ):
        stream.image(np.zeros((130, 2048, 2048), np.uint8), name="large", axes="ZYX")
    assert "--memory" in str(caught.value)
    with connect(headless.address) as stream:
        small = stream.image(np.ones((64, 64), np.uint8), name="small")
        small.wait(timeout_s=10)
        assert stream.request("status")["layers"] == 1


def test_what_imagej_can_not_hold_is_refused_and_said(headless: Running) -> None:
    with pytest.raises(ItemFailed, match="16777217"), connect(headless.address) as stream:
        stream.labels(np.full((8, 8), 2**24 + 1, np.uint32), name="nuclei")


def test_one_send_and_two_viewers_of_which_one_dies(
    headless: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = MemoryViewer()
    with Receiver(viewer, name="other") as other:
        assert other.endpoint is not None
        thread = threading.Thread(target=viewer.run, args=(other.tick, 0.01))
        thread.start()
        with connect([headless.address, other.endpoint.addresses[0]]) as stream:
            image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
            stream.image(image, name="raw", place={"z": 0})
            stream.flush(20)
            headless.process.send_signal(signal.SIGKILL)
            headless.process.wait(20)
            for z in range(1, 50):
                stream.image(image + z, name="raw", place={"z": z})
            with contextlib.suppress(StreamError):  # it tells of the one that died
                stream.flush(20)
        viewer.stop()
        thread.join(20)
        (layer,) = viewer.layers.values()
        assert len(layer.stack.planes) == 50


def test_quitting_imagej_ends_the_viewer(display: str) -> None:
    """From a process that quits it as its menu does."""
    code = """
import threading
from openhcs_stream.viewer import create, serve
viewer = create("fiji", title="t", options={"memory": "300m"})
def quit_it(endpoint):
    threading.Timer(0.5, viewer.java.IJ.getInstance().quit).start()
serve(viewer, on_ready=quit_it)
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False,
        env={**os.environ},
    )  # fmt: skip
    assert done.stdout == "ended\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_a_script_that_is_run_by_its_path() -> None:
    from pathlib import Path

    script = Path(__file__).resolve().parents[3] / "scripts" / "fiji_receiver"
    done = subprocess.run(
        [str(script), "--help"], cwd="/", capture_output=True, text=True, timeout=20, check=True
    )
    assert "--fiji PATH" in done.stdout
