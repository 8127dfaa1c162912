"""The leak watch finds each kind of leak, and nothing where there is none."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing import shared_memory
from typing import TYPE_CHECKING

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.pixels import PixelPool
from openhcs_stream.testing import LeakError, Snapshot, watch_leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openhcs_stream.testing import RunningReceiver
    from openhcs_stream.viewer import MemoryViewer

#: Long enough for whatever goes away by itself, short enough for a test that waits for a leak.
SETTLE_S = 0.3


def leak_thread() -> Iterator[None]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left behind")
    thread.start()
    yield
    end.set()
    thread.join()


def leak_descriptor() -> Iterator[None]:
    reading, writing = os.pipe()
    yield
    os.close(reading)
    os.close(writing)


def leak_child() -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield
    child.communicate(b"\n", timeout=20)


def leak_child_that_has_ended() -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield
    child.wait(20)


def leak_shared_memory() -> Iterator[None]:
    name = f"ohs-test-leak-{os.getpid()}"
    block = shared_memory.SharedMemory(name, create=True, size=100)
    block.close()
    yield
    block.unlink()


def leak_arena() -> Iterator[None]:
    pool = PixelPool()
    lent = pool.allocate((100,), np.uint8)
    pool.close()  # the array stays valid
    yield
    del lent


def leak_file() -> Iterator[None]:
    path = f"{os.environ['OPENHCS_STREAM_RUNTIME_DIR']}/left-behind.json"
    with open(path, "w"):
        pass
    yield
    os.unlink(path)


@pytest.mark.parametrize(
    ("leak", "text"),
    [
        (leak_thread, r"thread 'left behind'(.|\n)*in wait"),
        (leak_descriptor, r"descriptor \d+: pipe:"),
        (leak_child, r"child process \d+(.|\n)*input\(\)"),
        (leak_child_that_has_ended, r"child process \d+ \(ended, not waited for\)"),
        (leak_shared_memory, r"shared memory /dev/shm/ohs-test-leak-"),
        (leak_arena, r"arena openhcs-stream"),
        (leak_file, r"file .*left-behind\.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_leak_is_found_and_named(leak: Callable[[], Iterator[None]], text: str) -> None:
    multiprocessing.active_children()  # reaps what earlier tests have left
    cleaning = leak()
    before = Snapshot.take()
    try:
        with pytest.raises(LeakError, match=text), watch_leaks(settle_s=SETTLE_S):
            next(cleaning)
    finally:
        for _ in cleaning:
            pass
    assert before.leaks() == ()


def test_what_goes_away_in_time_is_no_leak() -> None:
    timer = threading.Timer(0.1, lambda: None)
    with watch_leaks():
        timer.start()


def test_the_error_of_the_block_comes_through() -> None:
    """Also where something is left: what went wrong first is what a person should see."""
    cleaning = leak_descriptor()
    with pytest.raises(KeyError), watch_leaks(settle_s=SETTLE_S):
        raise KeyError(next(cleaning))
    for _ in cleaning:
        pass


def test_a_leak_can_be_asked_for_without_an_error() -> None:
    before = Snapshot.take()
    cleaning = leak_descriptor()
    next(cleaning)
    kinds = {leak.kind for leak in before.leaks(settle_s=SETTLE_S)}
    for _ in cleaning:
        pass
    assert kinds == {"descriptor"}


# --- the fixtures -------------------------------------------------------------------------------


@pytest.mark.parametrize("side_lane", [True, False], ids=["shared memory", "ZeroMQ"])
def test_a_stream_leaves_nothing(
    memory_receiver: RunningReceiver[MemoryViewer], no_leaks: None, side_lane: bool
) -> None:
    image = np.arange(600, dtype=np.uint16).reshape(20, 30)
    with openhcs_stream.connect(memory_receiver.address, side_lane=side_lane) as stream:
        for z in range(20):
            stream.image(image, name="raw", place={"z": z})
    [layer] = memory_receiver.viewer.layers.values()
    assert layer.stack.shape == (20, 20, 30)


def test_a_receiver_leaves_nothing(
    no_leaks: None, memory_receiver: RunningReceiver[MemoryViewer]
) -> None:
    with openhcs_stream.connect(memory_receiver.address) as stream:
        assert stream.image(np.ones((3, 4))).wait().state == "displayed"


def test_the_in_process_lane(
    no_leaks: None, inproc_receiver: RunningReceiver[MemoryViewer]
) -> None:
    assert inproc_receiver.address.startswith("inproc://")
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    with openhcs_stream.connect(inproc_receiver.address) as stream:
        stream.image(image, name="raw", place={"z": 3})
        assert stream.request("status")["viewer"] == "memory"
    [layer] = inproc_receiver.viewer.layers.values()
    np.testing.assert_array_equal(layer.stack.planes[3,], image)


def test_two_receivers_at_once(
    memory_receiver: RunningReceiver[MemoryViewer], inproc_receiver: RunningReceiver[MemoryViewer]
) -> None:
    addresses = [memory_receiver.address, inproc_receiver.address]
    with openhcs_stream.connect(addresses) as stream:
        assert stream.image(np.ones((3, 4), np.uint8)).wait().state == "displayed"
    for running in (memory_receiver, inproc_receiver):
        assert len(running.viewer.layers) == 1


def test_the_runtime_folder_is_the_tests_own(stream_runtime: Path) -> None:
    assert os.environ["OPENHCS_STREAM_RUNTIME_DIR"] == str(stream_runtime)
    assert list(stream_runtime.iterdir()) == []
    assert os.path.expanduser("~") != str(stream_runtime)


def test_a_test_that_leaks_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_leaks(no_leaks): os.dup(1)\n"
        "def test_does_not(no_leaks): os.close(os.dup(1))\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import functools, openhcs_stream.testing as testing\n"
        f"testing.watch_leaks = functools.partial(testing.watch_leaks, settle_s={SETTLE_S})\n"
    )
    command = [sys.executable, "-m", "pytest", "-pno:napari", "-pno:npe2", "-pno:cacheprovider"]
    done = subprocess.run(
        [*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert "2 passed, 1 error" in done.stdout
    assert "1 left behind" in done.stdout
    assert "- descriptor " in done.stdout


def test_the_plugin_offers_fixtures_and_nothing_else() -> None:
    from openhcs_stream.testing import plugin

    assert not [name for name in vars(plugin) if name.startswith("pytest_")]


def test_the_plugin_loads_nothing_before_a_test_asks() -> None:
    program = (
        "import sys, openhcs_stream.testing.plugin\n"
        "own = {n for n in sys.modules if n.startswith('openhcs_stream.testing._')}\n"
        "assert not own, own\n"
        "assert 'openhcs_stream.viewer' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
