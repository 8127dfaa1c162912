"""What every lane promises, tried on each of its forms."""

from __future__ import annotations

import gc
import os
import select
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.transport import (
    MAX_BLOBS,
    MAX_FDS,
    Frame,
    InProcessLane,
    InProcessListener,
    Lane,
    LaneClosed,
    UnixListener,
    ZmqLane,
    ZmqRouter,
    connect_inprocess,
    connect_unix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Pair(NamedTuple):
    """Two connected lanes, and what moves frames into the second where a loop must do it."""

    sender: Lane
    viewer: Lane
    pump: Callable[[], object]


def until(produce: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    deadline = time.monotonic() + timeout_s
    while (value := produce()) is None or value is False:
        assert time.monotonic() < deadline, f"nothing in {timeout_s} s"
        select.select([], [], [], 0.001)
    return value


def arrive(pair: Pair, lane: Lane) -> Frame:
    def look() -> Frame | None:
        pair.pump()
        return lane.receive()

    return until(look)


def ends(pair: Pair, lane: Lane) -> bool:
    """Whether `lane` tells that its peer has gone, when read or written."""
    pair.pump()
    try:
        lane.receive()
        lane.send(b"\x90?")
    except LaneClosed:
        return True
    return False


def unix_pair() -> Iterator[Pair]:
    with UnixListener() as listener, connect_unix(listener.address) as sender:
        viewer = until(listener.accept)
        with viewer:
            yield Pair(sender, viewer, lambda: None)


def inprocess_pair() -> Iterator[Pair]:
    with InProcessListener() as listener, connect_inprocess(listener.address) as sender:
        viewer = until(listener.accept)
        with viewer:
            yield Pair(sender, viewer, lambda: None)


def zmq_pair() -> Iterator[Pair]:
    with ZmqRouter(["tcp://127.0.0.1:0"]) as router, ZmqLane.connect(router.addresses[0]) as sender:
        sender.send(b"\x90hello")
        viewer = router.lane(until(router.receive).identity)

        def pump() -> None:
            while (message := router.receive()) is not None:
                router.lane(message.identity).deliver(message.to_frame())

        yield Pair(sender, viewer, pump)


FORMS = {"unix": unix_pair, "inprocess": inprocess_pair, "zmq": zmq_pair}


class TestEveryLane:
    @pytest.fixture(params=list(FORMS))
    def pair(self, request: pytest.FixtureRequest) -> Iterator[Pair]:
        yield from FORMS[request.param]()

    @pytest.fixture(params=["to viewer", "to sender"])
    def way(self, request: pytest.FixtureRequest, pair: Pair) -> tuple[Lane, Lane]:
        lanes = (pair.sender, pair.viewer)
        return lanes if request.param == "to viewer" else lanes[::-1]

    def test_keeps_order_and_borders(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        sent = [b"\x90" + bytes([n % 256]) * n for n in range(200)]
        for data in sent:
            assert source.send(data)
        assert [arrive(pair, target).data for _ in sent] == sent
        assert target.receive() is None

    def test_gives_plain_bytes(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        assert source.send(b"\x90one")
        frame = arrive(pair, target)
        assert frame == Frame(b"\x90one", (), ())
        assert type(frame) is Frame
        assert type(frame.data) is bytes

    def test_carries_the_largest_frame(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        data = b"\x90" + os.urandom(1024) * ((min(source.max_frame, 4 << 20) - 1) // 1024)
        data = data.ljust(min(source.max_frame, 4 << 20), b"!")
        assert source.send(data)
        assert arrive(pair, target).data == data

    def test_refuses_empty_and_too_large_frames(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        for data in (b"", bytes(source.max_frame + 1)):
            with pytest.raises(InvalidItem, match=f"{len(data)} bytes"):
                source.send(data)
        assert source.send(b"\x90after")
        assert arrive(pair, target).data == b"\x90after"

    def test_passes_fds_or_says_that_it_does_not(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        read, write = os.pipe()
        try:
            if not source.carries_fds:
                with pytest.raises(InvalidItem, match="carries no file descriptors"):
                    source.send(b"\x90fd", fds=[write])
                os.close(read)
                return
            assert source.send(b"\x90fd", fds=[write, write])
        finally:
            os.close(write)
        frame = arrive(pair, target)
        try:
            assert frame.data == b"\x90fd"
            assert len(set(frame.fds) - {write}) >= 1
            assert not any(os.get_inheritable(fd) for fd in frame.fds)
            os.write(frame.fds[1], b"through")
            assert os.read(read, 100) == b"through"
        finally:
            for fd in (*frame.fds, read):
                os.close(fd)

    @pytest.mark.parametrize("pair", ["unix", "inprocess"], indirect=True)
    def test_refuses_fds_that_are_not_open_or_too_many(self, pair: Pair) -> None:
        read, write = os.pipe()
        os.close(write)
        try:
            with pytest.raises(InvalidItem, match=r"is not open|Bad file descriptor"):
                pair.sender.send(b"\x90", fds=[read, write])
            with pytest.raises(InvalidItem, match=f"{MAX_FDS} is the most"):
                pair.sender.send(b"\x90", fds=[read] * (MAX_FDS + 1))
        finally:
            os.close(read)
        assert pair.viewer.receive() is None

    def test_passes_blobs_or_says_that_it_does_not(
        self, pair: Pair, way: tuple[Lane, Lane]
    ) -> None:
        source, target = way
        blobs = [b"", b"small", bytes(range(256)) * 4096]
        views = [memoryview(blob) for blob in blobs]
        if not source.carries_blobs:
            with pytest.raises(InvalidItem, match="carries no blobs"):
                source.send(b"\x90blobs", blobs=views)
            return
        assert source.send(b"\x90blobs", blobs=views)
        frame = arrive(pair, target)
        assert frame.data == b"\x90blobs"
        assert [bytes(blob) for blob in frame.blobs] == blobs
        assert all(memoryview(blob).readonly for blob in frame.blobs)

    @pytest.mark.parametrize("pair", ["inprocess", "zmq"], indirect=True)
    def test_blobs_may_have_any_shape_but_no_gaps(self, pair: Pair) -> None:
        flat = memoryview(bytearray(range(240)))
        cube = flat.cast("H", (4, 5, 6))
        assert pair.sender.send(b"\x90", blobs=[cube, cube])
        assert [bytes(blob) for blob in arrive(pair, pair.viewer).blobs] == [bytes(flat)] * 2
        with pytest.raises(InvalidItem, match="blob 1 is not contiguous"):
            pair.sender.send(b"\x90", blobs=[flat, flat[::2]])
        with pytest.raises(InvalidItem, match=f"{MAX_BLOBS} is the most"):
            pair.sender.send(b"\x90", blobs=[flat] * (MAX_BLOBS + 1))
        assert pair.sender.send(b"\x90after")
        assert arrive(pair, pair.viewer).data == b"\x90after"

    def test_a_full_lane_gives_false_and_loses_nothing(
        self, pair: Pair, way: tuple[Lane, Lane]
    ) -> None:
        source, target = way
        accepted = 0
        filler = bytes(4000)
        deadline = time.monotonic() + 20
        while source.send(b"\x90%08d" % accepted + filler):
            accepted += 1
            assert time.monotonic() < deadline
        received = [arrive(pair, target).data for _ in range(accepted)]
        assert received == [b"\x90%08d" % n + filler for n in range(accepted)]
        until(lambda: source.send(b"\x90again"))
        assert arrive(pair, target).data == b"\x90again"

    def test_a_selector_sees_that_there_is_room(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        count = 0
        while source.send(b"\x90" + bytes(4000)):
            count += 1
        pair.pump()
        assert source.receive() is None
        for _ in range(count):
            arrive(pair, target)
        if source.polls_out:
            assert select.select([], [source], [], 20)[1]
        elif isinstance(source, InProcessLane):
            assert select.select([source], [], [], 0)[0]
            assert source.receive() is None
            assert not select.select([source], [], [], 0)[0]
        # ZeroMQ gives an edge, which came and went where the reads above were this thread's.
        assert until(lambda: source.send(b"\x90room"))

    def test_a_selector_sees_input(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, target = way
        pair.pump()
        assert target.receive() is None
        assert not target.has_input()
        assert source.send(b"\x90")
        assert select.select([target], [], [], 20)[0]
        assert arrive(pair, target).data == b"\x90"
        assert target.receive() is None
        pair.pump()
        until(lambda: not select.select([target], [], [], 0)[0])

    def test_what_was_sent_before_close_still_arrives(self, pair: Pair) -> None:
        for n in range(3):
            assert pair.sender.send(b"\x90%d" % n)
        pair.sender.close()
        assert [arrive(pair, pair.viewer).data for _ in range(3)] == [b"\x900", b"\x901", b"\x902"]
        until(lambda: ends(pair, pair.viewer))
        with pytest.raises(LaneClosed, match="closed it or died"):
            pair.viewer.send(b"\x90")
        with pytest.raises(LaneClosed, match="closed it or died"):
            pair.viewer.receive()

    def test_is_closed_here(self, pair: Pair, way: tuple[Lane, Lane]) -> None:
        source, _ = way
        source.close()
        source.close()
        assert source.fileno() == -1
        with pytest.raises(LaneClosed, match="on this side"):
            source.send(b"\x90")
        with pytest.raises(LaneClosed, match="on this side"):
            source.receive()

    @pytest.mark.parametrize("pair", ["unix", "inprocess"], indirect=True)
    def test_undelivered_fds_are_closed_with_the_lane(self, pair: Pair) -> None:
        read, write = os.pipe()
        assert pair.sender.send(b"\x90", fds=[write])
        os.close(write)
        assert not select.select([read], [], [], 0)[0]
        pair.viewer.close()
        gc.collect()
        # Nobody holds the writing end any more: end of file.
        assert select.select([read], [], [], 20)[0]
        assert os.read(read, 1) == b""
        os.close(read)

    @pytest.mark.parametrize("pair", ["unix", "inprocess"], indirect=True)
    def test_a_peer_that_closed_with_frames_unread_still_gives_its_own(self, pair: Pair) -> None:
        """The system reports the reset before the frames; nothing of them may be lost."""
        read, write = os.pipe()
        assert pair.viewer.send(b"\x90never read")
        assert pair.sender.send(b"\x90one", fds=[write])
        assert pair.sender.send(b"\x90two")
        pair.sender.close()
        first = arrive(pair, pair.viewer)
        assert (first.data, len(first.fds)) == (b"\x90one", 1)
        assert arrive(pair, pair.viewer).data == b"\x90two"
        for _ in range(2):
            with pytest.raises(LaneClosed, match="closed it or died"):
                pair.viewer.receive()
            assert select.select([pair.viewer], [], [], 0)[0]
        for fd in (read, write, *first.fds):
            os.close(fd)
