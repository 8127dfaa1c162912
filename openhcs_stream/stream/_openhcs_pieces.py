"""What becomes of pieces: an item of the stream is one or several items of an OpenHCS viewer."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openhcs_stream.dialects import Acknowledgement, OpenHCSViewer, Piece
    from openhcs_stream.pixels import NamedBlock
    from openhcs_stream.protocol import ReceiverSession

__all__ = ["Item", "Outcomes", "Sending"]


@dataclass(slots=True, eq=False)
class Item:
    """One item of the stream on its way."""

    seq: int
    unreceived: int  #: pieces
    undisplayed: int
    is_over: bool = False


@dataclass(slots=True, eq=False)
class Sending:
    """One piece on its way.

    Attributes
    ----------
    id : str
        What the viewer acknowledges.
    block : NamedBlock or None
        Where its pixels lie, while the viewer may still read them.
    deadline : float
        When the viewer counts as lost, if it has not received the piece.
    """

    item: Item
    piece: Piece
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    block: NamedBlock | None = None
    deadline: float = math.inf
    received_at: float = 0.0
    is_received: bool = False
    is_acknowledged: bool = False

    def send_anew(self) -> None:
        """It goes out again, under another name: what is told of the old one is too late."""
        self.id = str(uuid.uuid4())


class Outcomes:
    """Counts pieces, and tells the session what became of whole items.

    Attributes
    ----------
    open : dict
        Pieces that were sent and of which something is still to be told, by their ids.
    tells_displayed : bool
        Whether some fact tells when an item is displayed; else what is received is over.
    """

    def __init__(
        self, session: ReceiverSession, viewer: OpenHCSViewer, *, tells_displayed: bool
    ) -> None:
        self.open: dict[str, Sending] = {}
        self.tells_displayed = tells_displayed
        self._session = session
        self._viewer = viewer

    def received(self, sending: Sending, now: float) -> None:
        """Its pixels, or its outlines, are the viewer's."""
        if sending.is_received:
            return
        sending.is_received = True
        sending.received_at = now
        # What it held of the stream's memory is free from here on.
        sending.piece.pixels = None
        item = sending.item
        item.unreceived -= 1
        if item.unreceived == 0 and not item.is_over:
            self._session.received(item.seq)
        if not self.tells_displayed:
            self.displayed(sending, now)

    def displayed(self, sending: Sending, now: float) -> None:
        """It is displayed; or, of a viewer that can't tell, nothing more will be told of it."""
        self.received(sending, now)
        if self.open.pop(sending.id, None) is None:
            return
        item = sending.item
        item.undisplayed -= 1
        if item.undisplayed == 0 and not item.is_over:
            item.is_over = True
            self._session.displayed(item.seq)

    def failed(self, sending: Sending, reason: str) -> None:
        """It will not be shown, and with it the item."""
        self.open.pop(sending.id, None)
        item = sending.item
        if not item.is_over:
            item.is_over = True
            self._session.failed(item.seq, reason)

    def acknowledged(self, ack: Acknowledgement, now: float, *, settles: bool) -> None:
        """The viewer has said something of a piece; of other streams' pieces nothing is known.

        Parameters
        ----------
        ack : Acknowledgement
            What it said.
        now : float
            The time.
        settles : bool
            Whether it can be asked what it displays, which is better than its word.
        """
        sending = self.open.get(ack.image_id)
        if sending is None:
            return
        if not ack.ok:
            self.failed(sending, ack.reason)
            return
        match self._viewer.acknowledges:
            case "displayed":
                self.displayed(sending, now)
            case "received":
                self.received(sending, now)
            case "queued":
                sending.is_acknowledged = True
                if not settles:
                    self.displayed(sending, now)
