"""One viewer as a stream sees it: its lanes, its half of the protocol, its queue tracker."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from openhcs_stream.errors import PeerError, StreamError, ViewerLost, printable
from openhcs_stream.messages import ArenaOffer, Request, decode, encode
from openhcs_stream.protocol import (
    EditCame,
    Effect,
    Ended,
    Moved,
    Opened,
    OpenLane,
    Replied,
    SendControl,
    SendData,
    SenderPhase,
    SenderSession,
)
from openhcs_stream.stream._openhcs import BridgedLane
from openhcs_stream.transport import LaneClosed, SparingLog, ZmqLane, connect_unix

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from openhcs_stream.messages import Hello, Message
    from openhcs_stream.tracker import QueueTracker
    from openhcs_stream.transport import Lane

__all__ = ["Link"]

logger = logging.getLogger(__name__)

#: How often a viewer is told at most how many items were dropped, seconds.
TELL_DROPS_EVERY_S = 1.0
#: Seconds that opening the side lane may take; it is on this host.
LINK_TIMEOUT_S = 5.0


class Link:
    """The connection to one viewer.

    Locking is the stream's: the control lane is used by the thread that leads only, everything
    else under the stream's lock. A ZeroMQ socket allows one thread at a time.

    Parameters
    ----------
    number : int
        Holder of leases in the pixel pool; unique in its stream.
    control : Lane
        Where the session begins.
    on_moved : callable
        Called under the stream's lock with each `Moved`.
    on_edit : callable
        Called under the stream's lock with each edit that the viewer tells of.
    """

    def __init__(
        self,
        number: int,
        address: str,
        control: Lane,
        hello: Hello,
        on_moved: Callable[[Link, Moved], None],
        on_edit: Callable[[Link, EditCame], None],
    ) -> None:
        self.number = number
        self.address = address
        self.control = control
        self.data = control
        self.session = SenderSession(hello)
        self.error: StreamError | None = None
        #: False: no fact tells what this viewer displays; "displayed" ends what is told.
        self.tells_displayed = not isinstance(control, BridgedLane) or control.tells_displayed
        self.check = control.check if isinstance(control, BridgedLane) else None
        self.viewer = ""  #: "napari": the kind of viewer
        self.name = ""
        self.tracker: QueueTracker | None = None
        self.gone = 0  #: images that were displayed and had to make room for later ones
        self._tell_gone = SparingLog(logger, logging.WARNING)
        #: Requests whose answers somebody waits for, and those that came.
        self.expected: set[int] = set()
        self.replies: dict[int, Replied] = {}
        self._on_moved = on_moved
        self._on_edit = on_edit
        self._outbox: deque[tuple[bytes, tuple[int, ...], tuple[memoryview, ...]]] = deque()
        self._control_outbox: deque[bytes] = deque()
        self._drops_told = 0
        self._tell_drops_at = 0.0

    # --- state --------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.session.phase is SenderPhase.OPEN

    @property
    def is_closed(self) -> bool:
        return self.session.phase is SenderPhase.CLOSED

    @property
    def shares_memory(self) -> bool:
        """Whether pixels go by descriptor; else they travel in the message."""
        return self.data.carries_fds

    @property
    def needs_leader(self) -> bool:
        """Whether sending data uses the control lane's ZeroMQ socket."""
        return isinstance(self.data, ZmqLane)

    def has_input(self) -> bool:
        """Whether input waits that a poll would not tell of: ZeroMQ's descriptors are edges."""
        control = self.control
        return isinstance(control, ZmqLane) and control.has_input()

    def filenos(self) -> set[int]:
        """What to poll for input."""
        lanes = {id(lane): lane for lane in (self.control, self.data)}
        return {lane.fileno() for lane in lanes.values()}

    # --- by the leader ------------------------------------------------------------------------

    def start(self) -> None:
        """Greet the viewer."""
        self.carry_out(self.session.start(time.monotonic()))

    def drain(self, lock: threading.RLock) -> None:
        """Take in whatever waits on the lanes."""
        if self.data is not self.control:
            self._drain(self.data, lock)
        self._drain(self.control, lock)

    def _drain(self, lane: Lane, lock: threading.RLock) -> None:
        try:
            while not self.is_closed and (frame := lane.receive()) is not None:
                message = decode(frame.data)
                with lock:
                    self.carry_out(self.session.receive(message, time.monotonic()))
        except LaneClosed:
            if lane is not self.control:
                # A goodbye on the control lane, with its reason, may have been overtaken.
                self._drain(self.control, lock)
            with lock:
                self._lane_closed()
        except StreamError as error:
            with lock:
                self.lose(error)

    def tick(self, lock: threading.RLock) -> None:
        """Let time pass, and send what could not be sent before."""
        now = time.monotonic()
        with lock:
            self.carry_out(self.session.tick(now))
            self.flush_outbox()
            self._tell_drops(now)

    # --- under the stream's lock --------------------------------------------------------------

    @property
    def label(self) -> str:
        """What a person calls this viewer."""
        return self.name or self.viewer or "the viewer"

    def lose(self, error: StreamError) -> None:
        """This viewer is gone."""
        self.carry_out(self.session.lost(error))

    def offer_arena(self, arena: int, nbytes: int, fd: int) -> None:
        """Hand an arena over, once, before the first item that lies in it."""
        if self.session.offer(arena, nbytes):
            self._send_data(encode(ArenaOffer(arena, nbytes)), (fd,), ())

    def send_data(self, frame: bytes, blobs: tuple[memoryview, ...] = ()) -> None:
        """Send an encoded message on the data lane, now or as soon as there is room."""
        self._send_data(frame, (), blobs)

    def flush_outbox(self) -> None:
        """Send what waits for room, in order."""
        try:
            while self._outbox:
                data, fds, blobs = self._outbox[0]
                if not self.data.send(data, fds=fds, blobs=blobs):
                    return
                self._outbox.popleft()
            while self._control_outbox:
                if not self.control.send(self._control_outbox[0]):
                    return
                self._control_outbox.popleft()
        except LaneClosed:
            self._let_it_be_read()

    def take_reply(self, number: int) -> Replied | None:
        """The answer to a request, if it came; it is not waited for any more."""
        self.expected.discard(number)
        return self.replies.pop(number, None)

    def close(self) -> None:
        """Let go of the lanes. The caller leads."""
        for lane in (self.data, self.control):
            lane.close()

    def abandon_after_fork(self) -> None:
        """In a forked child: close the copy of the side lane. ZeroMQ sees to its own sockets."""
        if self.data is not self.control:
            self.data.close()

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the protocol core asks for."""
        for effect in effects:
            match effect:
                case Moved():
                    self._on_moved(self, effect)
                    if effect.gone:
                        self.gone += len(effect.gone)
                        self._tell_gone(
                            "%s let go of the oldest images to make room: %d so far",
                            self.label, self.gone,
                        )  # fmt: skip
                case SendData(message=message):
                    self._send_data(encode(message), (), ())
                case SendControl(message=message):
                    self._send_control(message)
                case Opened(welcome=welcome):
                    if welcome is not None:
                        self.viewer = printable(welcome.viewer)
                        self.name = printable(welcome.name)
                case OpenLane(address=address, message=message):
                    self._open_lane(address, message)
                case Replied(number=number):
                    if number in self.expected:
                        self.replies[number] = effect
                    elif not effect.ok:
                        logger.warning(
                            "%s refused a request: %s", self.label, printable(effect.what)
                        )
                case EditCame():
                    self._on_edit(self, effect)
                case Ended(error=error):
                    self.error = error
                    self._outbox.clear()
                    logger.info("session with %s ended: %s", self.label, error)
                case _:
                    raise AssertionError(f"no sender's effect: {effect}")

    # --- inside -------------------------------------------------------------------------------

    def _tell_drops(self, now: float) -> None:
        """Say how many items a policy let go, which were never sent: `status` there lists them."""
        count = self.tracker.dropped_count if self.tracker is not None else 0
        if count == self._drops_told or now < self._tell_drops_at or self._control_outbox:
            return
        if self.is_open and not isinstance(self.control, BridgedLane):
            self._drops_told, self._tell_drops_at = count, now + TELL_DROPS_EVERY_S
            self._send_control(Request(0, "dropped", {"items": count}))

    def _open_lane(self, address: str, first: Message) -> None:
        """Open the side lane; without it the session goes on where it began."""
        try:
            # A viewer that has proved its key may be another user's.
            proved = isinstance(self.control, ZmqLane) and self.control.proves_viewer
            lane = connect_unix(address, timeout_s=LINK_TIMEOUT_S, allow_other_users=proved)
            if not lane.send(encode(first)):
                lane.close()
                raise LaneClosed(f"the lane {address} takes nothing.")
        except (PeerError, OSError) as error:
            logger.warning("no side lane to %s, everything goes through ZeroMQ: %s", address, error)
            self.carry_out(self.session.lane_failed(time.monotonic()))
            return
        self.data = lane
        self.carry_out(self.session.lane_opened(time.monotonic()))

    def _send_control(self, message: Message) -> None:
        frame = encode(message)
        try:
            if self._control_outbox or not self.control.send(frame):
                self._control_outbox.append(frame)
        except LaneClosed:
            self._let_it_be_read()

    def _send_data(self, frame: bytes, fds: tuple[int, ...], blobs: tuple[memoryview, ...]) -> None:
        try:
            if self._outbox or not self.data.send(frame, fds=fds, blobs=blobs):
                self._outbox.append((frame, fds, blobs))
        except LaneClosed:
            self._let_it_be_read()

    def _let_it_be_read(self) -> None:
        """A lane ended under a send: not here, but by whoever reads it, is the viewer lost.

        What it said before its end still counts: what it displayed, and its reason to end.
        """
        self._outbox.clear()
        self._control_outbox.clear()

    def _lane_closed(self) -> None:
        self.lose(
            ViewerLost(
                f"{self.label} at {self.address} is gone.",
                cure="Start it again and connect anew; what it had shown is lost.",
            )
        )
