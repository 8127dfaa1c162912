"""Sorting connections: real sockets of both kinds at one address, and peers that are neither."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from openhcs_stream.errors import InvalidItem
from openhcs_stream.transport import (
    Door,
    ZmqRouter,
    ZmqSorter,
    ZmqSubscriber,
    parse_address,
    socket_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)


def until(reached: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait for a condition; what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := reached()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        select.select([], [], [], 0.002)
    return value


def ready(kind: bytes, more: bytes = b"") -> bytes:
    """A READY command."""
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind + more
    return b"\x04" + bytes([len(body)]) + body


@pytest.fixture
def folder() -> Iterator[Path]:
    """Its path is short enough for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="sort-"))
    yield made
    shutil.rmtree(made)


class Behind:
    """A router, a subscriber and a sorter in front of them."""

    def __init__(self, folder: Path) -> None:
        self.router = ZmqRouter([f"ipc://{folder / 'behind'}"])
        self.subscriber = ZmqSubscriber()
        self.path = folder / "front"
        self.address = f"ipc://{self.path}"
        self.sorter = ZmqSorter(
            [
                Door(self.address, self.subscriber.address, self.router.addresses[0], "front"),
                Door(f"{self.address}-2", self.subscriber.address, self.router.addresses[0]),
                Door("tcp://127.0.0.1:0", self.subscriber.address, self.router.addresses[0]),
            ]
        )

    def asked(self) -> Any:
        """The next message at the router."""
        return until(self.router.receive, "a question")

    def published(self) -> Any:
        """The next message at the subscriber."""
        return until(self.subscriber.receive, "a published message")

    def raw(self) -> socket.socket:
        """A connection that speaks whatever it likes."""
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(20)
        made.connect(str(self.path))
        return made

    def close(self) -> None:
        self.subscriber.close()
        self.router.close()
        self.sorter.close()


@pytest.fixture
def behind(folder: Path) -> Iterator[Behind]:
    made = Behind(folder)
    yield made
    made.close()


class Clients:
    """Makes sockets, which are closed at the end."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def connect(self, kind: int, address: str) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        self._made.append(made)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, 20_000)
        made.connect(address)
        return made

    def publisher(self, address: str) -> zmq.Socket[bytes]:
        """One that was told that somebody listens."""
        made = self.connect(zmq.XPUB, address)
        assert made.recv() == b"\x01"
        return made

    def close(self) -> None:
        for each in self._made:
            each.close()
        self._context.term()


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    yield made
    made.close()


@pytest.mark.parametrize("door", [0, 1, 2])
def test_each_kind_gets_to_its_own(behind: Behind, clients: Clients, door: int) -> None:
    address = behind.sorter.addresses[door]
    asking = clients.connect(zmq.REQ, address)
    publishing = clients.publisher(address)
    publishing.send(b"news")
    asking.send(b"question")
    question = behind.asked()
    assert [bytes(frame) for frame in question.frames] == [b"question"]
    assert question.delimited
    assert question.local
    behind.router.send(question.identity, [b"answer"], delimited=True)
    assert asking.recv() == b"answer"
    news = behind.published()
    assert bytes(news.data) == b"news"
    is_tcp = door == 2
    who = (0, "127.0.0.1") if is_tcp else (os.getpid(), "")
    assert (question.process, question.peer_address) == who
    assert (news.process, news.peer_address) == who
    assert question.is_own_user
    assert question.door == ("front" if door == 0 else "")


def test_a_dealer_is_one_of_the_others(behind: Behind, clients: Clients) -> None:
    dealer = clients.connect(zmq.DEALER, behind.address)
    dealer.send_multipart([b"a", b"b"])
    assert [bytes(frame) for frame in behind.asked().frames] == [b"a", b"b"]


@pytest.mark.parametrize("nbytes", [0, 255, 256, 1 << 16, 5_000_001])
def test_messages_of_any_length(behind: Behind, clients: Clients, nbytes: int) -> None:
    content = bytes(range(256)) * (nbytes // 256 + 1)
    content = content[:nbytes]
    asking = clients.connect(zmq.REQ, behind.address)
    publishing = clients.publisher(behind.address)
    asking.send(content)
    publishing.send(content)
    question = behind.asked()
    assert bytes(question.frames[0]) == content
    assert bytes(behind.published().data) == content
    behind.router.send(question.identity, [content], delimited=True)
    assert asking.recv() == content


def test_nothing_is_lost_that_is_published_once_somebody_listens(
    behind: Behind, clients: Clients
) -> None:
    """The first message of each of many publishers, while other threads keep the processor."""
    ends = threading.Event()

    def keep_busy() -> None:
        while not ends.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            publishing = clients.publisher(behind.address)
            publishing.send(b"%d" % number + b"." * 1000)
            assert bytes(behind.published().data).rstrip(b".") == b"%d" % number
            publishing.close()
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def test_many_at_the_same_time(behind: Behind, clients: Clients) -> None:
    asking = [clients.connect(zmq.REQ, behind.address) for _ in range(40)]
    for number, each in enumerate(asking):
        each.send(b"%d" % number)
    for _ in asking:
        question = behind.asked()
        behind.router.send(question.identity, [bytes(question.frames[0])], delimited=True)
    assert [each.recv() for each in asking] == [b"%d" % number for number in range(40)]


def test_a_publisher_of_more_than_one_part(
    behind: Behind, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    publishing = clients.publisher(behind.address)
    publishing.send_multipart([b"first", b"second"])
    publishing.send(b"third")
    assert [bytes(behind.published().data) for _ in range(2)] == [b"first", b"third"]
    assert "more than one part" in caplog.text


def test_both_ends_learn_that_the_other_went(behind: Behind) -> None:
    client = behind.raw()
    client.sendall(GREETING + ready(b"DEALER"))
    assert receive(client, len(GREETING))[:1] == b"\xff"
    until(lambda: len(behind.sorter._joints) == 1, "a connection")
    client.close()
    until(lambda: not behind.sorter._joints, "its end")
    other = behind.raw()
    other.sendall(GREETING + ready(b"DEALER"))
    receive(other, len(GREETING))
    behind.router.close()
    assert drain(other)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7e",
        b"\xff" + bytes(8) + b"\x7f\x01" + bytes(60),
        b"\xff" + bytes(8) + b"\x7f\x03\x01PLAIN" + bytes(47) + ready(b"PUB"),
        GREETING + b"\x00\x01x",
        GREETING + b"\x06" + b"\xff" * 8,
        GREETING + b"\x04\x06\x05READY",
        GREETING + b"\x04\x06\x04PING!",
        GREETING + ready(b"CHAIR"),
        GREETING + ready(b"PUB", b"\x05short"),
        GREETING + ready(b"PUB") + b"\xff" * 1000,
    ],
    ids=lambda said: repr(said[-20:]),
)
def test_what_is_no_zeromq_ends_and_hurts_nobody(
    behind: Behind, clients: Clients, said: bytes
) -> None:
    client = behind.raw()
    client.sendall(said)
    with contextlib.suppress(ConnectionError):
        client.shutdown(socket.SHUT_WR)
    assert drain(client)
    until(lambda: not behind.sorter._joints, "its end")
    still_works(behind, clients)


def test_who_says_nothing_is_let_go(
    behind: Behind, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhcs_stream.transport._sorter._PATIENCE_S", 0.1)
    silent = [behind.raw() for _ in range(3)]
    silent[1].sendall(GREETING[:20])
    silent[2].sendall(GREETING + b"\x04")
    for client in silent:
        assert drain(client)
    still_works(behind, clients)


def test_a_limit_of_connections(
    behind: Behind, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhcs_stream.transport._sorter._MOST_CONNECTIONS", 2)
    first = [behind.raw(), behind.raw()]
    until(lambda: len(behind.sorter._joints) == 2, "two connections")
    third = behind.raw()
    assert drain(third)
    for each in first:
        each.close()
    until(lambda: not behind.sorter._joints, "their end")
    still_works(behind, clients)


def test_one_byte_at_a_time(behind: Behind) -> None:
    client = behind.raw()
    for octet in GREETING + ready(b"PUB"):
        client.sendall(bytes([octet]))
    told = receive(client, len(GREETING) + 3)
    assert told[len(GREETING) :].startswith(b"\x04")
    client.sendall(b"\0\4news")
    assert bytes(behind.published().data) == b"news"
    client.close()


def test_a_publisher_that_does_not_wait_to_be_heard(behind: Behind) -> None:
    """ZeroMQ's SUB cuts who sends a message before it has said READY itself."""
    client = behind.raw()
    client.sendall(GREETING + ready(b"PUB") + b"\0\5early" + b"\0\4late")
    assert [bytes(behind.published().data) for _ in range(2)] == [b"early", b"late"]
    client.close()


def test_what_was_said_at_last_is_passed_on(behind: Behind, clients: Clients) -> None:
    asking = [clients.connect(zmq.REQ, behind.address) for _ in range(20)]
    for each in asking:
        each.send(b"?")
    answer = bytes(100_000)
    for _ in asking:
        behind.router.send(behind.asked().identity, [answer], delimited=True)
    behind.close()
    assert not behind.path.exists()
    assert [each.recv() for each in asking] == [answer] * 20


def test_who_does_not_hear_is_not_waited_for_long(behind: Behind) -> None:
    client = behind.raw()
    client.sendall(GREETING + ready(b"DEALER"))
    receive(client, len(GREETING))
    until(lambda: behind.router.receive() or select.select([client], [], [], 0)[0], "its READY")
    behind.sorter.close()  # and what is behind still lives
    assert not behind.path.exists()
    assert drain(client)


def test_a_slow_reader_makes_the_other_wait(behind: Behind) -> None:
    """What is sent and not read is bounded on the way as well."""
    client = behind.raw()
    client.sendall(GREETING + ready(b"DEALER"))
    receive(client, len(GREETING))
    # The router lets a peer in when it is read from.
    until(lambda: behind.router.receive() or select.select([client], [], [], 0)[0], "its READY")
    client.sendall(b"\0\1?")
    question = behind.asked()
    for _ in range(3000):  # more than sockets and the sorter hold
        with contextlib.suppress(Exception):
            behind.router.send(question.identity, [bytes(10_000)])
    (joint,) = behind.sorter._joints
    until(lambda: len(joint._to_client) > 0, "something waits")
    assert len(joint._to_client) < 1 << 20
    client.close()
    until(lambda: not behind.sorter._joints, "its end")


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="only Linux tells whose a tcp connection is, and only root can become another user",
)
def test_another_user_is_refused_by_tcp(
    behind: Behind, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    address = behind.sorter.addresses[2]
    code = f"""
import encodings.idna, os, socket
os.setuid(65534)
with socket.create_connection(("127.0.0.1", {parse_address(address).port}), 20) as client:
    assert client.recv(1) == b""
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
    assert "not this user's" in caplog.text
    asking = clients.connect(zmq.REQ, address)
    asking.send(b"?")
    assert bytes(behind.asked().frames[0]) == b"?"


class TestAddresses:
    def test_are_removed_at_the_end(self, folder: Path) -> None:
        behind = Behind(folder)
        assert behind.path.is_socket()
        behind.close()
        behind.close()
        assert [path.name for path in folder.iterdir()] == []

    def test_of_another_are_left_alone(self, behind: Behind) -> None:
        with pytest.raises(InvalidItem, match="in use"):
            ZmqSorter([Door(behind.address, "ipc://@none", "ipc://@none")])
        with pytest.raises(InvalidItem, match="in use"):
            ZmqSorter([Door(behind.sorter.addresses[1], "ipc://@none", "ipc://@none")])
        with pytest.raises(InvalidItem, match="in use"):
            ZmqSorter([Door(behind.sorter.addresses[2], "ipc://@none", "ipc://@none")])
        assert behind.path.is_socket()

    def test_left_by_one_that_died(self, folder: Path, clients: Clients) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "front"))
        behind = Behind(folder)
        still_works(behind, clients)
        behind.close()

    def test_are_for_this_user_alone(self, behind: Behind) -> None:
        assert behind.path.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        "address",
        [
            "tcp://0.0.0.0:5555",
            "tcp://*:0",
            f"tcp://127.0.0.1:0?key={'0' * 64}",
            "unix:///tmp/x",
            "inproc://x",
        ],
    )
    def test_that_can_not_be_sorted(self, address: str) -> None:
        with pytest.raises(InvalidItem):
            ZmqSorter([Door(address, "ipc://@none", "ipc://@none")])

    def test_a_place_that_does_not_listen_ends_the_connection(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        nobody = f"ipc://{folder / 'nobody'}"
        with ZmqSorter([Door(f"ipc://{folder / 'front'}", nobody, nobody)]):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(20)
            client.connect(str(folder / "front"))
            assert drain(client)
        assert "could not be passed on" in caplog.text


class TestSocketType:
    @pytest.mark.parametrize("kind", [b"REQ", b"PUB", b"XPUB", b"DEALER", b""])
    def test_is_told_as_soon_as_all_is_there(self, kind: bytes) -> None:
        said = GREETING + ready(kind)
        assert [socket_type(said[:end]) for end in range(len(said))] == [None] * len(said)
        assert socket_type(said) == kind
        assert socket_type(said + b"more") == kind

    def test_of_a_long_command(self) -> None:
        body = ready(b"SUB")[2:]
        assert socket_type(GREETING + b"\x06" + len(body).to_bytes(8, "big") + body) == b"SUB"

    def test_of_properties_in_any_order(self) -> None:
        identity = b"\x08Identity" + bytes(4)
        kind = b"\x0bsocket-TYPE" + (3).to_bytes(4, "big") + b"REQ"
        body = b"\x05READY" + identity + kind
        assert socket_type(GREETING + b"\x04" + bytes([len(body)]) + body) == b"REQ"

    @given(st.binary(max_size=200))
    def test_of_anything(self, said: bytes) -> None:
        socket_type(said)
        told = socket_type(GREETING + said)
        assert told is None or isinstance(told, bytes)


def receive(client: socket.socket, count: int) -> bytes:
    """So many bytes."""
    told = b""
    while len(told) < count:
        more = client.recv(count - len(told))
        assert more, told
        told += more
    return told


def drain(client: socket.socket) -> bool:
    """Read until the other side ends the connection."""
    with contextlib.closing(client), contextlib.suppress(ConnectionError):
        while client.recv(1 << 16):
            pass
    return True


def still_works(behind: Behind, clients: Clients) -> None:
    asking = clients.connect(zmq.REQ, behind.address)
    asking.send(b"?")
    # Something that an earlier peer said may wait before it.
    until(lambda: [bytes(each) for each in behind.asked().frames] == [b"?"], "the question")
    publishing = clients.publisher(behind.address)
    publishing.send(b"!")
    assert bytes(behind.published().data) == b"!"
