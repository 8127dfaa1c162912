"""Questions to a viewer of OpenHCS: one after the other, and above all whether it has settled.

Generation 2 tells what it has displayed only when it is asked to settle, which draws at once what
it would draw a little later. Its napari takes nothing while it settles.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from openhcs_stream.dialects import control_request, read_control_answer, read_settlement
from openhcs_stream.errors import ProtocolViolation, ViewerLost
from openhcs_stream.transport import ZmqAsker

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.dialects import OpenHCSViewer
    from openhcs_stream.stream._openhcs_pieces import Outcomes, Sending

__all__ = ["Questions", "Settling"]

logger = logging.getLogger(__name__)

#: How long one question waits at most; napari's control answers from its window's thread.
TIMEOUT_S = 5.0

#: While it settles, it is asked so often; after it could not display everything, so often.
SETTLE_EVERY_S = 0.1
SETTLE_AGAIN_S = 0.5
#: It is asked when nothing was sent for so long, or when the first item has waited for so long.
SETTLE_AFTER_S = 0.2
SETTLE_AT_LEAST_S = 5.0
#: What it could not display it may still, when the rest of a stack has come.
SETTLE_PATIENCE_S = 5.0

#: What is done with an answer; None where none came in time.
Then: TypeAlias = "Callable[[dict[str, Any] | None], None]"


class Questions:
    """Asks a control socket one thing after the other; used by the bridge's thread only."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        self.socket = ZmqAsker(address)
        self._timeout_s = min(timeout_s, TIMEOUT_S)
        self._waiting: deque[tuple[str, Then]] = deque()
        self._then: Then | None = None
        self._ends = math.inf

    def put(self, verb: str, then: Then) -> None:
        """Ask this, when all that was put before is answered."""
        self._waiting.append((verb, then))

    def take_answer(self, now: float) -> None:
        """Take the answer to the question that is out, or give it up."""
        if self._then is None:
            return
        frame = self.socket.answer()
        if frame is None and now < self._ends:
            return
        then, self._then, self._ends = self._then, None, math.inf
        if frame is None:
            self.socket.give_up()
            then(None)
        else:
            then(_read(frame))

    def ask(self, now: float) -> float:
        """Ask the next question; in how many seconds the one that is out is given up."""
        if self._then is None and self._waiting:
            verb, self._then = self._waiting.popleft()
            self._ends = now + self._timeout_s
            self.socket.ask(control_request(verb))
        return self._ends - now

    def close(self) -> None:
        """Let go of the socket."""
        self.socket.close()


class Settling:
    """When to ask a viewer whether it has displayed what it received, and what follows from it.

    Parameters
    ----------
    viewer : OpenHCSViewer
        Whom it is about.
    outcomes : Outcomes
        Is told what is displayed, and what can't be.
    questions : Questions
        Asks.
    timeout_s : float
        After so long without any answer the viewer counts as lost.

    Attributes
    ----------
    is_possible : bool
        Whether it can be asked at all, as far as is known.
    """

    def __init__(
        self,
        viewer: OpenHCSViewer,
        outcomes: Outcomes,
        questions: Questions,
        *,
        timeout_s: float,
    ) -> None:
        self.is_possible = viewer.settles
        self._viewer = viewer
        self._outcomes = outcomes
        self._questions = questions
        self._timeout_s = timeout_s
        self._silent_since = math.inf
        self._sent_at = self._next_at = self._closed_until = -math.inf
        self._is_asked = False
        self._is_running = False

    def sent(self, now: float) -> None:
        """Something new went out."""
        self._sent_at = now

    def wait_until(self, when: float) -> None:
        """It has refused something because it settles for somebody else."""
        self._closed_until = when

    def keeps(self, now: float) -> float:
        """Seconds in which it takes nothing."""
        if self._viewer.kind == "napari" and (self._is_asked or self._is_running):
            return SETTLE_EVERY_S
        return max(0.0, self._closed_until - now)

    def work(self, now: float, *, is_idle: bool, is_sending: bool) -> float:
        """Ask, if it is time to; in how many seconds to look again.

        Parameters
        ----------
        now : float
            The time.
        is_idle : bool
            Nothing waits to be sent.
        is_sending : bool
            An answer to a batch is awaited.
        """
        if not self.is_possible or self._is_asked or is_sending:
            return math.inf
        waiting = [each for each in self._outcomes.open.values() if each.is_received]
        if not waiting:
            self._is_running = False
            return math.inf
        since = min(each.received_at for each in waiting)
        is_quiet = is_idle and now - self._sent_at >= SETTLE_AFTER_S
        if not (is_quiet or self._is_running or now - since >= SETTLE_AT_LEAST_S):
            return SETTLE_AFTER_S
        if now < self._next_at:
            return self._next_at - now
        self._is_asked = True
        self._silent_since = min(self._silent_since, now)
        self._questions.put("settle", lambda answer: self._settled(answer, waiting))
        return 0.0

    def _settled(self, answer: dict[str, Any] | None, waiting: list[Sending]) -> None:
        now = time.monotonic()
        self._is_asked = False
        self._next_at = now + SETTLE_EVERY_S
        if answer is None:  # it is busy with drawing
            self._is_running = True
            if now - self._silent_since >= self._timeout_s:
                raise ViewerLost(
                    f"it did not say whether it has settled within {self._timeout_s:g} s.",
                    cure="See whether it is busy or stopped.",
                )
            return
        self._silent_since = math.inf
        settlement = read_settlement(answer)
        self._is_running = settlement is not None and settlement.phase == "running"
        still = [sending for sending in waiting if sending.id in self._outcomes.open]
        if settlement is None:
            # It knows of no such thing: its acknowledgements are the best that there is.
            self.is_possible = False
            for sending in tuple(self._outcomes.open.values()):
                if sending.is_acknowledged:
                    self._outcomes.displayed(sending, now)
        elif settlement.phase == "complete":
            for sending in still:
                self._outcomes.displayed(sending, now)
        elif settlement.phase == "failed":
            self._next_at = now + SETTLE_AGAIN_S
            if now - self._sent_at > SETTLE_PATIENCE_S:
                reason = f"the viewer could not display all of it: {settlement.reason}"
                for sending in still:
                    self._outcomes.failed(sending, reason.rstrip("."))


def _read(frame: bytes) -> dict[str, Any] | None:
    try:
        return read_control_answer(frame)
    except ProtocolViolation as error:
        logger.warning("%s", error)
        return None
