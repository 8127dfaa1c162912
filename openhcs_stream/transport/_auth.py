"""Who is at the other end: shared tokens, and what the system says about a socket's peer."""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from typing import NamedTuple

__all__ = ["PeerCredentials", "new_token", "peer_credentials", "tokens_match"]

_UCRED = struct.Struct("3i")


class PeerCredentials(NamedTuple):
    """The process that opened the other end of a unix socket, as the system knows it."""

    pid: int  #: 0 where it is in a process namespace that can't be seen from here
    uid: int  #: its effective user
    gid: int


def new_token() -> str:
    """Make a secret that nobody can guess: 64 hexadecimal characters."""
    return secrets.token_hex(32)


def tokens_match(expected: str, shown: str) -> bool:
    """Compare two tokens in a time that does not depend on where they differ."""
    # Not every str is ASCII, and compare_digest raises TypeError for those: compare bytes.
    return hmac.compare_digest(
        expected.encode("utf-8", "surrogatepass"), shown.encode("utf-8", "surrogatepass")
    )


def peer_credentials(sock: socket.socket) -> PeerCredentials | None:
    """Ask the system who connected a unix socket.

    Returns
    -------
    PeerCredentials or None
        None where this system does not tell (it has no SO_PEERCRED).
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return PeerCredentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _UCRED.size)))
