"""One sender as the receiver sees it: its lanes, its half of the protocol, its memory."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream import rois as roi_codecs
from openhcs_stream.errors import OutOfSpace, ProtocolViolation, StreamError
from openhcs_stream.messages import Edited, decode, encode
from openhcs_stream.pixels import MappedArenas, numpy_dtype
from openhcs_stream.protocol import ReceiverPhase
from openhcs_stream.transport import LaneClosed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import EditRecord, Item, Message, Part
    from openhcs_stream.protocol import ReceiverSession, TakePart
    from openhcs_stream.transport import Frame, Lane
    from openhcs_stream.viewer._edits import Wanted
    from openhcs_stream.viewer._placement import Placement

__all__ = ["Peer", "payload_of"]

logger = logging.getLogger(__name__)

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
        self.started = time.monotonic()
        self.received = 0
        self.displayed = 0
        self.failed = 0
        self.waiting = 0  #: received, and neither displayed nor failed yet
        self.nbytes = 0
        #: Which edits it asked for, by its own number of each listener.
        self.wanted: dict[int, Wanted] = {}
        #: Of each listener, the last edit that it was told of: they come in their order.
        self._told: dict[int, int] = {}
        self._buffers: dict[int, npt.NDArray[np.uint8]] = {}
        self._outbox: deque[tuple[Lane, bytes]] = deque()

    @property
    def label(self) -> str:
        """What a person calls this sender."""
        hello = self.session.hello
        return hello.name if hello is not None else "a peer that has not greeted"

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
        except LaneClosed:
            self._outbox.clear()

    def wants_to_send(self) -> bool:
        """Whether something waits for room."""
        return bool(self._outbox)

    def _send(self, lane: Lane, data: bytes) -> None:
        try:
            if self._outbox or not lane.send(data):
                self._outbox.append((lane, data))
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
        dtype = numpy_dtype(item.dtype)
        if math.prod(item.shape) * dtype.itemsize != item.nbytes:
            raise ProtocolViolation(
                f"item {item.seq} of shape {item.shape} and dtype {item.dtype} says that it has "
                f"{item.nbytes} bytes."
            )
        if item.nbytes == 0:
            try:
                return np.empty(item.shape, dtype)
            except ValueError as error:  # (2**53, 2**53, 0): beyond what numpy counts
                raise ProtocolViolation(
                    f"item {item.seq} has shape {item.shape}, which no array has."
                ) from error
        part = item.parts[0]
        if part.arena >= 0:
            return self.arenas.array(part, item.shape, item.dtype)
        return np.frombuffer(_blob(part, blobs), dtype).reshape(item.shape)

    def collect(
        self, effect: TakePart, blobs: Sequence[memoryview | bytes]
    ) -> npt.NDArray[Any] | None:
        """Copy one part of an item to private memory; the whole array with the last one.

        Raises
        ------
        ProtocolViolation
            As `array`.
        OutOfSpace
            There is no memory for the item.
        """
        item, part = effect.item, effect.part
        buffer = self._buffers.get(item.seq)
        if buffer is None:
            dtype = numpy_dtype(item.dtype)
            if math.prod(item.shape) * dtype.itemsize != item.nbytes:
                raise ProtocolViolation(
                    f"item {item.seq} of shape {item.shape} and dtype {item.dtype} says that it "
                    f"has {item.nbytes} bytes."
                )
            try:
                buffer = self._buffers[item.seq] = np.empty(item.nbytes, np.uint8)
            except MemoryError as error:
                raise OutOfSpace(
                    f"the viewer has no memory for an item of {item.nbytes} bytes.",
                    cure="Send it in smaller pieces, or clear the viewer.",
                ) from error
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

    def close(self) -> None:
        """Let go of everything; what is on the screen stays."""
        self._buffers.clear()
        self._outbox.clear()
        self.arenas.close()
        self.control.close()
        if self.side is not None:
            self.side.close()


def payload_of(kind: str, array: npt.NDArray[Any], columns: int) -> Any:
    """What a vector item's bytes mean, copied out of shared memory.

    Parameters
    ----------
    kind : str
        "rois", "points" or "tracks".
    array : ndarray
        rois: (n,) uint8, an encoded block; the others: (N, columns) float64.
    columns : int
        What a table must have.

    Raises
    ------
    ProtocolViolation
        The bytes are not that.
    """
    if kind == "rois":
        return roi_codecs.decode(array.tobytes())
    if array.ndim != 2 or array.shape[1] != columns or array.dtype != np.float64:
        raise ProtocolViolation(
            f"{kind} came with shape {array.shape} and dtype {array.dtype}; "
            f"(N, {columns}) float64 is right."
        )
    return array.copy()


def close_fds(frame: Frame) -> None:
    """Close descriptors that nobody takes."""
    for fd in frame.fds:
        os.close(fd)


def _blob(part: Part, blobs: Sequence[memoryview | bytes]) -> memoryview | bytes:
    if part.offset >= len(blobs) or len(blobs[part.offset]) != part.nbytes:
        raise ProtocolViolation(
            f"a part says that it is frame {part.offset} of {part.nbytes} bytes; the message has "
            f"{[len(blob) for blob in blobs[:8]]}."
        )
    return blobs[part.offset]
