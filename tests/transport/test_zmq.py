from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import zmq

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.transport import (
    MAX_BLOBS,
    LaneClosed,
    PeerCredentials,
    RouterMessage,
    ZmqLane,
    ZmqRouter,
    _socket_files,
    _zmq,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
NOBODY = 65534
ME = PeerCredentials(os.getpid(), os.geteuid(), os.getegid())


def until(produce: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    deadline = time.monotonic() + timeout_s
    while (value := produce()) is None or value is False:
        assert time.monotonic() < deadline, f"nothing in {timeout_s} s"
        select.select([], [], [], 0.001)
    return value


def ended(lane: ZmqLane) -> bool:
    try:
        lane.receive()
    except LaneClosed:
        return True
    return False


def _cannot_send(lane: ZmqLane) -> bool:
    try:
        lane.send(b"\x90")
    except LaneClosed:
        return True
    return False


@contextlib.contextmanager
def plain_socket(kind: int, address: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket of a program that knows nothing of this package."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RCVTIMEO, 20_000)
    try:
        sock.connect(address)
        yield sock
    finally:
        sock.close()
        context.term()


@contextlib.contextmanager
def child(code: str, *arguments: str, uid: int | None = None) -> Iterator[subprocess.Popen[str]]:
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
def router() -> Iterator[ZmqRouter]:
    with ZmqRouter(["tcp://127.0.0.1:0"]) as router:
        yield router


class TestMessages:
    def test_of_a_native_peer(self, router: ZmqRouter) -> None:
        with ZmqLane.connect(router.addresses[0], identity=b"worker") as lane:
            assert lane.send(b"\x92hello", blobs=[memoryview(b"blob")])
            message = until(router.receive)
            assert message.identity == b"worker"
            assert message.is_native
            assert not message.delimited
            assert [bytes(frame) for frame in message.frames] == [b"\x92hello", b"blob"]
            assert message.to_frame().data == b"\x92hello"
            assert [bytes(blob) for blob in message.to_frame().blobs] == [b"blob"]
            assert message.peer_address == "127.0.0.1"
            assert message.peer is None
            assert message.local
            assert router.receive() is None

    def test_of_a_req_peer(self, router: ZmqRouter) -> None:
        with plain_socket(zmq.REQ, router.addresses[0]) as sender:
            sender.send(json.dumps({"type": "batch"}).encode())
            message = until(router.receive)
            assert message.delimited
            assert not message.is_native
            assert [bytes(frame) for frame in message.frames] == [b'{"type": "batch"}']
            assert router.send(message.identity, [b'{"status": "success"}'], delimited=True)
            assert json.loads(sender.recv()) == {"status": "success"}

    def test_of_a_req_peer_with_nothing_in_it(self, router: ZmqRouter) -> None:
        with plain_socket(zmq.REQ, router.addresses[0]) as sender:
            sender.send(b"")
            message = until(router.receive)
            assert message.delimited
            assert [bytes(frame) for frame in message.frames] == [b""]
        with plain_socket(zmq.DEALER, router.addresses[0]) as dealer:
            dealer.send(b"")
            message = until(router.receive)
            assert message.delimited
            assert message.frames == ()
            assert not message.is_native

    def test_of_a_dealer_that_sends_json(self, router: ZmqRouter) -> None:
        with plain_socket(zmq.DEALER, router.addresses[0]) as dealer:
            dealer.send(b'{"type": "batch"}')
            message = until(router.receive)
            assert not message.delimited
            assert not message.is_native
            assert router.send(message.identity, [b"{}", b"more"])
            assert dealer.recv_multipart() == [b"{}", b"more"]

    def test_of_a_native_req_peer_is_not_native(self, router: ZmqRouter) -> None:
        with plain_socket(zmq.REQ, router.addresses[0]) as sender:
            sender.send(b"\x92")
            assert not until(router.receive).is_native

    def test_over_ipc_tells_the_process(self, tmp_path: Path) -> None:
        with (
            ZmqRouter([f"ipc://{tmp_path}/v"]) as router,
            ZmqLane.connect(router.addresses[0]) as lane,
        ):
            assert lane.send(b"\x90")
            message = until(router.receive)
            assert message.peer == ME
            assert message.peer_address == ""
            assert message.local

    def test_from_a_system_that_does_not_tell(self, router: ZmqRouter) -> None:
        message = RouterMessage(b"", (), False, zmq.Frame(b""))
        assert message.peer_address == ""
        assert message.peer is None
        assert message.local

    def test_with_too_many_parts_are_dropped(
        self, router: ZmqRouter, caplog: pytest.LogCaptureFixture
    ) -> None:
        with plain_socket(zmq.DEALER, router.addresses[0]) as dealer:
            dealer.send_multipart([b"\x90"] * (MAX_BLOBS + 3))
            dealer.send(b"\x90after")
            assert until(router.receive).to_frame().data == b"\x90after"
        assert f"more than {MAX_BLOBS} parts" in caplog.text

    def test_that_are_too_large_end_the_connection(self) -> None:
        with ZmqRouter(["tcp://127.0.0.1:0"], max_frame=1000) as router:
            with ZmqLane.connect(router.addresses[0]) as lane:
                assert lane.send(b"\x90fits")
                assert until(router.receive).is_native
                assert lane.send(bytes(2000))
                assert until(lambda: ended(lane))
            assert router.receive() is None

    @pytest.mark.parametrize(
        ("text", "address", "peer"),
        [
            ("127.0.0.1", "127.0.0.1", None),
            ("fe80::1:2:3", "fe80::1:2:3", None),
            ("localhost:1000:100:42", "", PeerCredentials(42, 1000, 100)),
            ("", "", None),
        ],
    )
    def test_peer_addresses(self, text: str, address: str, peer: PeerCredentials | None) -> None:
        assert _zmq._parse_peer(text) == (address, peer)


class TestRouterSend:
    def test_to_a_peer_that_was_never_there(self, router: ZmqRouter) -> None:
        with pytest.raises(LaneClosed, match="closed it or died"):
            router.send(b"nobody", [b"\x90"])

    def test_what_can_not_be_sent(self, router: ZmqRouter) -> None:
        with pytest.raises(InvalidItem, match="no frames"):
            router.send(b"nobody", [])
        with pytest.raises(InvalidItem, match="not contiguous"):
            router.send(b"nobody", [memoryview(b"abcd")[::2]])
        with pytest.raises(InvalidItem, match="bytes"):
            router.send(b"nobody", [b"\x90", bytes(_zmq.ZMQ_MAX_FRAME + 1)])

    def test_other_errors_are_raised_as_they_are(
        self, router: ZmqRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Broken:
            closed = False

            def send(self, *_: object) -> None:
                raise zmq.ZMQError(errno.EINVAL)

        with monkeypatch.context() as patch:
            patch.setattr(router, "_socket", Broken())
            with pytest.raises(zmq.ZMQError):
                router.send(b"nobody", [b"\x90"])

    def test_once_closed(self, router: ZmqRouter) -> None:
        router.close()
        router.close()
        assert router.fileno() == -1
        assert router.has_input()
        with pytest.raises(LaneClosed, match="on this side"):
            router.send(b"nobody", [b"\x90"])
        with pytest.raises(LaneClosed, match="on this side"):
            router.receive()


class TestRouterLane:
    def test_a_vanished_peer_ends_it_at_the_next_send(self, router: ZmqRouter) -> None:
        with ZmqLane.connect(router.addresses[0]) as sender:
            sender.send(b"\x90one")
            message = until(router.receive)
            lane = router.lane(message.identity)
            lane.deliver(message.to_frame())

        def gone() -> bool:
            router.receive()
            try:
                lane.send(b"\x90")
            except LaneClosed:
                return True
            return False

        until(gone)
        assert lane.has_input()
        frame = lane.receive()
        assert frame is not None
        assert frame.data == b"\x90one"
        with pytest.raises(LaneClosed):
            lane.receive()
        with pytest.raises(LaneClosed):
            lane.send(b"\x90")

    def test_is_the_same_until_it_is_closed(self, router: ZmqRouter) -> None:
        first = router.lane(b"a")
        assert router.lane(b"a") is first
        assert router.lane(b"b") is not first
        assert first.fileno() == router.fileno()
        assert not first.has_input()
        first.close()
        first.deliver(RouterMessage(b"a", (memoryview(b"x"),), False, zmq.Frame(b"")).to_frame())
        assert router.lane(b"a") is not first
        assert first.has_input()
        router.close()
        assert router.lane(b"b").fileno() == -1


class TestZmqLane:
    def test_blobs_are_not_copied_by_this_side(self, tmp_path: Path) -> None:
        """What changes before ZeroMQ wrote it changes at the peer: the memory is the caller's."""
        memory = bytearray(8 << 20)
        # Nobody listens yet, so nothing can be written before the change.
        address = f"ipc://{tmp_path}/late"
        with ZmqLane.connect(address) as lane:
            assert lane.send(b"\x90", blobs=[memoryview(memory)])
            assert not lane.connected
            memory[-5:] = b"after"
            with ZmqRouter([address]) as again:
                frame = until(again.receive).to_frame()
                assert bytes(frame.blobs[0][-5:]) == b"after"
                assert lane.connected
                assert isinstance(frame.blobs[0], memoryview)
                assert isinstance(frame.blobs[0].obj, zmq.Frame)  # nor by that one
                del frame

    def test_is_full_while_nobody_listens(self, tmp_path: Path) -> None:
        with ZmqLane.connect(f"ipc://{tmp_path}/nobody", high_water=3) as lane:
            assert [lane.send(b"\x90") for _ in range(4)] == [True, True, True, False]
            assert not lane.connected
            assert lane.receive() is None
            assert not lane.has_input()

    def test_ends_when_the_viewer_closes(self, router: ZmqRouter) -> None:
        with ZmqLane.connect(router.addresses[0]) as lane:
            lane.send(b"\x90")
            identity = until(router.receive).identity
            assert router.send(identity, [b"\x90bye"])
            router.close()
            # The last words first, whatever the order in which they were noticed.
            assert until(lane.receive).data == b"\x90bye"
            while not lane.has_input():
                assert select.select([lane], [], [], 20)[0]
            until(lambda: ended(lane))
            assert lane.has_input()
            assert lane.connected
            with pytest.raises(LaneClosed, match="closed it or died"):
                lane.send(b"\x90")

    def test_does_not_connect_to_the_next_viewer(self, router: ZmqRouter) -> None:
        address = router.addresses[0]
        with ZmqLane.connect(address) as lane:
            lane.send(b"\x90")
            until(router.receive)
            router.close()
            until(lambda: ended(lane))
            with ZmqRouter([address]) as other, ZmqLane.connect(address) as new:
                with contextlib.suppress(LaneClosed):
                    lane.send(b"\x90stray")
                new.send(b"\x90new")
                assert until(other.receive).to_frame().data == b"\x90new"
                assert other.receive() is None

    def test_ends_when_the_viewer_is_killed(self, tmp_path: Path) -> None:
        code = """
import select, sys
from openhcs_stream.transport import ZmqRouter
router = ZmqRouter([sys.argv[1]])
print("bound", flush=True)
while (message := router.receive()) is None:
    select.select([router], [], [], 1)
print("received", flush=True)
sys.stdin.read()
"""
        address = f"ipc://{tmp_path}/viewer"
        with child(code, address) as process, ZmqLane.connect(address) as lane:
            assert process.stdout is not None
            assert process.stdout.readline() == "bound\n"
            assert lane.send(b"\x90")
            assert process.stdout.readline() == "received\n"
            assert not ended(lane)
            os.kill(process.pid, signal.SIGKILL)
            while not lane.has_input():
                assert select.select([lane], [], [], 20)[0]
            until(lambda: ended(lane))
            process.wait(20)  # its sockets close one after the other
            # What it left behind does not stop the next one.
            assert (tmp_path / "viewer").exists()
            with ZmqRouter([address]):
                pass
            assert not (tmp_path / "viewer").exists()

    def test_is_not_connected_to_a_program_that_speaks_something_else(self) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            server.settimeout(20)
            with ZmqLane.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}") as lane:
                for _ in range(2):  # the second attempt comes after the first has ended
                    server.accept()[0].close()
                until(lambda: lane._monitor.getsockopt(zmq.EVENTS))
                assert not ended(lane)
                assert not lane.connected

    def test_what_came_before_the_end_is_given_first(self, router: ZmqRouter) -> None:
        """Also where the end was noticed before, by who wanted to send."""
        with ZmqLane.connect(router.addresses[0]) as lane:
            lane.send(b"\x90")
            identity = until(router.receive).identity
            for last in (b"\x90one", b"\x90two"):
                assert router.send(identity, [last])
            router.close()
            until(partial(_cannot_send, lane))
            assert [until(lane.receive).data for _ in range(2)] == [b"\x90one", b"\x90two"]
            assert ended(lane)

    def test_what_waits_is_received_without_a_look_at_the_connection(
        self, router: ZmqRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ZmqLane.connect(router.addresses[0]) as lane:
            lane.send(b"\x90")
            identity = until(router.receive).identity
            for number in range(100):
                assert router.send(identity, [b"\x90%d" % number])
            assert until(lane.receive).data == b"\x900"
            looks = 0
            look = lane._read_monitor

            def counted() -> bool:
                nonlocal looks
                looks += 1
                return look()

            monkeypatch.setattr(lane, "_read_monitor", counted)
            for number in range(1, 100):
                wanted = looks
                while (frame := lane.receive()) is None:
                    wanted += 1  # one look where nothing waited, and none besides
                assert frame.data == b"\x90%d" % number
                assert looks == wanted

    def test_refuses_frames_of_no_lane(self, router: ZmqRouter) -> None:
        with ZmqLane.connect(router.addresses[0]) as lane:
            lane.send(b"\x90")
            identity = until(router.receive).identity
            router.send(identity, [b"", b"x"])
            router._socket.send_multipart([identity] + [b"\x90"] * (MAX_BLOBS + 3))
            router.send(identity, [b"\x90after"])
            until(lane.has_input)
            for _ in range(2):
                with pytest.raises(ProtocolViolation, match="an empty frame, or one with more"):
                    until(lane.receive)
            assert until(lane.receive).data == b"\x90after"

    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("unix:name", "does not connect to unix:name"),
            ("inproc://name", "does not connect to"),
            ("tcp://127.0.0.1:0", "no port"),
            ("tcp://example.org:5555", "without the viewer.s key"),
            ("tcp://*:5555", "without the viewer.s key"),
        ],
    )
    def test_refuses_addresses(self, address: str, reason: str) -> None:
        with pytest.raises(InvalidItem, match=reason) as caught:
            ZmqLane.connect(address)
        assert caught.value.cure

    def test_refuses_identities(self) -> None:
        with pytest.raises(InvalidItem, match="can't connect"):
            ZmqLane.connect("tcp://127.0.0.1:5", identity=b"x" * 256)

    def test_without_epoll(self, router: ZmqRouter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(select, "epoll")
        with ZmqLane.connect(router.addresses[0]) as lane:
            assert lane.fileno() >= 0
            lane.send(b"\x90")
            until(router.receive)
        assert not lane.connected or lane.has_input()
        assert lane.has_input()

    def test_over_ipv6(self) -> None:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        with ZmqRouter(["tcp://[::1]:0"]) as router, ZmqLane.connect(router.addresses[0]) as lane:
            lane.send(b"\x90")
            message = until(router.receive)
            assert message.peer_address == "::1"
            assert message.local

    def test_has_a_context_of_its_own_in_each_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = _zmq._context()
        assert _zmq._context() is ours
        monkeypatch.setattr(os, "getpid", lambda: -1)
        childs = _zmq._context()
        assert childs is not ours
        _zmq._contexts.pop(-1).term()


#: Is sent more than it takes, by a peer that goes; and looks at it only seconds later.
SLOW_ROUTER = """
import select, sys
from openhcs_stream.transport import ZmqRouter
with ZmqRouter([sys.argv[1]], receive_high_water=2) as router:
    print(router.addresses[0], flush=True)
    while router.receive() is None:
        select.select([], [], [], 0.001)
    sys.stdin.readline()
    select.select([], [], [], 3.0)  # longer than libzmq's heartbeats were apart
    count = 1
    while router.receive() is not None:
        count += 1
    print(count, flush=True)
"""


def test_a_peer_that_sends_too_much_and_goes_does_not_abort_the_viewer() -> None:
    with child(SLOW_ROUTER, f"ipc://@slow-{os.getpid()}") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        with plain_socket(zmq.DEALER, process.stdout.readline().strip()) as dealer:
            dealer.setsockopt(zmq.SNDHWM, 0)
            for _ in range(2000):
                dealer.send(b"\x90" + bytes(20_000))
            # Some of it has come, and what comes after it finds no room.
            select.select([], [], [], 0.2)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline().strip().isdigit(), process.wait(20)


class TestBinding:
    def test_several_addresses(self, tmp_path: Path) -> None:
        path = tmp_path / "viewer"
        name = f"ipc://@openhcs-stream-test-{os.getpid()}"
        addresses = [f"ipc://{path}", "tcp://127.0.0.1:*", "tcp://localhost:0", name]
        with ZmqRouter(addresses) as router:
            assert router.addresses[0] == addresses[0]
            assert router.addresses[3] == name
            assert router.addresses[1].startswith("tcp://127.0.0.1:")
            assert not router.addresses[1].endswith((":0", "*"))
            assert os.listdir(tmp_path) == ["viewer"]
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            for address in router.addresses:
                with ZmqLane.connect(address) as lane:
                    lane.send(b"\x90" + address.encode())
                    assert until(router.receive).to_frame().data == b"\x90" + address.encode()
        assert os.listdir(tmp_path) == []

    def test_nowhere(self) -> None:
        with ZmqRouter([]) as router:
            assert router.addresses == ()

    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("tcp://*:0", "needs a key"),
            ("tcp://0.0.0.0:0", "needs a key"),
            ("tcp://[::]:0", "needs a key"),
            ("unix:name", "does not listen at"),
            ("ipc:///nonexistent/folder/viewer", "No such file"),
            ("ipc:///dev/null", "no socket is there"),
            ("tcp://127.0.0.1:70000", "no port"),
        ],
    )
    def test_refuses(self, address: str, reason: str) -> None:
        with pytest.raises(InvalidItem, match=reason) as caught:
            ZmqRouter(["tcp://127.0.0.1:0", address])
        assert caught.value.cure
        assert "address" in str(caught.value) or "127" in str(caught.value)

    def test_a_port_in_use(self, router: ZmqRouter) -> None:
        address = router.addresses[0]
        port = address.rpartition(":")[2]
        with pytest.raises(InvalidItem, match=rf"{port}: it is in use.*another --port"):
            ZmqRouter([address])
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(InvalidItem, match="in use"):
                ZmqRouter([f"tcp://127.0.0.1:{other.getsockname()[1]}"])
        with ZmqLane.connect(address) as lane:  # and the next call works
            lane.send(b"\x90")
            until(router.receive)

    def test_a_path_in_use(self, tmp_path: Path) -> None:
        address = f"ipc://{tmp_path}/viewer"
        with ZmqRouter([address]) as router:
            with pytest.raises(InvalidItem, match="in use"):
                ZmqRouter([address])
            with ZmqLane.connect(address) as lane:
                lane.send(b"\x90")
                until(router.receive)

    def test_an_abstract_name_in_use(self) -> None:
        address = f"ipc://@openhcs-stream-test-taken-{os.getpid()}"
        with ZmqRouter([address]), pytest.raises(InvalidItem, match="in use"):
            ZmqRouter([address])

    def test_a_path_whose_listener_is_too_busy_to_answer(self, tmp_path: Path) -> None:
        path = tmp_path / "viewer"
        with contextlib.ExitStack() as stack:
            busy = stack.enter_context(socket.socket(socket.AF_UNIX))
            busy.bind(str(path))
            busy.listen(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                    waiting.setblocking(False)
                    waiting.connect(str(path))
            with pytest.raises(InvalidItem, match="in use"):
                ZmqRouter([f"ipc://{path}"])
            assert path.exists()

    def test_a_stale_file_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "viewer"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with ZmqRouter([f"ipc://{path}"]) as router, ZmqLane.connect(f"ipc://{path}") as lane:
            lane.send(b"\x90")
            until(router.receive)

    def test_a_file_that_another_put_there_is_left(self, tmp_path: Path) -> None:
        path = tmp_path / "viewer"
        with ZmqRouter([f"ipc://{path}"]):
            path.unlink()
            path.write_text("another's")
        assert path.read_text() == "another's"

    def test_a_file_that_has_gone_is_not_missed(self, tmp_path: Path) -> None:
        path = tmp_path / "viewer"
        with ZmqRouter([f"ipc://{path}"]):
            path.unlink()

    def test_a_folder_that_another_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_socket_files, "_PATIENCE_S", 0.05)
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            with pytest.raises(InvalidItem, match="can't listen at"):
                ZmqRouter([f"ipc://{tmp_path}/viewer"])
        finally:
            os.close(folder)
        ZmqRouter([f"ipc://{tmp_path}/viewer"]).close()

    def test_a_system_that_does_not_tell_users(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(socket, "SO_PEERCRED")
        ZmqRouter([f"ipc://{tmp_path}/viewer"]).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("allow", [False, True])
def test_other_users_over_ipc(allow: bool) -> None:
    code = """
import sys
from openhcs_stream.transport import ZmqLane
lane = ZmqLane.connect(sys.argv[1])
lane.send(b"\\x90other")
print("sent", flush=True)
sys.stdin.read()
"""
    address = f"ipc://@openhcs-stream-test-users-{os.getpid()}-{allow}"
    with (
        ZmqRouter([address], allow_other_users=allow) as router,
        child(code, address, uid=NOBODY) as other,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "sent\n"
        if allow:
            message = until(router.receive)
            assert message.peer is not None
            assert message.peer.uid == NOBODY
            return
        monitor: Any = router._socket.get_monitor_socket(zmq.EVENT_ACCEPT_FAILED)
        try:
            assert monitor.poll(20_000)  # it tried, and tries again
        finally:
            router._socket.disable_monitor()
            monitor.close()
        assert router.receive() is None
