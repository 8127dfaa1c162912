"""A plain REQ sender, with nothing of this package, against a running receiver."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.dialects import ipc_address
from openhcs_stream.viewer import MemoryViewer, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

SENDER = Path(__file__).with_name("plain_sender.py")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, whose path is short enough for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="ohcs-"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(folder / "run"))
    yield folder
    shutil.rmtree(folder)


def free_port() -> int:
    """A free port below those that the system gives out: nobody else gets it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


class Running:
    """A memory viewer that is being served, and stopped at the end."""

    def __init__(self) -> None:
        self.viewer = MemoryViewer()
        self.port = free_port()
        self.receiver = Receiver(self.viewer, port=self.port)
        self.receiver.start()
        self._thread = threading.Thread(target=self.viewer.run, args=(self.receiver.tick, 0.01))
        self._thread.start()

    def stop(self) -> None:
        self.viewer.stop()
        self._thread.join(10)
        self.receiver.close()


@pytest.fixture
def running(home: Path) -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def send(address: str, ack_address: str = "", **task: Any) -> Any:
    done = subprocess.run(
        [sys.executable, str(SENDER)],
        input=json.dumps({"address": address, "ack_address": ack_address, "images": 3, **task}),
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def check_shown(running: Running) -> None:
    layers = {key.kind: layer for key, layer in running.viewer.layers.items()}
    image, rois = layers["image"], layers["rois"]
    assert image.key.source == "plain"
    assert dict(image.key.split) == {"well": "A01", "site": 1}
    assert image.components == ("z",)
    for z in range(3):
        plane = image.stack.planes[(z,)]
        assert plane.dtype == np.uint16
        np.testing.assert_array_equal(plane, np.arange(z, z + 600).reshape(20, 30))
    (roi,) = rois.items[(0,)]
    assert roi.coordinates.tolist() == [[2, 1], [9, 1], [9, 8]]


def test_over_ipc_with_acknowledgements(running: Running) -> None:
    told = send(ipc_address(running.port), ipc_address(7555))
    assert told["reply"]["status"] == "success"
    assert told["left"] == []
    assert [ack["status"] for ack in told["acks"]] == ["success"] * 4
    assert {ack["type"] for ack in told["acks"]} == {"image_ack"}
    assert {ack["viewer_port"] for ack in told["acks"]} == {running.port}
    assert told["nonsense"]["status"] == "error"
    check_shown(running)


def test_what_fails_is_said(running: Running) -> None:
    told = send(ipc_address(running.port), ipc_address(7555), broken=True)
    assert told["reply"]["status"] == "error"
    assert "fiji_absent" in told["reply"]["message"]
    assert told["left"] == []
    acks = {ack["image_id"]: ack for ack in told["acks"]}
    assert acks.pop("broken")["status"] == "error"
    assert {ack["status"] for ack in acks.values()} == {"success"}
    check_shown(running)


def test_over_tcp(running: Running) -> None:
    # Acknowledgements would go to the one port that all OpenHCS programs of this machine share,
    # so that nobody listens there in a test: the sender must be served all the same.
    told = send(f"tcp://127.0.0.1:{running.port}")
    assert told["reply"]["status"] == "success"
    assert told["left"] == []
    assert told["nonsense"]["status"] == "error"


def test_many_senders_at_once(running: Running) -> None:
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(send(ipc_address(running.port))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert [told["reply"]["status"] for told in results] == ["success"] * 3
    assert [told["left"] for told in results] == [[]] * 3
