"""The sender's half of a session, without I/O: messages and times in, effects out.

::

    GREETING --Welcome, no lane---------------------> OPEN --Bye, lost--> CLOSED
       |     --Welcome, lane--> LINKING --opened----> OPEN
       |                           '-----failed-----> OPEN (everything on the control lane)
       '--Refusal--> CLOSED
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
    EditCame,
    Effect,
    Ended,
    Moved,
    Opened,
    OpenLane,
    Replied,
    SendControl,
    SendData,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.messages import LayerSpec, Message

__all__ = ["HEARTBEAT_S", "SILENCE_S", "SenderPhase", "SenderSession"]

#: A peer that said nothing for this long is asked whether it is there.
HEARTBEAT_S = 2.0
#: A peer that answers nothing for this long, where no end of file can tell, counts as lost.
SILENCE_S = 20.0


class SenderPhase(Enum):
    GREETING = "greeting"
    LINKING = "linking"
    OPEN = "open"
    CLOSED = "closed"


class SenderSession:
    """One viewer, as a sender sees it.

    Parameters
    ----------
    hello : Hello
        The greeting to open with.
    """

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.phase = SenderPhase.GREETING
        self.welcome: Welcome | None = None
        #: Whether the data lane is the side lane, whose end of file tells the viewer's death.
        self.linked = False
        #: Items neither displayed nor failed: the leases of each, None once it is received.
        self._outstanding: dict[int, tuple[int, ...] | None] = {}
        self._layers: set[int] = set()
        self._arenas: set[int] = set()
        self._heard_at = 0.0
        self._asked_at = 0.0
        self._pings = 0

    # --- life ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Greet the viewer."""
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
            case SenderPhase.CLOSED, _:
                return []
            case SenderPhase.GREETING, Welcome(lane=""):
                self.welcome = message
                return self._open()
            case SenderPhase.GREETING, Welcome(lane=lane, key=key):
                self.welcome = message
                self.phase = SenderPhase.LINKING
                return [OpenLane(lane, LaneOpened(self.hello.session, key))]
            case _, Refusal(what=what, cure=cure):
                return self._end(Refused(f"the viewer refused the session: {what}", cure=cure))
            case _, Ping(number=number):
                return [SendControl(Pong(number))]
            case _, Pong():
                return []
            case SenderPhase.OPEN, Reply(number, ok, value, what, cure):
                return [Replied(number, ok, value, what, cure)]
            case SenderPhase.OPEN, Edited(edit=edit, listeners=listeners):
                return [EditCame(edit, listeners)]
            case _, Bye(reason=reason):
                return self._end(
                    ViewerLost(
                        f"the viewer ended the session: {reason or 'it was closed'}.",
                        cure="Start it again and connect anew.",
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

    def lost(self, error: StreamError) -> list[Effect]:
        """The viewer is gone: a lane ended, or it broke the rules."""
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
            return self._end(
                ViewerLost(
                    f"the viewer answered nothing for {silence:.0f} s.",
                    cure="See whether it runs and whether the network between is up.",
                )
            )
        if silence > HEARTBEAT_S and now - self._asked_at > HEARTBEAT_S:
            self._asked_at = now
            self._pings += 1
            return [SendControl(Ping(self._pings))]
        return []

    # --- sending ------------------------------------------------------------------------------

    def declare(self, number: int, spec: LayerSpec) -> list[Effect]:
        """Declare a layer unless the viewer knows it."""
        if number in self._layers:
            return []
        self._layers.add(number)
        return [SendData(LayerDeclared(number, spec))]

    def offer(self, arena: int, nbytes: int) -> bool:
        """Whether an arena must be offered first; the shell sends `ArenaOffer` with its fd."""
        if arena in self._arenas:
            return False
        self._arenas.add(arena)
        return True

    def retire(self, arena: int) -> list[Effect]:
        """Tell the viewer to unmap an arena, if it ever knew it."""
        if arena not in self._arenas:
            return []
        self._arenas.discard(arena)
        return [SendData(ArenaRetired(arena))]

    def sent(self, seq: int, leases: Sequence[int]) -> None:
        """An item goes out now; its leases are held until the viewer reports it."""
        self._outstanding[seq] = tuple(leases)

    def sent_more(self, seq: int, leases: Sequence[int]) -> None:
        """Further parts of an item go out; a failed item takes no more of them.

        Raises
        ------
        KeyError
            The viewer already reported the item, so its further parts need not be sent.
        """
        self._outstanding[seq] = (*(self._outstanding[seq] or ()), *leases)

    @property
    def outstanding(self) -> int:
        """Items that are neither displayed nor failed."""
        return len(self._outstanding)

    def is_outstanding(self, seq: int) -> bool:
        """Whether the viewer has still to report the item displayed or failed."""
        return seq in self._outstanding

    # --- inside -------------------------------------------------------------------------------

    def _open(self) -> list[Effect]:
        self.phase = SenderPhase.OPEN
        return [Opened(self.welcome)]

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
        return Moved(received, displayed, failed, leases, report.gone)

    def _end(self, error: StreamError) -> list[Effect]:
        if self.phase is SenderPhase.CLOSED:
            return []
        self.phase = SenderPhase.CLOSED
        lost = [(seq, error.what) for seq in self._outstanding]
        leases = [lease for held in self._outstanding.values() for lease in held or ()]
        self._outstanding.clear()
        effects: list[Effect] = [Ended(error)]
        if lost:
            effects.insert(0, Moved([], [], lost, leases))
        return effects
