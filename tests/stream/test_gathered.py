"""Small images that are sent one by one, faster than the viewer takes them: they go together."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream import tracker
from openhcs_stream.errors import ItemFailed, StreamError, ViewerLost
from openhcs_stream.messages import Items
from openhcs_stream.stream._books import FLOOD_ITEMS, GATHER_ITEMS
from tests.stream.counting import calls_of, count_sent
from tests.stream.processes import stop

if TYPE_CHECKING:
    import subprocess
    from collections import Counter
    from collections.abc import Callable, Iterator

    from openhcs_stream import Stream

    ViewerProcess = Callable[..., tuple[subprocess.Popen[str], str]]

IMAGE = np.zeros((64, 64), np.uint16)
#: So many go at once; then it is a flood.
BEFORE = FLOOD_ITEMS + 1


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    """After each test: no descriptor, arena, name, thread, process or file."""


@pytest.fixture
def frozen(viewer_process: ViewerProcess) -> Iterator[subprocess.Popen[str]]:
    """A viewer, to be stopped; `frozen.address` tells where it is."""
    process, address = viewer_process()
    process.address = address  # type: ignore[attr-defined]
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Messages with images that go over unix lanes from now on, by their images."""
    return count_sent(
        monkeypatch, lambda message: len(message.items) if isinstance(message, Items) else None
    )


def behind(frozen: Any, **options: Any) -> Stream:
    """A stream to a viewer that was stopped and has many images to take."""
    stream = openhcs_stream.connect(frozen.address, name=f"to {frozen.pid}", **options)
    stream.image(IMAGE, name="it", place={"z": 0}).wait()
    stop(frozen.pid)
    for _ in range(BEFORE):
        stream.image(IMAGE, name="it", place={"z": 0})
    stream.status()  # what waits for others goes
    return stream


def sent(stream: Stream) -> int:
    """How many were told to the viewer, by a look that sends nothing itself."""
    (queue,) = [each for each in tracker.registry().status() if each.stream == stream.name]
    return queue.sent


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline, "it never came about"


def test_a_few_go_at_once(frozen: Any, messages: Counter[int]) -> None:
    with openhcs_stream.connect(frozen.address) as stream:
        stream.image(IMAGE, name="it").wait()
        stop(frozen.pid)
        messages.clear()
        for _ in range(20):
            stream.image(IMAGE, name="it")
        assert messages == {1: 20}
        frozen.send_signal(signal.SIGCONT)


def test_many_go_in_few_messages_and_in_their_order(frozen: Any, messages: Counter[int]) -> None:
    with behind(frozen) as stream:
        messages.clear()
        receipts = [stream.image(IMAGE + n, name="it", place={"z": n % 3}) for n in range(200)]
        frozen.send_signal(signal.SIGCONT)
        stream.flush()
        assert {receipt.state for receipt in receipts} == {"displayed"}
        shown = [stream.request("read", name="it", place={"z": z})["data"] for z in range(3)]
        assert [int(np.frombuffer(each, np.uint16)[0]) for each in shown] == [198, 199, 197]
    assert sum(size * count for size, count in messages.items()) == 200
    assert max(messages) <= GATHER_ITEMS
    assert sum(messages.values()) < 100


def test_one_that_goes_with_others_takes_few_steps(frozen: Any) -> None:
    with behind(frozen) as stream:
        calls = [
            calls_of(lambda: stream.image(IMAGE, name="it", place={"z": 0})) for _ in range(40)
        ]
        assert min(calls) <= 25
        frozen.send_signal(signal.SIGCONT)


def test_the_last_few_go_by_themselves(frozen: Any) -> None:
    with behind(frozen) as stream:
        for _ in range(3):
            stream.image(IMAGE, name="it", place={"z": 0})
        until(lambda: sent(stream) == 1 + BEFORE + 3)
        frozen.send_signal(signal.SIGCONT)


def test_who_waits_for_one_need_not_wait_for_others(frozen: Any) -> None:
    with behind(frozen) as stream:
        receipts = [stream.image(IMAGE, name="it", place={"z": 0}) for _ in range(3)]
        frozen.send_signal(signal.SIGCONT)
        assert receipts[-1].wait(timeout_s=20).state == "displayed"


def test_a_large_image_takes_those_before_it_along(frozen: Any) -> None:
    large = np.ones((1024, 1024), np.uint16)
    with behind(frozen) as stream:
        stream.image(IMAGE, name="it", place={"z": 0})
        stream.image(large, name="it", place={"z": 0})
        assert sent(stream) == 1 + BEFORE + 2
        frozen.send_signal(signal.SIGCONT)
        stream.flush()
        shown = stream.request("read", name="it", place={"z": 0})
        assert tuple(shown["shape"]) == large.shape


def test_an_allocated_array_can_not_be_written_to_while_it_waits_for_others(frozen: Any) -> None:
    """And lives, though nobody has it any more: its memory is not lent again before it is sent."""
    with behind(frozen) as stream:
        array = stream.allocate((64, 64), np.uint16)
        array[:] = 7
        stream.image(array, name="it", place={"z": 1})
        assert not array.flags.writeable
        del array
        for _ in range(3):
            another = stream.allocate((64, 64), np.uint16)
            another[:] = 8
            del another
        frozen.send_signal(signal.SIGCONT)
        stream.flush()
        shown = stream.request("read", name="it", place={"z": 1})["data"]
        assert set(np.frombuffer(shown, np.uint16).tolist()) == {7}


def test_an_allocated_array_that_no_viewer_gets_is_the_callers_again(frozen: Any) -> None:
    """Also where a read-only view of it was sent."""
    with openhcs_stream.connect(frozen.address, reconnect_s=0) as stream:
        stream.image(IMAGE, name="it").wait()
        frozen.kill()
        frozen.wait()
        until(lambda: not stream.viewers)
        array = stream.allocate((64, 64), np.uint16)
        view = array[:]
        view.setflags(write=False)
        with pytest.raises(ViewerLost):
            stream.image(view, name="it")
        array[:] = 1


def test_what_a_viewer_never_got_is_told(frozen: Any) -> None:
    """It dies over images that were not even sent: they fail, and a flush names them."""
    stream = behind(frozen, reconnect_s=0)
    with stream:
        receipts = []
        frozen.kill()
        frozen.wait()
        try:
            receipts += [stream.image(IMAGE, name="it", place={"z": 0}) for _ in range(300)]
        except StreamError:
            pass  # it was noticed meanwhile
        with pytest.raises(ItemFailed) as caught:
            stream.flush()
        assert {receipt.state for receipt in receipts} <= {"failed"}
        assert len(caught.value.failures) >= BEFORE + len(receipts)
