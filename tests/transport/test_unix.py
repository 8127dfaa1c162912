from __future__ import annotations

import array
import contextlib
import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from openhcs_stream.errors import (
    DeadlineExceeded,
    InvalidItem,
    ProtocolViolation,
    Refused,
    ViewerUnreachable,
)
from openhcs_stream.transport import (
    MAX_FDS,
    UNIX_MAX_FRAME,
    LaneClosed,
    PeerCredentials,
    UnixLane,
    UnixListener,
    _unix,
    connect_unix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
NOBODY = 65534


def until(produce: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    deadline = time.monotonic() + timeout_s
    while (value := produce()) is None or value is False:
        assert time.monotonic() < deadline, f"nothing in {timeout_s} s"
        select.select([], [], [], 0.001)
    return value


@contextlib.contextmanager
def child(code: str, *arguments: str, uid: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run `code` in a Python of its own that can import this package."""
    if uid is not None:
        # Not by Popen: another user may be unable to read this interpreter and its packages.
        code = f"import os, zmq.backend, openhcs_stream.transport; os.setuid({uid})\n" + code
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def pair() -> Iterator[tuple[UnixLane, UnixLane]]:
    first, second = UnixLane.pair()
    with first, second:
        yield first, second


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, UnixLane]]:
    """A plain socket that may do anything, and the lane at its other end."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with first, UnixLane(second) as lane:
        yield first, lane


def scm(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


def test_finds_its_listener_by_a_random_name() -> None:
    with UnixListener() as one, UnixListener() as other:
        assert one.address.startswith("unix:openhcs-stream-")
        assert one.address != other.address
        with connect_unix(one.address) as lane:
            assert other.accept() is None
            assert select.select([one], [], [], 20)[0]
            accepted = one.accept()
            assert accepted is not None
            me = PeerCredentials(os.getpid(), os.geteuid(), os.getegid())
            with accepted:
                assert lane.peer == accepted.peer == me
            assert one.accept() is None
        with pytest.raises(LaneClosed, match="on this side"):
            _ = lane.peer


def test_leaves_no_file_and_frees_its_name() -> None:
    with UnixListener() as first:
        name = first.address.removeprefix("unix:")
        with pytest.raises(InvalidItem, match="Address already in use"):
            UnixListener(name)
    first.close()
    assert first.fileno() == -1
    with pytest.raises(LaneClosed, match="on this side"):
        first.accept()
    with pytest.raises(ViewerUnreachable, match="nobody listens at unix:openhcs-stream-"):
        connect_unix(first.address)
    UnixListener(name).close()


@pytest.mark.parametrize("address", ["ipc:///a", "tcp://127.0.0.1:1", "inproc://a", "nonsense"])
def test_connects_to_unix_addresses_only(address: str) -> None:
    with pytest.raises(InvalidItem, match=address):
        connect_unix(address)


def test_a_system_without_unix_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unix, "has_unix_lanes", lambda: False)
    for call in (UnixLane.pair, UnixListener, lambda: connect_unix("unix:a")):
        with pytest.raises(InvalidItem, match="has no unix lanes"):
            call()


def test_waits_for_a_busy_listener_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unix, "_BACKLOG", 0)
    with UnixListener() as listener, contextlib.ExitStack() as lanes:
        started = time.monotonic()

        def fill() -> None:
            for _ in range(8):
                lanes.enter_context(connect_unix(listener.address, timeout_s=0.05))

        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            fill()
        assert time.monotonic() - started < 10
        accepted: list[UnixLane] = []
        thread = threading.Thread(target=lambda: accepted.append(until(listener.accept)))
        thread.start()
        lanes.enter_context(connect_unix(listener.address, timeout_s=20))
        thread.join()
        accepted.append(until(listener.accept))
        for lane in accepted:
            lane.close()


def test_the_frame_limit_fits_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unix, "_SEND_BUFFER", 16 << 10)
    first, second = UnixLane.pair()
    with first, second:
        assert first.max_frame < 33 << 10 < UNIX_MAX_FRAME
        data = os.urandom(first.max_frame)
        assert first.send(data)
        frame = second.receive()
        assert frame is not None
        assert frame.data == data


def test_a_frame_that_is_too_large_is_a_violation(raw: tuple[socket.socket, UnixLane]) -> None:
    sock, lane = raw
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    read, write = os.pipe()
    sock.send(bytes(UNIX_MAX_FRAME))
    sock.sendmsg([bytes(UNIX_MAX_FRAME + 1)], scm([write]))
    sock.send(b"after")
    os.close(write)
    frame = lane.receive()
    assert frame is not None
    assert len(frame.data) == UNIX_MAX_FRAME
    with pytest.raises(ProtocolViolation, match=f"more than {UNIX_MAX_FRAME} bytes"):
        lane.receive()
    assert os.read(read, 1) == b""  # its descriptor was closed
    os.close(read)
    frame = lane.receive()
    assert frame is not None
    assert frame.data == b"after"


def test_too_many_fds_are_a_violation_and_are_closed(raw: tuple[socket.socket, UnixLane]) -> None:
    sock, lane = raw
    read, write = os.pipe()
    sock.sendmsg([b"x"], scm([write] * (MAX_FDS + 1)))
    os.close(write)
    with pytest.raises(ProtocolViolation, match=f"more than {MAX_FDS} at once"):
        lane.receive()
    assert os.read(read, 1) == b""
    os.close(read)


def test_fds_without_data_end_the_lane_and_are_closed(raw: tuple[socket.socket, UnixLane]) -> None:
    sock, lane = raw
    read, write = os.pipe()
    sock.sendmsg([b""], scm([write]))
    os.close(write)
    with pytest.raises(LaneClosed):
        lane.receive()
    assert os.read(read, 1) == b""
    os.close(read)


def test_other_ancillary_data_is_no_fd(raw: tuple[socket.socket, UnixLane]) -> None:
    sock, lane = raw
    lane._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.send(b"x")
    frame = lane.receive()
    assert frame is not None
    assert frame == (b"x", (), ())


class BrokenSocket:
    """A socket on which a call fails in a way that can't be brought about."""

    def __init__(self, number: int) -> None:
        self._error = OSError(number, os.strerror(number))

    def send(self, *_: object) -> int:
        raise self._error

    def recvmsg_into(self, *_: object) -> int:
        raise self._error

    def accept(self) -> None:
        raise self._error

    def fileno(self) -> int:
        return 0


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ETOOMANYREFS, errno.EAGAIN])
def test_a_system_short_of_memory_is_a_full_lane(
    pair: tuple[UnixLane, UnixLane], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair[0], "_sock", BrokenSocket(number))
    assert pair[0].send(b"x") is False


def test_unknown_errors_are_raised_as_they_are(
    pair: tuple[UnixLane, UnixLane], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = BrokenSocket(errno.EIO)
    monkeypatch.setattr(pair[0], "_sock", broken)
    monkeypatch.setattr(pair[0], "_recvmsg_into", broken.recvmsg_into)
    for call in (lambda: pair[0].send(b"x"), pair[0].receive):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            call()
        assert not isinstance(caught.value, LaneClosed)
    with UnixListener() as listener, monkeypatch.context() as patch:
        patch.setattr(listener, "_sock", broken)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            listener.accept()


def test_an_error_after_a_reset_is_explained(
    pair: tuple[UnixLane, UnixLane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair[0], "_recvmsg_into", BrokenSocket(errno.ECONNRESET).recvmsg_into)
    with pytest.raises(LaneClosed, match="closed it or died"):
        pair[0].receive()


def test_kill_is_the_end_of_file_after_what_was_sent() -> None:
    code = """
import sys, time
from openhcs_stream.transport import connect_unix
lane = connect_unix(sys.argv[1])
for n in range(100):
    assert lane.send(b"%d" % n)
print("sent", flush=True)
sys.stdin.read()
"""
    with UnixListener() as listener, child(code, listener.address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        lane = listener.accept()
        assert lane is not None
        with lane:
            peer = lane.peer
            assert peer is not None
            assert peer.pid == process.pid
            assert lane.send(b"never read")
            os.kill(process.pid, signal.SIGKILL)
            process.wait(20)
            frames = [until(lane.receive).data for _ in range(100)]
            assert frames == [b"%d" % n for n in range(100)]
            assert select.select([lane], [], [], 20)[0]
            with pytest.raises(LaneClosed):
                lane.receive()
            with pytest.raises(LaneClosed):
                lane.send(b"x")


CONNECT_AS_OTHER = """
import sys
from openhcs_stream.errors import StreamError
from openhcs_stream.transport import connect_unix
try:
    lane = connect_unix(sys.argv[1], allow_other_users=sys.argv[2] == "yes")
except StreamError as error:
    print(type(error).__name__, flush=True)
else:
    print("connected", flush=True)
    sys.stdin.readline()
    try:
        lane.receive()
        print("open", flush=True)
    except ConnectionError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
class TestOtherUsers:
    def test_are_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            UnixListener() as listener,
            child(CONNECT_AS_OTHER, listener.address, "yes", uid=NOBODY) as other,
        ):
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "connected\n"
            # Ours waits behind it in the backlog and is found in the same call.
            with connect_unix(listener.address) as mine, until(listener.accept) as accepted:
                assert mine.send(b"x")
                assert accepted.receive() is not None
            print(file=other.stdin, flush=True)
            assert other.stdout.readline() == "LaneClosed\n"
        assert "another user" in caplog.text

    def test_are_accepted_where_asked_for(self) -> None:
        with (
            UnixListener(allow_other_users=True) as listener,
            child(CONNECT_AS_OTHER, listener.address, "yes", uid=NOBODY) as other,
        ):
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "connected\n"
            with until(listener.accept) as lane:
                assert lane.peer is not None
                assert lane.peer.uid == NOBODY
                print(file=other.stdin, flush=True)
                assert other.stdout.readline() == "open\n"

    def test_do_not_talk_to_a_listener_of_ours(self) -> None:
        with (
            UnixListener() as listener,
            child(CONNECT_AS_OTHER, listener.address, "no", uid=NOBODY) as other,
        ):
            assert other.stdout is not None
            assert other.stdout.readline() == "Refused\n"


def test_a_listener_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with UnixListener() as listener:
        monkeypatch.setattr(_unix, "peer_credentials", lambda _: PeerCredentials(1, 4242, 4242))
        with pytest.raises(Refused, match="belongs to another user"):
            connect_unix(listener.address)
        assert listener.accept() is None
        connect_unix(listener.address, allow_other_users=True).close()


def test_a_process_without_free_fds_turns_peers_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with UnixListener() as listener, connect_unix(listener.address) as lane:
        highest = max(int(number) for number in os.listdir("/proc/self/fd"))
        fillers = [os.dup(lane.fileno())]
        while fillers[-1] < highest:
            fillers.append(os.dup(lane.fileno()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
        try:
            assert listener.accept() is None
            assert not select.select([listener], [], [], 0)[0]  # or the loop would spin
            assert listener.accept() is None
            with pytest.raises(LaneClosed):
                lane.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in fillers:
                os.close(number)
        with connect_unix(listener.address), until(listener.accept):
            pass  # it works again
    assert "may not open more files" in caplog.text


def test_threads_send_and_receive_at_once(pair: tuple[UnixLane, UnixLane]) -> None:
    first, second = pair
    count = 5000
    got: dict[str, list[bytes]] = {"first": [], "second": []}

    def send(lane: UnixLane) -> None:
        for n in range(count):
            while not lane.send(b"%d" % n):
                select.select([], [lane], [], 20)

    def receive(lane: UnixLane, name: str) -> None:
        while len(got[name]) < count:
            if (frame := lane.receive()) is None:
                select.select([lane], [], [], 20)
            else:
                got[name].append(frame.data)

    threads = [
        threading.Thread(target=send, args=(first,)),
        threading.Thread(target=send, args=(second,)),
        threading.Thread(target=receive, args=(first, "first")),
        threading.Thread(target=receive, args=(second, "second")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got["first"] == got["second"] == [b"%d" % n for n in range(count)]


def test_closing_in_one_thread_ends_the_other(pair: tuple[UnixLane, UnixLane]) -> None:
    first, _ = pair
    ended = threading.Event()
    started = threading.Event()

    def spin() -> None:
        with contextlib.suppress(LaneClosed):
            while True:
                first.receive()
                started.set()
        ended.set()

    thread = threading.Thread(target=spin)
    thread.start()
    assert started.wait(20)
    first.close()
    assert ended.wait(20)
    thread.join()
