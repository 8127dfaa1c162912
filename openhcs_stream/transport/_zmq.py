"""Lanes over ZeroMQ: a DEALER at the sender's side, one ROUTER for everybody at the viewer's.

A ZeroMQ socket belongs to one thread: the one that made it, or one that it was handed to as a
whole. That holds for every method here, ``close`` included.

Its descriptor is *edge-triggered*: it turns readable when something changed, and stays silent
about what was there before. Wait for ``fileno()`` only after `receive` gave None or `has_input`
gave False, and ask again after every send: sending, too, takes the edge away.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import logging
import os
import re
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, ClassVar, cast

import zmq

from openhcs_stream.errors import InvalidItem, PeerError, ProtocolViolation, Refused
from openhcs_stream.messages import is_native
from openhcs_stream.transport._addresses import Address, is_loopback, parse_address
from openhcs_stream.transport._admission import FROM_OWN_USER, Admission
from openhcs_stream.transport._auth import KeyPair, PeerCredentials, client_key_pair, key_bytes
from openhcs_stream.transport._lane import (
    MAX_BLOBS,
    Frame,
    Lane,
    LaneClosed,
    check_blobs,
    closed_here,
    peer_gone,
    refuse_fds,
    refuse_length,
)
from openhcs_stream.transport._owner import opened_again, peer_uid, tcp_peer_process
from openhcs_stream.transport._socket_files import SocketFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["ZMQ_MAX_FRAME", "RouterLane", "RouterMessage", "ZmqLane", "ZmqRouter"]

_log = logging.getLogger(__name__)

# Plain integers: arithmetic with enumerations is slow.
_NOW = int(zmq.DONTWAIT)
_MORE_NOW = int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_HANDSHAKE = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_CONNECTED = int(zmq.EVENT_CONNECTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
_NO_DETAIL = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_NOT_UNDERSTOOD = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_NOT_LET_IN = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)

#: Bytes of the largest frame or blob; a peer that sends more is disconnected.
ZMQ_MAX_FRAME = 64 << 20
#: Bytes of a sender's message without what follows on it: decoded it takes many times as much.
_SENDER_MAX_FRAME = 1 << 20

# What was sent before close() still goes out, for this long, on ZeroMQ's own thread.
_LINGER_MS = 1000
_RECONNECT_MS = (50, 500)
#: A connection that died without a word (tcp) is noticed by the system: what is sent and not
#: acknowledged for so long ends it, and where nothing is sent it asks. Not by ZeroMQ's heartbeats:
#: libzmq 4.3.5 aborts the whole process ("!_io_error") where one is due on a connection whose peer
#: has sent more than was read and is gone, as any peer can bring about.
_UNACKNOWLEDGED_MS = 10_000
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
#: Connections that end in the greeting before it counts as a refusal; one may be a viewer's end.
_CUT_GREETINGS = 3

#: How many peers are let in when nothing is left to be read, and while there is, after how many
#: messages one.
_ADMITTED_AT_REST = 16
_ADMIT_EVERY = 64

#: The properties by which a `ZmqSorter` tells whose connection it passes on: the process over ipc,
#: the IP address over tcp; and of which door.
RELAYED_FOR = "X-Process"
RELAYED_ADDRESS = "X-Address"
RELAYED_FROM = "X-Door"

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}
_context_lock = threading.Lock()


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's own context: another library that ends the global one does not end ours."""
    # A fork inherits the parent's context, which is of no use there and must not be touched; it
    # stays in the dict, so that nothing tries to end it.
    with _context_lock:
        pid = os.getpid()
        if pid not in _contexts:
            _contexts[pid] = zmq.Context()
        return _contexts[pid]


def _after_fork_in_child() -> None:
    """A thread that is not there any more may hold the lock."""
    global _context_lock
    _context_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


class ZmqLane(Lane):
    """The sender's side of a session over ZeroMQ: a DEALER, for the thread that made it.

    Frames wait in memory until the viewer is there; `connected` tells whether it ever was. Once
    it was, losing the connection ends the lane (`LaneClosed`): ZeroMQ would connect again, to
    whatever listens there by then, and frames would be missing in between. Where the viewer does
    not let this lane in, by its key, token or user, `receive` raises `Refused`.
    """

    carries_fds: ClassVar[bool] = False
    carries_blobs: ClassVar[bool] = True
    polls_out: ClassVar[bool] = False
    max_frame = _SENDER_MAX_FRAME

    def __init__(
        self,
        address: str,
        *,
        identity: bytes | None = None,
        high_water: int = 1000,
        token: str = "",
        allow_other_users: bool = False,
    ) -> None:
        """Start to connect, and return at once; see `connect`."""
        where = parse_address(address)
        _require_connectable(where)
        if where.scheme == "tcp" and where.port == 0:
            raise InvalidItem(
                f"{address!r} has no port to connect to.", cure="Give the viewer's port."
            )
        self.address = where.endpoint
        self._has_key = bool(where.key)
        self._connected = False
        self._ended = False
        self._failure: PeerError | None = None
        self._cut_greetings = 0
        #: What came before the end, and was not received yet.
        self._last_words: deque[Frame] = deque()
        self._fd = -1
        self._asks_owner = where.is_local and not where.key and not allow_other_users
        self._poller: select.epoll | None = None
        self._socket = _context().socket(zmq.DEALER)
        try:
            _configure(self._socket, where, send_high_water=high_water, receive_high_water=1000)
            self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
            self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
            if identity is not None:
                self._socket.setsockopt(zmq.ROUTING_ID, identity)
            if where.key:
                ours = client_key_pair(token)
                self._socket.setsockopt(zmq.CURVE_SERVERKEY, key_bytes(where.key))
                self._socket.setsockopt(zmq.CURVE_PUBLICKEY, key_bytes(ours.public))
                self._socket.setsockopt(zmq.CURVE_SECRETKEY, key_bytes(ours.secret))
            self._monitor = self._socket.get_monitor_socket(
                _CONNECTED | _HANDSHAKE | _DISCONNECTED | _NO_DETAIL | _NOT_UNDERSTOOD | _NOT_LET_IN
            )
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self._socket.disable_monitor()
            self._socket.close()
            raise InvalidItem(
                f"can't connect to {self.address}: {error.strerror}.",
                cure="Check the address, and the identity (1 to 255 bytes, the first not zero).",
            ) from error
        if hasattr(select, "epoll"):
            # One descriptor for two: frames, and the news that the connection ended.
            self._poller = select.epoll()
            self._poller.register(self._socket.fileno(), select.EPOLLIN)
            self._poller.register(self._monitor.fileno(), select.EPOLLIN)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        identity: bytes | None = None,
        high_water: int = 1000,
        token: str = "",
        allow_other_users: bool = False,
    ) -> ZmqLane:
        """Start to connect to a `ZmqRouter`, and return at once.

        Nobody needs to listen yet: it is tried again every 50 to 500 ms, and what is sent waits.

        Parameters
        ----------
        address : str
            ``ipc:///path``, ``tcp://127.0.0.1:port``, or ``tcp://host:port?key=KEY`` with the
            viewer's public key, by which what is sent is encrypted.
        identity : bytes, optional
            Name of this lane at the router, 1 to 255 bytes, the first not zero. By default the
            router makes one, a new one for each connection.
        high_water : int
            Frames that may wait here before `send` gives False.
        token : str
            With a key: the viewer's token, without which it ends the connection.
        allow_other_users : bool
            Whether the viewer may belong to another user of this machine than this process, or
            root; with a key it may in any case.

        Raises
        ------
        InvalidItem
            The address or identity can't be used; or the address is on another machine and has no
            key.
        """
        return cls(
            address, identity=identity, high_water=high_water, token=token,
            allow_other_users=allow_other_users,
        )  # fmt: skip

    @property
    def proves_viewer(self) -> bool:
        """Whether what answers here has proved that it is the viewer whose key was given."""
        return self._has_key and self.connected

    @property
    def connected(self) -> bool:
        """Whether a ZeroMQ peer ever answered: False after a while means that nobody listens."""
        if not self._connected and not self._socket.closed:
            self._read_monitor()
        return self._connected

    def send(
        self, data: bytes, *, fds: Sequence[int] = (), blobs: Sequence[memoryview] = ()
    ) -> bool:
        if not 0 < len(data) <= self.max_frame:
            raise refuse_length(len(data), self.max_frame)
        if fds:
            raise refuse_fds("a ZeroMQ lane")
        self._require_open()
        if self._failure is not None:
            return False  # `receive` tells why
        try:
            if not blobs:
                self._socket.send(data, _NOW)
            else:
                check_blobs(blobs, ZMQ_MAX_FRAME)
                self._socket.send(data, _MORE_NOW)
                _send_blobs(self._socket, blobs)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Frame | None:
        if self._socket.closed:
            raise closed_here(f"the lane to {self.address}")
        if not self._connected:
            self._read_monitor()  # before the first frame: whose program is it?
        frame = self._take()
        if frame is None and self._read_monitor():
            # What came in before the end may have been noticed only now.
            frame = self._take()
            if frame is None:
                raise self._failure or peer_gone(f"the lane to {self.address}")
        return frame

    def has_input(self) -> bool:
        """Whether `receive` would give a frame or raise; ask this before waiting for `fileno`."""
        if self._socket.closed:
            return True
        return self._read_monitor() or _has_frames(self._socket)

    def fileno(self) -> int:
        """Give the descriptor to wait for; -1 once closed.

        It is edge-triggered: wait for it only after `receive` gave None or `has_input` gave
        False, with no send after that. Where the system has no epoll it does not tell of the
        connection's end; wait with a timeout there.
        """
        if self._socket.closed:
            return -1
        return self._socket.fileno() if self._poller is None else self._poller.fileno()

    def close(self) -> None:
        if self._socket.closed:
            return
        if self._poller is not None:
            self._poller.close()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()

    def _take(self) -> Frame | None:
        if self._ended:
            return self._last_words.popleft() if self._last_words else None
        return self._take_from_socket()

    def _take_from_socket(self) -> Frame | None:
        try:
            first = self._socket.recv(_NOW, copy=False)
        except zmq.Again:
            return None
        blobs = _rest(self._socket, first, MAX_BLOBS)
        if blobs is None or len(first) == 0:
            raise ProtocolViolation(
                f"the peer at {self.address} sent an empty frame, or one with more than "
                f"{MAX_BLOBS} blobs.",
                cure="Make sure that it is openhcs-stream.",
            )
        return Frame(first.bytes, (), blobs)

    def _check_owner(self) -> None:
        """End a connection to another user's program, before anything of it is taken.

        It has heard the greeting. Pixels are sent only to who has answered that.
        """
        sock = opened_again(self._fd) if self._asks_owner else None
        if sock is None:
            return
        with sock:
            uid = peer_uid(sock)
        if uid in (None, os.geteuid(), 0):  # root's: what publishes a container's port
            return
        self._ended = True
        self._failure = Refused(
            f"what listens at {self.address} belongs to user {uid}, and this process runs as user "
            f"{os.geteuid()}.",
            cure="Connect to a viewer of your own, or with the .viewer file that the other one's "
            "viewer wrote when it was started with --public.",
        )

    def _keep_last_words(self) -> None:
        """Take what came before the end: ZeroMQ drops it with the address."""
        try:
            while (frame := self._take_from_socket()) is not None:
                self._last_words.append(frame)
        except ProtocolViolation as error:
            self._failure = error

    def _require_open(self) -> None:
        if self._socket.closed:
            raise closed_here(f"the lane to {self.address}")
        if self._read_monitor() and self._failure is None:
            raise peer_gone(f"the lane to {self.address}")

    def _read_monitor(self) -> bool:
        """Take in what became of the connection; True where it has ended."""
        # Asking first: an exception for each empty look would cost five times as much.
        while not self._ended and _has_frames(self._monitor):
            event = self._monitor.recv(_NOW)
            self._monitor.recv(_NOW)  # the address, the second part of each event
            kind = int.from_bytes(event[:2], "little")
            if kind == _CONNECTED:
                self._fd = int.from_bytes(event[2:6], "little")
            elif kind == _HANDSHAKE:
                self._connected = True
                self._check_owner()
            elif self._connected:
                self._keep_last_words()
                self._ended = True
            elif kind != _DISCONNECTED:  # that follows on each of the others
                self._cut_greetings += 1
                if kind != _NO_DETAIL or self._cut_greetings >= _CUT_GREETINGS:
                    self._ended = True
                    self._failure = _refusal(self.address, kind, has_key=self._has_key)
            if self._ended:
                # Without this it would connect to the next program that listens there.
                with contextlib.suppress(zmq.ZMQError):
                    self._socket.disconnect(self.address)
        return self._ended


class RouterMessage:
    """One message that came in at a `ZmqRouter`."""

    __slots__ = ("_routing", "delimited", "frames", "identity")

    def __init__(
        self, identity: bytes, frames: tuple[memoryview, ...], delimited: bool, routing: zmq.Frame
    ) -> None:
        self.identity = identity  #: names the connection it came from
        self.frames = frames  #: read-only, not copied; without the identity and the delimiter
        #: Whether it came from a REQ socket, which waits for a delimited answer.
        self.delimited = delimited
        self._routing = routing

    @property
    def is_native(self) -> bool:
        """Whether it can be openhcs-stream's own protocol: send it to this identity's lane."""
        return not self.delimited and bool(self.frames) and is_native(self.frames[0])

    @property
    def peer_address(self) -> str:
        """Where it came from: the IP address of a tcp peer, else "" ."""
        return sending_address(self._routing)

    @property
    def peer(self) -> PeerCredentials | None:
        """The process that sent it, where it came over ipc and the system tells."""
        return _parse_peer(self._raw_address())[1]

    @property
    def process(self) -> int:
        """The process that sent it over ipc, through a `ZmqSorter` or not; 0: nobody tells."""
        return sending_process(self._routing)

    def find_process(self) -> int:
        """As `process`; over tcp on this machine it is searched for, which takes milliseconds."""
        if self.process or not self.peer_address:
            return self.process
        sock = opened_again(int(self._routing.get(zmq.SRCFD)))
        if sock is None:
            return 0
        with sock:
            return tcp_peer_process(sock)

    @property
    def door(self) -> str:
        """The label of the `ZmqSorter` door by which it came; empty: by none."""
        return _property(self._routing, RELAYED_FROM)

    @property
    def is_own_user(self) -> bool:
        """Whether the system itself says that this process's own user sent it.

        Of tcp it does on Linux, for peers of this machine; see `Admission`.
        """
        peer = self.peer
        if peer is not None:
            return peer.uid == os.geteuid()
        try:
            return str(self._routing.get("User-Id")) == FROM_OWN_USER
        except zmq.ZMQError:
            # It came over ipc; where the system does not tell who did, the folder's mode counts.
            return not self.peer_address and not hasattr(socket, "SO_PEERCRED")

    @property
    def local(self) -> bool:
        """Whether it came from this machine."""
        address = self.peer_address
        return not address or is_loopback(address)

    def to_frame(self) -> Frame:
        """Give what `RouterLane.deliver` takes; `frames` must not be empty."""
        return Frame(self.frames[0].tobytes(), (), self.frames[1:])

    def _raw_address(self) -> str:
        try:
            return str(self._routing.get("Peer-Address"))
        except zmq.ZMQError:  # a system without it, over ipc
            return ""


class RouterLane(Lane):
    """The viewer's side of one native session over ZeroMQ; belongs to its router's thread.

    `ZmqRouter.lane` makes them. Frames come in through the router: whoever reads it calls
    `deliver`. A peer that has vanished is noticed at the next `send`.
    """

    carries_fds: ClassVar[bool] = False
    carries_blobs: ClassVar[bool] = True
    polls_out: ClassVar[bool] = False
    max_frame = ZMQ_MAX_FRAME

    def __init__(self, router: ZmqRouter, identity: bytes) -> None:
        self.identity = identity
        self._router = router
        self._inbox: deque[Frame] = deque()
        self._closed = False
        self._peer_gone = False

    def deliver(self, frame: Frame) -> None:
        """Put in a frame that the router received for this lane; ignored once it is closed."""
        if not self._closed:
            self._inbox.append(frame)

    def send(
        self, data: bytes, *, fds: Sequence[int] = (), blobs: Sequence[memoryview] = ()
    ) -> bool:
        if not 0 < len(data) <= ZMQ_MAX_FRAME:
            raise refuse_length(len(data), ZMQ_MAX_FRAME)
        if fds:
            raise refuse_fds("a ZeroMQ lane")
        if self._closed:
            raise closed_here("a ZeroMQ lane")
        if self._peer_gone:
            raise peer_gone("a ZeroMQ lane")
        try:
            return self._router.send(self.identity, [data, *blobs])
        except LaneClosed:
            self._peer_gone = True
            raise

    def receive(self) -> Frame | None:
        if self._closed:
            raise closed_here("a ZeroMQ lane")
        if self._inbox:
            return self._inbox.popleft()
        if self._peer_gone:
            raise peer_gone("a ZeroMQ lane")
        return None

    def has_input(self) -> bool:
        """Whether the router must be read before anybody waits for `fileno`."""
        return self._closed or self._peer_gone or bool(self._inbox) or self._router.has_input()

    def fileno(self) -> int:
        """Give the router's descriptor (edge-triggered); -1 once closed."""
        return -1 if self._closed else self._router.fileno()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._inbox.clear()
            self._router.forget(self.identity)


class ZmqRouter:
    """The viewer's ROUTER: one socket, bound to one or more addresses, for one thread.

    Every peer that talks ZeroMQ comes in here: native sessions (DEALER) and OpenHCS senders (REQ).
    Of this machine only the same user's are let in, over ipc and over tcp; of other machines only
    those that know the viewer's key and token. A context manager.

    ::

        with ZmqRouter(["ipc:///run/user/1000/viewer.sock", "tcp://127.0.0.1:0"]) as router:
            while (message := router.receive()) is not None:
                if message.is_native:
                    router.lane(message.identity).deliver(message.to_frame())
                else:
                    router.send(message.identity, [b"{...}"], delimited=message.delimited)
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        keys: KeyPair | None = None,
        token: str = "",
        allow_other_users: bool = False,
        max_frame: int = ZMQ_MAX_FRAME,
        send_high_water: int = 1000,
        receive_high_water: int = 32,
    ) -> None:
        """Bind.

        Parameters
        ----------
        addresses : sequence of str
            ``ipc:///path``, ``ipc://@name`` (Linux) or ``tcp://127.0.0.1:port``; with port 0 or
            ``*`` any free one, which `addresses` then tells. A socket file on which nobody
            listens any more is replaced. With `keys` also ``tcp://*:port`` and the like, which
            other machines can reach, and ``tcp://127.0.0.1:port?key=KEY`` with the public one of
            them, for all users of this machine that have been given it.
        keys : KeyPair or None
            The viewer's own, for addresses that other machines can reach: what goes over those is
            encrypted.
        token : str
            What peers on other machines must know; needed with `keys`.
        allow_other_users : bool
            Whether peers on this machine may belong to other users than this process.
        max_frame : int
            Bytes of one frame beyond which a peer is disconnected.
        send_high_water, receive_high_water : int
            Messages per peer that may wait to go out, and to be received.

        Raises
        ------
        InvalidItem
            An address is no ipc or tcp address, is taken, can't be bound, or could be reached
            from another machine. Nothing stays bound.
        """
        where = [parse_address(address) for address in addresses]
        for each in where:
            _require_bindable(each, keys, token)
        self._lanes: dict[bytes, RouterLane] = {}
        self._allow_other_users = allow_other_users
        self._admission: Admission | None = None
        self._poller: select.epoll | None = None
        self._files: list[SocketFile] = []
        self._since_admission = 0
        # Who may connect is asked of one handler in each context.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            self._admission = Admission(
                self._context, self._socket, keys=keys, token=token,
                allow_other_users=allow_other_users, max_frame=max_frame,
            )  # fmt: skip
            _configure(
                self._socket,
                None,
                send_high_water=send_high_water,
                receive_high_water=receive_high_water,
            )
            self._socket.setsockopt(zmq.MAXMSGSIZE, max_frame)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if not allow_other_users and hasattr(socket, "SO_PEERCRED"):
                self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
            #: The addresses that peers connect to, in the given order, with the real ports.
            self.addresses: tuple[str, ...] = tuple(self._bind(each) for each in where)
            if hasattr(select, "epoll"):
                self._poller = select.epoll()
                for sock in (self._socket, *self._admission.sockets):
                    self._poller.register(sock.fileno(), select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def receive(self) -> RouterMessage | None:
        """Take the next message of any peer; None where none waits now.

        Raises
        ------
        LaneClosed
            The router was closed.
        """
        while True:
            if self._socket.closed:
                raise closed_here("the router")
            try:
                routing = self._socket.recv(_NOW, copy=False)
            except zmq.Again:
                # All is read that those who are in have sent: the next may come.
                self._since_admission = 0
                if self._admission is not None and self._admission.serve(_ADMITTED_AT_REST):
                    continue
                return None
            self._since_admission += 1
            if self._since_admission >= _ADMIT_EVERY and self._admission is not None:
                self._since_admission = 0
                self._admission.serve(1)
            identity = routing.bytes
            frames = _rest(self._socket, routing, MAX_BLOBS + 2)
            if frames is None:
                _log.warning("dropped a message of more than %d parts", MAX_BLOBS)
                continue
            delimited = bool(frames) and not frames[0]
            return RouterMessage(identity, frames[1:] if delimited else frames, delimited, routing)

    def send(
        self, identity: bytes, frames: Sequence[bytes | memoryview], *, delimited: bool = False
    ) -> bool:
        """Send a message to one peer, now or not at all.

        Parameters
        ----------
        identity : bytes
            As the peer's message had it.
        frames : sequence of bytes or memoryview
            At least one. Large memoryviews are not copied: they must not change until the peer
            has said that it read them.
        delimited : bool
            Whether to put the empty frame first that a REQ socket waits for.

        Returns
        -------
        bool
            False: too much waits for this peer already; nothing was sent.

        Raises
        ------
        LaneClosed
            The peer is gone, or the router was closed.
        InvalidItem
            There is no frame, or one is not contiguous or too large.
        """
        if self._socket.closed:
            raise closed_here("the router")
        if not frames:
            raise InvalidItem("a message of no frames can't be sent.", cure="Give at least one.")
        views = [memoryview(frame) for frame in frames]
        check_blobs(views[1:], ZMQ_MAX_FRAME)
        check_blobs(views[:1], ZMQ_MAX_FRAME)
        try:
            # The router decides on the first part; the others can't fail any more.
            self._socket.send(identity, _MORE_NOW)
            if delimited:
                self._socket.send(b"", _MORE_NOW)
            _send_blobs(self._socket, frames)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise peer_gone("a ZeroMQ lane") from None
        return True

    def lane(self, identity: bytes) -> RouterLane:
        """Give the native lane of a peer; the same one until it is closed."""
        lane = self._lanes.get(identity)
        if lane is None:
            lane = self._lanes[identity] = RouterLane(self, identity)
        return lane

    def forget(self, identity: bytes) -> None:
        """Let `lane` make a new lane for this peer the next time; `RouterLane.close` calls it."""
        self._lanes.pop(identity, None)

    def has_input(self) -> bool:
        """Whether `receive` would give a message or raise; ask this before waiting for `fileno`."""
        if self._socket.closed or _has_frames(self._socket):
            return True
        return self._admission is not None and self._admission.has_input()

    def fileno(self) -> int:
        """Give the descriptor to wait for; -1 once closed.

        It is edge-triggered: wait for it only after `receive` gave None or `has_input` gave
        False, with no send after that. Where the system has no epoll it does not tell of new tcp
        connections; wait with a timeout there.
        """
        if self._socket.closed:
            return -1
        return self._socket.fileno() if self._poller is None else self._poller.fileno()

    def close(self) -> None:
        """Close all lanes, remove the socket files, and stop listening; again if you like."""
        for lane in list(self._lanes.values()):
            lane.close()
        # The files first, and only where they are still ours: from here on another viewer may
        # listen at the same path.
        for file in self._files:
            file.remove()
        self._files.clear()
        if self._poller is not None:
            self._poller.close()
        if self._admission is not None:
            self._admission.close()
        self._socket.close()
        self._context.term()  # waits as long as the socket lingers, at most

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _bind(self, where: Address) -> str:
        admission = self._admission
        assert admission is not None
        try:
            admission.guard(where)
            if where.scheme == "ipc":
                return self._bind_ipc(where)
            self._socket.setsockopt(zmq.IPV6, int(":" in where.host))
            self._socket.bind(where.endpoint)
            bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
            return admission.bound(where, parse_address(bound))
        except (OSError, zmq.ZMQError) as error:
            raise _refuse_bind(where, error.errno, error.strerror) from error

    def _bind_ipc(self, where: Address) -> str:
        # ZeroMQ's own bind removes whatever is at the path, a living viewer's socket too, and its
        # close removes the file at some later time. So the socket is made here and handed over.
        address = str(where)
        if where.name.startswith("@"):
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            file = SocketFile.bind(where.name)
            self._files.append(file)
            listening = file.listening
        try:
            if where.name.startswith("@"):
                listening.setblocking(False)
                listening.bind(b"\0" + os.fsencode(where.name[1:]))
                listening.listen(64)
            self._socket.setsockopt(zmq.USE_FD, listening.fileno())
            self._socket.bind(address)
            listening.detach()  # ZeroMQ closes it
        finally:
            listening.close()
            self._socket.setsockopt(zmq.USE_FD, -1)
        return address


def _configure(
    sock: zmq.Socket[bytes],
    where: Address | None,
    *,
    send_high_water: int,
    receive_high_water: int,
) -> None:
    sock.setsockopt(zmq.LINGER, _LINGER_MS)
    sock.setsockopt(zmq.SNDHWM, send_high_water)
    sock.setsockopt(zmq.RCVHWM, receive_high_water)
    sock.setsockopt(zmq.TCP_MAXRT, _UNACKNOWLEDGED_MS)
    for option, value in _KEEPALIVE.items():
        sock.setsockopt(option, value)
    if where is not None:
        sock.setsockopt(zmq.MAXMSGSIZE, ZMQ_MAX_FRAME)
        sock.setsockopt(zmq.IPV6, int(":" in where.host))


def _has_frames(sock: zmq.Socket[bytes]) -> bool:
    return bool(cast("int", sock.getsockopt(_EVENTS)) & _POLLIN)


def _send_blobs(sock: zmq.Socket[bytes], blobs: Sequence[bytes | memoryview]) -> None:
    for blob in blobs[:-1]:
        sock.send(blob, _MORE_NOW, copy=False)
    sock.send(blobs[-1], _NOW, copy=False)


def _rest(sock: zmq.Socket[bytes], frame: zmq.Frame, most: int) -> tuple[memoryview, ...] | None:
    """Take the parts that follow `frame`, which are all there; None where there are too many."""
    if not frame.more:
        return ()
    parts: list[memoryview] = []
    too_many = False
    while frame.more:
        frame = sock.recv(_NOW, copy=False)
        too_many = too_many or len(parts) >= most
        if not too_many:
            parts.append(frame.buffer.toreadonly())
    return None if too_many else tuple(parts)


def _require_local(where: Address, verb: str) -> None:
    if where.scheme not in ("ipc", "tcp"):
        raise InvalidItem(
            f"ZeroMQ does not {verb} {where}.", cure="Write ipc:///path or tcp://127.0.0.1:5555."
        )
    if not where.is_local:
        raise InvalidItem(
            f"refused to {verb} {where}: beyond this machine anybody could read and send; that "
            "needs a key and a token.",
            cure="Start the viewer with --public and a --port, or stay on 127.0.0.1 and make a "
            "tunnel from the other machine: ssh -L 5555:127.0.0.1:5555.",
        )


def _require_bindable(where: Address, keys: KeyPair | None, token: str) -> None:
    if where.key and (keys is None or where.key != keys.public):
        raise InvalidItem(
            f"can't listen at {where}: its key is not this viewer's own.",
            cure="Leave the key out; it is made and told when the viewer starts with --public.",
        )
    if keys is None or not token or where.scheme != "tcp":
        _require_local(where, "listen at")


def _require_connectable(where: Address) -> None:
    if where.scheme not in ("ipc", "tcp"):
        _require_local(where, "connect to")
    if not where.is_local and not where.key:
        raise InvalidItem(
            f"refused to connect to {where}: it is on another machine, and without the viewer's "
            "key anybody between could read and change what is sent.",
            cure="Start the viewer there with --public, and connect with the .viewer file that it "
            "writes, or with key= and token=.",
        )


def _refusal(address: str, kind: int, *, has_key: bool) -> Refused:
    """Say why a connection ended before the session began."""
    if kind == _NOT_LET_IN:
        return Refused(
            f"the viewer at {address} does not let this process in: the token is missing, wrong "
            "or old.",
            cure="Copy the .viewer file again that the viewer wrote when it started.",
        )
    if has_key:
        return Refused(
            f"what listens at {address} does not know the key that it was called with.",
            cure="It may be another viewer, one without --public, or no viewer at all. Copy the "
            ".viewer file again that the viewer wrote when it started.",
        )
    return Refused(
        f"what listens at {address} ends the connection in the greeting.",
        cure="It may be another user's viewer, one that wants a key (connect with its .viewer "
        "file), or no viewer at all. See `openhcs-stream status` for yours.",
    )


def _refuse_bind(where: Address, number: int | None, reason: str | None) -> InvalidItem:
    if number == errno.EADDRINUSE:
        return InvalidItem(
            f"can't listen at {where}: it is in use.",
            cure="Another viewer or program listens there: choose another --port or stop it.",
        )
    return InvalidItem(
        f"can't listen at {where}: {reason}.", cure="Choose an address that this user may use."
    )


def sending_process(frame: zmq.Frame) -> int:
    """The process whose connection a frame came by, over ipc; 0: nobody tells."""
    relayed = _property(frame, RELAYED_FOR)
    if relayed.isascii() and relayed.isdigit():
        return int(relayed)
    if sending_address(frame):
        return 0
    credentials = _parse_peer(_property(frame, "Peer-Address"))[1]
    return credentials.pid if credentials is not None else 0


def sending_address(frame: zmq.Frame) -> str:
    """The IP address that a frame came from over tcp, through a `ZmqSorter` or not; else ""."""
    address = _parse_peer(_property(frame, "Peer-Address"))[0]
    return address or _parse_peer(_property(frame, RELAYED_ADDRESS))[0]


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:  # it has no such property
        return ""


@functools.lru_cache(maxsize=1024)
def _parse_peer(text: str) -> tuple[str, PeerCredentials | None]:
    """Take ZeroMQ's Peer-Address apart: a tcp peer's IP address, or an ipc peer's process."""
    try:
        ipaddress.ip_address(text)
        return text, None
    except ValueError:
        pass
    # "host:uid:gid:pid", for a unix socket of a system that tells.
    match = re.search(r":(\d+):(\d+):(\d+)$", text)
    if match is None:
        return "", None
    uid, gid, pid = (int(number) for number in match.groups())
    return "", PeerCredentials(pid=pid, uid=uid, gid=gid)
