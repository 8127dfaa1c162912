"""What a send does while the viewers take nothing: block, drop, latest, sample."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import DeadlineExceeded, InvalidItem, ItemFailed, ViewerLost
from openhcs_stream.stream._latest import MAX_WAITING
from openhcs_stream.stream._room import FEWER_ITEMS
from tests.stream.processes import stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from openhcs_stream.stream import Receipt, Stream

    ViewerProcess = Callable[..., tuple[subprocess.Popen[str], str]]

IMAGE = np.zeros((64, 64), np.uint16)


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    """After each test: no descriptor, arena, name, thread, process or file."""


@pytest.fixture
def frozen(viewer_process: ViewerProcess) -> Iterator[tuple[str, Callable[[], None]]]:
    """Address of a viewer that is stopped as soon as it has shown an image, and how to thaw it."""
    process, address = viewer_process()
    yield address, lambda: process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGCONT)


def connect(frozen: tuple[str, Any], process: Any = None, **options: Any) -> Stream:
    return openhcs_stream.connect(frozen[0], **options)


def stop_viewer(stream: Stream) -> None:
    """Stop it when it has shown something, so that all is set up."""
    stream.image(IMAGE, name="first").wait()
    pid = stream.request("status")["pid"]
    assert pid != os.getpid()
    stop(pid)


def ends_of(receipts: list[Receipt]) -> list[str]:
    return [receipt.state for receipt in receipts]


def test_sample_sends_one_of_so_many_once_it_is_crowded(frozen: Any) -> None:
    with connect(frozen, when_full="sample", sample_every=4) as stream:
        stop_viewer(stream)
        receipts = [stream.image(IMAGE, name="it", place={"z": z}) for z in range(300)]
        ends = ends_of(receipts)
        crowded = int(FEWER_ITEMS * 0.75)
        assert ends[:crowded] == ["sent"] * crowded
        assert ends[crowded : crowded + 8] == ["dropped"] * 3 + ["sent"] + ["dropped"] * 3 + [
            "sent"
        ]
        (status,) = stream.status()
        assert status.dropped_by == {"sampled": ends.count("dropped")}
        assert (status.nearly_full, status.full) == (1, 0)
        frozen[1]()
        stream.flush()
        assert set(ends_of(receipts)) == {"displayed", "dropped"}


def test_latest_keeps_the_newest_of_each_place(frozen: Any) -> None:
    """Two places, sent in turns: the window's worth goes, then only the last of each waits."""
    with connect(frozen, when_full="latest") as stream:
        stop_viewer(stream)
        receipts = [
            stream.image(IMAGE + n, name="it", place={"well": "AB"[n % 2]})
            for n in range(FEWER_ITEMS + 100)
        ]
        ends = ends_of(receipts)
        assert ends[:FEWER_ITEMS] == ["sent"] * FEWER_ITEMS
        assert ends[FEWER_ITEMS:-2] == ["dropped"] * 98
        assert ends[-2:] == ["sent", "sent"]
        (status,) = stream.status()
        assert status.dropped_by == {"replaced": 98}
        assert status.full == 1
        frozen[1]()
        stream.flush()
        assert ends_of(receipts)[-2:] == ["displayed", "displayed"]
        answer = stream.request("status")
        assert answer["streams"][0]["received"] == 1 + FEWER_ITEMS + 2


def test_latest_of_a_time_series_keeps_the_newest_times(frozen: Any) -> None:
    """Each frame has a place of its own; so many wait, and the oldest of them go."""
    count = FEWER_ITEMS + MAX_WAITING + 50
    with connect(frozen, when_full="latest") as stream:
        stop_viewer(stream)
        receipts = [stream.image(IMAGE, name="it", place={"time": t}) for t in range(count)]
        ends = ends_of(receipts)
        assert [n for n, end in enumerate(ends) if end == "dropped"] == [
            *range(FEWER_ITEMS, FEWER_ITEMS + 50)
        ]
        frozen[1]()
        stream.flush()
        assert ends_of(receipts).count("displayed") == count - 50


def test_latest_within_a_small_quota(frozen: Any) -> None:
    """Where no memory is left for what waits, the one that waits longest gives its up."""
    image = np.zeros((512, 1024), np.uint16)
    with connect(frozen, when_full="latest", quota_nbytes=16 << 20) as stream:
        stop_viewer(stream)
        receipts = [stream.image(image, name="it", place={"z": z}) for z in range(100)]
        (status,) = stream.status()
        assert status.dropped == ends_of(receipts).count("dropped") > 0
        assert stream._pool.stats().reserved_nbytes <= 16 << 20
        frozen[1]()
        stream.flush()
        assert set(ends_of(receipts)) == {"displayed", "dropped"}
        assert receipts[-1].state == "displayed"


def test_latest_with_allocated_arrays_and_batches(frozen: Any) -> None:
    with connect(frozen, when_full="latest") as stream:
        stop_viewer(stream)
        for z in range(FEWER_ITEMS):
            stream.image(IMAGE, name="it", place={"z": z})
        lent = stream.allocate((64, 64), np.uint16)
        lent[:] = 5
        receipts = [stream.image(lent, name="lent")]
        with stream.batch():
            receipts += [stream.image(IMAGE + n, name="lent") for n in range(3)]
        assert ends_of(receipts) == ["dropped", "dropped", "dropped", "sent"]
        frozen[1]()
        stream.flush()
        assert receipts[-1].state == "displayed"


def test_what_waits_fails_with_the_viewer(frozen: Any, viewer_process: ViewerProcess) -> None:
    process, address = viewer_process()
    stream = openhcs_stream.connect(address, when_full="latest", reconnect_s=0)
    stop(process.pid)
    receipts = [stream.image(IMAGE, name="it") for _ in range(FEWER_ITEMS + 3)]
    process.kill()
    process.wait()
    with pytest.raises(ItemFailed):
        receipts[-1].wait(timeout_s=20)
    with pytest.raises(ViewerLost):
        stream.image(IMAGE, name="it")
    assert set(ends_of(receipts)) == {"failed", "dropped"}
    assert stream._pool.stats().leases == 0
    stream.close()


@pytest.mark.parametrize("policy", ["drop", "latest", "sample"])
def test_large_items_go_whole_or_not_at_all(frozen: Any, policy: Any) -> None:
    """Those that take several pieces of memory, where nobody waits for the next piece."""
    large = np.zeros((24, 512, 512), np.uint8)
    with connect(frozen, when_full=policy, quota_nbytes=16 << 20) as stream:
        assert large.nbytes > stream._pool.chunk_limit
        stop_viewer(stream)
        deadline = time.monotonic() + 20
        receipts: list[Receipt] = []
        while "sent" not in ends_of(receipts):  # the memory is made beside
            assert time.monotonic() < deadline
            receipts.append(stream.image(large, name="large"))
        receipts += [stream.image(large, name="large") for _ in range(5)]
        assert ends_of(receipts)[-3:] == ["dropped"] * 3
        with pytest.raises(InvalidItem, match=r"larger than the stream's shared memory"):
            stream.image(np.zeros((80, 512, 512), np.uint8), name="large")
        frozen[1]()
        stream.flush()
        assert set(ends_of(receipts)) == {"displayed", "dropped"}
        assert stream._pool.stats().leases == 0


def test_a_viewer_that_takes_nothing_costs_one_deadline(frozen: Any) -> None:
    image = np.zeros((512, 1024), np.uint16)
    with connect(frozen, timeout_s=0.5, quota_nbytes=16 << 20) as stream:
        stop_viewer(stream)
        with pytest.raises(DeadlineExceeded):
            while True:
                stream.image(image)
        start = time.process_time(), time.monotonic()
        for _ in range(50):
            with pytest.raises(DeadlineExceeded):
                stream.image(image)
        assert time.monotonic() - start[1] < 20  # fifty deadlines are 25 s
        frozen[1]()
        stream.flush(timeout_s=20)
        stream.image(image).wait(timeout_s=20)


def test_it_is_said_when_it_gets_full(frozen: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "openhcs_stream")
    with connect(frozen, when_full="drop") as stream:
        stop_viewer(stream)
        for _ in range(FEWER_ITEMS + 50):
            stream.image(IMAGE, name="it")
        (status,) = stream.status()
        assert (status.nearly_full, status.full) == (1, 1)
        assert status.dropped_by == {"full": 50}
        said = [
            record.getMessage()
            for record in caplog.records
            if record.name == "openhcs_stream.stream._room"
        ]
        assert [text.split(" policy")[0] for text in said] == ["queue nearly full", "queue full"]
        frozen[1]()
        stream.flush()


def test_a_batch_that_is_larger_than_the_memory_goes_in_several_messages(frozen: Any) -> None:
    image = np.zeros((512, 1024), np.uint16)
    with connect(frozen, quota_nbytes=8 << 20) as stream:
        with stream.batch():
            receipts = [stream.image(image, name="it", place={"z": z}) for z in range(30)]
        stream.flush()
        assert set(ends_of(receipts)) == {"displayed"}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"when_full": "newest"}, "when_full='newest' is no policy"),
        ({"when_full": "sample", "sample_every": 0}, "sample_every=0"),
        ({"reconnect_s": -1}, "reconnect_s=-1 is no time"),
        ({"reconnect_s": float("nan")}, "reconnect_s=nan is no time"),
    ],
)
def test_settings_that_can_not_be_used(frozen: Any, options: Any, what: str) -> None:
    with pytest.raises(InvalidItem, match=what):
        connect(frozen, **options)
