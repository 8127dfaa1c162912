"""Workers of every kind with real processes: fork, spawn, pools, joblib, threads, loops, ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.testing import RunningReceiver

PROGRAMS = Path(__file__).with_name("worker_programs.py")

# Python starts a few of them one after another; each imports numpy.
pytestmark = pytest.mark.timeout(120)


def wait_for(condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


@pytest.fixture
def receiver(no_leaks: None) -> Iterator[RunningReceiver[MemoryViewer]]:
    """A viewer; when the test is over nobody is connected to it and it holds no memory."""
    with run_receiver(MemoryViewer()) as running:
        yield running
        wait_for(lambda: running.receiver.status()["streams"] == [])
        wait_for(lambda: "openhcs-stream" not in Path("/proc/self/maps").read_text())


@pytest.fixture
def run(receiver: RunningReceiver[MemoryViewer]) -> Callable[..., Any]:
    """Run one of the programs; what it said, line by line. Its end must be in order."""

    def start(name: str, *more: str, status: int = 0) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(PROGRAMS), name, receiver.address, *more],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr or name == "fork_and_leave", done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return start


def planes(receiver: RunningReceiver[MemoryViewer], name: str) -> dict[tuple[Any, ...], Any]:
    """What the viewer shows of a layer."""
    (layer,) = (each for each in receiver.viewer.layers.values() if each.key.name == name)
    return dict(layer.stack.planes)


# --- fork -----------------------------------------------------------------------------------------


def test_forked_child_is_refused_everything_and_has_its_own(run: Callable[..., Any]) -> None:
    (said,) = run("fork")
    child = said["child"]
    assert child.pop("own") == "displayed"
    assert child.pop("close") == "returned None"
    assert set(child.values()) == {"ForkedStream"}, child
    assert said["after"] == "displayed"


def test_child_of_a_fork_inside_a_batch_sends_nothing_of_it(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer]
) -> None:
    (said,) = run("fork_in_a_batch")
    assert said["children"] == [["sent"] * 4, 5]
    assert said["states"] == ["displayed"] * 4
    assert len(planes(receiver, "batch")) == 4


def test_fork_while_other_threads_hold_the_locks(run: Callable[..., Any]) -> None:
    (said,) = run("fork_while_sending")
    assert said == {"children": ["ForkedStream, ForkedStream, ForkedStream"], "failed": 0}


def test_fork_while_every_lock_is_held(run: Callable[..., Any]) -> None:
    assert run("fork_with_locks_held") == [[0, "displayed"]]


def test_children_end_in_all_ways_and_close_nothing_of_the_parents(run: Callable[..., Any]) -> None:
    (said,) = run("fork_and_leave")
    assert {name: state for name, (_, state) in said.items()} == dict.fromkeys(said, "displayed")
    codes = {name: code for name, (code, _) in said.items()}
    assert codes == {"os._exit": 0, "sys.exit": 0, "del": 0, "exception": 1, "kill": -9, "exec": 0}


def test_pool_by_fork_beside_the_parents_stream(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer]
) -> None:
    assert run("fork_pool") == [["displayed"]]
    assert sorted(planes(receiver, "pool")) == [(z,) for z in range(12)]


def test_a_forked_worker_that_closes_nothing(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer]
) -> None:
    assert run("fork_that_closes_nothing") == [0]
    wait_for(lambda: len(planes(receiver, "left")) == 300)


# --- other processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["spawn_pool", "forkserver_pool", "process_executor"])
def test_pools_of_fresh_processes(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer], pool: str
) -> None:
    assert run(pool) == [["displayed"]]
    shown = planes(receiver, "pool")
    expected = np.arange(128 * 128, dtype=np.uint16).reshape(128, 128)
    for z in range(6):
        np.testing.assert_array_equal(np.asarray(shown[z,]), expected + z)


def test_a_pools_process_is_killed_at_work(run: Callable[..., Any]) -> None:
    assert run("executor_whose_process_dies") == [[True, "displayed"]]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer], backend: str
) -> None:
    assert run("joblib_backend", backend) == [["displayed"]]
    assert sorted(planes(receiver, "pool")) == [(z,) for z in range(6)]


def test_a_stream_can_not_be_sent_to_another_process(run: Callable[..., Any]) -> None:
    ((stream, receipt),) = run("joblib_given_a_stream")
    assert "can't be sent to another process" in stream
    assert "connect() there" in stream
    assert "can't be sent to another process" in receipt


# --- threads and loops ----------------------------------------------------------------------------


def test_threads_of_one_stream(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer]
) -> None:
    assert run("threads") == [[["displayed"], 8 * 13]]
    assert len(planes(receiver, "threads")) == 80


def test_asyncio(run: Callable[..., Any]) -> None:
    assert run("from_a_loop") == [["displayed"]]


# --- ends -----------------------------------------------------------------------------------------


def test_daemon_threads_send_while_the_interpreter_ends(run: Callable[..., Any]) -> None:
    for _ in range(5):
        assert run("end_with_daemon_threads") == ["ends"]


def test_a_thread_that_is_at_work_is_waited_for(run: Callable[..., Any]) -> None:
    assert run("end_with_a_thread_at_work") == [["displayed"] * 10]


def test_sending_at_the_interpreters_end(run: Callable[..., Any]) -> None:
    assert run("send_at_exit") == ["displayed", "StreamClosed"]


def test_os_exit_leaves_nothing(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer]
) -> None:
    assert run("end_by_os_exit", status=3) == ["ends"]
    # What was told before the end is taken in all the same.
    wait_for(lambda: len(planes(receiver, "left")) == 20)


def test_leaving_inside_a_batch(
    run: Callable[..., Any], receiver: RunningReceiver[MemoryViewer]
) -> None:
    assert run("end_inside_a_batch", status=4) == [["displayed", "dropped"]]
    assert [layer.key.name for layer in receiver.viewer.layers.values()] == ["before"]


def test_interrupted_calls_leave_the_stream_in_order(run: Callable[..., Any]) -> None:
    (said,) = run("interrupted")
    assert said == {
        "seen": 20, "last": "displayed", "states": ["displayed"], "waiting": 0, "held": 0
    }  # fmt: skip
