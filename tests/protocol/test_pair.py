"""Both halves against each other, over lanes that may end at any moment.

The lanes are queues: ordered and reliable until they are cut, as real ones are. The viewer's shell
is the smallest: it copies at once, and shows when the machine says so.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, cast

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
    Effect,
    Ended,
    Moved,
    Opened,
    OpenLane,
    ReceiverPhase,
    ReceiverSession,
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


class Pair(RuleBasedStateMachine):
    """A sender and a viewer; every message goes through its bytes."""

    @initialize(lane=st.sampled_from(["side lane", "fails to open", "far"]))
    def begin(self, lane: str) -> None:
        self.opens = lane == "side lane"
        hello = Hello(MAJOR, MINOR, "5e55", "stream", "w", "u", "host", 1, lanes=("unix",))
        self.sender = SenderSession(hello)
        self.viewer = ReceiverSession(
            FACTS, lane="" if lane == "far" else "unix:x", key="k", trusted=True
        )
        # What is on its way, in order. With a side lane there are two pairs of these.
        self.control_up: deque[bytes] = deque()
        self.control_down: deque[bytes] = deque()
        self.data_up: deque[bytes] = self.control_up
        self.data_down: deque[bytes] = self.control_down
        self.cut = False
        self.now = 0.0
        self.next_seq = self.next_lease = 0
        self.unfinished: dict[int, int] = {}  # items whose parts are not all sent: bytes left
        self.ended: dict[int, str] = {}  # what became of each item, as the sender learns it
        self.received: Counter[int] = Counter()
        self.held: set[int] = set()  # leases that are out
        self.reading: dict[int, set[int]] = {}  # leases that the viewer has still to read
        self.to_show: list[int] = []  # what the viewer has received and not shown
        self.old_reports: list[Report] = []
        self._do_sender(self.sender.start(self.now))

    # --- what the two shells do with effects ---------------------------------------------------

    def _do_sender(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendControl(message=message):
                    self.control_up.append(encode(message))
                case SendData(message=message):
                    self.data_up.append(encode(message))
                case OpenLane(message=message):
                    if self.opens:
                        self.data_up, self.data_down = deque([encode(message)]), deque()
                        self._do_sender(self.sender.lane_opened(self.now))
                    else:
                        self._do_sender(self.sender.lane_failed(self.now))
                case Moved():
                    self._moved(effect)
                case Opened(welcome=welcome):
                    assert welcome is not None
                case Ended():
                    assert self.sender.phase is SenderPhase.CLOSED
                case _:
                    raise AssertionError(effect)

    def _moved(self, moved: Moved) -> None:
        over = self.sender.phase is SenderPhase.CLOSED
        for lease in moved.leases:
            # Twice is allowed, as the pool ignores it; too early never is.
            assert lease < self.next_lease
            if not over:
                assert not any(lease in reading for reading in self.reading.values())
            self.held.discard(lease)
        self.received.update(moved.received)
        for seq in moved.displayed:
            assert seq not in self.ended
            assert self.received[seq] == 1
            self.ended[seq] = "displayed"
        for seq, reason in moved.failed:
            assert seq not in self.ended
            assert reason
            self.ended[seq] = "failed"

    def _do_viewer(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendControl(message=message):
                    self.control_down.append(encode(message))
                case Take(item=item):
                    self._read(item.seq, item.parts)
                    self.viewer.received(item.seq)
                    self.to_show.append(item.seq)
                case TakePart(item=item, part=part, offset=offset, last=last):
                    assert offset + part.nbytes <= item.nbytes
                    assert last == (offset + part.nbytes == item.nbytes)
                    self._read(item.seq, (part,))
                    self.viewer.released(part.lease)
                    if last:
                        self.viewer.received(item.seq)
                        self.to_show.append(item.seq)
                case Opened() | Ended():
                    pass
                case _:
                    raise AssertionError(effect)

    def _read(self, seq: int, parts: tuple[Part, ...]) -> None:
        for part in parts:
            # The memory must not be anybody else's yet, unless the sender has given up.
            assert part.lease in self.held or self.sender.phase is SenderPhase.CLOSED
            self.reading[seq].discard(part.lease)

    def _viewer_takes(self, frame: bytes) -> None:
        message = decode(frame)
        if isinstance(message, LaneOpened) and self.data_up is not self.control_up:
            if self.viewer.phase is not ReceiverPhase.CLOSED:
                self._do_viewer(self.viewer.lane_opened(message, self.now))
            return
        if isinstance(message, More) and self.viewer.phase is ReceiverPhase.OPEN:
            for part in message.parts:  # of a failed item, they are let go of unread
                if message.seq not in self.viewer._partial:
                    self.reading[message.seq].discard(part.lease)
        self._do_viewer(self.viewer.receive(message, self.now))

    # --- the sender ----------------------------------------------------------------------------

    def _lease(self, seq: int) -> int:
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        self.held.add(lease)
        self.reading.setdefault(seq, set()).add(lease)
        return lease

    def _is_open(self) -> bool:
        return not self.cut and self.sender.phase is SenderPhase.OPEN

    @precondition(lambda self: self._is_open())
    @rule(count=st.integers(1, 3), first=st.sampled_from([0, 5, NBYTES]), layer=st.integers(0, 2))
    def send(self, count: int, first: int, layer: int) -> None:
        """Items that are whole, or whose other parts follow."""
        items = []
        self._do_sender(self.sender.declare(layer, SPEC))
        for _ in range(count):
            seq, self.next_seq = self.next_seq, self.next_seq + 1
            if first == 0:  # no bytes at all, as of an empty list
                self.reading[seq] = set()
                self.sender.sent(seq, ())
                items.append(Item(seq, layer, (), (0,), "|u1", 0, ()))
                continue
            if first < NBYTES:
                if len(self.unfinished) >= 30:
                    break
                self.unfinished[seq] = NBYTES - first
            lease = self._lease(seq)
            self.sender.sent(seq, (lease,))
            part = Part(0, 0, first, lease)
            items.append(Item(seq, layer, (), (NBYTES,), "|u1", NBYTES, (part,)))
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
        lease = self._lease(seq)
        self.sender.sent_more(seq, (lease,))
        self._do_sender([SendData(More(seq, (Part(0, 0, nbytes, lease),)))])

    @precondition(lambda self: self._is_open())
    @rule()
    def ask(self) -> None:
        self.now += 3
        self._do_sender(self.sender.tick(self.now))

    # --- the lanes -----------------------------------------------------------------------------

    @precondition(lambda self: not self.cut and (self.control_up or self.data_up))
    @rule(side=st.booleans(), count=st.integers(1, 5))
    def deliver_up(self, side: bool, count: int) -> None:
        lane = self.data_up if side else self.control_up
        for _ in range(min(count, len(lane))):
            self._viewer_takes(lane.popleft())

    @precondition(lambda self: not self.cut and (self.control_down or self.data_down))
    @rule(side=st.booleans(), count=st.integers(1, 5))
    def deliver_down(self, side: bool, count: int) -> None:
        lane = self.data_down if side else self.control_down
        for _ in range(min(count, len(lane))):
            self._do_sender(self.sender.receive(decode(lane.popleft()), self.now))

    @precondition(lambda self: not self.cut)
    @rule(viewer_learns_first=st.booleans())
    def cut_the_lanes(self, viewer_learns_first: bool) -> None:
        """Somebody is killed: what is on its way may be read by the other, or not."""
        self.cut = True
        gone = ViewerLost("gone.")
        if viewer_learns_first:
            self._do_viewer(self.viewer.lost(gone))
        self._do_sender(self.sender.lost(gone))
        self._do_viewer(self.viewer.lost(gone))

    # --- the viewer ----------------------------------------------------------------------------

    @precondition(lambda self: self.to_show)
    @rule(data=st.data(), well=st.booleans())
    def show(self, data: st.DataObject, well: bool) -> None:
        count = data.draw(st.integers(1, len(self.to_show)))
        for seq in self.to_show[:count]:
            if well:
                self.viewer.displayed(seq)
            else:
                self.viewer.failed(seq, "it looks wrong")
        del self.to_show[:count]

    @precondition(lambda self: self.viewer._partial)
    @rule(data=st.data())
    def fail_in_parts(self, data: st.DataObject) -> None:
        """There is no memory for an item of which the first parts have come."""
        seq = data.draw(st.sampled_from(sorted(self.viewer._partial)))
        self.viewer.failed(seq, "no memory")

    @rule()
    def report(self) -> None:
        report = self.viewer.report()
        if report is not None and self.viewer.phase is not ReceiverPhase.CLOSED:
            self.old_reports.append(report)
            self.data_down.append(encode(report))

    @precondition(lambda self: self.old_reports and self._is_open())
    @rule(data=st.data())
    def repeat_a_report(self, data: st.DataObject) -> None:
        """A viewer that says things twice harms nobody."""
        self.data_down.append(encode(data.draw(st.sampled_from(self.old_reports))))

    @precondition(lambda self: not self.cut and self.viewer.phase is ReceiverPhase.OPEN)
    @rule(sender=st.booleans())
    def say_goodbye(self, sender: bool) -> None:
        (self.control_up if sender else self.control_down).append(encode(Bye("closed")))

    # --- what must hold ------------------------------------------------------------------------

    @invariant()
    def nothing_ends_before_it_is_sent(self) -> None:
        assert all(seq < self.next_seq for seq in self.ended)
        assert all(count == 1 for count in self.received.values())
        assert self.sender.outstanding == self.next_seq - len(self.ended)

    @invariant()
    def what_has_ended_holds_no_memory(self) -> None:
        if self.sender.phase is SenderPhase.CLOSED:
            assert self.sender.outstanding == 0
            assert not self.held

    def teardown(self) -> None:
        if not hasattr(self, "sender"):
            return
        self._drain()
        assert set(self.ended) == set(range(self.next_seq))
        assert not self.held

    def _drain(self) -> None:
        """Let everything arrive and be shown; the parts that are missing are sent."""
        while not self.cut:
            if self.control_up or self.data_up:
                self.deliver_up(side=bool(self.data_up), count=1000)
            elif self._is_open() and self.unfinished:
                self._send_the_rest(next(iter(self.unfinished)))
            elif self.to_show:
                for seq in self.to_show:
                    self.viewer.displayed(seq)
                self.to_show.clear()
            elif self.viewer._received or self.viewer._displayed or self.viewer._failed:
                self.report()
                if self.viewer.phase is ReceiverPhase.CLOSED:
                    self.cut_the_lanes(viewer_learns_first=True)
            elif self.control_down or self.data_down:
                self.deliver_down(side=bool(self.data_down), count=1000)
            elif self.viewer.phase is ReceiverPhase.CLOSED and self._is_open():
                self.cut_the_lanes(viewer_learns_first=True)  # as its lanes then end
            else:
                return

    def _send_the_rest(self, seq: int) -> None:
        left = self.unfinished.pop(seq)
        if self.sender.is_outstanding(seq):
            lease = self._lease(seq)
            self.sender.sent_more(seq, (lease,))
            self._do_sender([SendData(More(seq, (Part(0, 0, left, lease),)))])


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


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
    "Report": (st.lists(_small).map(tuple), st.lists(_small).map(tuple)),
    "Ping": (_small,),
    "Pong": (_small,),
    "Request": (_small, _names),
    "Reply": (_small, st.booleans()),
    "Edited": (st.builds(EditRecord, _small, st.just(0.0), _names, st.just("removed"),
                         st.just("rois"), _names, _names, st.just({})),
               st.lists(_small, max_size=2).map(tuple)),
    "EditsTaken": (st.lists(_small, max_size=3).map(tuple),),
    "Bye": (_names,),
}  # fmt: skip
any_message: st.SearchStrategy[Message] = st.one_of(
    [st.builds(cast("Any", kind), *_fields[kind.__name__]) for kind in MESSAGES]
)

TestNonsense = Nonsense.TestCase
TestNonsense.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
