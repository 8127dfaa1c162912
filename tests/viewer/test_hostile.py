"""Sessions that break the rules or use up what there is: they end, and the one beside goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import messages as m
from openhcs_stream.pixels import MAX_ARENA_NBYTES, PixelPool
from openhcs_stream.stream import connect
from openhcs_stream.testing import RunningReceiver, run_receiver
from openhcs_stream.transport import LaneClosed, UnixLane, ZmqLane, connect_unix, machine_id
from openhcs_stream.viewer import MemoryViewer, _serve, _sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20


@pytest.fixture
def running() -> Iterator[RunningReceiver[Any]]:
    with run_receiver(MemoryViewer(), memory_nbytes=64 * MIB, port=0) as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def a_good_sender_is_served(running: RunningReceiver[Any]) -> Iterator[None]:
    """All the while; and what it shows is what it sent."""
    with connect(running.address, name="good") as stream:
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
        stream.image(pixels, name="before").wait()
        yield
        stream.image(pixels + 1, name="after").wait()
        stream.flush()
        only_the_good_one_is_left(running)
        (layer,) = [each for each in running.viewer.layers.values() if each.title == "after"]
        np.testing.assert_array_equal(layer.stack.planes[()], pixels + 1)
        told = stream.request("status")["streams"]
        assert [each["name"] for each in told] == ["good"]


def until(reached: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := reached()):
        assert time.monotonic() < deadline
        select.select([], [], [], 0.002)
    return value


def only_the_good_one_is_left(running: RunningReceiver[Any]) -> None:
    until(lambda: len(running.receiver.status()["streams"]) == 1)


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Hostile:
    """A session by hand. It is this process's own, so that it is let in."""

    numbers = itertools.count(1)

    def __init__(self, running: RunningReceiver[Any], *, linked: bool) -> None:
        self.lane = ZmqLane.connect(running.address)
        self.session = f"{next(self.numbers):032x}"
        self.heard: list[m.Message] = []
        self.side: UnixLane | None = None
        self.control(
            m.Hello(
                1, 0, self.session, "stream", "hostile", "u",
                machine_id() if linked else "elsewhere", os.getpid(), "",
                ("unix",) if linked else (),
            )
        )  # fmt: skip
        welcome = self.hear(m.Welcome)
        if linked:
            self.side = connect_unix(welcome.lane)
            self.data(m.LaneOpened(self.session, welcome.key))

    def control(self, message: m.Message, *blobs: bytes) -> None:
        assert self.lane.send(m.encode(message), blobs=[memoryview(each) for each in blobs])

    def data(self, message: m.Message, *blobs: bytes, fds: tuple[int, ...] = ()) -> None:
        if self.side is None:
            self.control(message, *blobs)
            return
        frame = m.encode(message)
        with contextlib.suppress(LaneClosed):  # it may have been thrown out already
            until(lambda: self.side is None or self.side.send(frame, fds=fds))

    def hear(self, kind: type[Any] | tuple[type[Any], ...]) -> Any:
        def look() -> Any:
            for lane in (self.lane, self.side):
                with contextlib.suppress(LaneClosed):  # the reason comes by the other
                    while lane is not None and (frame := lane.receive()) is not None:
                        self.heard.append(m.decode(frame.data))
            return next((each for each in self.heard if isinstance(each, kind)), None)

        return until(look)

    def is_thrown_out(self) -> str:
        """It was told why, and its lanes have ended."""
        told = self.hear((m.Bye, m.Refusal))
        if self.side is not None:
            with pytest.raises(LaneClosed):
                until(lambda: self.side is not None and self.side.receive() and False)
        self.close()
        return told.reason if isinstance(told, m.Bye) else str(told.what)

    def close(self) -> None:
        with contextlib.suppress(LaneClosed):
            self.lane.send(m.encode(m.Bye()))
        self.lane.close()
        if self.side is not None:
            self.side.close()

    def layer(self, spec: m.LayerSpec | None = None, number: int = 0) -> None:
        self.data(m.LayerDeclared(number, spec or m.LayerSpec("image", "raw", "YX")))


@pytest.fixture(params=[True, False], ids=["unix", "zeromq"])
def hostile(request: pytest.FixtureRequest, running: RunningReceiver[Any]) -> Iterator[Hostile]:
    peer = Hostile(running, linked=request.param)
    yield peer
    peer.close()
    only_the_good_one_is_left(running)


def item(seq: int, shape: tuple[int, ...], dtype: str, nbytes: int, *parts: m.Part) -> m.Items:
    return m.Items((m.Item(seq, 0, (), shape, dtype, nbytes, parts),))


class TestSizes:
    @pytest.mark.parametrize("power", [34, 40, 50, 53])
    def test_a_huge_item_in_parts_is_refused_before_memory_is_made(
        self, hostile: Hostile, running: RunningReceiver[Any], power: int
    ) -> None:
        hostile.layer()
        nbytes = 1 << power
        inline = hostile.side is None
        part = m.Part(-1, 0, 4, 1) if inline else m.Part(0, 0, 4, 1)
        if not inline:
            offer_an_arena(hostile)
        hostile.data(item(0, (nbytes >> 10, 1 << 10), "|u1", nbytes, part), b"abcd")
        report = hostile.hear(m.Report)
        assert f"no room for {nbytes + 1024} more" in report.failed[0].reason
        assert running.receiver._keeper.budget.counted_nbytes < 2048
        # What still comes of it is thrown away, and its memory is given back.
        more = m.Part(-1, 0, 4, 77) if inline else m.Part(0, 0, 4, 77)
        hostile.heard.clear()
        hostile.data(m.More(0, (more,)), b"abcd")
        assert hostile.hear(m.Report).released == (77,)

    def test_what_failed_is_not_shown_by_its_last_part(
        self, running: RunningReceiver[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All parts are in one message; the first finds no room, and by the last there is some."""
        peer = Hostile(running, linked=False)
        peer.layer()
        keeper = running.receiver._keeper
        make_room, asked = keeper.make_room, []

        def once(nbytes: int) -> None:
            asked.append(nbytes)
            if len(asked) == 1:
                raise MemoryError("no room at first")
            make_room(nbytes)

        monkeypatch.setattr(keeper, "make_room", once)
        parts = [m.Part(-1, number, 4, number + 1) for number in range(4)]
        peer.control(item(0, (4, 4), "|u1", 16, *parts), *[b"abcd"] * 4)
        report = peer.hear(m.Report)
        monkeypatch.undo()
        assert [each.seq for each in report.failed] == [0]
        assert report.displayed == report.received == ()
        assert len(asked) == 1
        assert all(each.title != "raw" for each in running.viewer.layers.values())
        peer.close()
        only_the_good_one_is_left(running)

    @pytest.mark.parametrize(
        ("shape", "dtype", "nbytes"),
        [
            ((2, 2), "|u1", 5),
            ((2**53, 2**53), "<f8", 0),
            ((2**53, 2**11), "|u1", 0),
            ((2**32, 2**32), "|u1", 2**53),
            ((2, 2), "xyz", 4),
            ((2, 2), "|O8", 32),
            ((), "|u1", 2),
            ((0,), "|u1", 1),
        ],
        ids=str,
    )
    def test_numbers_that_do_not_fit_each_other(
        self, hostile: Hostile, shape: tuple[int, ...], dtype: str, nbytes: int
    ) -> None:
        hostile.layer()
        if hostile.side is not None:
            offer_an_arena(hostile)
        part = m.Part(-1 if hostile.side is None else 0, 0, nbytes, 1)
        hostile.data(item(0, shape, dtype, nbytes, part), bytes(min(nbytes, 4096)))
        assert hostile.is_thrown_out()

    def test_an_item_of_too_many_planes(self, hostile: Hostile) -> None:
        hostile.layer(m.LayerSpec("image", "raw", "ZYX"))
        nbytes = 1 << 20
        if hostile.side is not None:
            offer_an_arena(hostile, nbytes)
        part = m.Part(-1 if hostile.side is None else 0, 0, nbytes, 1)
        hostile.data(item(0, (nbytes, 1, 1), "|u1", nbytes, part), bytes(nbytes))
        assert "one item may have 65536" in hostile.hear(m.Report).failed[0].reason

    def test_a_list_that_says_it_is_larger_than_it_is(self, hostile: Hostile) -> None:
        import msgspec

        block = msgspec.msgpack.encode([3, 1 << 24, b"", b"", 4, b""])
        hostile.layer(m.LayerSpec("rois", "cells", "YX"))
        if hostile.side is not None:
            offer_an_arena(hostile, content=block)
        part = m.Part(-1 if hostile.side is None else 0, 0, len(block), 1)
        hostile.data(item(0, (len(block),), "|u1", len(block), part), block)
        assert "there is no room for" in hostile.hear(m.Report).failed[0].reason

    def test_a_message_that_is_too_large(self, running: RunningReceiver[Any]) -> None:
        peer = Hostile(running, linked=False)
        peer.lane.max_frame = 8 * MIB
        # A million empty lists: they would take a hundred times as much.
        peer.lane.send(m.encode(m.Request(1, "read", {"x": [[]] * (2 * MIB)})))
        assert "1048576 is the most" in peer.is_thrown_out()

    def test_declarations_without_end(self, hostile: Hostile) -> None:
        spec = m.LayerSpec("image", "x", "YX", tuple("c" * 4000 for _ in range(8)))
        for number in range(_sessions.MAX_DECLARED_NBYTES // 32_000 + 2):
            hostile.layer(spec, number)
        assert "declared layers of more than" in hostile.is_thrown_out()


class TestMemoryOfOthers:
    def test_without_seals(self, running: RunningReceiver[Any]) -> None:
        fd = os.memfd_create("test")
        os.ftruncate(fd, 4096)
        self._refused(running, fd, 4096, "without the seals")

    def test_of_a_file(self, running: RunningReceiver[Any]) -> None:
        self._refused(running, os.open("/etc/passwd", os.O_RDONLY), 100, "without the seals")

    def test_of_a_folder(self, running: RunningReceiver[Any]) -> None:
        self._refused(running, os.open("/", os.O_RDONLY), 100, "without the seals")

    def test_of_a_socket(self, running: RunningReceiver[Any]) -> None:
        with socket.socket() as sock:
            self._refused(running, os.dup(sock.fileno()), 100, "without the seals")

    @pytest.mark.parametrize("nbytes", [0, MAX_ARENA_NBYTES + 1, 2**53])
    def test_of_an_impossible_size(self, running: RunningReceiver[Any], nbytes: int) -> None:
        with PixelPool(quota_nbytes=MIB) as pool:
            slot = pool.acquire(4096)
            assert slot is not None
            self._refused(running, os.dup(slot.arena.fd), nbytes, "an arena of")

    def _refused(self, running: RunningReceiver[Any], fd: int, nbytes: int, reason: str) -> None:
        peer = Hostile(running, linked=True)
        peer.data(m.ArenaOffer(0, nbytes), fds=(fd,))
        os.close(fd)
        assert reason in peer.is_thrown_out()

    @pytest.mark.parametrize("count", [0, 2, 4])
    def test_with_too_few_or_too_many_descriptors(
        self, running: RunningReceiver[Any], count: int
    ) -> None:
        peer = Hostile(running, linked=True)
        with PixelPool(quota_nbytes=MIB) as pool:
            slot = pool.acquire(4096)
            assert slot is not None
            peer.data(m.ArenaOffer(0, slot.arena.nbytes), fds=(slot.arena.fd,) * count)
            assert f"{count} descriptors" in peer.is_thrown_out()

    def test_beyond_what_it_offered(self, running: RunningReceiver[Any]) -> None:
        for part in (
            m.Part(0, 0, 8192, 1),
            m.Part(0, 4096, 4096, 1),
            m.Part(0, 2**53, 4096, 1),
            m.Part(1, 0, 4096, 1),
        ):
            peer = Hostile(running, linked=True)
            offer_an_arena(peer, 4096, exactly=True)
            peer.layer()
            peer.data(item(0, (64, part.nbytes // 64), "|u1", part.nbytes, part))
            assert "arena" in peer.is_thrown_out()

    def test_of_a_session_beside_it(self, running: RunningReceiver[Any]) -> None:
        """Numbers of arenas are each session's own."""
        one, other = Hostile(running, linked=True), Hostile(running, linked=True)
        offer_an_arena(one)
        other.layer()
        other.data(item(0, (2, 2), "|u1", 4, m.Part(0, 0, 4, 1)))
        assert "named arena 0, which it has not offered" in other.is_thrown_out()
        one.close()
        only_the_good_one_is_left(running)

    def test_no_descriptor_is_left_open_whatever_it_comes_with(
        self, running: RunningReceiver[Any]
    ) -> None:
        fd = os.memfd_create("test")
        session = f"{7:032x}"
        frames = [
            m.encode(m.Ping(1)),
            m.encode(m.Items(())),
            m.encode(m.ArenaOffer(0, 4096)),
            m.encode(m.ArenaRetired(3)),
            m.encode(m.Bye()),
            m.encode(m.LaneOpened(session, "0")),
            b"\x91\xc1",
            b"no message at all",
            os.urandom(100),
        ]
        before = count_fds()
        for round_ in range(60):
            frame = frames[round_ % len(frames)]
            if round_ % 2:
                peer = Hostile(running, linked=True)
                assert peer.side is not None
                with contextlib.suppress(LaneClosed):
                    peer.side.send(frame, fds=(fd,) * (1 + round_ % 4))
                peer.close()
            else:  # a lane that never says whose it is, or says it with descriptors
                lane = connect_unix(running.receiver._side_address)
                lane.send(frame, fds=(fd,) * (1 + round_ % 4))
                lane.close()
        os.close(fd)
        until(lambda: count_fds() <= before)


class TestUsingUp:
    def test_lanes_that_say_nothing_are_closed_when_there_are_many(
        self, running: RunningReceiver[Any]
    ) -> None:
        with contextlib.ExitStack() as stack:
            lanes = [
                stack.enter_context(connect_unix(running.receiver._side_address))
                for _ in range(_serve.MAX_NEW_LANES * 3)
            ]

            def closed() -> int:
                count = 0
                for lane in lanes:
                    try:
                        lane.receive()
                    except LaneClosed:
                        count += 1
                return count

            until(lambda: closed() == _serve.MAX_NEW_LANES * 2)
        # The pixels of one that comes now go by a lane all the same.
        with connect(running.address, name="another") as stream:
            # What it says by its lane may come a little after its request.
            until(lambda: all(x["shared_memory"] for x in stream.request("status")["streams"]))

    def test_no_room_for_senders_that_are_gone_before_they_are_told(
        self,
        running: RunningReceiver[Any],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        gone = threading.Event()

        def none_spare() -> int:
            gone.wait(10)
            return 0

        monkeypatch.setattr(_serve, "spare_descriptors", none_spare)
        gone.set()
        for _ in range(40):
            with ZmqLane.connect(running.address) as lane:
                until(partial(getattr, lane, "connected"))
                gone.clear()
                lane.send(m.encode(m.Ping(1)))
            gone.set()
        # One that waits for its answer hears it, and those that are let in already go on.
        with ZmqLane.connect(running.address) as lane:
            lane.send(m.encode(m.Ping(1)))
            refusal = m.decode(until(lane.receive).data)
        assert isinstance(refusal, m.Refusal)
        assert "hardly any more files" in refusal.what
        assert 1 <= caplog.text.count("limit reached") <= 3

    def test_requests_that_wait_for_the_window(self, running: RunningReceiver[Any]) -> None:
        busy = running.viewer.layers = Slow(running.viewer.layers)
        peer = Hostile(running, linked=False)
        for number in range(_serve.MAX_ASKED * 2):
            request = m.encode(m.Request(number, "layers"))
            until(partial(peer.lane.send, request))  # it is full at times
            while (frame := peer.lane.receive()) is not None:
                peer.heard.append(m.decode(frame.data))
        del busy
        until(lambda: self._answered(peer) == _serve.MAX_ASKED * 2)
        peer.close()
        only_the_good_one_is_left(running)

    def _answered(self, peer: Hostile) -> int:
        while (frame := peer.lane.receive()) is not None:
            peer.heard.append(m.decode(frame.data))
        return sum(isinstance(each, m.Reply) for each in peer.heard)

    def test_who_reads_nothing_is_not_told_for_ever(
        self, running: RunningReceiver[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sessions, "MAX_OUTBOX_NBYTES", 1 * MIB)
        peer = Hostile(running, linked=True)
        assert peer.side is not None

        def gone() -> bool:
            # Each answer waits in the lane, then at ZeroMQ, then in the viewer.
            with contextlib.suppress(LaneClosed):
                for number in range(200):
                    peer.lane.send(m.encode(m.Request(number, "status")))
            return len(running.receiver.status()["streams"]) == 1

        until(gone, 40)
        peer.close()

    def test_more_shared_memory_than_the_machine_has(
        self, running: RunningReceiver[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_serve, "MAX_MAPPED_NBYTES", 256 * MIB)
        peer = Hostile(running, linked=True)
        fd = sealed(64 * MIB)
        for number in range(5):
            peer.data(m.ArenaOffer(number, 64 * MIB), fds=(fd,))
        os.close(fd)
        assert "are mapped already" in peer.is_thrown_out()


class Slow(dict[Any, Any]):
    """Layers that take a moment to be asked for."""

    def values(self) -> Any:
        select.select([], [], [], 0.0005)
        return super().values()


def sealed(nbytes: int) -> int:
    import fcntl

    from openhcs_stream.pixels._memory import SIZE_SEALS

    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    fcntl.fcntl(fd, 1033, SIZE_SEALS)
    return fd


def offer_an_arena(
    peer: Hostile, nbytes: int = 4096, *, content: bytes = b"", exactly: bool = False
) -> None:
    nbytes = nbytes if exactly else -(-nbytes // 4096) * 4096
    fd = sealed(nbytes) if not content else -1
    if content:
        import fcntl

        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.write(fd, content)
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, 1033, 0x06)
    peer.data(m.ArenaOffer(0, nbytes), fds=(fd,))
    os.close(fd)
