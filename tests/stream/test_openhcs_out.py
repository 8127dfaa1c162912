"""Our streams to OpenHCS's viewers, whose answers were recorded."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

import openhcs_stream
from openhcs_stream.errors import (
    InvalidItem,
    ItemFailed,
    PeerError,
    ViewerLost,
    ViewerUnreachable,
)
from openhcs_stream.rois import Roi
from openhcs_stream.stream import _openhcs_acks, _openhcs_batches, _openhcs_settle, _reach
from openhcs_stream.tracker import registry
from openhcs_stream.transport import ZmqCollector
from openhcs_stream.viewer import MemoryViewer, Receiver
from scripts._ports import free_port
from tests.stream.recorded_viewer import ACK_PORT, RecordedViewer, ipc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.tracker import QueueStatus

SHM = Path("/dev/shm")
VIEWERS = [
    (generation, kind) for generation in ("gen1", "gen2", "gen3") for kind in ("napari", "fiji")
]
each_viewer = pytest.mark.parametrize(("generation", "kind"), VIEWERS)
pytestmark = pytest.mark.usefixtures("home")
AREA = Roi.polygon([(1, 1), (1, 5), (4, 5)], name="cell")


def until(reached: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not (value := reached()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        pause.wait(0.005)
    return value


def plane(value: int = 1, shape: tuple[int, ...] = (4, 6), dtype: str = "uint16") -> Any:
    return np.full(shape, value, dtype)


def our_segments() -> set[str]:
    """Names in shared memory that are still held by this very process."""
    found = set()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if "/dev/shm/openhcs-stream-" in line or "/dev/shm/.openhcs-stream-" in line:
                found.add(line.split()[5])
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = our_segments()
    yield
    assert not {path for path in our_segments() - before if os.path.exists(path)}
    assert _openhcs_acks._listeners == {}


@pytest.fixture
def start() -> Iterator[Callable[..., RecordedViewer]]:
    """Start viewers: (generation, kind, tcp=)."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **more: stack.enter_context(RecordedViewer(*args, **more))


@pytest.fixture
def open_stream() -> Iterator[Callable[..., openhcs_stream.Stream]]:
    """Streams to a viewer, closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(viewer: RecordedViewer, **more: Any) -> openhcs_stream.Stream:
            more = {"timeout_s": 20.0, "source": "plate", **more}
            stream = openhcs_stream.connect(viewer.address, **more)
            stack.callback(close, stream)
            return stream

        yield connect


def close(stream: openhcs_stream.Stream) -> None:
    """Failures are told at the end again; the tests have looked at them before."""
    with contextlib.suppress(ItemFailed, ViewerLost):
        stream.close()


def queue_of(stream: openhcs_stream.Stream) -> QueueStatus:
    (queue,) = stream.status()
    return queue


def counts(stream: openhcs_stream.Stream) -> tuple[int, int, int, int, int]:
    """Sent, received, displayed, failed, waiting."""
    queue = queue_of(stream)
    return (queue.sent, queue.received, queue.displayed, queue.failed, queue.waiting)


class TestReaching:
    @each_viewer
    def test_a_viewer_is_recognised_by_its_answer(
        self, start: Any, open_stream: Any, generation: str, kind: str
    ) -> None:
        viewer = start(generation, kind)
        stream = open_stream(viewer)
        (name,) = stream.viewers
        assert name.startswith("OpenHCS's Fiji" if kind == "fiji" else "OpenHCS's napari")
        assert name.endswith(f" at {viewer.port}")
        assert viewer.asked[0] == "ping"
        status = stream.request("status")
        assert status["viewer"] == kind
        assert (status["dialect"], status["generation"]) == ("openhcs", int(generation[3:]))
        assert status["addresses"] == [viewer.address]

    @pytest.mark.parametrize("tcp", [False, True])
    def test_by_its_port(self, start: Any, tcp: bool) -> None:
        viewer = start("gen3", "napari", tcp=tcp)
        with openhcs_stream.connect(viewer.port, timeout_s=20) as stream:
            stream.image(plane(7)).wait(timeout_s=20)
        assert viewer.images[0].max() == 7

    def test_by_its_port_in_a_text_and_its_dialect(self, start: Any) -> None:
        viewer = start("gen2", "fiji")
        with openhcs_stream.connect(str(viewer.port), dialect="openhcs", timeout_s=20) as stream:
            assert stream.viewers == (f"OpenHCS's Fiji 0.8.6 at {viewer.port}",)

    @pytest.mark.parametrize("ping_s", [_reach.PING_S, 0.0])
    def test_a_receiver_of_ours_is_not_taken_for_theirs(
        self, monkeypatch: pytest.MonkeyPatch, ping_s: float
    ) -> None:
        """Nor where its answer to a ping comes late."""
        monkeypatch.setattr(_reach, "PING_S", ping_s)
        viewer = MemoryViewer()
        receiver = Receiver(viewer, port=free_port())
        receiver.start()
        thread = threading.Thread(target=viewer.run, args=(receiver.tick, 0.01))
        thread.start()
        try:
            assert receiver.endpoint is not None
            assert receiver.endpoint.port is not None
            with openhcs_stream.connect(receiver.endpoint.port, timeout_s=20) as stream:
                stream.image(plane(), place={"any": 1}).wait(timeout_s=20)
                assert stream.request("status")["viewer"] == "memory"
        finally:
            viewer.stop()
            thread.join(20)
            receiver.close()

    def test_nobody_is_told_within_the_deadline(self) -> None:
        port = free_port()
        with pytest.raises(ViewerUnreachable, match=str(port + 1000)):
            openhcs_stream.connect(f"tcp://127.0.0.1:{port}", dialect="openhcs", timeout_s=0.2)

    def test_one_that_is_deaf_too(self, start: Any) -> None:
        viewer = start("gen1", "fiji")
        viewer.is_deaf = True
        with pytest.raises(ViewerUnreachable, match="ping"):
            openhcs_stream.connect(viewer.address, dialect="openhcs", timeout_s=0.2)

    @pytest.mark.parametrize("tcp", [False, True])
    @each_viewer
    def test_one_that_is_busy_is_waited_for(
        self, start: Any, monkeypatch: pytest.MonkeyPatch, generation: str, kind: str, tcp: bool
    ) -> None:
        """Its answer comes later than that of a program that may be anything is waited for."""
        monkeypatch.setattr(_reach, "PING_S", 0.0)
        viewer = start(generation, kind, tcp=tcp)
        with openhcs_stream.connect(viewer.address, timeout_s=20) as stream:
            stream.image(plane(7)).wait("received", timeout_s=20)
        until(lambda: viewer.images, "it is there")
        assert viewer.asked.count("ping") == 1

    @pytest.mark.parametrize("tcp", [False, True])
    def test_one_that_is_busy_for_long_is_not_greeted_as_ours(
        self, start: Any, monkeypatch: pytest.MonkeyPatch, tcp: bool
    ) -> None:
        """A message that is no request wakes a REP socket, and whoever then reads it waits."""
        monkeypatch.setattr(_reach, "PING_S", 0.05)
        viewer = start("gen3", "fiji", tcp=tcp)
        viewer.is_deaf = True
        with pytest.raises(ViewerUnreachable, match="ping"):
            openhcs_stream.connect(viewer.address, timeout_s=0.2)
        viewer.is_deaf = False
        with openhcs_stream.connect(viewer.address, dialect="openhcs", timeout_s=10) as stream:
            stream.image(plane(7)).wait(timeout_s=20)
        assert viewer.images[0].max() == 7

    @pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 20])
    def test_another_program_is_told_from_theirs_by_what_it_says(
        self, monkeypatch: pytest.MonkeyPatch, says: bytes
    ) -> None:
        """One that ends the connection, one that speaks otherwise, one that says half of it."""
        monkeypatch.setattr(_reach, "PING_S", 0.05)
        port = free_port()
        with socket.socket() as other:
            other.bind(("127.0.0.1", port + 1000))
            other.listen()

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        with other.accept()[0] as taken:
                            taken.sendall(says)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            with pytest.raises(ViewerUnreachable, match="no viewer answered"):
                openhcs_stream.connect(f"tcp://127.0.0.1:{port}", timeout_s=0.3)
            other.shutdown(socket.SHUT_RDWR)
            thread.join(20)

    def test_another_program_beside_the_port_delays_nobody_for_long(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_reach, "PING_S", 0.1)
        port = free_port()
        with socket.socket() as other:
            other.bind(("127.0.0.1", port + 1000))
            other.listen()
            with pytest.raises(ViewerUnreachable):  # by our own dialect, as there is nobody
                openhcs_stream.connect(f"tcp://127.0.0.1:{port}", timeout_s=0.3)

    def test_it_can_be_asked_without_a_stream(self, start: Any) -> None:
        viewer = start("gen2", "napari")
        assert openhcs_stream.ask(viewer.address, "status", timeout_s=20)["generation"] == 2
        assert openhcs_stream.ask(viewer.address, "clear", timeout_s=20) is None
        assert openhcs_stream.ask(viewer.address, "stop", timeout_s=20) is None
        assert {"clear_state", "shutdown"} <= {*viewer.asked}
        with pytest.raises(PeerError, match="nothing like 'read'"):
            openhcs_stream.ask(viewer.address, "read", timeout_s=20)


class TestItems:
    @each_viewer
    def test_an_image_arrives_pixel_by_pixel(
        self, start: Any, open_stream: Any, generation: str, kind: str
    ) -> None:
        viewer = start(generation, kind)
        stream = open_stream(viewer)
        sent = np.arange(24, dtype=np.uint16).reshape(4, 6)
        receipt = stream.image(sent, name="raw", place={"well": "B02", "z": 3})
        stream.flush(20)
        until(lambda: viewer.taken, "it is there")
        ((item, pixels),) = viewer.taken
        np.testing.assert_array_equal(pixels, sent)
        assert (item["metadata"]["well"], item["metadata"]["z_index"]) == ("B02", 3)
        tells = stream.request("status")["tells_displayed"]
        assert tells is not ((generation, kind) == ("gen1", "napari"))
        assert receipt.state == ("displayed" if tells else "received")
        assert counts(stream) == (1, 1, int(tells), 0, 0)

    @each_viewer
    def test_a_volume_is_one_item_of_many_planes(
        self, start: Any, open_stream: Any, generation: str, kind: str
    ) -> None:
        viewer = start(generation, kind)
        stream = open_stream(viewer)
        volume = np.arange(5 * 24, dtype=np.uint16).reshape(5, 4, 6)
        stream.image(volume)
        stream.flush(20)
        until(lambda: len(viewer.taken) == 5, "all planes are there")
        found = {item["metadata"]["z_index"]: pixels for item, pixels in viewer.taken}
        np.testing.assert_array_equal(np.stack([found[z] for z in range(5)]), volume)
        assert counts(stream)[:2] == (1, 1)

    @pytest.mark.parametrize(("generation", "kind"), VIEWERS[1:])
    def test_outlines_and_points(
        self, start: Any, open_stream: Any, generation: str, kind: str
    ) -> None:
        viewer = start(generation, kind)
        stream = open_stream(viewer)
        stream.rois([AREA])
        stream.points([(1.0, 2.0)])
        stream.flush(20)
        types = [item["data_type"] for item, _ in viewer.taken]
        assert types == (["rois", "rois"] if kind == "fiji" else ["shapes", "points"])
        assert counts(stream) == (2, 2, 2, 0, 0)

    def test_napari_1_acknowledges_outlines_and_has_no_points(
        self, start: Any, open_stream: Any
    ) -> None:
        viewer = start("gen1", "napari")
        stream = open_stream(viewer)
        stream.rois([AREA])
        stream.flush(20)
        assert counts(stream) == (1, 1, 0, 0, 0)
        with pytest.raises(InvalidItem, match="points"):
            stream.points([(1.0, 2.0)])

    @pytest.mark.parametrize(("generation", "kind"), [("gen1", "napari"), ("gen2", "fiji")])
    def test_an_image_larger_than_the_streams_memory(
        self, start: Any, open_stream: Any, generation: str, kind: str
    ) -> None:
        viewer = start(generation, kind)
        stream = open_stream(viewer, quota_nbytes=4 << 20)
        sent = np.random.default_rng(0).integers(0, 1 << 16, (2048, 3001), np.uint16)
        stream.image(sent)
        stream.flush(30)
        until(lambda: viewer.images, "it is there")
        np.testing.assert_array_equal(viewer.images[0], sent)

    def test_an_empty_table_of_points(self, start: Any, open_stream: Any) -> None:
        viewer = start("gen2", "napari")
        open_stream(viewer).points(np.empty((0, 2))).wait(timeout_s=20)
        ((item, _),) = viewer.taken
        assert [shape["coordinates"] for shape in item["shapes"]] == [[]]

    @each_viewer
    def test_hundreds_of_items_and_none_is_lost(
        self, start: Any, open_stream: Any, monkeypatch: Any, generation: str, kind: str
    ) -> None:
        monkeypatch.setattr(_openhcs_batches, "FIJI_PAUSE_S", 0.01)
        viewer = start(generation, kind)
        stream = open_stream(viewer)
        with stream.batch():
            for z in range(300):
                stream.image(plane(z), place={"z": z})
        stream.flush(30)
        until(lambda: len(viewer.taken) == 300, "all are there")
        assert [pixels.max() for pixels in viewer.images] == [*range(300)]
        assert counts(stream)[:2] == (300, 300)
        if not viewer.subscribes:
            assert max(viewer.batches) > 1, "they go together in few messages"

    def test_different_settings_go_in_different_messages(
        self, start: Any, open_stream: Any
    ) -> None:
        viewer = start("gen2", "fiji")
        stream = open_stream(viewer)
        with stream.batch():
            stream.image(plane(), name="a", colormap="fire")
            stream.image(plane(), name="b", colormap="red")
        stream.flush(20)
        looks = [message["display_config"]["lut"] for message in viewer.messages]
        assert looks == ["Fire", "Red"]


class TestRefusals:
    """Said at the call, before anything is sent."""

    @pytest.mark.parametrize(
        ("send", "words"),
        [
            (lambda stream: stream.tracks([(1, 0, 2.0, 3.0)]), "tracks"),
            (lambda stream: stream.image(plane(1, (4, 6, 3), "uint8"), axes="YXS"), "an RGB image"),
            (lambda stream: stream.image(plane(1, (4, 6, 2)), axes="YXQ"), "the axis Q"),
            (lambda stream: stream.image(plane(), place={"drug": "x"}), "'drug'"),
            (lambda stream: stream.points([(1.0, 2.0, 3.0)]), "coordinates ZYX"),
        ],
        ids=["tracks", "rgb", "axis", "component", "points"],
    )
    def test_by_name(self, start: Any, open_stream: Any, send: Any, words: str) -> None:
        viewer = start("gen2", "fiji")
        stream = open_stream(viewer)
        with pytest.raises(InvalidItem, match=words) as caught:
            send(stream)
        assert caught.value.cure
        stream.image(plane()).wait(timeout_s=20)
        assert len(viewer.taken) == 1

    @pytest.mark.parametrize(
        ("send", "words"),
        [
            (lambda stream: stream.rois([]), "an empty list"),
            (lambda stream: stream.image(np.full((4, 6), 0.1)), "value 0.1"),
        ],
        ids=["empty", "inexact"],
    )
    def test_what_depends_on_the_content_fails_by_name(
        self, start: Any, open_stream: Any, send: Any, words: str
    ) -> None:
        stream = open_stream(start("gen2", "fiji"))
        receipt = send(stream)
        with pytest.raises(ItemFailed, match=words):
            receipt.wait(timeout_s=20)
        assert counts(stream)[3] == 1


class TestFailures:
    def test_a_wrong_item_takes_no_other_with_it(self, start: Any, open_stream: Any) -> None:
        viewer = start("gen2", "napari")
        viewer.wrong = lambda item: "bad place" if item["metadata"]["z_index"] == 2 else ""
        stream = open_stream(viewer)
        with stream.batch():
            receipts = [stream.image(plane(z), place={"z": z}) for z in range(5)]
        for z, receipt in enumerate(receipts):
            if z == 2:
                with pytest.raises(ItemFailed, match="bad place"):
                    receipt.wait(timeout_s=20)
            else:
                receipt.wait(timeout_s=20)
        assert sorted(pixels.max() for pixels in viewer.images) == [0, 1, 3, 4]
        assert counts(stream) == (5, 4, 4, 1, 0)

    def test_fijis_first_generation_tells_it_in_an_acknowledgement(
        self, start: Any, open_stream: Any
    ) -> None:
        viewer = start("gen1", "fiji")
        viewer.wrong = lambda item: "no such thing" if item["metadata"]["z_index"] == 2 else ""
        stream = open_stream(viewer)
        with stream.batch():
            good, bad = (stream.image(plane(z), place={"z": z}) for z in (1, 2))
        good.wait(timeout_s=20)
        with pytest.raises(ItemFailed, match="no such thing"):
            bad.wait(timeout_s=20)

    @pytest.mark.parametrize(("generation", "kind"), [("gen1", "napari"), ("gen2", "fiji")])
    def test_a_viewer_that_stops_is_lost_at_the_deadline(
        self, start: Any, open_stream: Any, generation: str, kind: str
    ) -> None:
        viewer = start(generation, kind)
        stream = open_stream(viewer, timeout_s=0.5)
        viewer.is_silent = True
        receipt = stream.image(plane())
        with pytest.raises(ItemFailed, match=r"within 0\.5 s"):
            receipt.wait(timeout_s=20)
        with pytest.raises(ViewerLost):
            until(lambda: stream.image(plane()) and False, "the stream says so")
        assert our_segments() == set()

    def test_one_that_stops_while_it_settles(self, start: Any, open_stream: Any) -> None:
        """napari takes nothing in the meantime: what waits for that must not wait for ever."""
        viewer = start("gen2", "napari")
        viewer.settles = deque(["running"])
        stream = open_stream(viewer, timeout_s=0.5)
        receipts = [stream.image(plane())]
        receipts[0].wait("received", timeout_s=20)
        until(lambda: "settle" in viewer.asked, "it settles")
        viewer.is_deaf = True
        receipts.append(stream.image(plane()))
        for receipt in receipts:
            with pytest.raises(ItemFailed, match=r"within 0\.5 s"):
                receipt.wait(timeout_s=20)

    def test_one_that_has_gone_before_anything_was_sent(self, start: Any, open_stream: Any) -> None:
        viewer = start("gen1", "napari")
        stream = open_stream(viewer, timeout_s=0.5)
        viewer.stop()
        with pytest.raises(ItemFailed):
            stream.image(plane()).wait(timeout_s=20)

    def test_closing_does_not_wait_for_a_dead_viewer(self, start: Any) -> None:
        viewer = start("gen2", "napari")
        stream = openhcs_stream.connect(viewer.address, timeout_s=20)
        viewer.is_silent = True
        receipt = stream.image(plane())
        stream.close(timeout_s=0.1)
        assert receipt.state == "failed"


class TestSettling:
    def test_displayed_is_what_the_viewer_says_it_displayed(
        self, start: Any, open_stream: Any
    ) -> None:
        viewer = start("gen2", "napari")
        viewer.settles = deque(["running"])
        stream = open_stream(viewer)
        receipt = stream.image(plane())
        receipt.wait("received", timeout_s=20)
        until(lambda: viewer.asked.count("settle") >= 3, "it is asked again and again")
        assert receipt.state == "received"
        viewer.settles = deque(["complete"])
        receipt.wait(timeout_s=20)

    def test_what_it_can_not_display_fails_with_its_reason(
        self, start: Any, open_stream: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_openhcs_settle, "SETTLE_PATIENCE_S", 0.1)
        monkeypatch.setattr(_openhcs_settle, "SETTLE_AGAIN_S", 0.02)
        viewer = start("gen2", "napari")
        viewer.settles = deque(["failed"])
        stream = open_stream(viewer)
        with pytest.raises(ItemFailed, match="declared component domain"):
            stream.image(plane()).wait(timeout_s=20)

    def test_but_may_still_when_more_has_come(
        self, start: Any, open_stream: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_openhcs_settle, "SETTLE_AGAIN_S", 0.02)
        viewer = start("gen2", "napari")
        viewer.settles = deque(["failed", "failed", "complete"])
        stream = open_stream(viewer)
        stream.image(plane()).wait(timeout_s=20)

    def test_a_batch_that_comes_while_it_settles_for_another_is_sent_again(
        self, start: Any, open_stream: Any
    ) -> None:
        viewer = start("gen2", "napari")
        viewer.settling = 3
        stream = open_stream(viewer)
        with stream.batch():
            receipts = [stream.image(plane(z), place={"z": z}) for z in range(3)]
        for receipt in receipts:
            receipt.wait(timeout_s=20)
        assert [pixels.max() for pixels in viewer.images] == [0, 1, 2]
        assert viewer.batches == [3], "as one batch, as it was"

    def test_generation_3_knows_of_no_settling_and_acknowledges(
        self, start: Any, open_stream: Any
    ) -> None:
        viewer = start("gen3", "napari")
        stream = open_stream(viewer)
        for _ in range(3):
            stream.image(plane()).wait(timeout_s=20)
        assert viewer.asked.count("settle") <= 1, "it is asked once"


class TestAcknowledgements:
    def test_streams_of_one_process_share_the_one_port(self, start: Any, open_stream: Any) -> None:
        viewer = start("gen1", "fiji")
        streams = [open_stream(viewer, name=name) for name in ("a", "b")]
        for stream in streams:
            stream.image(plane()).wait(timeout_s=20)
            assert counts(stream) == (1, 1, 1, 0, 0)
        assert [*_openhcs_acks._listeners] == [ipc(ACK_PORT)]
        streams[0].close()
        streams[1].image(plane()).wait(timeout_s=20)
        streams[1].close()
        ZmqCollector(ipc(ACK_PORT)).close()  # it is free again

    def test_another_program_that_has_it_keeps_it(
        self, start: Any, open_stream: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Fiji's first generation can then tell what it received, and no more."""
        theirs = ZmqCollector(ipc(ACK_PORT))
        viewer = start("gen1", "fiji")
        stream = open_stream(viewer)
        assert "another program listens at" in caplog.text
        assert ipc(ACK_PORT) in caplog.text
        receipt = stream.image(plane())
        stream.flush(20)
        assert receipt.state == "received"
        assert counts(stream) == (1, 1, 0, 0, 0)
        assert stream.request("status")["acknowledges"] is False
        assert b"image_ack" in until(theirs.receive, "the other still gets them")
        theirs.close()

    def test_generation_2_is_then_asked(self, start: Any, open_stream: Any) -> None:
        theirs = ZmqCollector(ipc(ACK_PORT))
        stream = open_stream(start("gen2", "fiji"))
        stream.image(plane()).wait(timeout_s=20)
        assert counts(stream) == (1, 1, 1, 0, 0)
        theirs.close()

    def test_napari_1_tells_nothing_of_outlines_then(self, start: Any, open_stream: Any) -> None:
        theirs = ZmqCollector(ipc(ACK_PORT))
        stream = open_stream(start("gen1", "napari"))
        stream.image(plane()).wait("received", timeout_s=20)
        with pytest.raises(InvalidItem, match="rois"):
            stream.rois([AREA])
        theirs.close()

    def test_what_is_no_acknowledgement_disturbs_nobody(
        self, start: Any, open_stream: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        viewer = start("gen1", "fiji")
        stream = open_stream(viewer)
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.connect(ipc(ACK_PORT))
            push.send(b"hello")
            push.send(b'{"type": "image_ack", "image_id": "unknown", "status": "success"}')
            until(lambda: "are none" in caplog.text, "it is noted")
        stream.image(plane()).wait(timeout_s=20)

    def test_generation_3_is_told_where_to(self, start: Any, open_stream: Any) -> None:
        viewer = start("gen3", "fiji")
        streams = [open_stream(viewer, name=name) for name in ("a", "b")]
        for stream in streams:
            stream.image(plane()).wait(timeout_s=20)
        routes = {item["return_route"]["url"] for item, _ in viewer.taken}
        assert len(routes) == 1, "one listener a process"
        (owner,) = {item["return_route"]["owner"]["pid"] for item, _ in viewer.taken}
        assert owner == os.getpid()


class TestMemory:
    @pytest.mark.parametrize(("generation", "kind"), VIEWERS)
    def test_it_is_used_again_and_removed_at_the_end(
        self, start: Any, generation: str, kind: str, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(_openhcs_batches, "FIJI_PAUSE_S", 0.01)
        viewer = start(generation, kind)
        with openhcs_stream.connect(viewer.address, timeout_s=20) as stream:
            for z in range(10):
                stream.image(plane(z), place={"z": z}).wait("received", timeout_s=20)
            stream.flush(20)
            # Of a block it is known that its name is gone, a little before its content is noted.
            until(lambda: len(viewer.taken) == 10, "all are there")
            names = [item["shm_name"] for item, _ in viewer.taken]
            if generation == "gen1":
                assert len({*names}) == 10, "each name is the viewer's to remove"
            else:
                assert len({*names}) <= 2
        assert not any((SHM / name).exists() for name in names)


class TestTracker:
    def test_it_knows_the_stream_and_its_viewer(self, start: Any, open_stream: Any) -> None:
        stream = open_stream(start("gen2", "fiji"), name="only this one")
        stream.image(plane()).wait(timeout_s=20)
        (status,) = (each for each in registry().status() if each.stream == "only this one")
        assert (status.sent, status.displayed) == (1, 1)


class TestPace:
    """Fiji's first generation hangs for ever in a message that comes 2 s after its burst began."""

    def piece(self, settings: object) -> Any:
        return SimpleNamespace(piece=SimpleNamespace(settings=settings))

    def test_a_burst_ends_before_fiji_hangs(self) -> None:
        pace = _openhcs_batches._Pace()
        sent, now = [], 100.0
        while now < 110.0:
            wait = pace.wait_for(self.piece("a"), now)
            if wait <= 0:
                pace.sent(self.piece("a"), now)
                sent.append(now)
                wait = 0.01
            now += wait
        bursts = [sent[:1]]
        for before, each in itertools.pairwise(sent):
            if each - before >= 0.5:  # Fiji has shown what it had
                bursts.append([])
            bursts[-1].append(each)
        assert len(bursts) > 3
        assert all(burst[-1] - burst[0] < 1.9 for burst in bursts)

    def test_other_settings_wait_for_a_pause(self) -> None:
        pace = _openhcs_batches._Pace()
        pace.sent(self.piece("a"), 100.0)
        assert pace.wait_for(self.piece("a"), 100.1) == 0
        assert math.isclose(pace.wait_for(self.piece("b"), 100.1), 0.65)
        assert pace.wait_for(self.piece("b"), 100.8) == 0
