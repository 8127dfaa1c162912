"""One sender as the receiver sees it: its lanes, its half of the protocol, its memory."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream import rois as roi_codecs
from openhcs_stream.errors import OutOfSpace, ProtocolViolation, StreamError, printable
from openhcs_stream.messages import Bye, Edited, Refusal, decode, encode
from openhcs_stream.pixels import MappedArenas, numpy_dtype
from openhcs_stream.protocol import ReceiverPhase
from openhcs_stream.transport import LaneClosed, SparingLog
from openhcs_stream.viewer._budget import PLACE_NBYTES
from openhcs_stream.viewer._counts import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import EditRecord, Item, Message, Part
    from openhcs_stream.protocol import ReceiverSession, TakePart
    from openhcs_stream.transport import Frame, Lane
    from openhcs_stream.viewer._budget import Budget
    from openhcs_stream.viewer._edits import Wanted
    from openhcs_stream.viewer._placement import Placement

__all__ = ["Peer", "as_array", "close_fds"]

logger = logging.getLogger(__name__)

#: What may wait for a sender that does not read. The answer to a request may be large, and a
#: sender that is stopped for a while has a few thousand items that it is to be told of.
MAX_OUTBOX_NBYTES = 256 << 20
OUTBOX_ENTRY_NBYTES = 200
#: Declarations of one session's layers.
MAX_DECLARED_NBYTES = 16 << 20
#: Frames taken from one lane before the others have their turn.
FRAMES_PER_TURN = 64


class Peer:
    """A session's shell on the viewer's side; used by the receiver's thread only.

    The counts may be read from anywhere.
    """

    def __init__(self, session: ReceiverSession, control: Lane) -> None:
        self.session = session
        self.control = control
        self.side: Lane | None = None
        self.arenas = MappedArenas()
        self.placements: dict[int, Placement] = {}
        self.counts = Counts()
        self.how_ended = ""  #: where it did not say so itself
        #: Which edits it asked for, by its own number of each listener.
        self.wanted: dict[int, Wanted] = {}
        #: Of each listener, the last edit that it was told of: they come in their order.
        self._told: dict[int, int] = {}
        self._buffers: dict[int, npt.NDArray[np.uint8]] = {}
        self._gave_up = -1
        self.has_asked = False  #: whether the person at the viewer was to answer it something
        #: Of items that failed some are logged, and the others counted.
        self.failures_told = SparingLog(logger, logging.WARNING, burst=20)
        self._outbox: deque[tuple[Lane, bytes]] = deque()
        self._outbox_nbytes = 0
        self._declared_nbytes = 0

    @property
    def label(self) -> str:
        """What a person calls this sender."""
        hello = self.session.hello
        return printable(hello.name) if hello is not None else "a peer that has not greeted"

    @property
    def facts(self) -> dict[str, Any] | None:
        """Who sends, JSON-able; None for a session that only asks, and before its greeting."""
        hello = self.session.hello
        if hello is None or hello.role != "stream":
            return None
        return {
            "name": self.label,
            "pid": hello.pid,
            "user": printable(hello.user),
            "shared_memory": self.side is not None,
        }

    @property
    def who(self) -> dict[str, Any]:
        """For the log."""
        hello = self.session.hello
        if hello is None:
            return {"stream": self.label}
        return {"stream": self.label, "pid": hello.pid, "user": hello.user}

    @property
    def is_closed(self) -> bool:
        return self.session.phase is ReceiverPhase.CLOSED

    # --- messages -----------------------------------------------------------------------------

    def frames(self, lane: Lane) -> Iterator[tuple[Message, Frame]]:
        """What waits on a lane, decoded one by one, up to a turn's worth.

        Raises
        ------
        LaneClosed
            The lane ended, and nothing is left on it.
        ProtocolViolation
            A frame that no version allows.
        """
        for _ in range(FRAMES_PER_TURN):
            frame = lane.receive()
            if frame is None:
                return
            try:
                message = decode(frame.data)
            except StreamError:
                close_fds(frame)
                raise
            yield message, frame

    def send_control(self, message: Message) -> None:
        """Send on the lane where the session began."""
        self._send(self.control, encode(message))
        side = self.side
        if isinstance(message, Bye | Refusal) and side is not None and side is not self.control:
            # There as well: else the side lane's end would overtake the reason.
            self._send(side, encode(message))

    def send_edit(self, edit: EditRecord) -> None:
        """Tell the sender what a person changed, if it asked for it."""
        listeners = [
            number
            for number, wanted in self.wanted.items()
            if edit.number > self._told.get(number, 0) and wanted.matches(edit)
        ]
        if listeners:
            self._told.update(dict.fromkeys(listeners, edit.number))
            self.send_control(Edited(edit, tuple(listeners)))

    def send_report(self) -> None:
        """Tell the sender whatever waits to be told."""
        while (report := self.session.report()) is not None:
            self._send(self.side or self.control, encode(report))

    def flush(self) -> None:
        """Send what had no room before, in order."""
        try:
            while self._outbox:
                lane, data = self._outbox[0]
                if not lane.send(data):
                    return
                self._outbox.popleft()
                self._outbox_nbytes -= len(data) + OUTBOX_ENTRY_NBYTES
        except LaneClosed:
            self._outbox.clear()
            self._outbox_nbytes = 0

    def wants_to_send(self) -> bool:
        """Whether something waits for room."""
        return bool(self._outbox)

    @property
    def is_deaf(self) -> bool:
        """Whether more waits for it than anybody leaves unread who is alive."""
        return self._outbox_nbytes > MAX_OUTBOX_NBYTES

    def declared(self, nbytes: int) -> None:
        """Note what a layer's declaration takes.

        Raises
        ------
        ProtocolViolation
            All of them take too much.
        """
        self._declared_nbytes += nbytes
        if self._declared_nbytes > MAX_DECLARED_NBYTES:
            raise ProtocolViolation(
                f"a sender declared layers of more than {MAX_DECLARED_NBYTES} bytes."
            )

    def _send(self, lane: Lane, data: bytes) -> None:
        try:
            if self._outbox or not lane.send(data):
                self._outbox.append((lane, data))
                self._outbox_nbytes += len(data) + OUTBOX_ENTRY_NBYTES
        except LaneClosed:
            logger.debug("%s is gone, it is told nothing more", self.label)

    # --- pixels -------------------------------------------------------------------------------

    def array(self, item: Item, blobs: Sequence[memoryview | bytes]) -> npt.NDArray[Any]:
        """The item's array where it lies: read-only, C order, valid until it is reported.

        Raises
        ------
        ProtocolViolation
            Its shape, dtype or memory is not what it says.
        """
        part = item.parts[0] if item.parts else None
        if part is not None and part.arena >= 0 and part.nbytes == item.nbytes:
            return self.arenas.array(part, item.shape, item.dtype)  # checks the rest
        dtype = _check_nbytes(item)
        if item.nbytes == 0:
            try:
                return np.empty(item.shape, dtype)
            except ValueError as error:  # (2**53, 2**53, 0): beyond what numpy counts
                raise ProtocolViolation(
                    f"item {item.seq} has shape {item.shape}, which no array has."
                ) from error
        assert part is not None
        if part.arena >= 0:
            return self.arenas.array(part, item.shape, item.dtype)
        return np.frombuffer(_blob(part, blobs), dtype).reshape(item.shape)

    def has_begun(self, seq: int) -> bool:
        """Whether there is memory already for an item that comes in parts."""
        return seq in self._buffers

    def has_failed(self, seq: int) -> bool:
        """Whether an item that comes in parts was given up."""
        return seq == self._gave_up

    def begin(self, item: Item, budget: Budget) -> None:
        """Make private memory for an item that comes in parts.

        Parameters
        ----------
        item : Item
            Its first part is there.
        budget : Budget
            In which the item's bytes and those of one place are reserved.

        Raises
        ------
        ProtocolViolation
            Its shape and dtype are not what it says.
        OutOfSpace
            The machine has no memory for it.
        """
        nbytes = item.nbytes + PLACE_NBYTES
        try:
            _check_nbytes(item)
            buffer = np.empty(item.nbytes, np.uint8)
        except MemoryError as error:
            budget.release(nbytes)
            raise OutOfSpace(
                f"the viewer's machine has no memory for an item of {item.nbytes} bytes.",
                cure="Send it in smaller pieces, or clear the viewer.",
            ) from error
        except BaseException:
            budget.release(nbytes)
            raise
        budget.hold(buffer, nbytes)
        self._buffers[item.seq] = buffer

    def collect(
        self, effect: TakePart, blobs: Sequence[memoryview | bytes]
    ) -> npt.NDArray[Any] | None:
        """Copy one part of an item that was begun; the whole array with the last one.

        Raises
        ------
        ProtocolViolation
            As `array`.
        """
        item, part = effect.item, effect.part
        buffer = self._buffers[item.seq]
        source = (
            self.arenas.view(part)
            if part.arena >= 0
            else np.frombuffer(_blob(part, blobs), np.uint8)
        )
        np.copyto(buffer[effect.offset : effect.offset + part.nbytes], source)
        if part.lease:
            self.session.released(part.lease)
        if not effect.last:
            return None
        del self._buffers[item.seq]
        return buffer.view(numpy_dtype(item.dtype)).reshape(item.shape)

    def forget(self, seq: int) -> None:
        """An item failed: what was collected of it is not needed."""
        self._buffers.pop(seq, None)
        self._gave_up = seq

    def close(self) -> None:
        """Let go of everything; what is on the screen stays."""
        self._buffers.clear()
        self._outbox.clear()
        self.placements.clear()
        self.arenas.close()
        self.control.close()
        if self.side is not None:
            self.side.close()


def as_array(payload: Any) -> npt.NDArray[Any]:
    """The bytes of an item that came without any: a list of Roi becomes an encoded block."""
    if isinstance(payload, np.ndarray):
        return payload
    return np.frombuffer(roi_codecs.encode(payload), np.uint8)


def close_fds(frame: Frame) -> None:
    """Close descriptors that nobody takes."""
    for fd in frame.fds:
        os.close(fd)


def _check_nbytes(item: Item) -> np.dtype[Any]:
    """The item's dtype, which with its shape makes the bytes that it says that it has."""
    dtype = numpy_dtype(item.dtype)
    if math.prod(item.shape) * dtype.itemsize != item.nbytes:
        raise ProtocolViolation(
            f"item {item.seq} of shape {item.shape} and dtype {item.dtype} says that it has "
            f"{item.nbytes} bytes."
        )
    return dtype


def _blob(part: Part, blobs: Sequence[memoryview | bytes]) -> memoryview | bytes:
    if part.offset >= len(blobs) or len(blobs[part.offset]) != part.nbytes:
        raise ProtocolViolation(
            f"a part says that it is frame {part.offset} of {part.nbytes} bytes; the message has "
            f"{[len(blob) for blob in blobs[:8]]}."
        )
    return blobs[part.offset]
