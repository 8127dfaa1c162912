"""Sockets of a client: questions that can be given up, publications that reach somebody."""

from __future__ import annotations

import errno
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from openhcs_stream.errors import InvalidItem
from openhcs_stream.transport import ZmqAsker, ZmqCollector, ZmqPublisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def until(reached: Callable[[], Any], what: str = "it happens") -> Any:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not (value := reached()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        pause.wait(0.002)
    return value


@pytest.fixture
def peers() -> Iterator[Callable[[int, str], zmq.Socket[bytes]]]:
    """Bound sockets of another context, as of another process."""
    made: list[zmq.Socket[bytes]] = []
    with zmq.Context() as context:

        def bind(kind: int, address: str = "tcp://127.0.0.1:0") -> zmq.Socket[bytes]:
            made.append(context.socket(kind))
            made[-1].setsockopt(zmq.LINGER, 0)
            made[-1].setsockopt(zmq.RCVTIMEO, 20_000)
            if kind == zmq.SUB:
                made[-1].setsockopt(zmq.SUBSCRIBE, b"")
            made[-1].bind(address)
            return made[-1]

        yield bind
        for each in made:
            each.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path that is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="ohs-") as made:
        yield Path(made)


def address_of(peer: zmq.Socket[bytes]) -> str:
    return peer.getsockopt_string(zmq.LAST_ENDPOINT)


def heard(peer: zmq.Socket[bytes], publisher: ZmqPublisher) -> bool:
    """Whether the publisher has a subscriber: one subscribes when it looks at its socket."""
    peer.poll(0)
    return publisher.has_subscriber


class TestAsker:
    def test_a_question_and_its_answer(self, peers: Callable[..., zmq.Socket[bytes]]) -> None:
        peer = peers(zmq.REP)
        asker = ZmqAsker(address_of(peer))
        assert not asker.is_waiting
        assert not asker.has_input()
        asker.ask(b"who?")
        assert asker.is_waiting
        assert asker.answer() is None
        assert peer.recv() == b"who?"
        peer.send(b"me")
        until(asker.has_input)
        assert asker.answer() == b"me"
        assert not asker.is_waiting
        asker.close()

    def test_the_answer_to_a_question_that_was_given_up_is_not_the_next_ones(
        self, peers: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        peer = peers(zmq.REP)
        asker = ZmqAsker(address_of(peer))
        asker.ask(b"first")
        assert peer.recv() == b"first"
        asker.give_up()
        assert not asker.is_waiting
        asker.ask(b"second")
        peer.send(b"too late")
        assert peer.recv() == b"second"
        peer.send(b"in time")
        assert until(asker.answer) == b"in time"
        asker.close()

    def test_nobody_need_listen_yet(self, folder: Path, peers: Callable[..., Any]) -> None:
        address = f"ipc://{folder}/later.sock"
        asker = ZmqAsker(address)
        asker.ask(b"who?")
        peer = peers(zmq.REP, address)
        assert peer.recv() == b"who?"
        peer.send(b"me")
        assert until(asker.answer) == b"me"
        asker.close()

    def test_an_answer_beyond_any_measure_never_comes(
        self, peers: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        peer = peers(zmq.REP)
        asker = ZmqAsker(address_of(peer))
        asker.ask(b"first")
        peer.recv()
        peer.send(bytes((1 << 20) + 1))
        # The connection is ended for it: the peer is free for the next question.
        asker.give_up()
        asker.ask(b"second")
        assert peer.recv() == b"second"
        peer.send(b"small")
        assert until(asker.answer) == b"small"
        asker.close()

    def test_close_may_be_repeated(self) -> None:
        asker = ZmqAsker("tcp://127.0.0.1:1")
        asker.close()
        asker.close()
        assert asker.fileno() == -1


class TestPublisher:
    def test_it_knows_whether_somebody_takes_it(
        self, folder: Path, peers: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        address = f"ipc://{folder}/s.sock"
        publisher = ZmqPublisher(address)
        assert not publisher.has_subscriber
        peer = peers(zmq.SUB, address)
        until(lambda: heard(peer, publisher), "a subscriber is there")
        assert publisher.send(b"news")
        assert peer.recv() == b"news"
        peer.setsockopt(zmq.UNSUBSCRIBE, b"")
        until(lambda: not heard(peer, publisher), "it has gone")
        publisher.close()
        publisher.close()
        assert publisher.fileno() == -1
        assert not publisher.has_input()

    def test_what_a_slow_subscriber_can_not_take_is_not_lost(
        self, folder: Path, peers: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        address = f"ipc://{folder}/s.sock"
        peer = peers(zmq.SUB, address)
        publisher = ZmqPublisher(address)
        until(lambda: heard(peer, publisher), "a subscriber is there")
        frame = bytes(1000)
        sent = 0
        while publisher.send(frame + sent.to_bytes(4, "big")):
            sent += 1
            assert sent < 1_000_000
        for number in range(sent):
            assert peer.recv()[1000:] == number.to_bytes(4, "big")
        until(lambda: publisher.send(b"room again"))
        assert peer.recv() == b"room again"
        publisher.close()


class TestCollector:
    @pytest.mark.parametrize("scheme", ["ipc", "tcp"])
    def test_it_gets_what_is_pushed(self, scheme: str, folder: Path) -> None:
        wanted = f"ipc://{folder}/acks.sock" if scheme == "ipc" else "tcp://127.0.0.1:*"
        collector = ZmqCollector(wanted)
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.setsockopt(zmq.LINGER, 0)
            push.connect(collector.address)
            push.send(b"one")
            push.send(b"two")
            until(collector.has_input)
            assert [until(collector.receive), until(collector.receive)] == [b"one", b"two"]
            assert collector.receive() is None
        collector.close()
        collector.close()
        assert collector.fileno() == -1
        if scheme == "ipc":
            assert list(folder.iterdir()) == []

    def test_whoever_listens_by_ipc_keeps_the_address(
        self, folder: Path, peers: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        """ZeroMQ's own bind would remove the other's socket, and nobody would be told."""
        address = f"ipc://{folder}/acks.sock"
        theirs = peers(zmq.PULL, address)
        with pytest.raises(OSError, match=r".") as caught:
            ZmqCollector(address)
        assert caught.value.errno == errno.EADDRINUSE
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.setsockopt(zmq.LINGER, 0)
            push.connect(address)
            push.send(b"still theirs")
            assert theirs.recv() == b"still theirs"

    def test_whoever_listens_by_tcp_keeps_the_port(
        self, peers: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        theirs = peers(zmq.PULL, "tcp://127.0.0.1:0")
        with pytest.raises(OSError, match=r".") as caught:
            ZmqCollector(address_of(theirs))
        assert caught.value.errno == errno.EADDRINUSE

    def test_two_of_ours_do_not_take_it_from_each_other(self, folder: Path) -> None:
        address = f"ipc://{folder}/acks.sock"
        first = ZmqCollector(address)
        with pytest.raises(OSError, match=r".") as caught:
            ZmqCollector(address)
        assert caught.value.errno == errno.EADDRINUSE
        first.close()
        ZmqCollector(address).close()

    def test_a_socket_that_a_dead_program_left_is_replaced(self, folder: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{folder}/acks.sock")
        collector = ZmqCollector(f"ipc://{folder}/acks.sock")
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.setsockopt(zmq.LINGER, 0)
            push.connect(collector.address)
            push.send(b"one")
            assert until(collector.receive) == b"one"
        collector.close()

    def test_other_kinds_of_addresses_are_refused(self) -> None:
        with pytest.raises(InvalidItem, match="inproc"):
            ZmqCollector("inproc://acks")
