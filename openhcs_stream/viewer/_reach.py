"""How far a receiver can be reached over tcp, and what opens it there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openhcs_stream import discovery
from openhcs_stream.discovery import PublicIdentity
from openhcs_stream.errors import UsageError
from openhcs_stream.transport import (
    KeyPair,
    format_address,
    is_loopback,
    new_key_pair,
    new_token,
    parse_address,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from openhcs_stream.discovery import Endpoint

__all__ = ["Reach"]

_LOOPBACK = "127.0.0.1"
_EVERYWHERE = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True)
class Reach:
    """Made by `of`.

    Attributes
    ----------
    addresses : tuple of str
        What to bind.
    token : str
        What a peer must show where the system does not tell that it is the same user.
    keys : KeyPair or None
        What the viewer proves itself with; None: only this user's processes here connect.
    host : str
        How others call this machine.
    """

    addresses: tuple[str, ...]
    token: str
    keys: KeyPair | None = None
    host: str = ""

    @classmethod
    def of(cls, port: int | None, *, public: str | None, new_keys: bool = False) -> Reach:
        """Decide what to bind.

        Parameters
        ----------
        port : int or None
            TCP port, 0 for any free one; None: no tcp.
        public : str or None
            None: this user's processes on this machine. "localhost": all users of this machine
            that have been given the viewer's file. Else also those on other machines, which call
            this one by that name or number; "": by the number of its first interface.
        new_keys : bool
            Make new keys: what was given out before is void.

        Raises
        ------
        UsageError
            It can't be reached without a port, or the keys can't be read.
        """
        if public is None:
            local = () if port is None else (f"tcp://{_LOOPBACK}:{port}",)
            return cls(local, new_token())
        if port is None:
            raise UsageError(
                "a viewer that others can reach needs a port.", cure="Add --port 5555, say."
            )
        identity = discovery.public_identity(_new_identity, renew=new_keys)
        keys = KeyPair(identity.key, identity.secret)
        host = public or discovery.reachable_host()
        where = parse_address(f"tcp://{f'[{host}]' if ':' in host else host}:{port}")
        if is_loopback(where.host):
            bound = replace(where, host=_LOOPBACK, key=keys.public)
        else:
            bound = replace(where, host="::" if ":" in host else "*")
        return cls((format_address(bound),), identity.token, keys, where.host)

    def told(self, bound: Sequence[str]) -> tuple[str, ...]:
        """Give addresses as others reach them, for those that the router has bound."""
        where = [parse_address(each) for each in bound]
        return tuple(
            format_address(replace(each, host=self.host) if each.host in _EVERYWHERE else each)
            for each in where
        )

    def share(self, endpoint: Endpoint) -> Path | None:
        """Write the file that others need a copy of; None where nobody else may connect."""
        if self.keys is None:
            return None
        public = tuple(each for each in endpoint.addresses if parse_address(each).key)
        return discovery.write_viewer_file(replace(endpoint, addresses=public))


def _new_identity() -> PublicIdentity:
    keys = new_key_pair()
    return PublicIdentity(keys.public, keys.secret, new_token())
