"""``openhcs-stream memory`` as a process: what it prints, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from openhcs_stream.discovery import endpoints, find
from openhcs_stream.errors import InvalidItem, StreamError
from openhcs_stream.stream import ask, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_one_line_when_it_is_ready(start: Callable[..., Any]) -> None:
    started = start("--port", "0")
    endpoint = find("memory")
    assert endpoint is not None
    assert started.line == (
        f"memory is ready at {' and '.join(endpoint.addresses)} (pid {started.pid})"
    )
    assert endpoint.port is not None
    assert ask(f"tcp://127.0.0.1:{endpoint.port}", "status", token=endpoint.token)


def test_json_when_it_is_ready(start: Callable[..., Any]) -> None:
    facts = json.loads(start("--json", "--name", "plate_3").line)
    endpoint = find("memory", name="plate_3")
    assert endpoint is not None
    assert facts == {
        "viewer": "memory",
        "name": "plate_3",
        "pid": endpoint.pid,
        "addresses": list(endpoint.addresses),
    }
    facts = json.loads(start("--json", "--port", "0").line)
    assert facts["addresses"][-1] == f"tcp://127.0.0.1:{facts['port']}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(
    start: Callable[..., Any], own_runtime_folder: Path, number: signal.Signals
) -> None:
    started = start()
    assert list(own_runtime_folder.iterdir())
    started.process.send_signal(number)
    assert started.process.wait(20) == 0
    assert list(own_runtime_folder.iterdir()) == []


def test_a_signal_ends_it_while_streams_are_connected(start: Callable[..., Any]) -> None:
    import numpy as np

    started = start()
    with connect("memory", launch=False) as stream:
        stream.image(np.zeros((8, 8), np.uint8)).wait()
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("headless", [True, False], ids=["headless", "window"])
def test_a_signal_ends_napari_cleanly(
    start: Callable[..., Any], own_runtime_folder: Path, headless: bool, number: signal.Signals
) -> None:
    """napari takes the interrupt and the wake-up descriptor for itself while a window is open."""
    pytest.importorskip("napari")
    if not headless and not os.environ.get("DISPLAY"):
        pytest.skip("needs a display")
    started = start(*(["--headless"] if headless else []), kind="napari")
    started.process.send_signal(number)
    started.process.send_signal(number)  # together they are one
    assert started.process.wait(30) == 0
    assert list(own_runtime_folder.iterdir()) == []


def test_killed_one_leaves_nothing_that_is_found(
    start: Callable[..., Any], own_runtime_folder: Path
) -> None:
    started = start("--port", "0")
    started.process.kill()
    started.process.wait()
    assert endpoints() == []
    assert list(own_runtime_folder.iterdir()) == []


def test_second_one_gets_a_number(start: Callable[..., Any], command: Callable[..., Any]) -> None:
    start()
    assert start().line.startswith("memory 'memory-2' is ready at ")
    done = command("memory", "--name", "memory-2")
    assert done.returncode == 2
    assert "called 'memory-2' already" in done.stderr


def test_port_in_use(command: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("memory", "--port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
    assert endpoints() == []


def test_modes_and_required_components(start: Callable[..., Any]) -> None:
    import numpy as np

    start("--split", "well", "--stack", "channel", "--require", "site")
    image = np.zeros((4, 4), np.uint8)
    with connect("memory", launch=False) as stream:
        with pytest.raises(InvalidItem, match="site"):
            stream.image(image, place={"well": "A01"})
        stream.image(image, name="i", place={"well": "A01", "site": 1, "channel": "DAPI"})
        stream.flush()
        (layer,) = stream.request("layers")
    assert layer["split"] == {"well": "A01"}
    assert set(layer["components"]) == {"site", "channel"}


def test_no_token_is_in_a_log(start: Callable[..., Any]) -> None:
    """Of right and wrong tokens, over the address where they matter, with everything logged."""
    started = start("--port", "0", "--debug", "--log-format", "json")
    endpoint = find("memory")
    assert endpoint is not None
    address = endpoint.addresses[-1]
    wrong = "0123456789abcdef" * 4
    assert ask(address, "status", token=endpoint.token)
    with pytest.raises(StreamError):
        ask(address, "status", token=wrong)
    log = "\n".join(ask(endpoint, "log"))
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(20) == 0
    told = started.process.stderr.read()
    assert all(json.loads(line)["event"] for line in told.splitlines())
    for secret in (endpoint.token, wrong):
        assert secret not in told
        assert secret not in log


def test_metrics_beside_a_viewer(start: Callable[..., Any], command: Callable[..., Any]) -> None:
    pytest.importorskip("prometheus_client")
    started = start("--metrics-port", "0")
    assert started.process.stderr is not None
    line = started.process.stderr.readline()
    address = line[line.index("http://127.0.0.1:") :].strip()
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    assert 'openhcs_stream_viewer_streams{name="memory",viewer="memory"} 0.0' in text
    port = address.split(":")[2].partition("/")[0]
    done = command("memory", "--metrics-port", port)
    assert done.returncode == 2
    assert f"metrics can't be served at port {port}" in done.stderr
    assert [endpoint.pid for endpoint in endpoints()] == [started.pid]


def test_detached(command: Callable[..., Any], detached: object) -> None:
    done = command("memory", "--detach", "--json", "--port", "0", "--name", "far", "--split", "z")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    process = psutil.Process(facts["pid"])
    assert os.getsid(facts["pid"]) != os.getsid(0)
    assert process.ppid() != os.getpid()
    assert ask("far", "status")["name"] == "far"
    assert facts["port"]
    again = command("memory", "--detach", "--json", "--name", "far")
    assert json.loads(again.stdout)["pid"] == facts["pid"]
    assert "runs already" in again.stderr
    process.terminate()
    deadline = time.monotonic() + 20
    while endpoints():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_detached_at_once_is_one_viewer(command: Callable[..., Any], detached: object) -> None:
    with ThreadPoolExecutor(3) as pool:
        crowd = list(pool.map(lambda _: command("memory", "--detach", "--json"), range(3)))
    assert [done.returncode for done in crowd] == [0, 0, 0]
    assert len({done.stdout for done in crowd}) == 1
    assert len(endpoints()) == 1


def test_detached_that_cannot_start(command: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command("memory", "--detach", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "ended before it was ready. Its last words:" in done.stderr
    assert "Traceback" not in done.stderr


def test_connect_launches_a_viewer_that_survives(detached: object) -> None:
    import numpy as np

    with connect("memory") as stream:
        stream.image(np.ones((4, 4), np.uint8), name="one")
    with connect("memory", launch=False) as stream:
        assert [layer["name"] for layer in stream.request("layers")] == ["one"]
