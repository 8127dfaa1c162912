"""No viewer holds a worker up that doesn't wait: what a send costs beside a stopped one, in counts.

Making memory is what takes long, page by page. Counted are the caller's own page faults, and the
bytes that it gave memory to.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.pixels import _arena, _memory
from openhcs_stream.stream._room import FIRST_ITEMS, GROW_NBYTES
from tests.stream.processes import stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from openhcs_stream.stream import Receipt, Stream, WhenFull
    from tests.stream.conftest import Served

    ViewerProcess = Callable[..., tuple[subprocess.Popen[str], str]]

IMAGE = np.zeros((2048, 2048), np.uint16)
#: Slots of this size that are made ready for a stream: its window's, and two to spare.
SOON = 6
POLICIES = ("latest", "drop", "sample")


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    """After each test: no descriptor, arena, name, thread, process or file."""


@pytest.fixture
def made_here(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Bytes that each thread gives memory to from now on."""
    counted: Counter[int] = Counter()
    fault_in = _memory.fault_in

    def counting(memory: Any, fd: int, offset: int) -> None:
        counted[threading.get_ident()] += memory.nbytes
        fault_in(memory, fd, offset)

    monkeypatch.setattr(_arena, "fault_in", counting)
    return counted


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what the pool's thread does."""
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the memory is not made"
        pause.wait(0.001)


class Stopped:
    """A viewer that is stopped as soon as it has shown an image, and a stream to it."""

    def __init__(self, process: subprocess.Popen[str], stream: Stream) -> None:
        self.stream = stream
        self._process = process

    def stop(self, image: np.ndarray[Any, Any] = IMAGE, ready: int = SOON) -> None:
        self.stream.image(image, name="first").wait()
        pool = self.stream._pool
        wait_until(lambda: pool.made(image.nbytes) >= ready and pool._filler is None)
        stop(self._process.pid)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self.stream.flush(timeout_s=40)


@pytest.fixture
def to_stopped(viewer_process: ViewerProcess) -> Iterator[Callable[..., Stopped]]:
    made: list[Stopped] = []

    def connect(policy: WhenFull, **options: Any) -> Stopped:
        process, address = viewer_process()
        stream = openhcs_stream.connect(address, when_full=policy, **options)
        made.append(Stopped(process, stream))
        return made[-1]

    yield connect
    while made:  # what is listed here stays alive for longer than this test
        made.pop().stream.close(timeout_s=5)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def counts(receipts: list[Receipt]) -> Counter[str]:
    return Counter(receipt.state for receipt in receipts)


def fill_up(stream: Stream, image: np.ndarray[Any, Any]) -> list[Receipt]:
    """Send, each to a place of its own, until all memory that there may be is in use."""
    receipts: list[Receipt] = []
    deadline = time.monotonic() + 20
    pool = stream._pool
    while (used := pool.stats().used_nbytes) + image.nbytes <= pool.quota_nbytes:
        assert time.monotonic() < deadline, used
        receipts.append(stream.image(image, name="window", place={"time": len(receipts)}))
    return receipts


@pytest.mark.parametrize("policy", POLICIES)
def test_the_caller_makes_no_memory_beside_a_stopped_viewer(
    policy: WhenFull, to_stopped: Callable[..., Stopped], made_here: Counter[int]
) -> None:
    viewer = to_stopped(policy)
    stream, here = viewer.stream, threading.get_ident()
    viewer.stop()
    assert made_here[here] <= FIRST_ITEMS * IMAGE.nbytes
    made_here.clear()
    taken, receipts = [], []
    for t in range(60):
        before = faults()
        receipts.append(stream.image(IMAGE, name="it", place={"time": t}))
        taken.append(faults() - before)
    assert made_here[here] <= GROW_NBYTES
    assert max(taken) < 100
    assert sum(taken) < 300
    ends = counts(receipts)
    assert ends["sent"] >= 4  # the window's worth
    assert ends["sent"] + ends["dropped"] == 60
    if policy == "latest":
        assert receipts[-1].state == "sent"
    (status,) = stream.status()
    assert sum(status.dropped_by.values()) == ends["dropped"]
    viewer.go_on()
    assert counts(receipts) == {"displayed": ends["sent"], "dropped": ends["dropped"]}


def test_the_newest_of_each_place_is_what_the_viewer_gets_last(
    to_stopped: Callable[..., Stopped], made_here: Counter[int]
) -> None:
    """Also where no memory is ready: the one that waits for the same place gives it its own."""
    viewer = to_stopped("latest", quota_nbytes=6 * IMAGE.nbytes)
    stream = viewer.stream
    viewer.stop(ready=2)
    fill_up(stream, IMAGE)
    assert stream._room.waiting == 3
    made_here.clear()
    receipts = [stream.image(IMAGE + n, name="it", place={"well": "AB"[n % 2]}) for n in range(40)]
    assert not made_here
    assert [receipt.state for receipt in receipts] == ["dropped"] * 38 + ["sent"] * 2
    assert stream._room.waiting == 3
    viewer.go_on()
    assert [receipt.state for receipt in receipts[-2:]] == ["displayed"] * 2


def test_who_has_enough_gives_way_or_the_new_one_goes(
    to_stopped: Callable[..., Stopped], made_here: Counter[int]
) -> None:
    """A larger item does not wipe out the smaller ones that wait."""
    small, large = np.zeros((512, 1024), np.uint16), np.zeros((3 << 20,), np.uint8)
    viewer = to_stopped("latest", quota_nbytes=16 << 20)
    stream = viewer.stream
    viewer.stop(small, ready=2)
    receipts = fill_up(stream, small)
    before = counts(receipts)
    made_here.clear()
    late = stream.image(large.reshape(1024, 3072), name="late")
    assert late.state == "dropped"
    assert counts(receipts) == before
    receipts.append(stream.image(small, name="it", place={"time": len(receipts)}))
    assert counts(receipts)["dropped"] == before["dropped"] + 1
    assert not made_here
    viewer.go_on()
    assert receipts[-1].state == "displayed"
    stream.image(large.reshape(1024, 3072), name="late").wait()  # now others make room for it


@pytest.mark.parametrize("policy", POLICIES)
def test_the_first_of_another_size_is_sent_beside_a_stopped_viewer(
    policy: WhenFull, to_stopped: Callable[..., Stopped], made_here: Counter[int]
) -> None:
    """Its own memory is made for it, and no more."""
    other = np.zeros((1024, 1024), np.uint8)
    viewer = to_stopped(policy)
    stream = viewer.stream
    viewer.stop()
    stream.image(IMAGE, name="it")
    made_here.clear()
    receipt = stream.image(other, name="other")
    assert receipt.state != "dropped"
    assert made_here[threading.get_ident()] <= other.nbytes
    viewer.go_on()
    assert receipt.state == "displayed"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_burst_finds_memory_from_the_first_item_on(
    policy: WhenFull, to_stopped: Callable[..., Stopped]
) -> None:
    """Nothing is let go for want of memory within the window, although nobody has read any."""
    viewer = to_stopped(policy)
    stream = viewer.stream
    viewer.stop(np.zeros((8, 8), np.uint8), ready=1)
    receipts = [stream.image(IMAGE, name="it", place={"time": t}) for t in range(3)]
    assert counts(receipts) == {"sent": 3}
    viewer.go_on()
    assert counts(receipts) == {"displayed": 3}


def test_the_last_memory_that_is_ready_is_for_the_newest(
    to_stopped: Callable[..., Stopped], made_here: Counter[int]
) -> None:
    """Where no more is made in time, the newest item still goes in."""
    viewer = to_stopped("latest")
    stream, pool = viewer.stream, viewer.stream._pool
    viewer.stop(np.zeros((8, 8), np.uint8), ready=1)
    pool._filler = threading.current_thread()  # keeps the real one away
    receipts = [stream.image(IMAGE, name="it", place={"time": 0}) for _ in range(20)]
    assert pool.made(IMAGE.nbytes) == FIRST_ITEMS
    assert [n for n, receipt in enumerate(receipts) if receipt.state == "sent"] == [0, 1, 2, 19]
    assert made_here[threading.get_ident()] <= FIRST_ITEMS * IMAGE.nbytes + GROW_NBYTES
    pool._filler = None
    viewer.go_on()
    assert receipts[-1].state == "displayed"


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the kernel has no batch threads")
def test_a_viewer_that_serves_takes_no_senders_turn(served: Served) -> None:
    """Its thread that copies is a batch thread: woken by a send, it waits for a free processor."""
    with openhcs_stream.connect(served.address) as stream:
        stream.image(IMAGE, name="it").wait()
        (copying,) = [each for each in threading.enumerate() if each.name == "receiver"]
        assert copying.native_id is not None
        assert os.sched_getscheduler(copying.native_id) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
