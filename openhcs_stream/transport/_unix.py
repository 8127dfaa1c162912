"""The lane of one machine: SOCK_SEQPACKET unix sockets, which pass file descriptors."""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, ClassVar

from openhcs_stream.errors import (
    DeadlineExceeded,
    InvalidItem,
    ProtocolViolation,
    Refused,
    ViewerUnreachable,
)
from openhcs_stream.transport._addresses import parse_address
from openhcs_stream.transport._auth import PeerCredentials, peer_credentials
from openhcs_stream.transport._lane import (
    MAX_FDS,
    Frame,
    Lane,
    LaneClosed,
    Listener,
    check_fds,
    closed_here,
    peer_gone,
    refuse_blobs,
    refuse_length,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UNIX_MAX_FRAME", "UnixLane", "UnixListener", "connect_unix", "has_unix_lanes"]

_log = logging.getLogger(__name__)

#: Bytes of the largest frame that any unix lane sends, whatever its socket's buffer. The system
#: needs memory in one piece for what goes beyond some 80 KiB, which it may lack for much more.
UNIX_MAX_FRAME = 128 << 10

#: What is asked for; the system doubles it and caps it at net.core.wmem_max. The receiving side's
#: buffer plays no part on unix sockets: a frame counts against its sender until it is read.
_SEND_BUFFER = 1 << 20
_BACKLOG = 64

# Plain integers: arithmetic with the socket module's enumerations costs as much as a system call.
_NOSIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_new_tuple = tuple.__new__
_FD_SIZE = array.array("i").itemsize
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)


#: What is open: a forked child closes its copies at once. Else it would hide the parent's death
#: from the peers, which see it by the end of file.
_open: weakref.WeakSet[UnixLane | UnixListener] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_open):
        each.after_fork_in_child()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def has_unix_lanes() -> bool:
    """Whether this system has the sockets that unix lanes need: Linux does."""
    return sys.platform == "linux"


class UnixLane(Lane):
    """A connected unix socket that keeps message borders and passes file descriptors.

    Any thread may call any method at any time. Its end of file is the peer's death: the kernel
    closes the socket of a process that ended, however it ended.
    """

    carries_fds: ClassVar[bool] = True
    carries_blobs: ClassVar[bool] = False
    polls_out: ClassVar[bool] = True

    def __init__(self, sock: socket.socket) -> None:
        """Take over `sock`, a connected SOCK_SEQPACKET socket; it is closed with the lane."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        # The system refuses a frame of (buffer - 32) bytes outright; leave it some more.
        buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.max_frame = min(UNIX_MAX_FRAME, buffer - 512)
        self._sock = sock
        # Sending and receiving never wait for each other. The locks are held across the system
        # call, so that a socket closed by one thread is never a new file's number in another.
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._buffer = memoryview(bytearray(UNIX_MAX_FRAME))
        self._buffers = [self._buffer]
        self._recvmsg_into = sock.recvmsg_into
        _open.add(self)

    @classmethod
    def pair(cls) -> tuple[UnixLane, UnixLane]:
        """Make two lanes that are connected to each other, for a child process or a test."""
        if not has_unix_lanes():
            raise _no_unix_lanes()
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(first), cls(second)

    @property
    def peer(self) -> PeerCredentials | None:
        """The process that made the other end; None where the system does not tell.

        Raises
        ------
        LaneClosed
            This side was closed.
        """
        with self._send_lock:
            if self._sock.fileno() < 0:
                raise closed_here("a unix lane")
            return peer_credentials(self._sock)

    def send(
        self, data: bytes, *, fds: Sequence[int] = (), blobs: Sequence[memoryview] = ()
    ) -> bool:
        if not 0 < len(data) <= self.max_frame:
            raise refuse_length(len(data), self.max_frame)
        if blobs:
            raise refuse_blobs("a unix lane")
        check_fds(fds)
        lock = self._send_lock
        lock.acquire()  # on the hot path: half the cost of a with statement
        try:
            if fds:
                socket.send_fds(self._sock, [data], list(fds), _NOSIGNAL)
            else:
                self._sock.send(data, _NOSIGNAL)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            return self._refuse_send(error, fds)
        finally:
            lock.release()

    def receive(self) -> Frame | None:
        lock = self._receive_lock
        lock.acquire()
        try:
            nbytes, ancillary, flags, _ = self._recvmsg_into(self._buffers, _FD_SPACE, _CLOEXEC)
            if nbytes and not ancillary and not flags & _CUT:
                # As Frame(data) does, in half the time.
                return _new_tuple(Frame, (self._buffer[:nbytes].tobytes(), (), ()))
            return self._receive_special(nbytes, ancillary, flags)
        except BlockingIOError:
            return None
        except LaneClosed:
            raise
        except ConnectionResetError:
            # The peer ended without having read all. The system tells it once, and before the
            # frames that the peer has sent; they are still there.
            return self._receive_after_reset()
        except OSError as error:
            raise self._explain(error) from error
        finally:
            lock.release()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        with self._send_lock, self._receive_lock:
            self._sock.close()

    def after_fork_in_child(self) -> None:
        """Close the child's copy; the locks may be held by threads that are not there any more."""
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._sock.close()

    def _receive_after_reset(self) -> Frame:
        """Take the next frame of a peer that has gone; the receive lock is held."""
        try:
            nbytes, ancillary, flags, _ = self._recvmsg_into(self._buffers, _FD_SPACE, _CLOEXEC)
        except OSError as error:
            raise self._explain(error) from error
        return self._receive_special(nbytes, ancillary, flags)

    def _receive_special(
        self, nbytes: int, ancillary: list[tuple[int, int, bytes]], flags: int
    ) -> Frame:
        """Make a frame of what came in, whatever it is; the receive lock is held."""
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _FD_SIZE])
        if nbytes and not flags & _CUT:
            return Frame(self._buffer[:nbytes].tobytes(), tuple(fds))
        for fd in fds:
            os.close(fd)
        if flags & socket.MSG_TRUNC:
            raise ProtocolViolation(
                f"the peer sent a frame of more than {UNIX_MAX_FRAME} bytes.",
                cure="Make sure that it is openhcs-stream.",
            )
        if flags & socket.MSG_CTRUNC:
            raise ProtocolViolation(
                f"the peer sent file descriptors that this process could not take: more than "
                f"{MAX_FDS} at once, or more than it may have open.",
                cure="Where this process has many files open, raise its limit (ulimit -n).",
            )
        # No bytes: the end. (A frame of no bytes looks the same, and no lane sends one.)
        raise peer_gone("a unix lane")

    def _explain(self, error: OSError) -> Exception:
        """Say what an error of the socket means."""
        if self._sock.fileno() < 0:
            return closed_here("a unix lane")
        if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            return peer_gone("a unix lane")
        return error

    def _refuse_send(self, error: OSError, fds: Sequence[int]) -> bool:
        """Say what an error of sending means: False, or an exception."""
        # ETOOMANYREFS: too many descriptors are under way; the peer takes them out sooner or later.
        if error.errno in (errno.ENOBUFS, errno.ETOOMANYREFS):
            return False
        if error.errno == errno.EBADF and self._sock.fileno() >= 0:
            raise InvalidItem(
                f"one of the file descriptors {list(fds)} is not open.",
                cure="Keep them open until send() has returned True.",
            ) from error
        raise self._explain(error) from error


class UnixListener(Listener):
    """Accepts unix lanes at a name that leaves no file behind.

    Any local process can find and connect to such a name; the peer's user is asked of the system,
    and those of other users are closed at once.
    """

    def __init__(self, name: str | None = None, *, allow_other_users: bool = False) -> None:
        """Listen.

        Parameters
        ----------
        name : str, optional
            The abstract name, at most 107 bytes; by default a random one.
        allow_other_users : bool
            Whether lanes of other users than this process's are accepted.

        Raises
        ------
        InvalidItem
            The name is too long or is taken, or this system has no such sockets.
        """
        if not has_unix_lanes():
            raise _no_unix_lanes()
        if name is None:
            name = f"openhcs-stream-{os.urandom(8).hex()}"
        address = parse_address(f"unix:{name}")
        self.address = str(address)
        self._allow_other_users = allow_other_users
        self._lock = threading.Lock()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.setblocking(False)
            self._sock.bind(b"\0" + os.fsencode(address.name))
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            raise InvalidItem(
                f"can't listen at {self.address}: {os.strerror(error.errno or 0)}.",
                cure="Choose another name.",
            ) from error
        # Held back for the day on which no more files can be opened; see `_turn_away`.
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        _open.add(self)

    def accept(self) -> UnixLane | None:
        with self._lock:
            while True:
                if self._sock.fileno() < 0:
                    raise closed_here(f"the listener {self.address}")
                try:
                    sock, _ = self._sock.accept()
                except BlockingIOError:
                    return None
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE):
                        raise
                    self._turn_away()
                    return None
                peer = peer_credentials(sock)
                if self._allow_other_users or (peer is not None and peer.uid == os.geteuid()):
                    return UnixLane(sock)
                _log.warning("refused a lane at %s from %s: another user's", self.address, peer)
                sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        with self._lock:
            if self._sock.fileno() >= 0:
                self._sock.close()
                os.close(self._spare)

    def after_fork_in_child(self) -> None:
        """Close the child's copy, so that nobody connects to a viewer that has died."""
        self._lock = threading.Lock()
        self.close()

    def _turn_away(self) -> None:
        """Close the next lane at once: waiting on, it would wake the viewer's loop for ever."""
        os.close(self._spare)
        try:
            # BlockingIOError: none waits. The system looks for a free descriptor first, and so
            # it complains all the same.
            with contextlib.suppress(BlockingIOError):
                self._sock.accept()[0].close()
                _log.error(
                    "turned a peer away at %s: this process may not open more files (ulimit -n)",
                    self.address,
                )
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def connect_unix(
    address: str, timeout_s: float = 5.0, *, allow_other_users: bool = False
) -> UnixLane:
    """Open a lane to a `UnixListener`.

    Parameters
    ----------
    address : str
        ``unix:NAME``.
    timeout_s : float
        Seconds to wait where the listener has many others to accept first.
    allow_other_users : bool
        Whether the listener may belong to another user than this process.

    Raises
    ------
    ViewerUnreachable
        Nobody listens at the address.
    DeadlineExceeded
        Somebody listens but did not get round to this lane within the time.
    Refused
        The listener belongs to another user.
    InvalidItem
        The address is no unix address, or this system has no such sockets.
    """
    if not has_unix_lanes():
        raise _no_unix_lanes()
    where = parse_address(address)
    if where.scheme != "unix":
        raise InvalidItem(f"{address!r} is no unix lane's address.", cure="Write unix:name.")
    deadline = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(b"\0" + os.fsencode(where.name))
                break
            except BlockingIOError:
                # The backlog is full. There is no event to wait for: connecting is what waits.
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded(
                        f"the viewer at {address} did not open a lane within {timeout_s:g} s.",
                        cure="It may be stopped or very busy; try again, or raise timeout_s.",
                    ) from None
                time.sleep(0.002)
            except OSError as error:
                raise ViewerUnreachable(
                    f"nobody listens at {address}.", cure="Start the viewer, or find it again."
                ) from error
        peer = peer_credentials(sock)
        if not allow_other_users and (peer is None or peer.uid != os.geteuid()):
            raise Refused(
                f"the listener at {address} belongs to another user ({peer}).",
                cure="Connect to a viewer of your own.",
            )
        return UnixLane(sock)
    except BaseException:
        sock.close()
        raise


def _no_unix_lanes() -> InvalidItem:
    return InvalidItem(
        f"this system ({sys.platform}) has no unix lanes.",
        cure="Use ipc or tcp addresses; see has_unix_lanes().",
    )
