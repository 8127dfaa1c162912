"""One viewer as a stream sees it: its lanes, its half of the protocol, its queue tracker."""

from __future__ import annotations

import logging
import time
from collections import deque
from copy import copy
from typing import TYPE_CHECKING, Protocol

from openhcs_stream.errors import (
    DeadlineExceeded,
    PeerError,
    StreamError,
    ViewerLost,
    printable,
)
from openhcs_stream.logs import log_event
from openhcs_stream.messages import ArenaOffer, Items, More, Request, decode, encode
from openhcs_stream.protocol import (
    Away,
    EditCame,
    Effect,
    Ended,
    Moved,
    Opened,
    OpenLane,
    Replied,
    Resend,
    SendControl,
    SendData,
    SenderPhase,
    SenderSession,
)
from openhcs_stream.stream._bridged import BridgedLane
from openhcs_stream.stream._item import described, parts_of
from openhcs_stream.transport import LaneClosed, SparingLog, ZmqLane, connect_unix

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from openhcs_stream.messages import Hello, LayerSpec, Message
    from openhcs_stream.pixels import Slot
    from openhcs_stream.stream._files import ImageFile
    from openhcs_stream.stream._item import Outgoing
    from openhcs_stream.stream._reach import Target
    from openhcs_stream.tracker import QueueTracker
    from openhcs_stream.transport import Lane

__all__ = ["Link", "LinkOwner"]

logger = logging.getLogger(__name__)

#: How often a viewer is told at most how many items were dropped, seconds.
TELL_DROPS_EVERY_S = 1.0
#: Seconds that opening the side lane may take; it is on this host.
LINK_TIMEOUT_S = 5.0


class LinkOwner(Protocol):
    """What a link needs of its stream; all of it is called under the stream's lock."""

    def spec(self, layer: int) -> LayerSpec:
        """The declaration of a layer."""

    def moved(self, link: Link, moved: Moved) -> None:
        """The viewer reported, or is gone."""

    def edit_came(self, link: Link, effect: EditCame) -> None:
        """A person changed something there."""

    def resend(self, link: Link, seqs: Sequence[int]) -> None:
        """The viewer is back: these items are to be told again."""

    def is_back(self, link: Link) -> None:
        """The viewer is back, and knows nothing of what was asked of it before."""


class Link:
    """The connection to one viewer.

    Locking is the stream's: the control lane is used by the thread that leads only, everything
    else under the stream's lock. A ZeroMQ socket allows one thread at a time.

    A viewer that is lost leaves the link *lost*: without lanes, until it is greeted anew. What
    is sent meanwhile waits, for `reconnect_s` seconds from the loss on; then all of it fails.

    Parameters
    ----------
    number : int
        Holder of leases in the pixel pool; unique in its stream.
    target : Target
        How the viewer was named.
    address : str
        Where it was found.
    control : Lane
        Where the session begins.
    owner : LinkOwner
        The stream.
    reconnect_s : float
        For how long items wait for a viewer that is gone; 0: it is gone for good.
    """

    def __init__(
        self,
        number: int,
        target: Target,
        address: str,
        control: Lane,
        hello: Hello,
        owner: LinkOwner,
        *,
        reconnect_s: float,
    ) -> None:
        self.number = number
        self.mask = 1 << number
        self.target = target
        self.address = address
        self.reconnect_s = reconnect_s
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
        #: Requests whose answers somebody waits for. One that is a Request is asked again by itself
        #: when the viewer was lost and is back.
        self.expected: dict[int, Request | None] = {}
        self.replies: dict[int, Replied | StreamError] = {}
        self._owner = owner
        self._outbox: deque[tuple[bytes, tuple[int, ...], tuple[memoryview, ...]]] = deque()
        self._control_outbox: deque[bytes] = deque()
        self._drops_told = 0
        self._tell_drops_at = 0.0
        self._lost_at = 0.0
        #: Address, first message and deadline of the side lane that is being opened.
        self._linking: tuple[str, Message, float] | None = None
        #: The side lane of a viewer that is lost and perhaps not dead: its end will tell.
        self._watched: Lane | None = None
        #: Lanes that nobody uses any more; they are closed when nobody waits for them any more.
        self._discarded: list[Lane] = []

    # --- state --------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.session.phase is SenderPhase.OPEN

    @property
    def is_closed(self) -> bool:
        return self.session.phase is SenderPhase.CLOSED

    @property
    def is_lost(self) -> bool:
        """Whether the viewer is gone, and nobody is being greeted in its place."""
        return self.session.phase is SenderPhase.AWAY

    @property
    def shares_memory(self) -> bool:
        """Whether pixels go by descriptor; else they travel in the message."""
        return self.data.carries_fds

    @property
    def needs_leader(self) -> bool:
        """Whether sending data uses the control lane's ZeroMQ socket."""
        return isinstance(self.data, ZmqLane)

    @property
    def label(self) -> str:
        """What a person calls this viewer."""
        return self.name or self.viewer or "the viewer"

    @property
    def run(self) -> str:
        """Tells this run of the viewer from the one before."""
        welcome = self.session.welcome
        return welcome.run if welcome is not None else ""

    def has_input(self) -> bool:
        """Whether input waits that a poll would not tell of: ZeroMQ's descriptors are edges."""
        control = self.control
        return not self.is_lost and isinstance(control, ZmqLane) and control.has_input()

    def filenos(self) -> set[int]:
        """What to poll for input."""
        watched = set() if self._watched is None else {self._watched.fileno()}
        if self.is_closed or self.is_lost:
            return watched
        return watched | {self.control.fileno(), self.data.fileno()}

    # --- by the leader ------------------------------------------------------------------------

    def start(self) -> None:
        """Greet the viewer."""
        self.carry_out(self.session.start(time.monotonic()))

    def greet(self, address: str, lane: Lane, hello: Hello) -> None:
        """Greet the viewer anew, where it is now."""
        self.address = address
        self.control = self.data = lane
        if isinstance(lane, BridgedLane):
            self.tells_displayed = lane.tells_displayed
        self.carry_out(self.session.start(time.monotonic(), hello))

    def work(self, lock: threading.RLock) -> None:
        """Take in whatever waits on the lanes, let time pass, send what could not be sent."""
        if self._watched is not None:
            self._watch(self._watched, lock)
        if self._linking is not None:
            with lock:
                self._try_lane(*self._linking)
        if not self.is_lost and not self.is_closed:
            side = self.data if self.data is not self.control else None
            # The side lane ends with the viewer's process, and in no other way. A goodbye on the
            # control lane, with its reason, may have been overtaken.
            died = side is not None and self._read(side, lock)
            ended = self._read(self.control, lock) or died
            if ended and not self.is_lost:
                with lock:
                    self._lane_closed(died=died)
        now = time.monotonic()
        with lock:
            if self.session.is_away:
                self._wait_for_it(now)
            else:
                self.carry_out(self.session.tick(now))
            self.flush_outbox()
            self._tell_drops(now)

    def glance(self, lock: threading.RLock) -> None:
        """Take in what waits on the side lane; its end is for `work` to see."""
        if self.data is not self.control:
            self._read(self.data, lock)

    def _read(self, lane: Lane, lock: threading.RLock) -> bool:
        """Take in what waits on a lane; whether it has ended."""
        try:
            while self._uses(lane) and (frame := lane.receive()) is not None:
                message = decode(frame.data)
                with lock:
                    self.carry_out(self.session.receive(message, time.monotonic()))
        except LaneClosed:
            return self._uses(lane)
        except StreamError as error:
            with lock:
                if self._uses(lane):
                    self.lose(error)
        return False

    def _uses(self, lane: Lane) -> bool:
        is_ours = lane is self.control or lane is self.data
        return is_ours and not self.is_lost and not self.is_closed

    def _watch(self, lane: Lane, lock: threading.RLock) -> None:
        """See whether a viewer that was lost is dead. What it still says is not for us any more."""
        try:
            while lane.receive() is not None:
                pass
        except StreamError as error:
            with lock:
                self._discarded.append(lane)
                self._watched = None
                self.carry_out(self.session.died(error))

    def begin(self, tracker: QueueTracker) -> None:
        """All viewers of the stream are there: from now on one that is lost is waited for."""
        self.tracker = tracker
        self.session.returns = self.reconnect_s > 0

    def close_discarded(self) -> None:
        """Close lanes that nobody waits for any more."""
        while self._discarded:
            self._discarded.pop().close()

    def close(self) -> None:
        """Let go of all lanes."""
        self._discard_lanes()
        if self._watched is not None:
            self._discarded.append(self._watched)
            self._watched = None
        self.close_discarded()

    # --- under the stream's lock --------------------------------------------------------------

    def lose(self, error: StreamError, *, died: bool = False) -> None:
        """This viewer is gone."""
        self.carry_out(self.session.lost(error, died=died))

    def end(self, error: StreamError) -> None:
        """End the session for good."""
        self.carry_out(self.session.end(error))

    def tell(self, items: Sequence[Outgoing]) -> None:
        """Send items, in one message where it has room."""
        session, owner = self.session, self._owner
        layers, arenas = session.layers, session.arenas
        blobs: list[memoryview] | None = None if self.data.carries_fds else []
        for at, item in enumerate(items):
            if item.layer not in layers:
                self.carry_out(session.declare(item.layer, owner.spec(item.layer)))
            if item.file is not None:
                if at:
                    self.tell(items[:at])
                self._tell_file(item, item.file)
                if at + 1 < len(items):
                    self.tell(items[at + 1 :])
                return
            if blobs is None and (slot := item.slot) is not None and slot.arena.id not in arenas:
                self._offer(slot)
        frame = encode(Items(tuple([described(item, blobs) for item in items])))
        if len(frame) > self.data.max_frame and len(items) > 1:
            half = len(items) // 2
            self.tell(items[:half])
            self.tell(items[half:])
            return
        self._send_data(frame, (), tuple(blobs) if blobs else ())

    def lacks(self, file: ImageFile) -> str:
        """Why this viewer can't read a file itself; empty: it can."""
        welcome = self.session.welcome
        return file.lacks(welcome.files if welcome and self.data.carries_fds else ())

    def _tell_file(self, item: Outgoing, file: ImageFile) -> None:
        """Hand a file over; it stays open until the viewers have told the item's end."""
        lacks = self.lacks(file)
        if lacks:  # it could before its lanes were lost
            self.carry_out(self.session.give_up(item.seq, f"it can't read {file.path}: {lacks}"))
            return
        self._send_data(encode(file.message(described(item, None))), (file.fd,), ())

    def tell_more(self, seq: int, slot: Slot, nbytes: int, lease: int) -> None:
        """Send a further part of an item."""
        blobs: list[memoryview] | None = None
        if self.data.carries_fds:
            if slot.arena.id not in self.session.arenas:
                self._offer(slot)
        else:
            blobs = []
        parts = parts_of(slot, nbytes, lease, blobs)
        self._send_data(encode(More(seq, parts)), (), tuple(blobs or ()))

    def send_data(self, frame: bytes) -> None:
        """Send an encoded message on the data lane, now or as soon as there is room."""
        self._send_data(frame, (), ())

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

    def ask(self, request: Request, *, again: bool = False) -> None:
        """Send a request whose answer somebody waits for.

        Parameters
        ----------
        request : Request
            With a number of its own.
        again : bool
            Ask it again where the viewer is lost before it has answered, and is back.
        """
        self.expected[request.number] = request if again else None
        self.carry_out([SendControl(request)])

    def has_reply(self, number: int) -> bool:
        """Whether the answer is there, or none will come."""
        return number in self.replies or self.is_closed

    def take_reply(self, number: int) -> Replied | StreamError | None:
        """The answer to a request, if it came; it is not waited for any more."""
        self.expected.pop(number, None)
        reply = self.replies.pop(number, None)
        if reply is None and self.is_closed:
            reply = self.error
        return copy(reply)  # an error is raised, perhaps to several

    def abandon_after_fork(self) -> None:
        """In a forked child: close the copy of the side lane. ZeroMQ sees to its own sockets."""
        if self.data is not self.control:
            self.data.close()

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the protocol core asks for."""
        for effect in effects:
            match effect:
                case Moved():
                    self._owner.moved(self, effect)
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
                case Opened():
                    self._opened()
                case Resend(seqs=seqs):
                    self._owner.resend(self, seqs)
                case OpenLane(address=address, message=message):
                    deadline = time.monotonic() + LINK_TIMEOUT_S
                    self._linking = (address, message, deadline)
                    self._try_lane(address, message, deadline)
                case Replied(number=number):
                    if number in self.expected:
                        self.replies[number] = effect
                    elif not effect.ok:
                        logger.warning(
                            "%s refused a request: %s", self.label, printable(effect.what)
                        )
                case EditCame():
                    self._owner.edit_came(self, effect)
                case Away(error=error):
                    self._away(error)
                case Ended(error=error):
                    self.error = error
                    self._outbox.clear()
                    self._discard_lanes()
                    logger.info("session with %s ended: %s", self.label, error)
                case _:
                    raise AssertionError(f"no sender's effect: {effect}")

    # --- coming and going ---------------------------------------------------------------------

    def _opened(self) -> None:
        welcome = self.session.welcome
        assert welcome is not None
        self.viewer = printable(welcome.viewer)
        self.name = printable(welcome.name)
        if self.tracker is None:
            return
        # It was lost, and is back.
        self.error = None
        if self._watched is not None:
            self._discarded.append(self._watched)
            self._watched = None
        self.tracker.back(self.label)
        log_event(
            logger, logging.INFO, "viewer back", stream=self.tracker.stream, viewer=self.label,
            after_s=round(time.monotonic() - self._lost_at, 3),
        )  # fmt: skip
        for request in self.expected.values():
            if request is not None:
                self._send_control(request)
        self._owner.is_back(self)

    def _away(self, error: StreamError) -> None:
        """The viewer is lost, or one that was greeted in its place."""
        if self.error is None:
            self.error = error
            self._lost_at = time.monotonic()
            if self.session.haunted and self.data is not self.control:
                self._watched, self.data = self.data, self.control
            assert self.tracker is not None
            self.tracker.lost(error.what)
            log_event(
                logger, logging.WARNING, "viewer lost", stream=self.tracker.stream,
                viewer=self.label, why=error.what, waiting=self.session.outstanding,
            )  # fmt: skip
        self._linking = None
        self._outbox.clear()
        self._control_outbox.clear()
        self._discard_lanes()
        for number, request in self.expected.items():
            if request is None:
                self.replies.setdefault(number, error)

    def _wait_for_it(self, now: float) -> None:
        """The viewer is lost: what waits for it waits no longer than was declared."""
        if now < self._lost_at + self.reconnect_s or not self.session.takes_items:
            return
        assert self.error is not None
        waited = ViewerLost(
            f"{self.error.what.rstrip('.')}, and was not back within {self.reconnect_s:g} s.",
            cure="Start it again: the stream goes on by itself as soon as it is there.",
        )
        waiting = self.session.outstanding
        self.carry_out(self.session.expire(waited))
        self.error = waited
        if self.tracker is not None:
            log_event(
                logger, logging.WARNING, "viewer not waited for any more",
                stream=self.tracker.stream, viewer=self.label, failed=waiting,
            )  # fmt: skip

    def _lane_closed(self, *, died: bool) -> None:
        cure = "Start it again: the stream goes on by itself as soon as it is there."
        if not self.session.returns:
            cure = "Start it again and connect anew; what it had shown is lost."
        self.lose(ViewerLost(f"{self.label} at {self.address} is gone.", cure=cure), died=died)

    def _discard_lanes(self) -> None:
        for lane in (self.data, self.control):
            if lane not in self._discarded and lane is not self._watched:
                self._discarded.append(lane)

    # --- inside -------------------------------------------------------------------------------

    def _offer(self, slot: Slot) -> None:
        """Hand an arena over, once, before the first item that lies in it."""
        arena = slot.arena
        if self.session.offer(arena.id, arena.nbytes):
            self._send_data(encode(ArenaOffer(arena.id, arena.nbytes)), (arena.fd,), ())

    def _tell_drops(self, now: float) -> None:
        """Say how many items a policy let go, which were never sent: `status` there lists them."""
        count = self.tracker.dropped_count if self.tracker is not None else 0
        if count == self._drops_told or now < self._tell_drops_at or self._control_outbox:
            return
        if self.is_open and not isinstance(self.control, BridgedLane):
            self._drops_told, self._tell_drops_at = count, now + TELL_DROPS_EVERY_S
            self._send_control(Request(0, "dropped", {"items": count}))

    def _try_lane(self, address: str, first: Message, deadline: float) -> None:
        """Open the side lane; without it the session goes on where it began."""
        try:
            # A viewer that has proved its key may be another user's.
            proved = isinstance(self.control, ZmqLane) and self.control.proves_viewer
            try:
                lane = connect_unix(address, timeout_s=0.0, allow_other_users=proved)
            except DeadlineExceeded:
                if time.monotonic() < deadline:
                    return  # others are before us; not to be waited for with the lock
                raise
            if not lane.send(encode(first)):
                lane.close()
                raise LaneClosed(f"the lane {address} takes nothing.")
        except (PeerError, OSError) as error:
            logger.warning("no side lane to %s, everything goes through ZeroMQ: %s", address, error)
            self._linking = None
            self.carry_out(self.session.lane_failed(time.monotonic()))
            return
        self._linking = None
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
