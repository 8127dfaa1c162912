"""Who is at the other end: tokens, CURVE keys, and what the system says about a socket's peer."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import zmq
from zmq.utils import z85

__all__ = [
    "KeyPair",
    "PeerCredentials",
    "client_key_pair",
    "key_bytes",
    "new_key_pair",
    "new_token",
    "peer_credentials",
    "secrets_match",
    "tokens_match",
]

_UCRED = struct.Struct("3i")
#: Says what the hash of a token is for, so that it is of no use for anything else.
_CLIENT_KEY = b"openhcs-client"


class PeerCredentials(NamedTuple):
    """The process that opened the other end of a unix socket, as the system knows it."""

    pid: int  #: 0 where it is in a process namespace that can't be seen from here
    uid: int  #: its effective user
    gid: int


def new_token() -> str:
    """Make a secret that nobody can guess: 64 hexadecimal characters."""
    import secrets

    return secrets.token_hex(32)


def tokens_match(expected: str, shown: str) -> bool:
    """Compare two tokens in a time that does not depend on where they differ."""
    # Not every str is ASCII, and compare_digest raises TypeError for those: compare bytes.
    return secrets_match(
        expected.encode("utf-8", "surrogatepass"), shown.encode("utf-8", "surrogatepass")
    )


def secrets_match(expected: bytes, shown: bytes) -> bool:
    """Compare two secrets as `tokens_match` does."""
    import hmac

    return hmac.compare_digest(expected, shown)


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair: what one side of an encrypted connection proves itself with.

    Attributes
    ----------
    public, secret : str
        Each 64 hexadecimal characters: 32 bytes. The secret one is not in the ``repr``.
    """

    public: str
    secret: str = field(repr=False)


def new_key_pair() -> KeyPair:
    """Make a key pair of a viewer that can be reached from other machines."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public).hex(), z85.decode(secret).hex())


def client_key_pair(token: str) -> KeyPair:
    """Derive the key pair by which whoever knows a viewer's token proves it in the handshake.

    The secret key is a hash of the token. So a viewer that knows its token knows the one public
    key that it lets in, and a sender needs nothing but the viewer's public key and the token.
    """
    import hashlib

    secret = hashlib.blake2b(
        token.encode("utf-8", "surrogatepass"), digest_size=32, person=_CLIENT_KEY
    ).digest()
    public = zmq.curve_public(z85.encode(secret))
    return KeyPair(z85.decode(public).hex(), secret.hex())


def key_bytes(key: str) -> bytes:
    """Give a key as ZeroMQ takes it: 32 bytes."""
    return bytes.fromhex(key)


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
