"""What a viewer counts of its streams: queues, ages, rates, and how streams ended."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.stream import ask, connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer
from openhcs_stream.viewer._counts import (
    CLOSED_BY_WORKER,
    ENDED_KEPT,
    ENDED_KEPT_S,
    RATE_WINDOW_S,
    Counts,
    EndedStreams,
    resident_nbytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
    return value


def test_nothing_came() -> None:
    counts = Counts(Clock())
    told = counts.describe()
    assert set(told.values()) == {0}
    assert counts.age_s == 0


def test_rates_are_of_the_last_seconds() -> None:
    clock = Clock()
    counts = Counts(clock)
    for _ in range(100):  # ten a second for ten seconds
        clock.now += 0.1
        counts.took(1000)
    told = counts.describe()
    assert (told["received"], told["nbytes"]) == (100, 100_000)
    assert told["items_per_s"] == pytest.approx(10, rel=0.1)
    assert told["bytes_per_s"] == pytest.approx(10_000, rel=0.1)
    clock.now += RATE_WINDOW_S
    assert counts.describe()["items_per_s"] == 0
    counts.took(5)
    assert counts.describe()["items_per_s"] == pytest.approx(1 / RATE_WINDOW_S, abs=0.001)


def test_rate_of_a_young_stream_is_of_its_own_time() -> None:
    clock = Clock()
    counts = Counts(clock)
    clock.now += 0.5
    for _ in range(10):
        counts.took(1)
    clock.now += 0.5
    assert counts.describe()["items_per_s"] == 10


def test_age_of_what_waits_longest() -> None:
    clock = Clock()
    counts = Counts(clock)
    for _ in range(3):
        counts.took(1)
        clock.now += 1
    assert counts.describe()["oldest_age_s"] == 3
    counts.shown()
    assert counts.describe()["oldest_age_s"] == 2
    counts.lost(was_received=True)
    assert counts.describe()["oldest_age_s"] == 1
    counts.lost(was_received=False)  # it never waited
    assert counts.describe()["oldest_age_s"] == 1
    counts.shown()
    told = counts.describe()
    assert told["oldest_age_s"] == told["waiting"] == 0
    assert (told["received"], told["displayed"], told["failed"]) == (3, 2, 2)
    assert counts.totals() == {"received": 3, "displayed": 2, "failed": 2}


def test_age_is_at_least_what_is_still_known() -> None:
    clock = Clock()
    counts = Counts(clock)
    for _ in range(5000):
        counts.took(1)
        clock.now += 1
    assert counts.describe()["oldest_age_s"] >= 1000


def test_ended_streams_are_listed_for_a_while() -> None:
    clock = Clock()
    ended = EndedStreams(clock)
    counts = Counts(clock)
    counts.took(1)
    ended.add("a", {"name": "one"}, counts, "the worker died")
    clock.now += 12
    counts.shown()  # what was received is still shown
    ended.add("b", {"name": "two"}, Counts(clock), CLOSED_BY_WORKER)
    two, one = ended.describe()
    assert (one["name"], one["ended"], one["ended_s_ago"]) == ("one", "the worker died", 12)
    assert one["displayed"] == 1
    assert (two["name"], two["ended_s_ago"]) == ("two", 0)
    ended.correct("a", CLOSED_BY_WORKER)
    ended.correct("nobody", "nonsense")
    assert [each["ended"] for each in ended.describe()] == [CLOSED_BY_WORKER] * 2
    clock.now += ENDED_KEPT_S - 11
    assert [each["name"] for each in ended.describe()] == ["two"]
    for number in range(ENDED_KEPT + 5):
        ended.add(number, {"name": str(number)}, Counts(clock), "x")
    assert len(ended.describe()) == ENDED_KEPT


def test_memory_of_this_process() -> None:
    assert resident_nbytes() > 10 << 20


WORKER = """
import sys, numpy as np
from openhcs_stream.stream import connect
stream = connect(sys.argv[1], name="worker", launch=False)
stream.image(np.zeros((8, 8), np.uint8), name="it").wait()
print("ready", flush=True)
sys.stdin.read()
stream.close()
"""


@pytest.mark.parametrize("how", ["the worker died", CLOSED_BY_WORKER])
def test_status_tells_how_a_stream_ended(how: str) -> None:
    with (
        run_receiver(MemoryViewer()) as running,
        subprocess.Popen(
            [sys.executable, "-c", WORKER, running.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as worker,
    ):
        assert worker.stdout is not None
        assert worker.stdin is not None
        assert worker.stdout.readline() == "ready\n"
        status = running.receiver.status()
        (row,) = status["streams"]
        assert status["ended"] == []
        assert status["memory_nbytes"] > 0
        assert (row["name"], row["pid"], row["displayed"]) == ("worker", worker.pid, 1)
        assert row["shared_memory"] is True
        if how == CLOSED_BY_WORKER:
            worker.stdin.close()
        else:
            worker.kill()
        worker.wait(20)
        (row,) = wait_for(lambda: running.receiver.status()["ended"])
        assert (row["name"], row["displayed"], row["waiting"]) == ("worker", 1, 0)
        assert row["ended"] == how
        assert running.receiver.status()["streams"] == []


def test_an_item_that_fails_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryViewer):
        def keep(self, pixels: Any, recycled: Any, spec: Any) -> Any:
            raise ValueError("no room\nfor it")

    with (
        caplog.at_level(logging.INFO, "openhcs_stream.viewer"),
        run_receiver(Broken()) as running,
    ):
        with connect(running.address, name="worker 3", launch=False) as stream:
            receipt = stream.image(np.zeros((4, 4), np.uint8))
            wait_for(lambda: receipt.state == "failed")
            (row,) = running.receiver.status()["streams"]
            with pytest.raises(Exception, match="no room"):
                stream.flush()
        wait_for(lambda: running.receiver.status()["ended"])
        log = ask(running.address, "log", token=running.receiver.endpoint.token)  # type: ignore[union-attr]
    assert (row["received"], row["failed"], row["waiting"]) == (0, 1, 0)
    (line,) = [each for each in log if "item failed" in each]
    assert 'WARNING item failed stream="worker 3" item=0 why="ValueError: no room for it"' in line
    assert sum("session opened" in each for each in log) == 1
    assert any(
        'INFO session ended stream="worker 3"' in each and "failed=1" in each for each in log
    )


def test_status_tells_what_a_policy_let_go() -> None:
    import threading

    go_on = threading.Event()

    class Slow(MemoryViewer):
        def keep(self, pixels: Any, recycled: Any, spec: Any) -> Any:
            go_on.wait(20)
            return super().keep(pixels, recycled, spec)

    with run_receiver(Slow()) as running:
        try:
            with connect(
                running.address, when_full="drop", quota_nbytes=16 << 20, launch=False
            ) as stream:
                image = np.zeros((512, 1024), np.uint16)
                while not stream.status()[0].dropped:
                    stream.image(image)
                go_on.set()
                dropped = stream.status()[0].dropped
                wait_for(lambda: running.receiver.status()["streams"][0]["dropped"] == dropped)
        finally:
            go_on.set()
        (row,) = wait_for(lambda: running.receiver.status()["ended"])
        assert row["dropped"] == dropped
