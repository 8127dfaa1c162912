"""Pieces on their way to a viewer of OpenHCS: put together, sent, answered.

Most such viewers answer each message (REQ to REP). napari's of generation 1 subscribes and answers
nothing: that it has read an image is known when it removes the name of the image's memory, and
that it has read outlines when it acknowledges them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from openhcs_stream.dialects import read_batch_reply
from openhcs_stream.errors import OutOfSpace, ViewerLost
from openhcs_stream.transport import ZmqAsker, ZmqPublisher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openhcs_stream.dialects import OpenHCSOut
    from openhcs_stream.pixels import NamedBlocks
    from openhcs_stream.stream._openhcs_find import OpenHCSEndpoint
    from openhcs_stream.stream._openhcs_pieces import Outcomes, Sending
    from openhcs_stream.stream._openhcs_settle import Settling

__all__ = ["Batches"]

#: One message holds up to so many pieces and bytes of pixels.
MAX_PIECES = 256
MAX_NBYTES = 64 << 20
#: Pieces that a subscriber may have to read at the same time.
MAX_LENT = 256
#: How often to look whether a subscriber has read, which nothing tells.
LOOK_EVERY_S = 0.01

#: Generation 1's Fiji waits for a pause of 0.5 s, at most 2 s from the first message on, and hangs
#: for ever in a message that comes at those 2 s. It also shows all that it waited for by the
#: settings of the last message.
FIJI_PAUSE_S = 0.75
FIJI_BURST_S = 1.4

#: What napari answers to a batch while it settles.
_SETTLES_NOW = "Cannot reset an active"
_SETTLES_FOR_S = 0.1


class Batches:
    """Sends pieces; used by the bridge's thread only.

    Parameters
    ----------
    endpoint : OpenHCSEndpoint
        The viewer.
    out : OpenHCSOut
        Encodes messages.
    blocks : NamedBlocks
        Memory that the viewer can attach.
    outcomes : Outcomes
        Is told what the viewer has received, and what it refused.
    settling : Settling
        Knows when the viewer takes nothing.
    timeout_s : float
        How long the viewer may take for one message.
    """

    def __init__(
        self,
        endpoint: OpenHCSEndpoint,
        out: OpenHCSOut,
        blocks: NamedBlocks,
        outcomes: Outcomes,
        settling: Settling,
        *,
        timeout_s: float,
    ) -> None:
        self._viewer = endpoint.viewer
        self._out = out
        self._blocks = blocks
        self._outcomes = outcomes
        self._settling = settling
        self._timeout_s = timeout_s
        self._queue: deque[Sending] = deque()
        #: What goes out alone, and before all else: a batch with it was refused as a whole.
        self._alone: deque[Sending] = deque()
        self._flight: list[Sending] = []
        self._flight_ends = math.inf
        self._lent: dict[str, Sending] = {}
        self._pace = _Pace() if _is_fiji1(endpoint) else None
        self._asker: ZmqAsker | None = None
        self._publisher: ZmqPublisher | None = None
        if self._viewer.subscribes:
            self._publisher = ZmqPublisher(endpoint.address)
        else:
            self._asker = ZmqAsker(endpoint.address)

    @property
    def socket(self) -> ZmqAsker | ZmqPublisher:
        """What to wait for."""
        found = self._asker or self._publisher
        assert found is not None
        return found

    @property
    def waiting(self) -> int:
        """Pieces that have not gone out."""
        return len(self._queue) + len(self._alone)

    @property
    def is_sending(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._flight)

    def put(self, sendings: Iterable[Sending]) -> None:
        """Send these as soon as possible, in order."""
        self._queue.extend(sendings)

    def work(self, now: float) -> float:
        """Take the answer to the last batch, send the next; when there is something to do again.

        Raises
        ------
        ViewerLost
            The viewer has not answered, or not read, within its time.
        ProtocolViolation
            It answered something else.
        """
        wait = self._look_at_lent(now)
        if self._asker is not None and self._flight:
            frame = self._asker.answer()
            if frame is None:
                if now > self._flight_ends:
                    raise self._lost("did not answer")
                return min(wait, self._flight_ends - now)
            self._take_reply(frame, now)
        if not self.waiting:
            return wait
        pause = self._settling.keeps(now)
        if self._pace is not None:
            front = (self._alone or self._queue)[0]
            pause = max(pause, self._pace.wait_for(front, now))
        if pause > 0:
            return min(wait, pause)
        batch = self._next(now)
        if not batch:
            return wait
        self._send(batch, now)
        return 0.0

    def close(self) -> None:
        """Let go of the socket."""
        self.socket.close()

    # --- sending --------------------------------------------------------------------------------

    def _next(self, now: float) -> list[Sending]:
        if self._publisher is not None and len(self._lent) >= MAX_LENT:
            return []
        if self._alone:
            return [self._alone.popleft()]
        batch: list[Sending] = []
        nbytes = 0
        while self._queue and len(batch) < MAX_PIECES:
            sending = self._queue[0]
            if sending.item.is_over:
                self._queue.popleft()
                continue
            pixels = sending.piece.pixels
            nbytes += 0 if pixels is None else pixels.nbytes
            if batch and (nbytes > MAX_NBYTES or sending.piece.settings != batch[0].piece.settings):
                break
            if self._pace is not None and self._pace.wait_for(sending, now) > 0:
                break
            batch.append(self._queue.popleft())
        return batch

    def _send(self, batch: list[Sending], now: float) -> None:
        ready = []
        for sending in batch:
            try:
                self._fill(sending)
            except OutOfSpace as error:
                self._outcomes.failed(sending, str(error))
            else:
                ready.append(sending)
        if not ready:
            return
        frame = self._out.encode(
            [(each.piece, each.id, each.block.name if each.block else "") for each in ready]
        )
        for sending in ready:
            self._outcomes.open[sending.id] = sending
            sending.deadline = min(sending.deadline, now + self._timeout_s)
        self._settling.sent(now)
        if self._pace is not None:
            self._pace.sent(ready[0], now)
        if self._asker is not None:
            self._asker.ask(frame)
            self._flight, self._flight_ends = ready, now + self._timeout_s
        else:
            self._publish(frame, ready)

    def _fill(self, sending: Sending) -> None:
        """Copy a piece's pixels into memory that the viewer can attach."""
        pixels = sending.piece.pixels
        if pixels is None:
            return
        block = sending.block = self._blocks.take(max(1, pixels.nbytes))
        octets = block.octets[: pixels.nbytes]
        np.copyto(octets.view(pixels.dtype).reshape(pixels.shape), pixels)
        if self._viewer.takes_over_blocks:
            block.lend()

    def _free(self, sending: Sending) -> None:
        block, sending.block = sending.block, None
        if block is not None:
            self._blocks.give(block)

    # --- a viewer that answers ------------------------------------------------------------------

    def _take_reply(self, frame: bytes, now: float) -> None:
        batch, self._flight, self._flight_ends = self._flight, [], math.inf
        reply = read_batch_reply(frame)
        for sending in batch:
            self._free(sending)
        # Some may have failed by an acknowledgement in the meantime.
        batch = [sending for sending in batch if sending.id in self._outcomes.open]
        if reply.ok:
            for sending in batch:
                self._outcomes.received(sending, now)
            return
        settles_now = _SETTLES_NOW in reply.reason and now < min(
            (sending.deadline for sending in batch), default=now
        )
        if len(batch) == 1 and not settles_now:
            self._outcomes.failed(batch[0], f"the viewer refused it: {reply.reason}")
            return
        for sending in batch:
            del self._outcomes.open[sending.id]
            sending.send_anew()
        if settles_now:  # for somebody else
            self._queue.extendleft(reversed(batch))
            self._settling.wait_until(now + _SETTLES_FOR_S)
        else:
            # One wrong item takes all others of its batch with it.
            self._alone.extend(batch)

    # --- a viewer that answers nothing ----------------------------------------------------------

    def _publish(self, frame: bytes, batch: list[Sending]) -> None:
        assert self._publisher is not None
        deadline = min(sending.deadline for sending in batch)
        while not (self._publisher.has_subscriber and self._publisher.send(frame)):
            if time.monotonic() > deadline:
                raise self._lost("took nothing")
            time.sleep(LOOK_EVERY_S)
        for sending in batch:
            self._lent[sending.id] = sending

    def _look_at_lent(self, now: float) -> float:
        """What the subscriber has read: it has removed a name, or acknowledged."""
        for id_, sending in list(self._lent.items()):
            block = sending.block
            is_told = sending.is_received or sending.item.is_over
            if is_told or (block is not None and block.is_read):
                del self._lent[id_]
                self._free(sending)
                if not sending.item.is_over:
                    self._outcomes.received(sending, now)
            elif now > sending.deadline:
                raise self._lost("did not read what it was sent")
        return LOOK_EVERY_S if self._lent else math.inf

    def _lost(self, what: str) -> ViewerLost:
        return ViewerLost(
            f"it {what} within {self._timeout_s:g} s.",
            cure="See whether it is busy or stopped.",
        )


class _Pace:
    """Generation 1's Fiji: bursts with pauses, and one kind of settings in each."""

    def __init__(self) -> None:
        self._burst_began = self._last_sent = -math.inf
        self._settings: object = None

    def wait_for(self, sending: Sending, now: float) -> float:
        """Seconds until a piece may go out."""
        left = self._last_sent + FIJI_PAUSE_S - now
        is_other = sending.piece.settings != self._settings
        return left if left > 0 and (is_other or now - self._burst_began > FIJI_BURST_S) else 0.0

    def sent(self, sending: Sending, now: float) -> None:
        """A message went out."""
        if now - self._last_sent >= FIJI_PAUSE_S:
            self._burst_began = now
        self._last_sent = now
        self._settings = sending.piece.settings


def _is_fiji1(endpoint: OpenHCSEndpoint) -> bool:
    return endpoint.viewer.kind == "fiji" and endpoint.viewer.generation == 1
