"""One address for two kinds of ZeroMQ socket: each connection is passed on to the right one.

OpenHCS's first generation publishes (PUB) to the very address at which its later ones ask (REQ),
and a ZeroMQ socket takes connections of its own kind only. What kind a peer is, it says in its
first message after the greeting (ZMTP 3.1, sections 3.2 and 3.6: the READY command's property
Socket-Type). So connections are accepted here, looked at until that is known, and then joined to
a socket behind, byte for byte. The greeting that the peer is given is that of the socket behind.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openhcs_stream.errors import InvalidItem
from openhcs_stream.transport._addresses import is_loopback, parse_address
from openhcs_stream.transport._auth import peer_credentials
from openhcs_stream.transport._dial import dial
from openhcs_stream.transport._owner import tcp_peer_uid
from openhcs_stream.transport._socket_files import SocketFile
from openhcs_stream.transport._sparing import SparingLog
from openhcs_stream.transport._wake import Waker
from openhcs_stream.transport._zmq import (
    RELAYED_ADDRESS,
    RELAYED_FOR,
    RELAYED_FROM,
    _refuse_bind,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from openhcs_stream.transport._addresses import Address

__all__ = ["Door", "ZmqSorter", "ready", "socket_type"]

_log = logging.getLogger(__name__)

_GREETING = 64
#: Bytes of a READY command beyond which nobody is waited for.
_LONGEST_READY = 1024
#: Bytes that may wait in one direction of a connection.
_MOST_WAITING = 1 << 18
_MOST_CONNECTIONS = 1024
#: How long a peer may take to say what it is, seconds.
_PATIENCE_S = 10.0
#: How long what was said at last may take to be passed on, seconds.
_GRACE_S = 1.0
_PUBLISHERS = frozenset({b"PUB", b"XPUB"})


def ready(kind: bytes) -> bytes:
    """What a socket of a kind, b"REQ", say, says after the greeting: the READY command."""
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return bytes([4, len(body)]) + body


#: What a SUB socket that wants everything says after the greeting: READY, and its subscription.
_READY_TO_HEAR = ready(b"SUB") + b"\0\x01\x01"


@dataclass(frozen=True)
class Door:
    """One public address, and where its connections go.

    Attributes
    ----------
    address : str
        ``ipc:///path``, or ``tcp://127.0.0.1:port``, with port 0 any free one.
    publishers : str
        Where a SUB socket listens.
    others : str
        Where everybody else is taken: a ROUTER.
    label : str
        `RouterMessage.door` of what comes in here.
    """

    address: str
    publishers: str
    others: str
    label: str = ""


class ZmqSorter:
    """Accepts at doors and passes connections on, on a thread of its own. A context manager.

    Only those of this process's own user; over tcp where the system tells whose they are (Linux).

    Parameters
    ----------
    doors : sequence of Door

    Raises
    ------
    InvalidItem
        An address can't be used, or is taken.
    """

    def __init__(self, doors: Sequence[Door]) -> None:
        self._doors: dict[socket.socket, Door] = {}
        self._files: list[SocketFile] = []
        self._joints: set[_Joint] = set()
        self._waker = Waker()
        self._closing = False
        self._tell_refused = SparingLog(_log, logging.WARNING, burst=10)
        try:
            #: The public addresses, in the given order, with the real ports.
            self.addresses = tuple(self._listen(door) for door in doors)
        except BaseException:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._run, name="sorter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and end all connections; more than once if you like.

        Close the sockets behind before: what they have said at last is still passed on. Without
        that the connections are cut after a second.
        """
        self._closing = True
        self._waker.set()
        self._thread.join(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- listening ----------------------------------------------------------------------------

    def _listen(self, door: Door) -> str:
        where = parse_address(door.address)
        local = where.scheme == "ipc" or (where.scheme == "tcp" and is_loopback(where.host))
        if not local or where.key:
            raise InvalidItem(
                f"connections at {where} can't be sorted.",
                cure="Give an ipc:// address, or a tcp:// address of this machine without a key.",
            )
        try:
            if where.scheme == "tcp":
                return self._listen_by_tcp(where, door)
            file = SocketFile.bind(where.name)
            self._files.append(file)
            self._doors[file.listening] = door
        except OSError as error:
            raise _refuse_bind(where, error.errno, error.strerror) from error
        return door.address

    def _listen_by_tcp(self, where: Address, door: Door) -> str:
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        listening = socket.create_server((where.host, where.port), family=family, backlog=128)
        listening.setblocking(False)
        self._doors[listening] = door
        return str(replace(where, port=listening.getsockname()[1]))

    def _stop_listening(self) -> None:
        for file in self._files:
            file.remove()
        self._files.clear()
        for listening in self._doors:
            listening.close()
        self._doors.clear()

    def _let_go(self) -> None:
        self._stop_listening()
        for joint in self._joints:
            joint.close()
        self._joints.clear()
        self._waker.close()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._waker, selectors.EVENT_READ)
        for listening in self._doors:
            selector.register(listening, selectors.EVENT_READ)
        try:
            while not self._closing:
                self._round(selector, 1.0 if self._has_unknown() else None)
            for listening in self._doors:
                selector.unregister(listening)
            self._stop_listening()
            end = time.monotonic() + _GRACE_S
            while self._joints and (left := end - time.monotonic()) > 0:
                self._round(selector, left)
        except Exception:
            _log.exception("the thread that sorts connections failed; its addresses are closed")
        finally:
            selector.close()
            self._let_go()

    def _round(self, selector: selectors.BaseSelector, timeout_s: float | None) -> None:
        for key, _ in selector.select(timeout_s):
            if isinstance(key.data, _Joint):
                self._turn(key.data, selector)
            elif isinstance(key.fileobj, socket.socket):
                self._accept(key.fileobj, selector)
            else:
                self._waker.clear()
        self._lose_patience(selector)

    def _has_unknown(self) -> bool:
        return any(joint.kind is None for joint in self._joints)

    def _accept(self, listening: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            client, origin = listening.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                _log.warning("a connection could not be accepted: %s", error)
                time.sleep(0.01)  # out of descriptors: it would be asked for again at once
            return
        is_unix = client.family == socket.AF_UNIX
        who = peer_credentials(client) if is_unix else None
        if not (_is_own_by_tcp(client) if who is None else who.uid == os.geteuid()):
            self._tell_refused("refused a connection that is not this user's, or has gone already")
            client.close()
            return
        if len(self._joints) >= _MOST_CONNECTIONS:
            _log.warning("refused a connection: %d are open", _MOST_CONNECTIONS)
            client.close()
            return
        try:
            address = "" if is_unix else str(origin[0])
            joint = _Joint(client, self._doors[listening], who.pid if who else 0, address)
        except OSError as error:
            _log.warning("a connection could not be passed on: %s", error)
            client.close()
            return
        self._joints.add(joint)
        joint.watch(selector)

    def _turn(self, joint: _Joint, selector: selectors.BaseSelector) -> None:
        if joint not in self._joints:
            return  # it ended earlier in this round
        try:
            alive = joint.pump()
        except OSError as error:
            _log.debug("a connection ended: %s", error)
            alive = False
        if alive:
            joint.watch(selector)
        else:
            self._end(joint, selector)

    def _end(self, joint: _Joint, selector: selectors.BaseSelector) -> None:
        joint.unwatch(selector)
        joint.close()
        self._joints.discard(joint)

    def _lose_patience(self, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for joint in [each for each in self._joints if each.kind is None]:
            if now - joint.since > _PATIENCE_S:
                _log.info("closed a connection that did not say what it is")
                self._end(joint, selector)


class _Joint:
    """One connection and the socket behind that it is joined to."""

    def __init__(self, client: socket.socket, door: Door, process: int, address: str) -> None:
        self.kind: bytes | None = None  #: None: not known yet
        self.since = time.monotonic()
        self._door = door
        self._process = process
        self._address = address
        self._client = client
        client.setblocking(False)
        if address:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._behind = _connected(door.others)
        self._watched: dict[socket.socket, int] = {}
        self._heard = bytearray()  #: all that the client said while its kind is not known
        self._forwarded = 0  #: bytes of it that went on: the greeting, no more
        self._to_behind = bytearray()
        self._to_client = bytearray()
        self._told = 0  #: bytes of a greeting that the client was given
        self._held = bytearray()  #: what the socket behind said, until all may be passed on
        self._awaits_ready = False  #: of a SUB socket behind, which the client had from here
        self._early = bytearray()  #: what the client said since
        self._ended = False
        self._behind_ended = False

    def pump(self) -> bool:
        """Read and write what can be; False where the connection has ended."""
        if self._can_hear():
            self._hear(_receive(self._client))
        if self._can_answer():
            said = _receive(self._behind)
            self._behind_ended = said == b""
            self._answer(said or b"")
        self._write()
        ended = self._ended and not self._to_behind and not (self._awaits_ready and self._early)
        return not (ended or (self._behind_ended and not self._to_client))

    def _can_hear(self) -> bool:
        return not self._ended and len(self._to_behind) + len(self._early) < _MOST_WAITING

    def _can_answer(self) -> bool:
        return not self._behind_ended and len(self._to_client) < _MOST_WAITING

    def _hear(self, said: bytes | None) -> None:
        if said is None:
            return
        if said == b"":
            self._ended = True
            return
        if self.kind is not None:
            waiting = self._early if self._awaits_ready else self._to_behind
            waiting += said
            return
        self._heard += said
        if self._forwarded < _GREETING:
            more = self._heard[self._forwarded : _GREETING]
            self._to_behind += more
            self._forwarded += len(more)
        self.kind = socket_type(self._heard)
        if self.kind is not None:
            self._sort(self.kind)

    def _sort(self, kind: bytes) -> None:
        rest = bytes(self._heard[_GREETING:])
        if kind and self._process:
            rest = _with_property(rest, RELAYED_FOR, str(self._process))
        if kind and self._address:
            rest = _with_property(rest, RELAYED_ADDRESS, self._address)
        if kind and self._door.label:
            rest = _with_property(rest, RELAYED_FROM, self._door.label)
        if kind in _PUBLISHERS:
            self._behind.close()
            self._behind = _connected(self._door.publishers)
            span = _command_span(rest)
            assert span is not None
            self._to_behind = bytearray(self._heard[:_GREETING]) + rest[: span[1]]
            # A publisher does not wait for who listens, so it hears at once that somebody does,
            # and not only when the SUB socket's own thread gets to it. That one takes messages
            # for an error until it has said READY itself.
            self._awaits_ready = True
            if self._told == _GREETING:
                self._to_client += _READY_TO_HEAR
            self._early += rest[span[1] :]
        else:
            self._to_behind += rest
            self._to_client += self._held[self._told :]
        self._heard.clear()
        self._held.clear()

    def _answer(self, said: bytes) -> None:
        if self.kind is not None and not self._awaits_ready:
            self._to_client += said
            return
        self._held += said
        if self._told < _GREETING:
            self._greet()
        span = _command_span(self._held[_GREETING:]) if self._awaits_ready else None
        if span is not None:
            self._to_client += self._held[_GREETING + span[1] :]  # it has had a READY
            self._held.clear()
            self._awaits_ready = False
            self._to_behind += self._early
            self._early.clear()

    def _greet(self) -> None:
        # Both sockets behind are of one library and greet alike: it does not matter which one
        # said what the client is told.
        more = self._held[self._told : _GREETING]
        self._told += len(more)
        self._to_client += more
        if self._awaits_ready and self._told == _GREETING:
            self._to_client += _READY_TO_HEAR

    def _write(self) -> None:
        for sock, waiting in ((self._behind, self._to_behind), (self._client, self._to_client)):
            if waiting:
                with contextlib.suppress(BlockingIOError):
                    del waiting[: sock.send(waiting)]

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Wait for what there is room for."""
        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        wanted = {
            self._client: (read if self._can_hear() else 0) | (write if self._to_client else 0),
            self._behind: (read if self._can_answer() else 0) | (write if self._to_behind else 0),
        }
        for sock in [each for each in self._watched if not wanted.get(each)]:
            self._forget(sock, selector)
        for sock, events in wanted.items():
            if events == self._watched.get(sock, 0):
                continue
            if sock in self._watched:
                selector.modify(sock, events, self)
            else:
                selector.register(sock, events, self)
            self._watched[sock] = events

    def unwatch(self, selector: selectors.BaseSelector) -> None:
        """Wait for nothing any more."""
        for sock in list(self._watched):
            self._forget(sock, selector)

    def _forget(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        del self._watched[sock]
        # A socket that was exchanged is closed already, and its number may be another's by now.
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(sock)

    def close(self) -> None:
        """Cut both ends."""
        self._client.close()
        self._behind.close()


def socket_type(said: bytes | bytearray) -> bytes | None:
    """Tell what kind of ZeroMQ socket a peer is from the first bytes that it sent.

    Returns
    -------
    bytes or None
        ``b"REQ"``, ``b"PUB"``, ...; None: more bytes are needed; ``b""``: it does not say so in
        the clear, or it speaks no ZMTP 3.
    """
    if (
        (len(said) > 0 and said[0] != 0xFF)
        or (len(said) > 9 and not said[9] & 1)
        or (len(said) > 10 and said[10] < 3)
        or (len(said) >= 32 and bytes(said[12:32]).rstrip(b"\0") != b"NULL")
    ):
        return b""
    command = said[_GREETING:]
    span = _command_span(command)
    if span is None:
        return None
    body = bytes(command[span[0] : span[1]])
    if span == (0, 0) or not body.startswith(b"\x05READY"):
        return b""
    at = 6
    while at < len(body):
        name_end = at + 1 + body[at]
        value_end = name_end + 4 + int.from_bytes(body[name_end : name_end + 4], "big")
        if value_end > len(body):
            break
        if body[at + 1 : name_end].lower() == b"socket-type":
            return body[name_end + 4 : value_end]
        at = value_end
    return b""


def _command_span(frame: bytes | bytearray) -> tuple[int, int] | None:
    """Where a ZMTP command's body begins and ends; (0, 0): it is none; None: not all is there."""
    if not frame:
        return None
    if frame[0] not in (0x04, 0x06):
        return (0, 0)
    begin = 2 if frame[0] == 0x04 else 9
    if len(frame) < begin:
        return None
    size = int.from_bytes(frame[1:begin], "big")
    if size > _LONGEST_READY:
        return (0, 0)
    return (begin, begin + size) if len(frame) >= begin + size else None


def _with_property(said: bytes, name: str, text: str) -> bytes:
    """Add a property to the READY command that `said` begins with."""
    span = _command_span(said)
    assert span is not None
    value = text.encode()
    body = said[span[0] : span[1]]
    body += bytes([len(name)]) + name.encode() + len(value).to_bytes(4, "big") + value
    return b"\x06" + len(body).to_bytes(8, "big") + body + said[span[1] :]


def _is_own_by_tcp(client: socket.socket) -> bool:
    # Elsewhere nobody tells; of a unix socket the folder's mode counts there.
    return not sys.platform.startswith("linux") or tcp_peer_uid(client) == os.geteuid()


def _connected(address: str) -> socket.socket:
    sock = dial(address, 1.0)
    sock.setblocking(False)
    return sock


def _receive(sock: socket.socket) -> bytes | None:
    """What came; empty at the end; None where nothing waits."""
    try:
        return sock.recv(_MOST_WAITING)
    except BlockingIOError:
        return None
