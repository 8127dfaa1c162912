"""Kills, stops and crowding with real processes: the others go on or get a clear error in time."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import DeadlineExceeded, ItemFailed, ViewerLost
from tests.stream.processes import stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stream.conftest import Served

WORKER = """
import sys, numpy as np, openhcs_stream
stream = openhcs_stream.connect(sys.argv[1], name="victim")
image = np.zeros((512, 512), np.uint16)
held = [stream.allocate((512, 512), np.uint16) for _ in range(4)]
stream.image(image, name="first").wait()
print("ready", flush=True)
while True:
    stream.image(image, name="more")
"""


def wait_for(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def shared_memory_of(pid: int | str = "self") -> int:
    """Mappings of our arenas in a process."""
    gc.collect()  # the frames of errors that earlier tests caught hold slots
    return len(re.findall("openhcs-stream", Path(f"/proc/{pid}/maps").read_text()))


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    """After each test: no descriptor, arena, name, thread, process or file."""


def test_viewer_is_killed_in_mid_stream(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    process, address = viewer_process()
    stream = openhcs_stream.connect(address, timeout_s=10, reconnect_s=0)
    image = np.zeros((512, 512), np.uint16)
    stream.image(image).wait()
    receipts = [stream.image(image) for _ in range(20)]
    process.kill()
    start = time.monotonic()
    with pytest.raises(ViewerLost, match="is gone"):
        while True:
            stream.image(image)
    with pytest.raises(ItemFailed, match="is gone"):
        stream.flush()
    assert time.monotonic() - start < 5
    assert all(receipt.state in ("displayed", "failed") for receipt in receipts)
    status = stream.status()[0]
    assert status.sent == status.displayed + status.failed
    # All memory that the dead viewer held is free again.
    assert stream._pool.stats().leases == 0
    stream.close()


def test_one_of_two_viewers_is_killed(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]], served: Served
) -> None:
    process, address = viewer_process()
    with openhcs_stream.connect([address, served.address], reconnect_s=0) as stream:
        image = np.arange(512 * 512, dtype=np.uint32).reshape(512, 512)
        stream.image(image, name="it").wait()
        process.kill()
        process.wait()
        wait_for(lambda: stream.status() and len(stream.viewers) == 1)
        image += 1
        stream.image(image, name="it").wait()
        ((_, layer),) = served.viewer.layers.items()
        np.testing.assert_array_equal(layer.stack.planes[()], image)


def test_worker_is_killed_in_mid_stream(served: Served) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, served.address], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    wait_for(lambda: len(served.viewer.layers) == 2)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    # Its session, its mappings and its memory are gone; what it showed stays.
    wait_for(lambda: served.receiver.status()["streams"] == [])
    wait_for(lambda: shared_memory_of() == 0)
    assert len(served.viewer.layers) == 2
    with openhcs_stream.connect(served.address) as stream:
        stream.image(np.zeros((4, 4)), name="next").wait()


def test_stopped_viewer_costs_its_deadline_and_no_more(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    process, address = viewer_process()
    stream = openhcs_stream.connect(address, timeout_s=0.5, quota_nbytes=16 << 20)
    image = np.zeros((512, 1024), np.uint16)
    stream.image(image).wait()
    stop(process.pid)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="wait for memory to take them"):
        while True:
            stream.image(image)
    assert time.monotonic() - start < 5
    process.send_signal(signal.SIGCONT)
    stream.flush(timeout_s=10)
    stream.image(image).wait()
    stream.close()


def test_dropping_stream_does_not_wait_for_a_stopped_viewer(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    process, address = viewer_process()
    stream = openhcs_stream.connect(address, when_full="drop", quota_nbytes=16 << 20)
    image = np.zeros((512, 1024), np.uint16)
    stream.image(image).wait()
    stop(process.pid)
    receipts = [stream.image(image) for _ in range(100)]
    dropped = sum(receipt.state == "dropped" for receipt in receipts)
    status = stream.status()[0]
    assert dropped > 0
    assert (status.dropped, status.sent) == (dropped, 101 - dropped)
    process.send_signal(signal.SIGCONT)
    stream.flush(timeout_s=10)
    stream.close()


def test_interpreter_ends_without_close_and_all_arrives(served: Served) -> None:
    script = """
import sys, numpy as np, openhcs_stream
stream = openhcs_stream.connect(sys.argv[1])
for z in range(50):
    stream.image(np.full((64, 64), z, np.uint8), name="it", place={"z": z})
"""
    subprocess.run([sys.executable, "-c", script, served.address], check=True, timeout=30)
    ((_, layer),) = served.viewer.layers.items()
    assert sorted(layer.stack.planes) == [(z,) for z in range(50)]


def test_forked_child_does_not_hide_its_parents_death(served: Served) -> None:
    script = """
import os, sys, time, numpy as np, openhcs_stream
stream = openhcs_stream.connect(sys.argv[1], name="parent")
stream.image(np.zeros((512, 512), np.uint16)).wait()
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script, served.address], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert len(served.receiver.status()["streams"]) == 1
        assert shared_memory_of(child) == 0
        parent.kill()
        parent.wait()
        wait_for(lambda: served.receiver.status()["streams"] == [])
        wait_for(lambda: shared_memory_of() == 0)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


FAULTS = """
import resource, sys, numpy as np, openhcs_stream
stream = openhcs_stream.connect(sys.argv[1])
image = np.ones((2048, 2048), np.uint16)
def send(count):
    for _ in range(count):
        stream.image(image, name="it").wait("received")
send(30)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
send(100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
stream.close()
"""


def test_steady_state_faults_in_no_pages(served: Served) -> None:
    """Fresh pages are what a fresh segment per image costs; here both ends use theirs again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    worker = subprocess.run(
        [sys.executable, "-c", FAULTS, served.address],
        check=True, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    viewers = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # Of the sender, in 100 images of 8 MiB in steady state.
    assert int(worker.stdout) < 100
    # Of the viewer, in all 130, with the first of everything: 2048 pages an image would be
    # 266 240, and the one array that it keeps is 2048.
    assert viewers < 2048 + 130 + 6000
