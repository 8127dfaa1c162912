"""Addresses of viewers and lanes, as text and as values; and which machine this is."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
from dataclasses import dataclass, replace
from typing import Literal

from openhcs_stream.errors import InvalidItem

__all__ = [
    "MAX_SOCKET_PATH",
    "Address",
    "Scheme",
    "format_address",
    "is_loopback",
    "machine_id",
    "parse_address",
]

Scheme = Literal["ipc", "tcp", "inproc", "unix"]

#: Bytes that the path or abstract name of a unix socket may have (sockaddr_un holds 108).
MAX_SOCKET_PATH = 107

#: A name or an IPv4 number.
_HOST = re.compile("[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")

_FORMS = "ipc:///path, ipc://@name, tcp://127.0.0.1:5555, inproc://name or unix:name"


@dataclass(frozen=True)
class Address:
    """One address, taken apart. ``str(address)`` puts it together again."""

    scheme: Scheme
    #: ipc: the path, or "@" and an abstract name; inproc and unix: the name; tcp: empty.
    name: str = ""
    #: tcp only: a name or number, IPv6 without brackets; "*" for every interface.
    host: str = ""
    #: tcp only; 0: any free port.
    port: int = 0
    #: tcp only: the viewer's public key, 64 hexadecimal characters; empty: not encrypted.
    key: str = ""

    def __str__(self) -> str:
        return format_address(self)

    @property
    def endpoint(self) -> str:
        """What ZeroMQ binds or connects: the address without its key."""
        return format_address(replace(self, key=""))

    @property
    def is_local(self) -> bool:
        """Whether this address can't be reached from another machine."""
        return self.scheme != "tcp" or is_loopback(self.host)


def parse_address(text: str) -> Address:
    """Take an address apart.

    Parameters
    ----------
    text : str
        ``ipc:///path``, ``ipc://@name`` (Linux: a name without a file), ``tcp://host:port``
        (port 0 or ``*``: any free one), ``tcp://host:port?key=KEY`` with a viewer's public key,
        ``inproc://name`` or ``unix:name`` (Linux: abstract).

    Raises
    ------
    InvalidItem
        The text is no address, or names a path that is too long for the system.

    Examples
    --------
    >>> parse_address("tcp://127.0.0.1:5555").port
    5555
    >>> parse_address("ipc:///run/user/1000/viewer.sock").name
    '/run/user/1000/viewer.sock'
    """
    scheme, separator, rest = text.partition("://")
    if not separator and text.startswith("unix:"):
        scheme, rest = "unix", text.removeprefix("unix:")
    elif scheme == "unix":
        rest = ""
    match scheme:
        case _ if "\0" in text:
            raise _refuse(text, "it has a zero character.", f"Write {_FORMS}.")
        case "tcp":
            rest, _, query = rest.partition("?")
            host, port = _parse_host_port(text, rest)
            return Address("tcp", host=host, port=port, key=_parse_key(text, query))
        case "ipc":
            if not rest.startswith(("/", "@")) or rest == "@":
                raise _refuse(text, "it has no path.", "Write ipc:///path or ipc://@name.")
            _check_length(text, rest)
            return Address("ipc", name=rest)
        case "inproc":
            if not rest:
                raise _refuse(text, "it has no name.", "Write inproc://name.")
            return Address("inproc", name=rest)
        case "unix":
            if not rest:
                raise _refuse(text, "it has no name.", "Write unix:name.")
            _check_length(text, rest)
            return Address("unix", name=rest)
        case _:
            raise _refuse(text, "it begins with no known scheme.", f"Write {_FORMS}.")


def format_address(address: Address) -> str:
    """Put an address together.

    Examples
    --------
    >>> format_address(Address("tcp", host="::1", port=5555))
    'tcp://[::1]:5555'
    """
    match address.scheme:
        case "tcp":
            host = f"[{address.host}]" if ":" in address.host else address.host
            key = f"?key={address.key}" if address.key else ""
            return f"tcp://{host}:{address.port}{key}"
        case "unix":
            return f"unix:{address.name}"
        case _:
            return f"{address.scheme}://{address.name}"


def is_loopback(host: str) -> bool:
    """Whether a host name or number is this machine's own, unreachable from outside.

    No name is looked up: of names only ``localhost`` counts.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("*")
    (True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback if mapped is None else mapped.is_loopback


@functools.cache
def machine_id() -> str:
    """Name this machine: equal for two processes that can share memory with each other.

    On Linux the name of this boot and of the network namespace, within which abstract sockets are
    seen. Processes with different names can't open a unix lane. Those with equal names nearly
    always can (two copies of one virtual machine's snapshot have equal names, too), so a failed
    attempt to open one means: stay on ZeroMQ.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot}:{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        import uuid

        return f"{socket.gethostname()}:{uuid.getnode():012x}"


def _parse_host_port(text: str, rest: str) -> tuple[str, int]:
    host, separator, port = rest.rpartition(":")
    if not separator or not host or (":" in host and not host.startswith("[")):
        raise _refuse(text, "it has no host and port.", "Write tcp://127.0.0.1:5555.")
    if host.startswith("["):
        host = host.removeprefix("[").removesuffix("]")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise _refuse(
                text, f"[{host}] is no IPv6 address.", "Write tcp://[::1]:5555."
            ) from None
    elif host != "*" and not _HOST.fullmatch(host):
        raise _refuse(text, f"{host!r} is no host.", "Write tcp://127.0.0.1:5555.")
    if port == "*":
        return host, 0
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise _refuse(text, f"{port!r} is no port.", "Give a number from 0 (any) to 65535.")
    return host, int(port)


def _parse_key(text: str, query: str) -> str:
    if not query:
        return ""
    name, _, key = query.partition("=")
    if name != "key":
        raise _refuse(
            text, "what follows on the ? is no key.", "Write tcp://host:port?key=KEY; a token is "
            "secret and belongs into no address."
        )  # fmt: skip
    if not re.fullmatch("[0-9a-fA-F]{64}", key):
        raise _refuse(
            text, f"its key has {len(key)} characters.",
            "A viewer's key has 64 of 0-9 and a-f; copy it, or the .viewer file, as a whole.",
        )  # fmt: skip
    return key.lower()


def _check_length(text: str, name: str) -> None:
    nbytes = len(os.fsencode(name))
    if nbytes > MAX_SOCKET_PATH:
        raise _refuse(
            text,
            f"its path has {nbytes} bytes, and a socket's may have {MAX_SOCKET_PATH}.",
            "Set OPENHCS_STREAM_RUNTIME_DIR to a shorter folder, or use tcp://127.0.0.1:0.",
        )


def _refuse(text: str, why: str, cure: str) -> InvalidItem:
    return InvalidItem(f"{text!r} is no address that can be used: {why}", cure=cure)
