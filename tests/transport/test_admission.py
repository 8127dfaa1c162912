"""Who may connect by tcp: keys and tokens beyond this machine, the same user within it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
import zmq

from openhcs_stream.errors import InvalidItem, Refused
from openhcs_stream.transport import (
    KeyPair,
    LaneClosed,
    RouterMessage,
    ZmqLane,
    ZmqRouter,
    _owner,
    client_key_pair,
    new_key_pair,
    new_token,
    parse_address,
    tcp_peer_uid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
NOBODY = 65534
HELLO = b"\x92hello"

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user to connect as"
)
needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells who owns a tcp connection"
)


def until(produce: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    deadline = time.monotonic() + timeout_s
    while (value := produce()) is None or value is False:
        assert time.monotonic() < deadline, f"nothing in {timeout_s} s"
        select.select([], [], [], 0.001)
    return value


@contextlib.contextmanager
def public_router(keys: KeyPair, token: str) -> Iterator[tuple[ZmqRouter, str]]:
    """A router that all machines could reach, and its address with its key, by loopback."""
    with ZmqRouter(["tcp://0.0.0.0:0"], keys=keys, token=token) as router:
        where = parse_address(router.addresses[0])
        assert where.key == keys.public
        yield router, router.addresses[0].replace("0.0.0.0", "127.0.0.1")


def refusal(lane: ZmqLane, router: ZmqRouter) -> Refused:
    """What the lane says of why it was not let in; nothing of it came through."""

    def look() -> Refused | None:
        assert router.receive() is None
        try:
            assert lane.receive() is None
        except Refused as error:
            return error
        return None

    error = until(look)
    assert lane.has_input(), "whoever waits for the lane must be woken to hear of it"
    assert not lane.send(HELLO)
    with pytest.raises(Refused):
        lane.receive()
    return error


@contextlib.contextmanager
def child(code: str, *arguments: str, uid: int) -> Iterator[subprocess.Popen[str]]:
    # Not by Popen's user=: another user may be unable to read this interpreter and its packages.
    code = (
        f"import os, encodings.idna, zmq.backend, openhcs_stream.transport; os.setuid({uid})\n"
        + code
    )
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


class TestKeys:
    def test_are_pairs_of_32_bytes_and_the_secret_one_is_not_shown(self) -> None:
        first, second = new_key_pair(), new_key_pair()
        assert first != second
        for pair in (first, client_key_pair(new_token())):
            assert len(bytes.fromhex(pair.public)) == len(bytes.fromhex(pair.secret)) == 32
            assert pair.secret not in repr(pair)

    def test_a_token_gives_one_pair_that_does_not_show_the_token(self) -> None:
        token = new_token()
        assert client_key_pair(token) == client_key_pair(token)
        assert client_key_pair(token) != client_key_pair(new_token())
        assert token not in (client_key_pair(token).secret, client_key_pair(token).public)
        assert client_key_pair("anything é \ud800").public

    def test_a_key_is_part_of_an_address(self) -> None:
        key = new_key_pair().public
        where = parse_address(f"tcp://host.example:5555?key={key.upper()}")
        assert (where.host, where.port, where.key) == ("host.example", 5555, key)
        assert str(where) == f"tcp://host.example:5555?key={key}"
        assert where.endpoint == "tcp://host.example:5555"

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ("key=", "0 characters"),
            ("key=abc", "3 characters"),
            ("key=" + "g" * 64, "64 characters"),
            ("token=" + "a" * 64, "is no key"),
            ("x", "is no key"),
        ],
        ids=["empty", "short", "not-hexadecimal", "token", "nothing"],
    )
    def test_a_key_that_is_none(self, query: str, reason: str) -> None:
        with pytest.raises(InvalidItem, match=reason) as caught:
            parse_address(f"tcp://host:5555?{query}")
        assert caught.value.cure


class TestBeyondThisMachine:
    @pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", "192.0.2.1", "host.example"])
    def test_nobody_listens_or_connects_without_a_key(self, host: str) -> None:
        with pytest.raises(InvalidItem, match="anybody could read and send") as caught:
            ZmqRouter([f"tcp://{host}:0"])
        assert "--public" in caught.value.cure
        with pytest.raises(InvalidItem, match="anybody between could read") as caught:
            ZmqLane.connect(f"tcp://{host}:5555")
        assert "--public" in caught.value.cure

    def test_a_key_without_a_token_is_not_enough_to_listen(self) -> None:
        with pytest.raises(InvalidItem, match="needs a key and a token"):
            ZmqRouter(["tcp://*:0"], keys=new_key_pair())

    def test_an_address_with_another_key_can_t_be_bound(self) -> None:
        keys, other = new_key_pair(), new_key_pair()
        for ours in (None, keys):
            with pytest.raises(InvalidItem, match="not this viewer's own"):
                ZmqRouter([f"tcp://127.0.0.1:0?key={other.public}"], keys=ours, token=new_token())

    def test_within_this_machine_a_key_does_the_same_for_all_users(self) -> None:
        keys, token = new_key_pair(), new_token()
        with ZmqRouter(
            [f"tcp://127.0.0.1:0?key={keys.public}", "tcp://127.0.0.1:0"], keys=keys, token=token
        ) as router:
            with ZmqLane.connect(router.addresses[0], token="guessed") as lane:
                lane.send(HELLO)
                refusal(lane, router)
            with ZmqLane.connect(router.addresses[0], token=token) as lane:
                lane.send(HELLO)
                assert not until(router.receive).is_own_user
                assert lane.proves_viewer
            with ZmqLane.connect(router.addresses[1]) as lane:
                lane.send(HELLO)
                assert until(router.receive).is_own_user
                assert not lane.proves_viewer

    def test_key_and_token_open_the_way(self) -> None:
        keys, token = new_key_pair(), new_token()
        with public_router(keys, token) as (router, address):
            with ZmqLane.connect(address, token=token) as lane:
                assert lane.send(HELLO, blobs=[memoryview(bytes(range(256)) * (8 << 12))])
                message = until(router.receive)
                assert message.is_native
                assert bytes(message.frames[1]) == bytes(range(256)) * (8 << 12)
                assert message.peer_address == "127.0.0.1"
                assert not message.is_own_user, "a key says nothing of the user"
                assert router.lane(message.identity).send(b"\x91answer")
                frame = until(lane.receive)
                assert frame.data == b"\x91answer"
                assert lane.connected

    def test_what_is_sent_is_encrypted(self) -> None:
        keys, token = new_key_pair(), new_token()
        secret = b"\x92the pixels of a patient"
        seen = bytearray()
        with public_router(keys, token) as (router, address), relay(address, seen) as through:
            with ZmqLane.connect(through, token=token) as lane:
                lane.send(secret)
                until(router.receive)
        assert len(seen) > 200
        assert secret not in bytes(seen)
        assert token.encode() not in bytes(seen)

    def test_a_wrong_token(self) -> None:
        keys = new_key_pair()
        with public_router(keys, new_token()) as (router, address):
            for token in (new_token(), ""):
                with ZmqLane.connect(address, token=token) as lane:
                    lane.send(HELLO)
                    assert "the token is missing, wrong or old" in refusal(lane, router).what

    def test_a_wrong_key(self) -> None:
        token = new_token()
        with public_router(new_key_pair(), token) as (router, address):
            wrong = str(parse_address(address).endpoint) + f"?key={new_key_pair().public}"
            with ZmqLane.connect(wrong, token=token) as lane:
                lane.send(HELLO)
                error = refusal(lane, router)
                assert "does not know the key" in error.what
                assert ".viewer" in error.cure

    def test_no_key(self) -> None:
        keys, token = new_key_pair(), new_token()
        with public_router(keys, token) as (router, address):
            with ZmqLane.connect(parse_address(address).endpoint, token=token) as lane:
                lane.send(HELLO)
                error = refusal(lane, router)
                assert "ends the connection in the greeting" in error.what
                assert "wants a key" in error.cure

    def test_a_key_for_a_viewer_that_has_none(self) -> None:
        with ZmqRouter(["tcp://127.0.0.1:0"]) as router:
            address = f"{router.addresses[0]}?key={new_key_pair().public}"
            with ZmqLane.connect(address, token=new_token()) as lane:
                lane.send(HELLO)
                error = refusal(lane, router)
                assert "does not know the key" in error.what
                assert "one without --public" in error.cure

    def test_nothing_of_a_peer_without_the_token_is_kept(self) -> None:
        """A message of endless parts would be kept whole; so it must not get in at all."""
        keys = new_key_pair()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with public_router(keys, new_token()) as (router, address):
            sender = context.socket(zmq.DEALER)
            sender.setsockopt(zmq.LINGER, 0)
            ours = client_key_pair("guessed")
            sender.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(keys.public))
            sender.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(ours.public))
            sender.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(ours.secret))
            monitor = sender.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            sender.connect(parse_address(address).endpoint)
            for _ in range(100):
                sender.send(bytes(1 << 20), zmq.SNDMORE)

            def refused() -> bool:
                assert router.receive() is None
                return bool(monitor.poll(0))

            until(refused)
            assert router.receive() is None
            sender.disable_monitor()
            monitor.close()
            sender.close()
        context.term()

    def test_a_frame_from_there_has_a_bound(self) -> None:
        keys, token = new_key_pair(), new_token()
        with public_router(keys, token) as (router, address):
            with ZmqLane.connect(address, token=token) as lane:
                lane.send(HELLO)
                until(router.receive)
                lane.send(HELLO, blobs=[memoryview(bytes(10 << 20))])

                def ended() -> bool:
                    assert router.receive() is None
                    try:
                        lane.receive()
                    except LaneClosed:
                        return True
                    return False

                until(ended)


class TestAnAddressOfAnotherProgram:
    def test_one_that_closes(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            stop = threading.Event()

            def serve() -> None:
                server.settimeout(0.1)
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        server.accept()[0].close()

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                with ZmqLane.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}") as lane:
                    lane.send(HELLO)
                    assert "no viewer at all" in until(lambda: _refused(lane)).cure
            finally:
                stop.set()
                thread.join()

    def test_one_that_speaks_something_else(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            stop = threading.Event()

            def serve() -> None:
                server.settimeout(0.1)
                while not stop.is_set():
                    with contextlib.suppress(OSError), server.accept()[0] as client:
                        client.recv(10)
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
                        client.shutdown(socket.SHUT_WR)
                        client.settimeout(1)
                        while client.recv(1000):
                            pass

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                with ZmqLane.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}") as lane:
                    lane.send(HELLO)
                    assert "ends the connection" in until(lambda: _refused(lane)).what
            finally:
                stop.set()
                thread.join()


@needs_linux
class TestWhoOwnsAConnection:
    @pytest.fixture(autouse=True, params=["asked", "looked-up"])
    def way(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "looked-up":
            monkeypatch.setattr(_owner, "_SOCK_DIAG", 999)  # no such kind of question

    @pytest.mark.parametrize(
        ("family", "host"),
        [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")],
        ids=["IPv4", "IPv6", "IPv4-to-IPv6"],
    )
    def test_is_told(self, family: socket.AddressFamily, host: str) -> None:
        try:
            server = socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::")
        except OSError as error:
            pytest.skip(f"this machine has no such addresses: {error}")
        with server:
            target = "127.0.0.1" if host == "::" else host
            with socket.create_connection((target, server.getsockname()[1])) as client:
                accepted, _ = server.accept()
                with accepted:
                    assert tcp_peer_uid(accepted) == os.geteuid()
                    assert _owner.tcp_peer_process(accepted) == os.getpid()
                    client.close()
                    assert tcp_peer_uid(accepted) is None, "who has gone owns nothing"
                    assert _owner.tcp_peer_process(accepted) == 0

    @needs_root
    def test_is_another_user(self) -> None:
        code = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))):
    sys.stdin.read()
"""
        with socket.create_server(("127.0.0.1", 0)) as server:
            with child(code, str(server.getsockname()[1]), uid=NOBODY) as process:
                server.settimeout(20)
                accepted, _ = server.accept()
                with accepted:
                    assert tcp_peer_uid(accepted) == NOBODY
                    assert _owner.tcp_peer_process(accepted) == process.pid

    def test_is_nobody_for_a_socket_that_is_not_connected(self) -> None:
        with socket.socket() as sock:
            assert tcp_peer_uid(sock) is None


#: Connects as another user, sends, and prints what comes of it.
INTRUDER = """
import sys, time
from openhcs_stream.errors import Refused
from openhcs_stream.transport import ZmqLane
with ZmqLane.connect(sys.argv[1]) as lane:
    lane.send(b"\\x92intruder")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            frame = lane.receive()
        except Refused as error:
            print("refused:", error.what, flush=True)
            break
        if frame is not None:
            print("answered", flush=True)
            break
        time.sleep(0.002)
    sys.stdin.read()
"""


@needs_linux
class TestWithinThisMachine:
    def test_the_same_user_comes_in_and_is_known_as_such(self) -> None:
        with ZmqRouter(["tcp://127.0.0.1:0"]) as router:
            with ZmqLane.connect(router.addresses[0]) as lane:
                lane.send(HELLO)
                message = until(router.receive)
                assert message.is_own_user
                assert message.peer_address
                assert message.process == 0
                assert message.find_process() == os.getpid()

    def test_over_ipc_too(self, tmp_path: Path) -> None:
        for where in (f"ipc://{tmp_path}/socket", f"ipc://@test-{os.getpid()}"):
            # Beside tcp, whose questions must not be asked of ipc.
            with ZmqRouter(["tcp://127.0.0.1:0", where]) as router:
                assert router.addresses[1] == where
                with ZmqLane.connect(where) as lane:
                    lane.send(HELLO)
                    assert until(router.receive).is_own_user

    @needs_root
    def test_another_user_is_refused_before_a_message_of_his_is_read(self) -> None:
        with ZmqRouter(["tcp://127.0.0.1:0"]) as router:
            with child(INTRUDER, router.addresses[0], uid=NOBODY) as process:
                stdout = process.stdout
                assert stdout is not None

                def told() -> str | None:
                    assert router.receive() is None
                    return stdout.readline() if select.select([stdout], [], [], 0)[0] else None

                assert until(told).startswith("refused: what listens at")

    @needs_root
    def test_one_user_comes_in_while_another_is_refused_again_and_again(self) -> None:
        code = """
import socket, sys
while True:
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1) as sock:
            sock.sendall(b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00NULL" + bytes(48))
            sock.settimeout(1)
            sock.recv(100)
    except OSError:
        pass
"""
        with ZmqRouter(["tcp://127.0.0.1:0"]) as router:
            port = str(parse_address(router.addresses[0]).port)
            with child(code, port, uid=NOBODY), child(code, port, uid=NOBODY):
                for number in range(20):
                    with ZmqLane.connect(router.addresses[0]) as lane:
                        lane.send(b"\x92" + bytes([number]))
                        message = until(router.receive)
                        assert bytes(message.frames[0]) == b"\x92" + bytes([number])
                        assert message.is_own_user

    @needs_root
    @pytest.mark.parametrize("transport", ["tcp", "ipc"])
    def test_another_user_comes_in_where_it_is_allowed_and_is_known_as_another(
        self, transport: str
    ) -> None:
        where = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://@test-{os.getpid()}"
        with ZmqRouter([where], allow_other_users=True) as router:
            with child(INTRUDER, router.addresses[0], uid=NOBODY) as process:
                message: RouterMessage = until(router.receive)
                assert bytes(message.frames[0]) == b"\x92intruder"
                assert not message.is_own_user
                router.send(message.identity, [b"\x91answer"])
                assert process.stdout is not None
                assert process.stdout.readline() == "answered\n"
                if transport == "tcp":
                    return
                with ZmqLane.connect(router.addresses[0]) as lane:
                    lane.send(HELLO)
                    assert until(router.receive).is_own_user

    @needs_root
    @pytest.mark.parametrize("scheme", ["tcp", "ipc"])
    def test_another_user_s_viewer_is_not_talked_to(self, scheme: str) -> None:
        """Whoever is quicker to listen where a viewer was gets a greeting, and no pixels."""
        code = """
import contextlib, select, sys
from openhcs_stream.transport import LaneClosed, ZmqRouter
with ZmqRouter([sys.argv[1]], allow_other_users=True) as router:
    print(router.addresses[0], flush=True)
    while True:
        message = router.receive()
        if message is None:
            select.select([], [], [], 0.002)
            continue
        with contextlib.suppress(LaneClosed):
            router.send(message.identity, [b"\\x91welcome"])
"""
        where = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://@false-{os.getpid()}"
        with child(code, where, uid=NOBODY) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            for look_first in (False, True):
                with ZmqLane.connect(address) as lane:
                    lane.send(HELLO)
                    if look_first:
                        until(lane.has_input)
                    error = until(partial(_refused, lane))
                    assert "belongs to user 65534" in error.what
                    assert not lane.send(HELLO)
            with ZmqLane.connect(address, allow_other_users=True) as lane:
                lane.send(HELLO)
                assert until(lane.receive).data == b"\x91welcome"

    def test_a_refusal_is_logged_once_for_many(self, caplog: pytest.LogCaptureFixture) -> None:
        keys = new_key_pair()
        with public_router(keys, new_token()) as (router, address):
            for _ in range(3):
                with ZmqLane.connect(address, token="guessed") as lane:
                    lane.send(HELLO)
                    refusal(lane, router)
        told = [each.getMessage() for each in caplog.records if "wrong token" in each.message]
        assert len(told) == 1
        assert "guessed" not in told[0]


def _refused(lane: ZmqLane) -> Refused | None:
    try:
        lane.receive()
    except Refused as error:
        return error
    return None


@contextlib.contextmanager
def relay(address: str, seen: bytearray) -> Iterator[str]:
    """Pass one connection on to an address, and note what goes by."""
    where = parse_address(address)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            client, _ = server.accept()
            with client, socket.create_connection((where.host, where.port)) as behind:
                ends = {client: behind, behind: client}
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        seen.extend(data)
                        ends[end].sendall(data)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}?key={where.key}"
        thread.join(20)
