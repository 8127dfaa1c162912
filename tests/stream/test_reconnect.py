"""A viewer that dies and comes back: the stream goes on, nothing comes twice, nothing is lost."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import ItemFailed, ViewerLost
from openhcs_stream.tracker import registry
from openhcs_stream.viewer import MemoryViewer
from tests.stream.processes import stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from openhcs_stream.tracker import QueueEvent
    from tests.stream.conftest import Served

    ViewerProcess = Callable[..., tuple[subprocess.Popen[str], str]]

IMAGE = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def planes_of(served: Served) -> dict[tuple[Any, ...], int]:
    """The first pixel of each plane that is shown."""
    ((_, layer),) = served.viewer.layers.items()
    return {key: int(plane[0, 0]) for key, plane in layer.stack.planes.items()}


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    """After each test: no descriptor, arena, name, thread, process or file."""


def test_a_killed_viewer_gets_what_it_had_not_received(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    """The one stopped before it could take them; another of its kind shows them all, once."""
    process, _ = viewer_process()
    with openhcs_stream.connect("memory", launch=False, reconnect_s=30) as stream:
        stream.image(IMAGE, name="it", place={"z": 0}).wait()
        stop(process.pid)
        receipts = [stream.image(IMAGE + z, name="it", place={"z": z}) for z in range(1, 50)]
        process.kill()
        process.wait()
        wait_for(lambda: stream.awaited)
        # What is sent now waits as well.
        receipts += [stream.image(IMAGE + z, name="it", place={"z": z}) for z in range(50, 60)]
        served = serve_here()
        stream.flush(timeout_s=20)
        assert {receipt.state for receipt in receipts} == {"displayed"}
        assert planes_of(served) == {(z,): z for z in range(1, 60)}
        (status,) = stream.status()
        assert (status.sent, status.displayed, status.failed, status.waiting) == (60, 60, 0, 0)
        assert status.lost == ""
        (row,) = served.receiver.status()["streams"]
        assert (row["received"], row["displayed"]) == (59, 59)
        assert stream._pool.stats().leases == 0


def test_killed_in_mid_stream_each_item_has_one_end(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    process, _ = viewer_process()
    stream = openhcs_stream.connect("memory", launch=False, reconnect_s=30)
    sent = threading.Event()
    receipts = []

    def work() -> None:
        for z in range(600):
            receipts.append(stream.image(IMAGE + z, name="it", place={"z": z}))
            if z == 200:
                sent.set()

    worker = threading.Thread(target=work)
    worker.start()
    assert sent.wait(20)
    process.kill()
    process.wait()
    served = serve_here()
    worker.join(30)
    assert not worker.is_alive()
    try:
        stream.flush(timeout_s=30)
    except ItemFailed as error:
        # The dead one had received these, and took them with it.
        assert all("was lost before it was displayed" in why for _, why in error.failures)  # noqa: PT017
    ends = [receipt.state for receipt in receipts]
    assert set(ends) <= {"displayed", "failed"}
    (status,) = stream.status()
    assert (status.sent, status.waiting) == (600, 0)
    assert (status.displayed, status.failed) == (ends.count("displayed"), ends.count("failed"))
    shown = planes_of(served)
    assert shown == {(z,): z for (z,) in shown}
    # None came twice, and none that was displayed by the one is shown again by the other.
    (row,) = served.receiver.status()["streams"]
    assert row["received"] == len(shown)
    assert {(z,) for z, end in enumerate(ends) if end == "failed"}.isdisjoint(shown)
    assert stream._pool.stats().leases == 0
    stream.close()


def test_it_is_waited_for_as_long_as_was_declared_and_welcome_later(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    process, _ = viewer_process()
    with openhcs_stream.connect("memory", launch=False, reconnect_s=0.3) as stream:
        stream.image(IMAGE, name="it").wait()
        process.kill()
        process.wait()
        wait_for(lambda: stream.awaited)
        with pytest.raises(ItemFailed, match=r"was not back within 0\.3 s"):
            stream.image(IMAGE, name="it").wait(timeout_s=20)
        # From now on nobody waits for it any more ...
        for _ in range(3):
            with pytest.raises(ViewerLost, match=r"was not back within 0\.3 s"):
                stream.image(IMAGE, name="it")
        assert (stream.viewers, stream.awaited) == ((), ())
        assert stream.status()[0].lost
        with pytest.raises(ItemFailed):
            stream.flush()
        # ... but it is looked for.
        served = serve_here()
        wait_for(lambda: stream.viewers)
        stream.image(IMAGE + 7, name="it").wait(timeout_s=20)
        assert planes_of(served) == {(): 7}


def test_one_of_two_is_back_and_misses_nothing(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    there = serve_here(name="there")
    process, _ = viewer_process()
    with openhcs_stream.connect(["there", "memory"], launch=False, reconnect_s=30) as stream:
        stream.image(IMAGE, name="it", place={"z": 0}).wait()
        process.kill()
        process.wait()
        wait_for(lambda: stream.awaited)
        receipts = [stream.image(IMAGE + z, name="it", place={"z": z}) for z in range(1, 20)]
        wait_for(lambda: len(planes_of(there)) == 20)
        assert {receipt.state for receipt in receipts} == {"sent"}
        back = serve_here(name="back")
        stream.flush(timeout_s=20)
        assert planes_of(back) == {(z,): z for z in range(1, 20)}
        assert len(planes_of(there)) == 20
        # The one that stayed got each once.
        assert there.receiver.status()["streams"][0]["received"] == 20


def test_a_viewer_that_was_closed_is_not_waited_for(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    process, _ = viewer_process()
    with openhcs_stream.connect("memory", launch=False, reconnect_s=30) as stream:
        stream.image(IMAGE, name="it").wait()
        openhcs_stream.ask("memory", "stop")
        process.wait(20)
        wait_for(lambda: not stream.viewers)
        with pytest.raises(ViewerLost, match="ended the session"):
            stream.image(IMAGE, name="it")
        served = serve_here()
        wait_for(lambda: stream.viewers)
        stream.image(IMAGE, name="it").wait(timeout_s=20)
        assert planes_of(served) == {(): 0}


def test_listeners_hear_that_it_was_lost_and_is_back(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    events: list[QueueEvent] = []
    stop = registry().subscribe(events.append)
    try:
        process, _ = viewer_process()
        with openhcs_stream.connect("memory", launch=False, name="w", reconnect_s=30) as stream:
            process.kill()
            process.wait()
            wait_for(lambda: [x for x in events if x.state == "lost"])
            serve_here()
            wait_for(lambda: [x for x in events if x.state == "back"])
            assert stream.status()[0].lost == ""
    finally:
        stop()
    assert [event.state for event in events] == ["lost", "back"]
    assert "is gone" in events[0].reasons[0]


def test_an_item_in_parts_fails_and_the_next_ones_go_on(
    viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    """Its memory was used again before all of it was sent: it can't be sent once more."""
    process, _ = viewer_process()
    stream = openhcs_stream.connect(
        "memory", launch=False, reconnect_s=30, quota_nbytes=4 << 20, timeout_s=30
    )
    stop(process.pid)
    large = np.zeros((64, 512, 512), np.uint8)
    receipts = []
    worker = threading.Thread(target=lambda: receipts.append(stream.image(large, name="large")))
    worker.start()
    wait_for(lambda: stream.status()[0].sent == 1)
    process.kill()
    process.wait()
    served = serve_here()
    worker.join(30)
    with pytest.raises(ItemFailed, match="in parts"):
        receipts[0].wait(timeout_s=20)
    stream.image(IMAGE, name="it").wait(timeout_s=20)
    assert planes_of(served) == {(): 0}
    with pytest.raises(ItemFailed):
        stream.flush()
    stream.close()


def test_one_that_dies_while_another_is_greeted_is_an_error_of_connect(
    viewer_process: ViewerProcess,
) -> None:
    """Nothing was sent yet, so there is nothing to wait with."""
    dying, its_address = viewer_process()
    slow, other_address = viewer_process()
    stop(slow.pid)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            openhcs_stream.connect([its_address, other_address], launch=False, timeout_s=30)
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    wait_for(lambda: openhcs_stream.ask(its_address, "status")["streams"])
    dying.kill()
    dying.wait()
    slow.send_signal(signal.SIGCONT)
    worker.join(30)
    assert not worker.is_alive()
    assert [type(error) for error in raised] == [ViewerLost]
    assert "connect anew" in str(raised[0])


@pytest.mark.parametrize("reconnect_s", [0.0, 0.2])
def test_sends_to_nobody_keep_nothing_of_what_was_to_be_sent(
    viewer_process: ViewerProcess, reconnect_s: float
) -> None:
    """An error that is raised again holds, with each of its tracebacks, all that was sent."""
    process, _ = viewer_process()
    stream = openhcs_stream.connect("memory", launch=False, reconnect_s=reconnect_s)
    process.kill()
    process.wait()
    wait_for(lambda: not (stream.viewers or stream.awaited))
    arrays: list[weakref.ref[Any]] = []
    for number in range(10):
        array = IMAGE + number
        arrays.append(weakref.ref(array))
        with pytest.raises(ViewerLost):
            stream.image(array, name="it")
        with pytest.raises(ViewerLost):
            stream.request("status")
    del array
    gc.collect()
    assert [each for each in arrays if each() is not None] == []
    stream.close()


def test_what_waited_under_latest_says_which_viewer_it_waited_for(
    viewer_process: ViewerProcess,
) -> None:
    process, _ = viewer_process()
    stream = openhcs_stream.connect(
        "memory", launch=False, reconnect_s=0.2, when_full="latest", quota_nbytes=4 << 20
    )
    process.send_signal(signal.SIGSTOP)
    receipts = [stream.image(IMAGE, name="it", place={"z": z}) for z in range(30)]
    assert stream._room.waiting
    process.kill()
    process.wait()
    ended = {"failed", "dropped"}
    wait_for(lambda: {each.state for each in receipts} <= ended)
    reasons = {each.reason for each in receipts if each.state == "failed"}
    assert any("was not back within" in why for why in reasons)
    assert all("memory" in why and not why.startswith(":") for why in reasons)
    stream.close()


@pytest.mark.parametrize("reads", [True, False], ids=["reads files", "reads none"])
def test_an_image_in_a_file_is_shown_by_the_viewer_that_is_back(
    viewer_process: ViewerProcess,
    serve_here: Callable[..., Served],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reads: bool,
) -> None:
    """The open file is handed over once more; or the item says why that can't be."""
    tifffile = pytest.importorskip("tifffile")
    stack = np.random.default_rng(1).integers(0, 65536, (3, 300, 200), np.uint16)
    tifffile.imwrite(
        tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    process, _ = viewer_process()
    with openhcs_stream.connect("memory", launch=False, reconnect_s=30) as stream:
        stream.image(IMAGE, name="it").wait()
        stop(process.pid)
        receipt = stream.image_file(tmp_path / "stack.tif", name="there")
        (tmp_path / "stack.tif").unlink()  # it is open
        process.kill()
        process.wait()
        wait_for(lambda: stream.awaited)
        monkeypatch.setattr(MemoryViewer, "reads_files", reads)
        served = serve_here()
        wait_for(lambda: receipt.state in ("displayed", "failed"))
        if not reads:
            assert receipt.state == "failed"
            assert "can't read" in receipt.reason
            with pytest.raises(ItemFailed):
                stream.flush()
            assert stream.image(IMAGE, name="it").wait().state == "displayed"
            return
        ((_, layer),) = served.viewer.layers.items()
        assert {key: np.asarray(plane).tolist() for key, plane in layer.stack.planes.items()} == {
            (z,): stack[z].tolist() for z in range(3)
        }
        del layer
        assert stream.request("clear") == 1  # its file is closed
