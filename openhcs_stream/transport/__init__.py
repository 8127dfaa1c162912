"""How frames travel between two processes, and nothing about what they say.

A `Lane` carries frames between two peers: `UnixLane` on one machine, `ZmqLane` and `RouterLane`
over ZeroMQ, `InProcessLane` for tests without sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream.later import import_later
from openhcs_stream.transport._addresses import (
    MAX_SOCKET_PATH,
    Address,
    Scheme,
    format_address,
    is_loopback,
    machine_id,
    parse_address,
)
from openhcs_stream.transport._auth import (
    KeyPair,
    PeerCredentials,
    client_key_pair,
    new_key_pair,
    new_token,
    peer_credentials,
    tokens_match,
)
from openhcs_stream.transport._dial import dial
from openhcs_stream.transport._inprocess import (
    InProcessLane,
    InProcessListener,
    connect_inprocess,
)
from openhcs_stream.transport._lane import (
    MAX_BLOBS,
    MAX_FDS,
    Frame,
    Lane,
    LaneClosed,
    Listener,
)
from openhcs_stream.transport._owner import tcp_peer_uid
from openhcs_stream.transport._sparing import SparingLog
from openhcs_stream.transport._unix import (
    UNIX_MAX_FRAME,
    UnixLane,
    UnixListener,
    connect_unix,
    has_unix_lanes,
)
from openhcs_stream.transport._wake import Waker
from openhcs_stream.transport._zmq import (
    ZMQ_MAX_FRAME,
    RouterLane,
    RouterMessage,
    ZmqLane,
    ZmqRouter,
)

if TYPE_CHECKING:
    from openhcs_stream.transport._clients import ZmqAsker, ZmqCollector, ZmqPublisher
    from openhcs_stream.transport._kind import kind_at
    from openhcs_stream.transport._push import ZmqPusher
    from openhcs_stream.transport._sorter import Door, ZmqSorter, socket_type
    from openhcs_stream.transport._subscribe import PublishedMessage, ZmqSubscriber

__all__ = [
    "MAX_BLOBS",
    "MAX_FDS",
    "MAX_SOCKET_PATH",
    "UNIX_MAX_FRAME",
    "ZMQ_MAX_FRAME",
    "Address",
    "Door",
    "Frame",
    "InProcessLane",
    "InProcessListener",
    "KeyPair",
    "Lane",
    "LaneClosed",
    "Listener",
    "PeerCredentials",
    "PublishedMessage",
    "RouterLane",
    "RouterMessage",
    "Scheme",
    "SparingLog",
    "UnixLane",
    "UnixListener",
    "Waker",
    "ZmqAsker",
    "ZmqCollector",
    "ZmqLane",
    "ZmqPublisher",
    "ZmqPusher",
    "ZmqRouter",
    "ZmqSorter",
    "ZmqSubscriber",
    "client_key_pair",
    "connect_inprocess",
    "connect_unix",
    "dial",
    "format_address",
    "has_unix_lanes",
    "is_loopback",
    "kind_at",
    "machine_id",
    "new_key_pair",
    "new_token",
    "parse_address",
    "peer_credentials",
    "socket_type",
    "tcp_peer_uid",
    "tokens_match",
]

# What no worker needs for a viewer of ours.
import_later(
    __name__,
    {
        "_clients": ("ZmqAsker", "ZmqCollector", "ZmqPublisher"),
        "_kind": ("kind_at",),
        "_push": ("ZmqPusher",),
        "_sorter": ("Door", "ZmqSorter", "socket_type"),
        "_subscribe": ("PublishedMessage", "ZmqSubscriber"),
    },
)
