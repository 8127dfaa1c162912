"""Both halves against each other, over lanes that may end at any moment and be opened again.

The lanes are queues: ordered and reliable until they are cut, as real ones are. The viewer's shell
is the smallest: it copies at once, and shows when the machine says so.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from openhcs_stream.errors import ProtocolMismatch, ProtocolViolation, ViewerLost
from openhcs_stream.messages import (
    MAJOR,
    MESSAGES,
    MINOR,
    Bye,
    EditRecord,
    Hello,
    Item,
    Items,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Message,
    More,
    Part,
    Report,
    Welcome,
    decode,
    encode,
)
from openhcs_stream.protocol import (
    Accounts,
    Away,
    Effect,
    Ended,
    Moved,
    Opened,
    OpenLane,
    ReceiverPhase,
    ReceiverSession,
    Resend,
    SendControl,
    SendData,
    SenderPhase,
    SenderSession,
    Take,
    TakePart,
    ViewerFacts,
)

SPEC = LayerSpec("image", "raw", "X")
FACTS = ViewerFacts("memory", "memory", 1, "host", "token")
NBYTES = 12
GONE = ViewerLost("it is gone.")


@dataclass(eq=False)
class Viewer:
    """A viewer's process."""

    accounts: Accounts = field(default_factory=Accounts)
    shown: Counter[int] = field(default_factory=Counter)
    to_show: list[tuple[ReceiverSession, int]] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    is_dead: bool = False


@dataclass(eq=False)
class Connection:
    """The lanes of one session, what is on its way in them, and the viewer's half."""

    viewer: Viewer
    session: ReceiverSession
    control_up: deque[bytes] = field(default_factory=deque)
    control_down: deque[bytes] = field(default_factory=deque)
    data_up: deque[bytes] = field(default_factory=deque)
    data_down: deque[bytes] = field(default_factory=deque)
    has_side_lane: bool = False
    #: The sender has let go of it; the viewer may still read what is on its way.
    is_left: bool = False


class Pair(RuleBasedStateMachine):
    """A sender and its viewers, one after another; every message goes through its bytes."""

    @initialize(
        lane=st.sampled_from(["side lane", "fails to open", "far"]),
        returns=st.sampled_from([True, True, True, False]),
        is_open=st.sampled_from([True, True, True, False]),
    )
    def begin(self, lane: str, returns: bool, is_open: bool) -> None:
        self.lane = lane
        self.returns = returns
        hello = Hello(MAJOR, MINOR, "5e55", "stream", "w", "u", "host", 1, lanes=("unix",))
        self.sender = SenderSession(hello, returns=returns)
        self.viewers: list[Viewer] = []
        self.here = self._connect(Viewer())
        self.now = 0.0
        self.next_seq = self.next_lease = 0
        self.unfinished: dict[int, int] = {}  # items whose parts are not all sent: bytes left
        self.items: dict[int, Item] = {}
        self.ended: dict[int, str] = {}  # what became of each item, as the sender learns it
        self.received: Counter[int] = Counter()
        self.held: set[int] = set()  # leases that are out
        self.old_reports: list[Report] = []
        self._do_sender(self.sender.start(self.now))
        if is_open:
            self._settle()

    def _settle(self) -> None:
        """Let the greetings pass."""
        for _ in range(3):
            self._deliver_up(self.here, side=False, count=9)
            self._deliver_down(side=False, count=9)
            self._deliver_up(self.here, side=True, count=9)

    def _connect(self, viewer: Viewer) -> Connection:
        side = "" if self.lane == "far" else "unix:x"
        session = ReceiverSession(FACTS, lane=side, key="k", trusted=True, accounts=viewer.accounts)
        connection = Connection(viewer, session)
        connection.data_up = connection.control_up
        connection.data_down = connection.control_down
        viewer.connections.append(connection)
        if viewer not in self.viewers:
            self.viewers.append(viewer)
        return connection

    # --- what the two shells do with effects ---------------------------------------------------

    def _do_sender(self, effects: list[Effect]) -> None:
        here = self.here
        for effect in effects:
            match effect:
                case SendControl(message=message):
                    here.control_up.append(encode(message))
                case SendData(message=message):
                    here.data_up.append(encode(message))
                case OpenLane(message=message):
                    if self.lane == "side lane":
                        here.has_side_lane = True
                        here.data_up, here.data_down = deque([encode(message)]), deque()
                        self._do_sender(self.sender.lane_opened(self.now))
                    else:
                        self._do_sender(self.sender.lane_failed(self.now))
                case Moved():
                    self._moved(effect)
                case Opened(welcome=welcome):
                    assert welcome is not None
                case Resend(seqs=seqs):
                    assert seqs == sorted(seqs)
                    self._do_sender(self.sender.declare(0, SPEC))
                    again = tuple(msgspec.structs.replace(self.items[s], layer=0) for s in seqs)
                    self._do_sender([SendData(Items(again))])
                case Away():
                    assert self.sender.phase is SenderPhase.AWAY
                    here.is_left = True
                case Ended():
                    assert self.sender.phase is SenderPhase.CLOSED
                    here.is_left = True
                case _:
                    raise AssertionError(effect)

    def _moved(self, moved: Moved) -> None:
        for lease in moved.leases:
            # Twice is allowed, as the pool ignores it.
            assert lease < self.next_lease
            self.held.discard(lease)
        self.received.update(moved.received)
        for seq in moved.displayed:
            assert seq not in self.ended
            assert self.received[seq] == 1
            assert any(viewer.shown[seq] for viewer in self.viewers)
            self.ended[seq] = "displayed"
        for seq, reason in moved.failed:
            assert seq not in self.ended
            assert reason
            self.ended[seq] = "failed"
            self.unfinished.pop(seq, None)

    def _do_viewer(self, there: Connection, effects: list[Effect]) -> None:
        viewer = there.viewer
        for effect in effects:
            match effect:
                case SendControl(message=message):
                    there.control_down.append(encode(message))
                    if there.has_side_lane and isinstance(message, Bye):
                        there.data_down.append(encode(message))
                case Take(item=item):
                    self._read(there, item.parts)
                    there.session.received(item.seq)
                    viewer.to_show.append((there.session, item.seq))
                case TakePart(item=item, part=part, offset=offset, last=last):
                    assert offset + part.nbytes <= item.nbytes
                    assert last == (offset + part.nbytes == item.nbytes)
                    self._read(there, (part,))
                    there.session.released(part.lease)
                    if last:
                        there.session.received(item.seq)
                        viewer.to_show.append((there.session, item.seq))
                case Opened():
                    pass
                case Ended():
                    viewer.connections.remove(there)
                case _:
                    raise AssertionError(effect)

    def _read(self, there: Connection, parts: tuple[Part, ...]) -> None:
        for part in parts:
            # Shared memory must not be anybody else's by now.
            if there.has_side_lane and self.sender.phase is not SenderPhase.CLOSED:
                assert part.lease in self.held

    def _viewer_takes(self, there: Connection, frame: bytes) -> None:
        if there not in there.viewer.connections:
            return
        message = decode(frame)
        if isinstance(message, LaneOpened):
            self._do_viewer(there, there.session.lane_opened(message, self.now))
            return
        if isinstance(message, Hello) and message.attempt:
            assert there.session.admits(message)
            self._supersede(there)
        self._do_viewer(there, there.session.receive(message, self.now))

    def _supersede(self, by: Connection) -> None:
        """The viewer hears the sender greet anew: what came by its old side lane is there."""
        for there in list(by.viewer.connections):
            if there is not by and there.session.hello is not None:
                while there.has_side_lane and there.data_up:
                    self._viewer_takes(there, there.data_up.popleft())
                self._do_viewer(there, there.session.lost(GONE))

    # --- the sender ----------------------------------------------------------------------------

    def _lease(self) -> int:
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        self.held.add(lease)
        return lease

    def _is_open(self) -> bool:
        return self.sender.phase is SenderPhase.OPEN

    @precondition(lambda self: self.sender.takes_items)
    @rule(count=st.integers(1, 3), first=st.sampled_from([0, 5, NBYTES]), layer=st.integers(0, 2))
    def send(self, count: int, first: int, layer: int) -> None:
        """Items that are whole, or whose other parts follow."""
        items = []
        is_open = self._is_open()
        if is_open:
            self._do_sender(self.sender.declare(layer, SPEC))
        for _ in range(count):
            if 0 < first < NBYTES and (len(self.unfinished) >= 30 or not is_open):
                break
            seq, self.next_seq = self.next_seq, self.next_seq + 1
            if first == 0:  # no bytes at all, as of an empty list
                self.sender.sent([(seq, ())])
                item = Item(seq, layer, (), (0,), "|u1", 0, ())
            else:
                lease = self._lease()
                self.sender.sent([(seq, (lease,))], in_parts=first < NBYTES)
                part = Part(0, 0, first, lease)
                item = Item(seq, layer, (), (NBYTES,), "|u1", NBYTES, (part,))
                if first < NBYTES:
                    self.unfinished[seq] = NBYTES - first
            items.append(item)
            self.items[seq] = item
        if is_open:
            self._do_sender([SendData(Items(tuple(items)))])

    @precondition(lambda self: self._is_open() and self.unfinished)
    @rule(nbytes=st.integers(1, NBYTES), data=st.data())
    def send_more(self, nbytes: int, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.unfinished)))
        if not self.sender.is_outstanding(seq):
            del self.unfinished[seq]  # it failed: the rest need not be sent
            return
        nbytes = min(nbytes, self.unfinished[seq])
        self.unfinished[seq] -= nbytes
        if not self.unfinished[seq]:
            del self.unfinished[seq]
        lease = self._lease()
        self.sender.sent_more(seq, (lease,))
        self._do_sender([SendData(More(seq, (Part(0, 0, nbytes, lease),)))])

    @precondition(lambda self: self._is_open())
    @rule()
    def ask(self) -> None:
        self.now += 3
        self._do_sender(self.sender.tick(self.now))

    @precondition(lambda self: self.sender.phase is SenderPhase.AWAY)
    @rule(same=st.booleans(), settles=st.sampled_from([True, True, False]))
    def greet_anew(self, same: bool, settles: bool) -> None:
        """The viewer that was lost is reached again, or another one where it is known to be dead"""
        viewer = self.here.viewer
        if viewer.is_dead or not (same or self.sender.haunted):
            viewer = Viewer()
        self.here = self._connect(viewer)
        hello = self.sender.hello
        again = msgspec.structs.replace(hello, attempt=hello.attempt + 1)
        self._do_sender(self.sender.start(self.now, again))
        if settles:
            self._settle()

    # --- the lanes -----------------------------------------------------------------------------

    @rule(side=st.booleans(), count=st.integers(1, 5), data=st.data())
    def deliver_up(self, side: bool, count: int, data: st.DataObject) -> None:
        """Also of lanes that the sender has let go of: what was sent can be read."""
        lanes = [c for v in self.viewers for c in v.connections]
        if lanes:
            self._deliver_up(data.draw(st.sampled_from(lanes)), side, count)

    def _deliver_up(self, there: Connection, side: bool, count: int) -> None:
        lane = there.data_up if side else there.control_up
        if side and there.session.phase is ReceiverPhase.WAITING:
            return  # a side lane is matched to its session when that has greeted
        for _ in range(min(count, len(lane))):
            self._viewer_takes(there, lane.popleft())

    @rule(side=st.booleans(), count=st.integers(1, 5))
    def deliver_down(self, side: bool, count: int) -> None:
        self._deliver_down(side, count)

    def _deliver_down(self, side: bool, count: int) -> None:
        here = self.here
        lane = here.data_down if side else here.control_down
        for _ in range(min(count, len(lane))):
            if here.is_left:
                return
            self._do_sender(self.sender.receive(decode(lane.popleft()), self.now))

    # --- trouble -------------------------------------------------------------------------------

    @precondition(lambda self: self._is_open() or self.sender.is_away)
    @rule(
        what=st.sampled_from(
            [
                "viewer dies",
                "viewer dies unread",
                "lanes end",
                "lanes end with reports",
                "viewer gives up",
                "expires",
            ]
            * 2
            + ["viewer says goodbye", "sender ends"]
        )
    )
    def trouble(self, what: str) -> None:
        viewer, here = self.here.viewer, self.here
        match what:
            case "viewer dies" | "viewer dies unread":
                viewer.is_dead = True
                viewer.connections.clear()
                viewer.to_show.clear()
                if here.is_left:
                    self._do_sender(self.sender.died(GONE))  # its old side lane ends
                    return
                while what == "viewer dies" and here.data_down and not here.is_left:
                    self._deliver_down(side=True, count=1)
                self._do_sender(self.sender.lost(GONE, died=here.has_side_lane))
            case "lanes end" | "lanes end with reports" if not here.is_left:
                # What is on its way to the viewer may still be read there.
                if what != "lanes end":
                    self._settle()
                    self._show(viewer, len(viewer.to_show), well=True)
                    self.report()
                self._do_sender(self.sender.lost(GONE))
            case "viewer gives up" if here in viewer.connections and here.session.hello:
                self._do_viewer(here, here.session.fell_silent("nothing for 20 s."))
            case "expires" if self.sender.is_away:
                self._do_sender(self.sender.expire(ViewerLost("it did not come back.")))
                assert self.sender.outstanding == 0
            case "viewer says goodbye" if here in viewer.connections:
                self._do_viewer(here, here.session.close("it was closed."))
                viewer.is_dead = True
                viewer.to_show.clear()
                if here.is_left:
                    self._do_sender(self.sender.died(GONE))
            case "sender ends":
                here.control_up.append(encode(Bye("closed")))
                self._do_sender(self.sender.end(GONE))

    # --- the viewer ----------------------------------------------------------------------------

    @rule(data=st.data(), well=st.booleans())
    def show(self, data: st.DataObject, well: bool) -> None:
        viewer = data.draw(st.sampled_from(self.viewers))
        if viewer.to_show:
            self._show(viewer, data.draw(st.integers(1, len(viewer.to_show))), well)

    def _show(self, viewer: Viewer, count: int, well: bool) -> None:
        for session, seq in viewer.to_show[:count]:
            assert not viewer.shown[seq]
            if well:
                viewer.shown[seq] += 1
                session.displayed(seq)
            else:
                session.failed(seq, "it looks wrong")
        del viewer.to_show[:count]

    @rule(data=st.data())
    def fail_in_parts(self, data: st.DataObject) -> None:
        """There is no memory for an item of which the first parts have come."""
        session = self.here.session
        if session._partial:
            seq = data.draw(st.sampled_from(sorted(session._partial)))
            session.failed(seq, "no memory")

    @rule()
    def report(self) -> None:
        here = self.here
        if here in here.viewer.connections and (report := here.session.report()) is not None:
            self.old_reports.append(report)
            here.data_down.append(encode(report))

    @precondition(lambda self: self.old_reports and not self.here.is_left)
    @rule(data=st.data())
    def repeat_a_report(self, data: st.DataObject) -> None:
        """A viewer that says things twice harms nobody."""
        if self._is_open() and not self.here.viewer.is_dead:
            report = data.draw(st.sampled_from(self.old_reports))
            if all(self.here.viewer.shown[seq] for seq in report.displayed):
                self.here.data_down.append(encode(report))

    # --- what must hold ------------------------------------------------------------------------

    @invariant()
    def nothing_ends_before_it_is_sent(self) -> None:
        assert all(seq < self.next_seq for seq in self.ended)
        assert all(count == 1 for count in self.received.values())
        assert self.sender.outstanding == self.next_seq - len(self.ended)

    @invariant()
    def what_has_ended_holds_no_memory(self) -> None:
        if self.sender.outstanding == 0 and not self.sender.haunted:
            assert not self.held

    @invariant()
    def nothing_is_shown_twice(self) -> None:
        assert all(count <= 1 for viewer in self.viewers for count in viewer.shown.values())

    def teardown(self) -> None:
        if not hasattr(self, "sender"):
            return
        self._drain()
        assert set(self.ended) == set(range(self.next_seq))
        assert not self.held

    def _drain(self) -> None:
        """Let everything arrive and be shown; the parts that are missing are sent."""
        while True:
            here = self.here
            if self.sender.phase is SenderPhase.AWAY:
                self.greet_anew(same=True, settles=False)
            elif self.sender.phase is SenderPhase.CLOSED:
                return
            elif here not in here.viewer.connections and not here.control_down:
                self._do_sender(self.sender.lost(GONE))
            elif here.control_up:
                self._deliver_up(here, side=False, count=1000)
            elif here.data_up:
                self._deliver_up(here, side=True, count=1000)
            elif self._is_open() and self.unfinished:
                self._send_the_rest(next(iter(self.unfinished)))
            elif here.viewer.to_show:
                self._show(here.viewer, len(here.viewer.to_show), well=True)
            elif (report := here.session.report()) is not None:
                here.data_down.append(encode(report))
            elif here.control_down or here.data_down:
                self._deliver_down(side=bool(here.data_down), count=1000)
            else:
                return

    def _send_the_rest(self, seq: int) -> None:
        left = self.unfinished.pop(seq)
        if self.sender.is_outstanding(seq):
            lease = self._lease()
            self.sender.sent_more(seq, (lease,))
            self._do_sender([SendData(More(seq, (Part(0, 0, left, lease),)))])


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=150, stateful_step_count=50)


class Nonsense(RuleBasedStateMachine):
    """Valid messages in any order and with any values: violations, and no other exception."""

    @initialize(lane=st.sampled_from(["", "unix:x"]), greeted=st.booleans())
    def begin(self, lane: str, greeted: bool) -> None:
        hello = Hello(MAJOR, MINOR, "5e55", "stream", "w", "u", "host", 1, "token", ("unix",))
        self.sender = SenderSession(hello)
        self.viewer = ReceiverSession(FACTS, lane=lane, key="k", trusted=False)
        self.now = 0.0
        if greeted:
            self.sender.receive(Welcome(MAJOR, MINOR, "memory", "memory", 1), 0.0)
            self.viewer.receive(hello, 0.0)
            for layer in range(5):
                self.viewer.receive(LayerDeclared(layer, SPEC), 0.0)

    @rule(message=st.deferred(lambda: any_message))
    def tell_the_viewer(self, message: Message) -> None:
        try:
            effects = self.viewer.receive(message, self.now)
        except ProtocolViolation as error:
            effects = self.viewer.lost(error)
        for effect in effects:
            if isinstance(effect, SendControl):
                assert decode(encode(effect.message)) == effect.message

    @rule(message=st.deferred(lambda: any_message))
    def tell_the_sender(self, message: Message) -> None:
        try:
            self.sender.receive(message, self.now)
        except ProtocolViolation as error:
            self.sender.lost(error)

    @rule(frame=st.binary(max_size=40))
    def send_bytes(self, frame: bytes) -> None:
        try:
            message = decode(frame)
        except (ProtocolViolation, ProtocolMismatch) as error:
            self.viewer.lost(error)
        else:
            self.tell_the_viewer(message)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.sender.tick(self.now)

    @rule()
    def report(self) -> None:
        report = self.viewer.report()
        if report is not None:
            assert decode(encode(report)) == report


_small = st.integers(0, 4)
_names = st.sampled_from(["", "5e55", "k", "x"])
_few = st.integers(0, 2)
_parts: Any = st.lists(st.builds(Part, st.integers(-1, 2), _small, _few, _small), max_size=3)
_specs = st.builds(LayerSpec, st.just("image"), _names, st.just("YX"), st.just(()))
_items = st.builds(  # the sizes often match, so that items get through
    Item, st.integers(0, 50), _few, st.just(()), st.just((2,)), st.just("|u1"), _few,
    _parts.map(tuple),
)  # fmt: skip
_fields: dict[str, Any] = {
    "Hello": (st.just(MAJOR), _small, _names, st.sampled_from(["stream", "control"]), _names,
              _names, st.sampled_from(["host", "far"]), _small, st.sampled_from(["token", ""]),
              st.sampled_from([(), ("unix",)])),
    "Welcome": (st.just(MAJOR), _small, _names, _names, _small, _names, _names),
    "Refusal": (_names, _names),
    "LaneOpened": (_names, _names),
    "ArenaOffer": (_small, _small),
    "ArenaRetired": (_small,),
    "LayerDeclared": (_small, _specs),
    "Items": (st.lists(_items, max_size=3).map(tuple),),
    "More": (_small, _parts.map(tuple)),
    "FileShown": (_items, st.sampled_from(["raw", "zarr"])),
    "Report": (st.lists(_small).map(tuple), st.lists(_small).map(tuple)),
    "Ping": (_small,),
    "Pong": (_small,),
    "Request": (_small, _names),
    "Reply": (_small, st.booleans()),
    "Edited": (st.builds(EditRecord, _small, st.just(0.0), _names, st.just("removed"),
                         st.just("rois"), _names, _names, st.just({})),
               st.lists(_small, max_size=2).map(tuple)),
    "EditsTaken": (st.lists(_small, max_size=3).map(tuple),),
    "Bye": (_names, st.sampled_from(["closed", "lost", "refused"])),
}  # fmt: skip
any_message: st.SearchStrategy[Message] = st.one_of(
    [st.builds(cast("Any", kind), *_fields[kind.__name__]) for kind in MESSAGES]
)

TestNonsense = Nonsense.TestCase
TestNonsense.settings = settings(max_examples=150, stateful_step_count=30)
