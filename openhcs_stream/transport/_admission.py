"""Who may connect, and when: decided in the handshake, before any message of a peer is taken in.

ZeroMQ asks a *handler* inside of its context about each new connection (ZAP, ZeroMQ RFC 27) and
holds the connection until it has answered. The handler is the viewer's own loop, there is no
thread for it.

- Where other machines can reach the viewer, or where it listens with a key, a peer must prove that
  it knows the viewer's token: the token's hash is the secret half of the one CURVE key that is let
  in. Whoever knows only the address and the viewer's public key can make the viewer keep nothing
  of what it sends.
- Elsewhere a peer must belong to the same user of this machine, unless others are allowed. What
  ZeroMQ asks does not name the connection's socket, but it tells of each socket that it accepts
  before it asks. So sockets of other users are shut down as they are accepted, and no question is
  answered while one of those that were there when it was asked is still alive.

What peers have sent is kept by ZeroMQ until it is read, also when they are gone. So the router lets
new ones in as it has read what there was: however fast they come, go and come again, what waits
does not grow with their number.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import zmq

from openhcs_stream.transport._auth import client_key_pair, key_bytes, secrets_match
from openhcs_stream.transport._owner import opened_again, tcp_peer_uid
from openhcs_stream.transport._sparing import SparingLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.transport._addresses import Address
    from openhcs_stream.transport._auth import KeyPair

__all__ = ["FROM_OWN_USER", "PUBLIC_MAX_FRAME", "Admission", "is_public"]

_log = logging.getLogger(__name__)

_HANDLER = "inproc://zeromq.zap.01"
_IPC, _LOCAL, _PUBLIC = b"ipc", b"local", b"public"
#: The ZAP user of connections that this process's own user made, on this machine.
FROM_OWN_USER = "own"
_KEY_HOLDER = b"key"
#: Milliseconds that a handshake may take, so that nobody holds connections for nothing.
_HANDSHAKE_MS = 5_000
#: Bytes of one frame from another machine: a part of 8 MiB and what encryption adds.
PUBLIC_MAX_FRAME = 9 << 20
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_NOW = int(zmq.DONTWAIT)
_EVENTS_OPTION = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

_numbers = itertools.count()


def is_public(where: Address) -> bool:
    """Whether others than this user are let in at an address: by its key, and a token."""
    return bool(where.key) or not where.is_local


class _Asked(NamedTuple):
    """A question that waits for the end of strangers, one of whom may have caused it."""

    envelope: tuple[bytes, ...]
    number: bytes
    strangers: frozenset[int]


class Admission:
    """The handler for one router; belongs to the router's thread.

    Parameters
    ----------
    context : zmq.Context
        The router's, of which it is the only listening socket.
    router : zmq.Socket
        Before it is bound.
    keys : KeyPair or None
        The viewer's own; None: nobody from other machines is let in.
    token : str
        What peers from other machines must know.
    allow_other_users : bool
        Whether other users of this machine may connect by tcp.
    max_frame : int
        Bytes of one frame from this machine.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        *,
        keys: KeyPair | None,
        token: str,
        allow_other_users: bool,
        max_frame: int,
    ) -> None:
        self._router = router
        self._max_frame = max_frame
        self._keys = keys
        self._client_key = key_bytes(client_key_pair(token).public) if keys is not None else b""
        self._allow_other_users = allow_other_users
        self._local_ports: set[int] = set()
        #: Open sockets of other users, by number; a number is used again only after its end.
        self._strangers: set[int] = set()
        self._waiting: list[_Asked] = []
        self._tell_refused = SparingLog(_log, logging.WARNING)
        monitor = f"inproc://monitor-{next(_numbers)}"
        router.monitor(monitor, _EVENTS)
        self._events = context.socket(zmq.PAIR)
        self._handler = context.socket(zmq.ROUTER)
        # No limit: what finds no room here would hold up ZeroMQ's own thread.
        for each in (self._events, self._handler):
            each.setsockopt(zmq.LINGER, 0)
            each.setsockopt(zmq.RCVHWM, 0)
            each.setsockopt(zmq.SNDHWM, 0)
        self._events.connect(monitor)
        self._handler.bind(_HANDLER)

    # --- binding ------------------------------------------------------------------------------

    def guard(self, where: Address) -> None:
        """Have connections asked about at the address that the router binds next."""
        public = is_public(where)
        domain = _IPC if where.scheme == "ipc" else _PUBLIC if public else _LOCAL
        # Enforced: if the handler could not be asked, nobody would get in, rather than everybody.
        self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._router.setsockopt(zmq.ZAP_DOMAIN, domain)
        self._router.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self._router.setsockopt(zmq.MAXMSGSIZE, PUBLIC_MAX_FRAME if public else self._max_frame)
        self._router.setsockopt(zmq.CURVE_SERVER, int(public))
        if public:
            assert self._keys is not None
            self._router.setsockopt(zmq.CURVE_SECRETKEY, key_bytes(self._keys.secret))

    def bound(self, where: Address, really: Address) -> str:
        """Take note of the port that the router got, and give the address to connect to."""
        if not is_public(where):
            self._local_ports.add(really.port)
            return str(really)
        assert self._keys is not None
        return str(replace(really, key=self._keys.public))

    # --- in the router's loop -----------------------------------------------------------------

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What has to be waited for beside the router."""
        return (self._handler, self._events)

    def has_input(self) -> bool:
        """Whether `serve` has something to do; ask this before waiting for `sockets`."""
        return _has_frames(self._handler) or _has_frames(self._events)

    def serve(self, most: int) -> bool:
        """Answer as many questions as may be answered now; whether there was something to do."""
        if not (self._waiting or self.has_input()):
            return False
        while most > 0 and _has_frames(self._handler):
            most -= 1
            question = self._handler.recv_multipart(_NOW)
            # A socket's accepting is told before its question is asked: look again each time.
            self._look()
            self._answer(question)
        self._look()
        still: list[_Asked] = []
        for asked in self._waiting:
            if asked.strangers & self._strangers:
                still.append(asked)
            else:
                self._reply(asked.envelope, asked.number, b"200", FROM_OWN_USER.encode())
        self._waiting = still
        return True

    def close(self) -> None:
        """Stop answering; the router was closed, or is closed next."""
        with contextlib.suppress(zmq.ZMQError):
            self._router.disable_monitor()
        self._events.close()
        self._handler.close()

    def _answer(self, question: Sequence[bytes]) -> None:
        try:
            # The two first are the question's way back.
            asker, delimiter, version, number, domain, _, _, mechanism, *credentials = question
        except ValueError:
            _log.error("ZeroMQ asked about a connection in %d parts", len(question))
            return
        envelope = (asker, delimiter, version)
        match domain, mechanism:
            case b"ipc", b"NULL":
                self._reply(envelope, number, b"200", b"")  # ZeroMQ has asked whose it is
            case b"local", b"NULL" if self._allow_other_users:
                # Whose it is can't be told while one of another user is there.
                user = b"" if self._strangers else FROM_OWN_USER.encode()
                self._reply(envelope, number, b"200", user)
            case b"local", b"NULL":
                self._waiting.append(_Asked(envelope, number, frozenset(self._strangers)))
            case b"public", b"CURVE" if len(credentials) == 1 and secrets_match(
                credentials[0], self._client_key
            ):
                self._reply(envelope, number, b"200", _KEY_HOLDER)
            case _:
                self._tell_refused("refused a connection with a wrong token, or without one")
                self._reply(envelope, number, b"400", b"")

    def _reply(
        self, envelope: tuple[bytes, ...], number: bytes, status: bytes, user: bytes
    ) -> None:
        text = b"OK" if status == b"200" else b"no"
        # Not waiting: who asked may be gone already.
        with contextlib.suppress(zmq.Again):
            self._handler.send_multipart([*envelope, number, status, text, user, b""], _NOW)

    def _look(self) -> None:
        """Take in which sockets were accepted and which have ended."""
        while _has_frames(self._events):
            event = self._events.recv(_NOW)
            self._events.recv(_NOW)  # the address, the second part of each event
            kind = int.from_bytes(event[:2], "little")
            fd = int.from_bytes(event[2:6], "little")
            if kind == zmq.EVENT_DISCONNECTED:
                self._strangers.discard(fd)
            elif kind == zmq.EVENT_ACCEPTED and not self._is_own(fd):
                self._strangers.add(fd)

    def _is_own(self, fd: int) -> bool:
        """Whether an accepted socket is none of another user's; those are shut down."""
        sock = opened_again(fd)
        if sock is None:
            return True  # it has ended meanwhile, and with it all that it could ask
        with sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6):
                return True  # a unix socket, of which ZeroMQ asks the system itself
            try:
                port = sock.getsockname()[1]
            except OSError:
                return True
            if port not in self._local_ports:
                return True  # from another machine: its key counts
            uid = tcp_peer_uid(sock)
            if uid == os.geteuid() or not sys.platform.startswith("linux"):
                return True  # elsewhere nobody tells
            if not self._allow_other_users:
                who = "a process that has gone" if uid is None else f"user {uid}"
                self._tell_refused("refused a tcp connection of %s", who)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            return False


def _has_frames(sock: zmq.Socket[bytes]) -> bool:
    return bool(cast("int", sock.getsockopt(_EVENTS_OPTION)) & _POLLIN)
