"""Asking who is at an address: a viewer of OpenHCS answers a ping beside its data socket."""

from __future__ import annotations

import os
import re
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openhcs_stream.errors import InvalidItem, ViewerUnreachable
from openhcs_stream.transport import ZmqAsker, dial, parse_address

if TYPE_CHECKING:
    from openhcs_stream.dialects import OpenHCSViewer

__all__ = ["OpenHCSEndpoint", "address_of_port", "ask_who", "may_be_theirs", "nobody"]

#: The control port of theirs lies so much higher; acknowledgements of all viewers go to one port.
CONTROL_OFFSET = 1000
ACK_PORT = 7555

#: How long a look whether anybody listens may take, and how long a ZeroMQ socket to say its kind;
#: its program may be busy, as a thread of its own says that.
_PROBE_S = 0.5
_KIND_S = 2.0

_IPC_PORT = re.compile(r"(?P<before>.*-)(?P<port>[0-9]{1,5})(?P<after>\.[^/.]+)")


@dataclass(frozen=True, slots=True)
class OpenHCSEndpoint:
    """Where a viewer of OpenHCS is, and which one."""

    viewer: OpenHCSViewer
    address: str
    port: int

    @property
    def is_ipc(self) -> bool:
        return self.address.startswith("ipc://")

    @property
    def control_address(self) -> str:
        return _at_port(self.address, self.port + CONTROL_OFFSET)

    @property
    def ack_address(self) -> str:
        """Where it sends acknowledgements until generation 2."""
        if self.is_ipc:
            return _at_port(self.address, ACK_PORT)
        return f"tcp://127.0.0.1:{ACK_PORT}"


def address_of_port(port: int) -> str:
    """The address of their viewer with this port: by ipc where its socket is there, else by tcp."""
    from openhcs_stream.dialects import FAMILIES, family_of

    for name in FAMILIES:
        address = family_of(name).ipc(port)
        if os.path.exists(address.removeprefix("ipc://")):
            return address
    return f"tcp://127.0.0.1:{port}"


def control_address(address: str) -> str | None:
    """Where a viewer of OpenHCS at this data address would answer a ping; None: nowhere."""
    port = _port_of(address)
    if port is None or not 0 < port <= 65535 - CONTROL_OFFSET:
        return None
    return _at_port(address, port + CONTROL_OFFSET)


def may_be_theirs(address: str) -> bool:
    """Whether anybody listens where a viewer of OpenHCS at that address would answer a ping."""
    control = control_address(address)
    if control is None:
        return False
    try:
        dial(control, _PROBE_S).close()
    except OSError:
        return False
    return True


def ask_who(
    address: str, *, timeout_s: float, doubt_s: float | None = None
) -> OpenHCSEndpoint | None:
    """Ping a viewer, which also has it take data: generation 1 waits for that.

    Parameters
    ----------
    address : str
        Of its data: "tcp://127.0.0.1:5555" or "ipc:///...-5555.sock".
    timeout_s : float
        How long to wait for the answer.
    doubt_s : float, optional
        After so long it is looked whether what listens there can be a viewer of OpenHCS; one is
        waited for until the end, as it may be busy. By default that is not doubted.

    Returns
    -------
    OpenHCSEndpoint or None
        None: nobody answered, or not as a viewer of OpenHCS does.

    Raises
    ------
    ViewerUnreachable
        It was doubted, and is one by all that it says; it has not answered.
    InvalidItem
        It is on another machine: such a viewer takes pixels by shared memory only.
    """
    from openhcs_stream.dialects import control_request, read_control_answer, read_viewer

    port = _port_of(address)
    control = control_address(address)
    if port is None or control is None:
        return None
    asker = ZmqAsker(control)
    try:
        asker.ask(control_request("ping"))
        first_s = timeout_s if doubt_s is None else min(doubt_s, timeout_s)
        frame = _answer_within(asker, first_s)
        if frame is None and doubt_s is not None and _is_rep(control):
            # As at all viewers of OpenHCS; ours have a ROUTER. A greeting of ours would harm it: no
            # request, it wakes a REP socket that then has nothing to read, and their loops wait in
            # that read, some together with all else.
            frame = _answer_within(asker, timeout_s - first_s)
            if frame is None:
                raise nobody(address, timeout_s)
    finally:
        asker.close()
    viewer = read_viewer(read_control_answer(frame)) if frame is not None else None
    if viewer is None:
        return None
    if not parse_address(address).is_local:
        raise InvalidItem(
            f"{viewer.title} at {address} is on another machine, and takes pixels by shared memory "
            "only.",
            cure="Send from its machine, or to a viewer of openhcs-stream with a key.",
        )
    return OpenHCSEndpoint(viewer, address, port)


def nobody(address: str, timeout_s: float) -> ViewerUnreachable:
    """The error for when no viewer of OpenHCS answers."""
    return ViewerUnreachable(
        f"no viewer of OpenHCS answered a ping at {control_address(address) or address} within "
        f"{timeout_s:g} s.",
        cure="Start it, or look at its port: its control socket lies 1000 above its data socket.",
    )


def _is_rep(address: str) -> bool:
    from openhcs_stream.transport import kind_at

    return kind_at(address, connect_s=_PROBE_S, say_s=_KIND_S) == b"REP"


def _answer_within(asker: ZmqAsker, timeout_s: float) -> bytes | None:
    deadline = time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(asker.fileno(), select.POLLIN)
    while (frame := asker.answer()) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if not asker.has_input():
            poller.poll(min(left, 0.1) * 1000)
    return frame


def _port_of(address: str) -> int | None:
    where = parse_address(address)
    if where.scheme == "tcp":
        return where.port or None
    found = _IPC_PORT.fullmatch(where.name) if where.scheme == "ipc" else None
    return int(found["port"]) if found else None


def _at_port(address: str, port: int) -> str:
    where = parse_address(address)
    if where.scheme == "tcp":
        host = f"[{where.host}]" if ":" in where.host else where.host
        return f"tcp://{host}:{port}"
    found = _IPC_PORT.fullmatch(where.name)
    assert found is not None, "an address whose port was found"
    return f"ipc://{found['before']}{port}{found['after']}"
