"""Metrics, read as Prometheus reads them: over HTTP, with the package's own parser."""

from __future__ import annotations

import socket
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import metrics, tracker
from openhcs_stream.errors import UsageError
from openhcs_stream.stream import connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.tracker import TrackerRegistry
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Mapping

prometheus = pytest.importorskip("prometheus_client")


def scraped(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("openhcs_stream_")
        assert family.documentation
        for sample in family.samples:
            key = (sample.name.removeprefix("openhcs_stream_"), frozenset(sample.labels.items()))
            assert key not in found, "the same labels twice"
            found[key] = sample.value
    return found


def value(samples: Mapping[Any, float], name: str, /, **labels: str) -> float:
    (found,) = [
        number
        for (each, its), number in samples.items()
        if each == name and set(labels.items()) <= its
    ]
    return found


def test_a_worker() -> None:
    trackers = TrackerRegistry()
    first, second = trackers.add("one", "napari"), trackers.add("one", "fiji")
    first.sent([(number, f"i{number}") for number in range(5)])
    first.received([0, 1, 2])
    first.displayed([0, 1])
    first.failed([(2, "too large")])
    second.dropped(["i9"])
    second.close()
    with metrics.serve(metrics.worker_metrics(trackers), port=0) as exporter:
        samples = scraped(exporter.port)
    counts = {
        state: value(samples, "worker_items_total", stream="one", viewer="napari", state=state)
        for state in ("sent", "received", "displayed", "failed", "dropped")
    }
    assert counts == {"sent": 5, "received": 3, "displayed": 2, "failed": 1, "dropped": 0}
    assert value(samples, "worker_items_waiting", viewer="napari") == 2
    assert value(samples, "worker_items_stuck", viewer="napari") == 0
    assert value(samples, "worker_oldest_item_age_seconds", viewer="napari") > 0
    assert value(samples, "worker_stream_open", viewer="napari") == 1
    assert value(samples, "worker_stream_open", viewer="fiji") == 0
    assert value(samples, "worker_items_total", viewer="fiji", state="dropped") == 1


def test_streams_of_one_name_are_summed_and_names_are_made_printable() -> None:
    trackers = TrackerRegistry()
    for _ in range(2):
        trackers.add('a\n"b"\\', "napari").sent([(1, "i")])
    with metrics.serve(metrics.worker_metrics(trackers), port=0) as exporter:
        samples = scraped(exporter.port)
    assert value(samples, "worker_items_total", stream='a\\n"b"\\', state="sent") == 2


def test_a_viewer_with_living_and_ended_streams() -> None:
    with run_receiver(MemoryViewer(), name="plate_3") as running:
        with metrics.serve(metrics.viewer_metrics(running.receiver.status), port=0) as exporter:
            image = np.zeros((16, 16), np.uint8)
            with connect(running.address, name="gone", launch=False) as stream:
                stream.image(image).wait()
            with connect(running.address, name="here", launch=False) as stream:
                stream.image(image).wait()
                deadline = time.monotonic() + 20
                while value(samples := scraped(exporter.port), "viewer_streams") != 1:
                    assert time.monotonic() < deadline
    for name in ("gone", "here"):
        labels = {"stream": name, "viewer": "memory", "name": "plate_3"}
        assert value(samples, "viewer_items_total", state="displayed", **labels) == 1
        assert value(samples, "viewer_bytes_total", **labels) == 256
        assert value(samples, "viewer_items_waiting", **labels) == 0
    assert value(samples, "viewer_layers") == 1
    assert value(samples, "viewer_memory_bytes") > 10 << 20
    assert value(samples, "viewer_uptime_seconds") > 0
    assert value(samples, "viewer_info", name="plate_3", version=_version()) == 1


def _version() -> str:
    from importlib.metadata import version

    return version("openhcs-stream")


def test_a_registry_of_the_programs_own() -> None:
    own = prometheus.CollectorRegistry()
    own.register(metrics.worker_metrics(TrackerRegistry()))
    assert b"openhcs_stream_worker_items_total" in prometheus.generate_latest(own)


def test_only_this_machine_is_served() -> None:
    with metrics.serve(metrics.worker_metrics(TrackerRegistry()), port=0) as exporter:
        assert exporter._server.server_address[0] == "127.0.0.1"
    exporter.close()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", exporter.port)) != 0


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"at port {port}: .*0 for any free one"):
            metrics.serve(metrics.worker_metrics(), port=port)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match=r"openhcs-stream\[metrics\]"):
        metrics.serve(metrics.worker_metrics(), port=0)


def test_snapshot_of_a_worker() -> None:
    import json

    queue = tracker.registry().add("snapshot", "napari")
    queue.sent([(1, "one")])
    told = json.loads(json.dumps(tracker.snapshot()))
    (mine,) = [each for each in told["queues"] if each["stream"] == "snapshot"]
    assert (mine["sent"], mine["waiting"], mine["stuck"], mine["closed"]) == (1, 1, [], False)
    assert told["pid"] > 0
    queue.close()
    tracker.registry().forget()
