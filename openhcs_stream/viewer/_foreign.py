"""Other people's senders at a receiver: their items are taken in, answered and acknowledged.

Used by the receiver's thread only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from openhcs_stream.dialects import dialect_for
from openhcs_stream.errors import ProtocolViolation, StreamError
from openhcs_stream.transport import LaneClosed, ZmqPusher
from openhcs_stream.viewer._scene import Arrival

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.dialects import ForeignBatch, ForeignItem
    from openhcs_stream.transport import RouterMessage, ZmqRouter
    from openhcs_stream.viewer._placement import PlacedItem

__all__ = ["ForeignSenders", "ForeignTicket", "reason_of"]

logger = logging.getLogger(__name__)


class ForeignTicket:
    """Ticket of an item of another project's sender."""

    __slots__ = ("batch", "item_id")

    def __init__(self, batch: ForeignBatch, item_id: str) -> None:
        self.batch = batch
        self.item_id = item_id


class ForeignSenders:
    """What a receiver owes to senders that don't speak the native protocol.

    Parameters
    ----------
    viewer : str
        Registered name of the viewer; acknowledgements name it.
    place : callable
        Copies an item to where it will stand; raises what is wrong with it.
    arrive : callable
        Takes an item that was placed; what becomes of it comes back through `tell`.
    """

    def __init__(
        self,
        viewer: str,
        *,
        place: Callable[[ForeignItem], tuple[PlacedItem, ...]],
        arrive: Callable[[Arrival], None],
    ) -> None:
        self._viewer = viewer
        self._place = place
        self._arrive = arrive
        self._pushers: dict[str, ZmqPusher] = {}

    def take(self, message: RouterMessage, router: ZmqRouter, port: int) -> None:
        """Take in one message that is not native, and answer it where it came by a REQ socket."""
        frame = message.frames[0] if message.frames else memoryview(b"")
        dialect = dialect_for(frame)
        if dialect is None:
            logger.warning("ignored a message of %d bytes in no known dialect", len(frame))
            # A REQ socket waits for ever otherwise.
            _reply(message, router, b'{"status": "error", "message": "not understood"}')
            return
        try:
            batch = dialect.read(
                frame,
                viewer=self._viewer,
                viewer_port=port,
                local_ipc=not message.peer_address,
            )
        except ProtocolViolation as error:
            logger.warning("refused a message of an OpenHCS sender: %s", error)
            _reply(message, router, dialect.error_reply(str(error)))
            return
        failed: dict[str, str] = {}
        for item in batch.items:
            try:
                placed = self._place(item)
                self._arrive(Arrival(ForeignTicket(batch, item.id), placed, dict(item.info)))
            except Exception as error:
                logger.info("an item of an OpenHCS sender can't be shown: %s", error)
                failed[item.id] = reason_of(error)
            finally:
                item.finish()
        _reply(message, router, batch.reply(failed))
        for item_id, reason in [*batch.failures, *failed.items()]:
            self._push_ack(batch, item_id, reason)

    def tell(self, ticket: ForeignTicket, reason: str | None) -> None:
        """Acknowledge an item: displayed, or failed for a reason."""
        self._push_ack(ticket.batch, ticket.item_id, reason)

    def close(self) -> None:
        """Let go of all sockets."""
        for pusher in self._pushers.values():
            pusher.close()
        self._pushers.clear()

    def _push_ack(self, batch: ForeignBatch, item_id: str, reason: str | None) -> None:
        address = batch.ack_address
        if address is None:
            return
        pusher = self._pushers.get(address)
        if pusher is None:
            pusher = self._pushers[address] = ZmqPusher(address)
        pusher.send(batch.ack(item_id, displayed=reason is None, reason=reason or ""))


def reason_of(error: BaseException) -> str:
    """What a sender is told of an error: one line, bounded."""
    if isinstance(error, StreamError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000]


def _reply(message: RouterMessage, router: ZmqRouter, reply: bytes) -> None:
    if message.delimited:
        try:
            router.send(message.identity, [reply], delimited=True)
        except LaneClosed:
            logger.debug("an OpenHCS sender was gone before its answer")
