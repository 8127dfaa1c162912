"""A storage backend, a real stream, and a real receiver with a viewer that keeps everything."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream.backends import NapariStreamingBackend
from openhcs_stream.errors import InvalidItem, StreamError
from openhcs_stream.tracker import registry
from openhcs_stream.viewer import MemoryViewer, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SQUARE = [(1.0, 1.0), (1.0, 4.0), (4.0, 4.0), (4.0, 1.0)]


class MemoryBackend(NapariStreamingBackend):
    VIEWER_TYPE: ClassVar[str] = "memory"


class Config:
    COMPONENT_ORDER: ClassVar[list[str]] = ["well", "site", "z_index"]
    well_mode = SimpleNamespace(value="slice")
    site_mode = SimpleNamespace(value="stack")
    z_index_mode = SimpleNamespace(value="stack")

    def get_colormap_name(self) -> str:
        return "green"


class Parser:
    def parse_filename(self, name: str) -> dict[str, Any]:
        well, site, z = name.removesuffix(".tif").split("_")
        return {"well": well, "site": int(site), "z_index": int(z)}


class Running:
    def __init__(self) -> None:
        self.viewer = MemoryViewer()
        self.receiver = Receiver(self.viewer, port=0)
        endpoint = self.receiver.start()
        assert endpoint.port is not None
        self.port = endpoint.port
        self._thread = threading.Thread(target=self.viewer.run, args=(self.receiver.tick, 0.01))
        self._thread.start()

    def stop(self) -> None:
        self.viewer.stop()
        self._thread.join(10)
        self.receiver.close()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Running]:
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(tmp_path))
    running = Running()
    yield running
    running.stop()


def settings(running: Running, **changes: Any) -> dict[str, Any]:
    return {
        "port": running.port,
        "display_config": Config(),
        "microscope_handler": SimpleNamespace(parser=Parser()),
        "source": "segmentation",
        "timeout_s": 20.0,
        **changes,
    }


def flush(backend: MemoryBackend) -> None:
    for connection in backend._connections.values():
        assert connection.stream is not None
        connection.stream.flush(20.0)


def batch() -> tuple[list[Any], list[str]]:
    arrays: list[Any] = []
    paths = []
    for well in ("A01", "B02"):
        for z in range(4):
            arrays.append(np.full((8, 9), len(arrays) + 1, np.uint16))
            paths.append(f"/plate/{well}_1_{z}.tif")
    return arrays, paths


@pytest.mark.parametrize("mode", ["ipc", "tcp"])
def test_a_batch_is_received_and_stands_at_its_place(running: Running, mode: str) -> None:
    arrays, paths = batch()
    with MemoryBackend() as backend:
        backend.save_batch(
            [*arrays, [np.array(SQUARE)]],
            [*paths, "/plate/A01_1_2.tif"],
            **settings(running, transport_mode=mode),
        )
        mine = [each for each in registry().status() if each.stream.startswith("MemoryBackend")]
        queue = mine[-1]
        assert (queue.sent, queue.received, queue.failed) == (9, 9, 0)
        flush(backend)
    layers = {
        (key.kind, dict(key.split)["well"]): layer for key, layer in running.viewer.layers.items()
    }
    assert set(layers) == {("image", "A01"), ("image", "B02"), ("rois", "A01")}
    for well, first in (("A01", 1), ("B02", 5)):
        layer = layers["image", well]
        assert layer.key.source == "segmentation"
        assert layer.spec.colormap == "green"
        for z in range(4):
            assert (layer.stack.planes[(1, z)] == first + z).all()
    assert len(layers["rois", "A01"].items[(1, 2)]) == 1


def test_nothing_of_a_batch_with_bad_input_is_sent_and_the_next_works(running: Running) -> None:
    with MemoryBackend() as backend:
        bad = np.array([[object()]])
        with pytest.raises(InvalidItem):
            backend.save_batch([np.ones((2, 2)), bad], ["A01_1_1.tif"] * 2, **settings(running))
        backend.save(np.ones((2, 2)), "A01_1_7.tif", **settings(running))
        flush(backend)
    ((_, layer),) = running.viewer.layers.items()
    assert list(layer.stack.planes) == [(1, 7)]


def test_a_viewer_that_went_and_came_again(running: Running) -> None:
    image = np.ones((2, 2))
    with MemoryBackend() as backend:
        backend.save(image, "A01_1_1.tif", **settings(running))
        running.stop()
        with pytest.raises((StreamError, ConnectionError)):
            backend.save(image, "A01_1_1.tif", **settings(running, timeout_s=1.0))
        again = Running()
        try:
            backend.save(image, "A01_1_1.tif", **settings(again))
        finally:
            again.stop()


# Python 3.12 and later warn of every fork where threads run; that is what is tried here.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_worker_connects_anew_and_its_parent_goes_on(running: Running) -> None:
    image = np.ones((2, 2), np.uint8)
    with MemoryBackend() as backend:
        backend.save(image, "A01_1_1.tif", **settings(running))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                backend.save(image, "A01_1_2.tif", **settings(running))
                backend.cleanup()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        backend.save(image, "A01_1_3.tif", **settings(running))
        flush(backend)
    ((_, layer),) = running.viewer.layers.items()
    assert sorted(layer.stack.planes) == [(1, 1), (1, 2), (1, 3)]
