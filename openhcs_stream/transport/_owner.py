"""Who of this machine is at the other end of a tcp connection, as Linux knows it."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
import time

from openhcs_stream.transport._auth import peer_credentials

__all__ = ["opened_again", "peer_uid", "tcp_peer_process", "tcp_peer_uid"]

# From <linux/netlink.h>, <linux/sock_diag.h> and <linux/inet_diag.h>; sock_diag(7).
_SOCK_DIAG = 4
_HEADER = struct.Struct("=IHHII")  # length, type, flags, number, port
_BY_FAMILY, _REQUEST = 20, 1
_WANTED = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_CONNECTION = struct.Struct("=2s2s16s16sIII")  # ports, addresses, interface, cookie
_NO_COOKIE = 0xFFFFFFFF
_FOUND = struct.Struct("=BBBB48xIIIII")  # family, state, 2 timers; times, queues, uid, inode
#: Established, opening, and closing from either side. Of a socket that nobody has open any more
#: the system tells user 0 and inode 0.
_OWNED_STATES = frozenset({1, 2, 4, 5, 8})
_TIMEOUT_S = 1.0
#: How long the process that holds a socket is looked for, seconds.
_SEARCH_S = 0.2


def tcp_peer_uid(sock: socket.socket) -> int | None:
    """Find out which user of this machine connected a tcp socket.

    Parameters
    ----------
    sock : socket
        The accepting end.

    Returns
    -------
    int or None
        None: the peer is on another machine, has closed its socket, or this system does not tell.
    """
    owner = _owner(sock)
    return None if owner is None else owner[0]


def tcp_peer_process(sock: socket.socket) -> int:
    """Find out which process connected a tcp socket: its number; 0: nobody tells.

    Of this user's processes, or as root of all, each one's open files are looked through.
    """
    owner = _owner(sock)
    if owner is None:
        return 0
    wanted = f"socket:[{owner[1]}]"
    deadline = time.monotonic() + _SEARCH_S
    # Who asks has often begun not long ago.
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        if time.monotonic() > deadline:
            break
        if _holds(pid, wanted):
            return pid
    return 0


def _holds(pid: int, wanted: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # it has ended, or is another user's
        return False
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}") == wanted:
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def _owner(sock: socket.socket) -> tuple[int, int] | None:
    """The user and the inode of the other end's socket."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        here, there = sock.getsockname(), sock.getpeername()
    except OSError:
        return None
    # The other end's own socket: what is remote here is local there.
    ends = (there[0], there[1], here[0], here[1])
    try:
        return _ask(*ends)
    except OSError:  # a sandbox without such questions
        return _look_up(*ends)


def peer_uid(sock: socket.socket) -> int | None:
    """Find out which user is at the other end of a unix or tcp socket; None: nobody tells."""
    if sock.family == getattr(socket, "AF_UNIX", None):
        credentials = peer_credentials(sock)
        return None if credentials is None else credentials.uid
    return tcp_peer_uid(sock)


def opened_again(fd: int) -> socket.socket | None:
    """Open a socket once more, by its number, which another thread may have closed meanwhile.

    Returns
    -------
    socket or None
        None: the number is nobody's, or by now something else's. Whoever gets it closes it.
    """
    try:
        duplicate = os.dup(fd)
    except OSError:
        return None
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None


def _ask(source: str, source_port: int, target: str, target_port: int) -> tuple[int, int] | None:
    """Ask for one connection: the list of all takes long where there are many."""
    family, source_address = _packed(source)
    _, target_address = _packed(target)
    wanted = _WANTED.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + _CONNECTION.pack(
        source_port.to_bytes(2, "big"),
        target_port.to_bytes(2, "big"),
        source_address,
        target_address,
        0,
        _NO_COOKIE,
        _NO_COOKIE,
    )
    question = _HEADER.pack(_HEADER.size + len(wanted), _BY_FAMILY, _REQUEST, 1, 0) + wanted
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as system:
        system.settimeout(_TIMEOUT_S)
        system.send(question)
        answer = system.recv(4096)
    if len(answer) < _HEADER.size + _FOUND.size:
        return None
    if _HEADER.unpack_from(answer)[1] != _BY_FAMILY:  # an error: there is no such connection
        return None
    _, state, _, _, _, _, _, uid, inode = _FOUND.unpack_from(answer, _HEADER.size)
    return (int(uid), int(inode)) if state in _OWNED_STATES and inode else None


def _packed(host: str) -> tuple[int, bytes]:
    """An address's family and its bytes; one of IPv4 is such also where it is written as IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return int(family), address.packed.ljust(16, b"\0")


def _look_up(
    source: str, source_port: int, target: str, target_port: int
) -> tuple[int, int] | None:
    """Search the list of all connections; proc_net(5)."""
    # One between IPv4 addresses may belong to a socket of either family.
    wanted = {
        (_listed(source, source_port, mapped=mapped), _listed(target, target_port, mapped=mapped))
        for mapped in (False, True)
    }
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # number, local, remote, state, queues, timer, retransmissions, uid, timeout, inode
            fields = line.split()
            if (fields[1], fields[2]) in wanted:
                owned = int(fields[3], 16) in _OWNED_STATES and fields[9] != "0"
                return (int(fields[7]), int(fields[9])) if owned else None
    return None


def _listed(host: str, port: int, *, mapped: bool) -> str:
    """An address as it is listed: words of 32 bits, each in the machine's byte order."""
    family, packed = _packed(host)
    if family == socket.AF_INET:
        packed = bytes(10) + b"\xff\xff" + packed[:4] if mapped else packed[:4]
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"
