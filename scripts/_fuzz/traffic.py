"""What hostile senders say, by each way into a viewer. As a program: one of them.

It reads one JSON object from its standard input (way, addresses, token, seed, messages) and
writes how many messages it has sent, a line now and then and at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import sys
import time
from abc import ABC, abstractmethod
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Final

import zmq

from openhcs_stream import messages as m
from openhcs_stream.errors import StreamError
from openhcs_stream.transport import (
    UNIX_MAX_FRAME,
    UnixLane,
    ZmqLane,
    connect_unix,
    machine_id,
    parse_address,
)
from scripts._fuzz.mutate import mutate, mutate_json, mutate_msgpack
from scripts._fuzz.targets import native_samples, openhcs_samples

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["WAYS", "hostile_frames", "main"]

_TELL_S: Final = 0.5
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
_READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
#: A frame of ZMTP with a length of eight bytes, which is then not kept.
_ENDLESS: Final = b"\x03\x7f\xff\xff\xff\xff\xff\xff\xff"


def hostile_frames(random: Random, most: int) -> Iterator[bytes]:
    """Some messages of one session: random, truncated, oversized, out of order, replayed."""
    samples = native_samples()
    match random.randrange(6):
        case 0:  # random
            for _ in range(random.randrange(1, 30)):
                yield random.randbytes(random.choice((1, 2, 9, 100, 4000)))
        case 1:  # truncated
            for _ in range(random.randrange(1, 30)):
                sample = random.choice(samples)
                yield sample[: random.randrange(1, len(sample) + 1)]
        case 2:  # oversized
            for _ in range(random.randrange(1, 3)):
                yield b"\x92\xa3bye" + random.randbytes(random.choice((most - 8, most // 2)))
        case 3:  # out of order
            for _ in range(random.randrange(1, 60)):
                yield random.choice(samples)
        case 4:  # replayed
            part = samples[7:16]
            for _ in range(random.randrange(1, 10)):
                yield from part
        case _:  # changed
            for _ in range(random.randrange(1, 30)):
                yield mutate_msgpack(random.choice(samples), random, samples)[:most] or b"\x90"


class Way(ABC):
    """One way into a viewer. `turn` opens it, says something, and leaves it in whatever way."""

    name: ClassVar[str]

    def __init__(self, told: dict[str, Any]) -> None:
        self.random = Random(told["seed"])
        self.token: str = told["token"]
        self.addresses: list[str] = told["addresses"]
        self.doors: list[str] = told["doors"]
        self.controls: list[str] = told["controls"]
        self._numbers = 0

    @abstractmethod
    def turn(self) -> int:
        """Give the number of messages that were sent."""

    def address(self, scheme: str) -> str:
        return next(each for each in self.addresses if each.startswith(f"{scheme}:"))

    def hello(self, *, near: bool, token: str = "") -> m.Hello:
        self._numbers += 1
        # Now and then the name of a session that another one has had, or has.
        number = self.random.choice((self._numbers, 1, 7))
        return m.Hello(
            1, 0, f"{os.getpid():016x}{number:016x}", self.random.choice(("stream", "control")),
            "hostile", "user", machine_id() if near else "elsewhere", os.getpid(), token,
            ("unix",) if near else (),
        )  # fmt: skip


class UnixWay(Way):
    """A session of one's own user, with its lane, over which descriptors may come."""

    name = "unix"

    def turn(self) -> int:
        sent = 0
        with ZmqLane.connect(self.address("ipc")) as control:
            control.send(m.encode(self.hello(near=True)))
            lane = self._open(control)
            if lane is None:
                return 1
            with lane:
                for frame in hostile_frames(self.random, UNIX_MAX_FRAME):
                    fds = self._some_fds()
                    try:
                        with contextlib.suppress(StreamError):
                            if lane.send(frame[: lane.max_frame], fds=fds):
                                sent += 1
                            if self.random.randrange(4) == 0:
                                lane.receive()
                    finally:
                        for fd in fds:
                            os.close(fd)
        return sent + 2

    def _open(self, control: ZmqLane) -> UnixLane | None:
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            frame = control.receive()
            if frame is None:
                time.sleep(0.0005)
                continue
            match m.decode(frame.data):
                case m.Welcome(lane=address, key=key) if address:
                    lane = connect_unix(address)
                    key = key if self.random.randrange(8) else "wrong"
                    opened = m.LaneOpened(f"{os.getpid():016x}{self._numbers:016x}", key)
                    with contextlib.suppress(StreamError):
                        lane.send(m.encode(opened))
                    return lane
                case _:
                    return None
        return None

    def _some_fds(self) -> list[int]:
        if self.random.randrange(5):
            return []
        made: list[int] = []
        for _ in range(self.random.randrange(1, 5)):
            match self.random.randrange(3):
                case 0:
                    made.append(os.open("/etc/passwd", os.O_RDONLY))
                case 1:
                    made.append(os.open("/", os.O_RDONLY))
                case _:
                    made.append(os.memfd_create("hostile", os.MFD_ALLOW_SEALING))
                    os.ftruncate(made[-1], self.random.choice((0, 1, 4096, 1 << 20)))
        return made


class ZmqWay(Way):
    """Native messages, as one's own user; with blobs that are not what the message says."""

    name = "ipc"
    scheme: ClassVar[str] = "ipc"

    def turn(self) -> int:
        sent = 0
        with ZmqLane.connect(self.address(self.scheme)) as lane:
            if self.random.randrange(3):
                token = self.random.choice((self.token, "", "wrong" * 10))
                lane.send(m.encode(self.hello(near=False, token=token)))
                sent += 1
            for _ in range(self.random.randrange(1, 8)):
                for frame in hostile_frames(self.random, lane.max_frame):
                    blobs = [
                        memoryview(self.random.randbytes(self.random.choice((0, 1, 8, 5000))))
                        for _ in range(self.random.choice((0, 0, 1, 3)))
                    ]
                    with contextlib.suppress(StreamError):
                        sent += lane.send(frame, blobs=blobs)
                        if self.random.randrange(8) == 0:
                            lane.receive()
        return sent


class TcpWay(ZmqWay):
    """The same over tcp, where nobody is trusted without the token."""

    name = "tcp"
    scheme = "tcp"


class ForeignWay(Way):
    """Other people's batches, by sockets that wait for their answers and by others."""

    name = "foreign"
    _context: zmq.Context[zmq.Socket[bytes]] | None = None

    def turn(self) -> int:
        self._context = self._context or zmq.Context()
        random, samples = self.random, openhcs_samples()
        kind = random.choice((zmq.REQ, zmq.DEALER, zmq.PUB, zmq.PUSH))
        address = random.choice([*self.doors, self.address("tcp"), self.address("ipc")])
        if kind in (zmq.PUB, zmq.PUSH):
            address = random.choice(self.doors or [address])
        sent = 0
        with self._context.socket(kind) as sock:
            sock.setsockopt(zmq.LINGER, 50)
            sock.setsockopt(zmq.SNDTIMEO, 2000)
            sock.setsockopt(zmq.RCVTIMEO, 2000)
            sock.connect(address)
            for _ in range(random.randrange(1, 40)):
                data = mutate_json(random.choice(samples), random, samples)
                with contextlib.suppress(zmq.ZMQError):
                    sock.send(data)
                    sent += 1
                    if kind == zmq.REQ:
                        sock.recv()
        return sent


class ControlWay(Way):
    """Other people's control requests, which are pickles; none that ends the viewer."""

    name = "control"
    _context: zmq.Context[zmq.Socket[bytes]] | None = None

    def turn(self) -> int:
        self._context = self._context or zmq.Context()
        samples = [pickle.dumps({"type": verb}) for verb in ("ping", "settle", "nothing")]
        sent = 0
        with self._context.socket(zmq.REQ) as sock:
            sock.setsockopt(zmq.LINGER, 0)
            sock.setsockopt(zmq.SNDTIMEO, 1000)
            sock.setsockopt(zmq.RCVTIMEO, 1000)
            sock.connect(self.random.choice(self.controls))
            for _ in range(self.random.randrange(1, 40)):
                data = mutate(self.random.choice(samples), self.random, samples)
                if b"shutdown" in data:
                    continue
                with contextlib.suppress(zmq.ZMQError):
                    sock.send(data)
                    sent += 1
                    sock.recv()
        return sent


class RawWay(Way):
    """Sockets of no protocol, or of the beginning of one."""

    name = "raw"

    def turn(self) -> int:
        random = self.random
        address = random.choice([*self.addresses, *self.doors, *self.controls])
        where = parse_address(address)
        sent = 0
        with contextlib.suppress(OSError), self._connect(where.scheme, where) as sock:
            sock.settimeout(1.0)
            for _ in range(random.randrange(1, 5)):
                match random.randrange(5):
                    case 0:
                        said = random.randbytes(random.choice((1, 63, 64, 65, 5000)))
                    case 1:
                        said = _GREETING[: random.randrange(1, 65)]
                    case 2:
                        said = _GREETING + bytes([4, len(_READY)]) + _READY + _ENDLESS + bytes(9000)
                    case 3:
                        said = mutate(_GREETING + bytes([4, len(_READY)]) + _READY, random)
                    case _:
                        said = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
                sock.sendall(said)
                sent += 1
                if random.randrange(3) == 0:
                    with contextlib.suppress(TimeoutError):
                        sock.settimeout(0.02)
                        sock.recv(100)
        return sent

    def _connect(self, scheme: str, where: Any) -> socket.socket:
        if scheme == "tcp":
            return socket.create_connection((where.host, where.port), 2.0)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(2.0)
        sock.connect(where.name)
        return sock


class LaneWay(Way):
    """Lanes that belong to no session."""

    name = "lanes"
    _lane = ""

    def turn(self) -> int:
        if not self._lane:
            self._lane = self._ask()
        sent = 0
        with contextlib.suppress(StreamError), connect_unix(self._lane) as lane:
            for frame in hostile_frames(self.random, UNIX_MAX_FRAME):
                sent += lane.send(frame[: lane.max_frame])
        return sent

    def _ask(self) -> str:
        """What a session of one's own is told."""
        with ZmqLane.connect(self.address("ipc")) as control:
            hello = m.Hello(
                1, 0, "c" * 32, "stream", "lanes", "u", machine_id(), os.getpid(), "", ("unix",)
            )
            control.send(m.encode(hello))
            deadline = time.monotonic() + 10
            while (frame := control.receive()) is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            welcome = m.decode(frame.data)
            assert isinstance(welcome, m.Welcome)
            control.send(m.encode(m.Bye()))
            return welcome.lane


WAYS: Final[dict[str, type[Way]]] = {
    way.name: way for way in (UnixWay, ZmqWay, TcpWay, ForeignWay, ControlWay, RawWay, LaneWay)
}


def main() -> None:
    """Be one hostile sender."""
    told = json.loads(sys.stdin.readline())
    way = WAYS[told["way"]](told)
    sent, told_at = 0, time.monotonic()
    end = time.monotonic() + told["seconds"]
    while sent < told["messages"] and time.monotonic() < end:
        try:
            sent += way.turn()
        except (StreamError, zmq.ZMQError, OSError) as error:
            print(json.dumps({"note": f"{type(error).__name__}: {error}"[:200]}), flush=True)
            time.sleep(0.01)
        if time.monotonic() - told_at > _TELL_S:
            told_at = time.monotonic()
            print(json.dumps({"sent": sent}), flush=True)
    print(json.dumps({"sent": sent, "done": True}), flush=True)


if __name__ == "__main__":
    main()
