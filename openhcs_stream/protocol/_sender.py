"""The sender's half of a session, without I/O: messages and times in, effects out.

::

    GREETING --Welcome, no lane---------------------> OPEN --Bye, lost, refused--> CLOSED
       |     --Welcome, lane--> LINKING --opened----> OPEN
       |                           '-----failed-----> OPEN (everything on the control lane)
       '--Refusal--> CLOSED

A session that `returns` goes on after it was lost: whatever ends it, but a refusal or a viewer
that breaks the rules, leads to AWAY instead of CLOSED, and `start` greets anew::

    OPEN --lost, Bye--> AWAY --start--> GREETING --Welcome--> OPEN ...
                         ^------lost, refused----'

What was sent and not received then waits for the viewer, until `expire`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from openhcs_stream.errors import (
    ProtocolViolation,
    Refused,
    StreamError,
    ViewerLost,
    printable,
)
from openhcs_stream.messages import (
    ArenaRetired,
    Bye,
    Edited,
    Hello,
    LaneOpened,
    LayerDeclared,
    Ping,
    Pong,
    Refusal,
    Reply,
    Report,
    Welcome,
)
from openhcs_stream.protocol._effects import (
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
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openhcs_stream.messages import LayerSpec, Message

__all__ = ["HEARTBEAT_S", "SILENCE_S", "SenderPhase", "SenderSession"]

#: A peer that said nothing for this long is asked whether it is there.
HEARTBEAT_S = 2.0
#: A peer that answers nothing for this long, where no end of file can tell, counts as lost.
SILENCE_S = 20.0
#: So many viewers may die in a row without having taken the item that is next, before it is not
#: sent any more: it may be what they die of.
MAX_DEATHS = 3


class SenderPhase(Enum):
    GREETING = "greeting"
    LINKING = "linking"
    OPEN = "open"
    AWAY = "away"
    CLOSED = "closed"


class SenderSession:
    """One viewer, as a sender sees it.

    Parameters
    ----------
    hello : Hello
        The greeting to open with.
    returns : bool
        Whether the session goes on when a viewer that was lost is back.

    Attributes
    ----------
    returns : bool
        As given; a sender that greets several viewers sets it when all of them are there.
    layers, arenas : set of int
        Those that the viewer was told of.
    linked : bool
        Whether the data lane is the side lane, whose end of file tells the viewer's death.
    haunted : bool
        The viewer is lost but perhaps not dead: it may still read memory that it was lent, until
        its side lane ends (`died`) or it is back.
    """

    def __init__(self, hello: Hello, *, returns: bool = False) -> None:
        self.hello = hello
        self.phase = SenderPhase.GREETING
        self.welcome: Welcome | None = None
        self.linked = False
        self.haunted = False
        self.returns = returns
        self._was_open = False
        self._expired = False
        #: Items neither displayed nor failed: the leases of each, None once it is received.
        self._outstanding: dict[int, tuple[int, ...] | None] = {}
        #: Those of them that go in parts, which can't be sent again.
        self._in_parts: set[int] = set()
        #: Leases of items that were given up while the viewer may still read them.
        self._kept_back: list[int] = []
        self._deaths = 0
        self.layers: set[int] = set()
        self.arenas: set[int] = set()
        self._heard_at = 0.0
        self._asked_at = 0.0
        self._pings = 0

    # --- life ---------------------------------------------------------------------------------

    def start(self, now: float, hello: Hello | None = None) -> list[Effect]:
        """Greet the viewer; anew, with another greeting, where it was lost."""
        if hello is not None:
            self.hello = hello
        self.phase = SenderPhase.GREETING
        self.linked = False
        self.layers.clear()
        self.arenas.clear()
        self._heard_at = now
        return [SendControl(self.hello)]

    def receive(self, message: Message, now: float) -> list[Effect]:
        """Take one message of the viewer.

        Raises
        ------
        ProtocolViolation
            The message is not allowed in this phase; the caller ends the session with `lost`.
        """
        self._heard_at = now
        match self.phase, message:
            case SenderPhase.OPEN, Report():
                return [self._report(message)]
            case SenderPhase.CLOSED | SenderPhase.AWAY, _:
                return []
            case SenderPhase.GREETING, Welcome(lane=""):
                self.welcome = message
                return self._open()
            case SenderPhase.GREETING, Welcome(lane=lane, key=key):
                self.welcome = message
                self.phase = SenderPhase.LINKING
                return [OpenLane(lane, LaneOpened(self.hello.session, key))]
            case _, Refusal(what=what, cure=cure):
                return self.lost(Refused(f"the viewer refused the session: {what}", cure=cure))
            case _, Ping(number=number):
                return [SendControl(Pong(number))]
            case _, Pong():
                return []
            case SenderPhase.OPEN, Reply(number, ok, value, what, cure):
                return [Replied(number, ok, value, what, cure)]
            case SenderPhase.OPEN, Edited(edit=edit, listeners=listeners):
                return [EditCame(edit, listeners)]
            case _, Bye(reason=reason, why="lost"):
                return self.lost(ViewerLost(f"{self._who} gave the connection up: {_told(reason)}"))
            case _, Bye(reason=reason, why="refused"):
                return self.lost(Refused(f"{self._who} ended the session: {_told(reason)}"))
            case _, Bye(reason=reason):
                return self._goodbye(
                    ViewerLost(
                        f"{self._who} ended the session: {_told(reason or 'it was closed')}",
                        cure="Start it again.",
                    )
                )
            case phase, _:
                raise ProtocolViolation(
                    f"a viewer sent {type(message).__name__} while {phase.value}.",
                    cure="Install the same version of openhcs-stream on both sides.",
                )

    def lane_opened(self, now: float) -> list[Effect]:
        """The side lane stands and `LaneOpened` was sent on it."""
        self._heard_at = now
        self.linked = True
        return self._open()

    def lane_failed(self, now: float) -> list[Effect]:
        """There is no side lane; everything travels on the control lane."""
        self._heard_at = now
        return self._open()

    def lost(self, error: StreamError, *, died: bool = False) -> list[Effect]:
        """The viewer is gone: a lane ended, or it broke the rules.

        Parameters
        ----------
        error : StreamError
            What happened. A refusal, or a violation of the rules, ends an open session for good.
        died : bool
            The viewer itself is gone, with all that it had received.
        """
        if self.phase is SenderPhase.CLOSED:
            return []
        is_final = self.phase is SenderPhase.OPEN and isinstance(error, ProtocolViolation | Refused)
        if not self.returns or not self._was_open or is_final:
            return self._end(error)
        if self.phase is SenderPhase.AWAY:
            return []
        effects: list[Effect] = [Away(error)]
        if self.phase is SenderPhase.OPEN:
            self.haunted = self.linked and not died
            if died:
                effects.insert(0, self._bury(error))
        self.phase = SenderPhase.AWAY
        return effects

    def died(self, error: StreamError) -> list[Effect]:
        """A viewer that was lost is known to be dead: its old side lane ended."""
        if not self.haunted or self.phase is SenderPhase.CLOSED:
            return []
        self.haunted = False
        return [self._bury(error)]

    def expire(self, error: StreamError) -> list[Effect]:
        """The viewer was waited for long enough: what is outstanding fails."""
        if self._expired or not self.is_away:
            return []
        self._expired = True
        return [self._fail_all(error)]

    def end(self, error: StreamError) -> list[Effect]:
        """End the session for good."""
        return self._end(error)

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: ask a silent viewer, give a dead one up.

        Only a viewer without a side lane is given up for its silence: with one, its death is seen
        as the end of file, and a living viewer that is merely busy or stopped is waited for.
        """
        if self.phase is not SenderPhase.OPEN:
            return []
        silence = now - self._heard_at
        if not self.linked and silence > SILENCE_S:
            return self.lost(
                ViewerLost(
                    f"{self._who} answered nothing for {silence:.0f} s.",
                    cure="See whether it runs and whether the network between is up.",
                )
            )
        if silence > HEARTBEAT_S and now - self._asked_at > HEARTBEAT_S:
            self._asked_at = now
            self._pings += 1
            return [SendControl(Ping(self._pings))]
        return []

    # --- state --------------------------------------------------------------------------------

    @property
    def is_away(self) -> bool:
        """Whether the viewer was lost and is not back yet."""
        phase = self.phase
        return self._was_open and phase is not SenderPhase.OPEN and phase is not SenderPhase.CLOSED

    @property
    def takes_items(self) -> bool:
        """Whether items may be sent to it: it is there, or is waited for."""
        return self.phase is SenderPhase.OPEN or (self.is_away and not self._expired)

    @property
    def outstanding(self) -> int:
        """Items that are neither displayed nor failed."""
        return len(self._outstanding)

    @property
    def is_received(self) -> bool:
        """Whether the viewer has all that was sent, if not on the screen."""
        return not any(held is not None for held in self._outstanding.values())

    def is_outstanding(self, seq: int) -> bool:
        """Whether the viewer has still to report the item displayed or failed."""
        return seq in self._outstanding

    # --- sending ------------------------------------------------------------------------------

    def declare(self, number: int, spec: LayerSpec) -> list[Effect]:
        """Declare a layer unless the viewer knows it."""
        if number in self.layers:
            return []
        self.layers.add(number)
        return [SendData(LayerDeclared(number, spec))]

    def offer(self, arena: int, nbytes: int) -> bool:
        """Whether an arena must be offered first; the shell sends `ArenaOffer` with its fd."""
        if arena in self.arenas:
            return False
        self.arenas.add(arena)
        return True

    def retire(self, arena: int) -> list[Effect]:
        """Tell the viewer to unmap an arena, if it ever knew it."""
        if arena not in self.arenas:
            return []
        self.arenas.discard(arena)
        return [SendData(ArenaRetired(arena))]

    def sent(self, items: Iterable[tuple[int, tuple[int, ...]]], *, in_parts: bool = False) -> None:
        """Items go out now, each with its number and its leases, held until the viewer reports it.

        Of a viewer that is away it is noted, and goes out when it is back. One that goes
        `in_parts` can't wait: its memory is used again before all of it is sent.
        """
        held = dict(items)
        self._outstanding |= held
        if in_parts:
            self._in_parts |= held.keys()

    def give_up(self, seq: int, reason: str) -> list[Effect]:
        """An item that was to go out can't be sent to this viewer after all."""
        held = self._outstanding.pop(seq, None)
        return [Moved([], [], [(seq, reason)], list(held or ()))]

    def sent_more(self, seq: int, leases: Sequence[int]) -> None:
        """Further parts of an item go out; a failed item takes no more of them.

        Raises
        ------
        KeyError
            The viewer already reported the item, so its further parts need not be sent.
        """
        self._outstanding[seq] = (*(self._outstanding[seq] or ()), *leases)

    # --- inside -------------------------------------------------------------------------------

    @property
    def _who(self) -> str:
        """What the viewer calls itself: a stream may have several."""
        return (self.welcome.name if self.welcome is not None else "") or "the viewer"

    def _open(self) -> list[Effect]:
        self.phase = SenderPhase.OPEN
        self._was_open = True
        self._expired = self.haunted = False
        effects: list[Effect] = [Opened(self.welcome)]
        if self._outstanding or self._kept_back:
            effects += self._resume()
        return effects

    def _resume(self) -> list[Effect]:
        """Go on: the viewer has said what it took, and it will tell the end of all of that."""
        assert self.welcome is not None
        taken = self.welcome.taken
        failed: list[tuple[int, str]] = []
        leases, self._kept_back = self._kept_back, []
        again: list[int] = []
        for seq, held in self._outstanding.items():
            if seq < taken:
                continue
            if held is None:
                failed.append((seq, "the viewer that had received it is gone."))
            elif seq in self._in_parts:
                failed.append((seq, "the connection was lost while it was sent in parts."))
                leases += held
            else:
                again.append(seq)
        effects = self._drop(failed, leases)
        if again:
            effects.append(Resend(again))
        return effects

    def _report(self, report: Report) -> Moved:
        """Late and doubled reports are harmless: only what is outstanding moves."""
        outstanding = self._outstanding
        received, displayed, failed = [], [], []
        leases: list[int] = list(report.released)
        for seq in report.received:
            held = outstanding.get(seq)
            if held is not None:
                leases += held
                outstanding[seq] = None
                received.append(seq)
        for seq in report.displayed:
            if seq in outstanding:
                held = outstanding.pop(seq)
                if held is not None:
                    leases += held
                    received.append(seq)
                displayed.append(seq)
        for failure in report.failed:
            if failure.seq in outstanding:
                leases += outstanding.pop(failure.seq) or ()
                failed.append((failure.seq, printable(failure.reason)))
        if received or displayed or failed:
            self._deaths = 0
            if self._in_parts:
                self._in_parts &= outstanding.keys()
        return Moved(received, displayed, failed, leases, report.gone)

    def _bury(self, error: StreamError) -> Moved:
        """The viewer died: what it had received is gone, and what can't be sent again."""
        failed: list[tuple[int, str]] = []
        leases, self._kept_back = self._kept_back, []
        first = True
        for seq, held in self._outstanding.items():
            if held is None:
                failed.append((seq, f"the viewer was lost before it was displayed: {error.what}"))
            elif seq in self._in_parts:
                failed.append((seq, f"the viewer was lost while it came in parts: {error.what}"))
                leases += held
            elif first:
                first = False
                self._deaths += 1
                if self._deaths >= MAX_DEATHS:
                    self._deaths = 0
                    failed.append(
                        (seq, f"{MAX_DEATHS} viewers in a row were lost when it was sent to them.")
                    )
                    leases += held
        for seq, _ in failed:
            del self._outstanding[seq]
            self._in_parts.discard(seq)
        return Moved([], [], failed, leases)

    def _drop(self, failed: list[tuple[int, str]], leases: list[int]) -> list[Effect]:
        for seq, _ in failed:
            del self._outstanding[seq]
            self._in_parts.discard(seq)
        return [Moved([], [], failed, leases)] if failed or leases else []

    def _goodbye(self, error: StreamError) -> list[Effect]:
        """The viewer was closed on purpose: nothing waits for it."""
        if not self.returns or not self._was_open:
            return self._end(error)
        lost = self._fail_all(error) if self._outstanding else None
        self.phase = SenderPhase.AWAY
        self._expired = True
        return [lost, Away(error)] if lost is not None else [Away(error)]

    def _fail_all(self, error: StreamError) -> Moved:
        failed = [(seq, error.what) for seq in self._outstanding]
        leases = [lease for held in self._outstanding.values() for lease in held or ()]
        self._outstanding.clear()
        self._in_parts.clear()
        if self.haunted:
            # To write over it now could tear what a viewer shows that was only stopped.
            self._kept_back += leases
            leases = []
        return Moved([], [], failed, leases)

    def _end(self, error: StreamError) -> list[Effect]:
        if self.phase is SenderPhase.CLOSED:
            return []
        self.phase = SenderPhase.CLOSED
        self.haunted = False
        moved = self._fail_all(error)
        moved.leases.extend(self._kept_back)
        self._kept_back.clear()
        effects: list[Effect] = [Ended(error)]
        if moved.failed or moved.leases:
            effects.insert(0, moved)
        return effects


def _told(reason: str) -> str:
    """A peer's reason as the end of a sentence."""
    return f"{reason.rstrip('.')}."
