"""All viewers of one stream, and the rule by which threads take turns with their lanes.

One thread *leads*: it polls the lanes and takes in what the viewers report. Whoever waits for
something becomes the leader and looks for itself, without a hand-over between threads; the
stream's own thread leads while nobody waits. The lock is held only while books are changed, and
never while something is waited for. Always the lead first, then the lock.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import TYPE_CHECKING

from openhcs_stream.errors import (
    DeadlineExceeded,
    ForkedStream,
    StreamError,
    ViewerLost,
    ViewerUnreachable,
)
from openhcs_stream.messages import Bye, encode
from openhcs_stream.protocol import SendControl, SenderPhase
from openhcs_stream.stream._lead import Lead
from openhcs_stream.stream._uninterrupted import Uninterrupted
from openhcs_stream.transport import Waker, ZmqLane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.messages import Hello, Welcome
    from openhcs_stream.stream._link import Link
    from openhcs_stream.transport import Lane

__all__ = ["LinkGroup"]

logger = logging.getLogger(__name__)

#: How often the stream's own thread looks for reports while items are on their way. Callers that
#: wait look for themselves at once; this only bounds how late the tracker's events may be.
LOOK_EVERY_S = 0.005
#: The same while nothing is on its way: only a viewer's death and edits can come.
IDLE_POLL_S = 1.0
#: A waiting thread looks up this often, whatever comes.
WAIT_STEP_S = 0.1
#: Whoever leads comes to an end within a poll, which is woken; longer than this it never takes.
LEAD_S = 10.0


class LinkGroup:
    """The links of one stream.

    Attributes
    ----------
    lock : RLock
        Guards the books of the stream and of its links.
    closed : bool
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.closed = False
        self.links: list[Link] = []
        #: Called with each link that was lost, and with each that is back; by the leader.
        self.on_away: Callable[[Link], object] | None = None
        #: Called before anybody waits for viewers: what they wait for may not have been sent yet.
        self.before_wait: Callable[[], object] = _nothing
        self._pid = os.getpid()
        self._rest = threading.Event()
        self._waker = Waker()
        self._lead = Lead(self._waker.set)
        self._poller = select.poll()
        self._poller.register(self._waker.fileno(), select.POLLIN)

    # --- who is there -------------------------------------------------------------------------

    def open_links(self) -> list[Link]:
        """The links whose viewers are there."""
        return [link for link in self.links if link.is_open]

    def taking_links(self) -> list[Link]:
        """The links that items can go to: their viewers are there, or are waited for."""
        there = SenderPhase.OPEN
        return [
            link for link in self.links if link.session.phase is there or link.session.takes_items
        ]

    def welcomes(self) -> Iterator[tuple[str, Welcome]]:
        """What each viewer said of itself."""
        for link in self.links:
            if link.session.welcome is not None:
                yield link.label, link.session.welcome

    def nobody(self) -> StreamError:
        """The error for when no viewer is left: what became of the first that was lost.

        A fresh one each time: raised again, one error holds every frame that it ever passed, with
        all that was to be sent there.
        """
        for link in self.links:
            if link.error is not None:
                return copy(link.error)
        return ViewerLost("no viewer is connected.", cure="Connect anew.")

    # --- taking turns -------------------------------------------------------------------------

    @contextmanager
    def leading(self, timeout_s: float = LEAD_S) -> Iterator[None]:
        """Lead; whoever polls now is woken to hand over. Ctrl-C waits for the end of the block.

        Raises
        ------
        DeadlineExceeded
            Somebody else leads all the time.
        """
        with Uninterrupted():
            if not self._lead.take(timeout_s):
                raise DeadlineExceeded(
                    f"another thread used the stream's connections for {timeout_s:g} s.",
                    cure="A listener of the queue tracker may be stuck; it should return at once.",
                )
            try:
                yield
            finally:
                self._lead.give()

    def sending(self) -> AbstractContextManager[object]:
        """The lock, and the lead first where a viewer's data goes through its ZeroMQ socket."""
        for link in self.links:
            if link.needs_leader and link.is_open:
                return self._leading_with_lock()
        return self.lock

    @contextmanager
    def _leading_with_lock(self) -> Iterator[None]:
        with self.leading(), self.lock:
            yield

    def pump(self, timeout_s: float, reached: Callable[[], object] | None = None) -> None:
        """Take in what the viewers report; wait for something up to `timeout_s`.

        Parameters
        ----------
        timeout_s : float
            0: only look, and not even that while another thread does.
        reached : callable
            What is waited for: another thread that led before may have taken it in.
        """
        with Uninterrupted():  # also the wait: whoever waits for long comes here many times
            if timeout_s <= 0:
                if self._lead.take_now():
                    self._poll_and_give(0.0)
                return
            deadline = time.monotonic() + timeout_s
            if self._lead.take(timeout_s):
                left = deadline - time.monotonic()
                self._poll_and_give(0.0 if reached is not None and reached() else max(0.0, left))

    def glance(self) -> None:
        """Take in what viewers on this host report, if nobody else does: the least of `pump`."""
        with Uninterrupted():
            if self._lead.take_now():
                try:
                    for link in self.links:
                        if link.shares_memory and link.is_open:
                            self._tend(link, lambda link=link: link.glance(self.lock))  # type: ignore[misc]
                finally:
                    self._lead.give()

    def _poll_and_give(self, timeout_s: float) -> None:
        try:
            self._poll(timeout_s)
        finally:
            self._lead.give()

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Pump until `reached`; whether it was within `timeout_s` seconds.

        Raises
        ------
        ForkedStream
            It was not, and this is a forked child, which will never be told.
        """
        deadline = time.monotonic() + timeout_s
        if os.getpid() == self._pid:
            self.before_wait()
        while not reached():
            left = deadline - time.monotonic()
            if os.getpid() != self._pid:
                raise ForkedStream(
                    "what becomes of items is told to the process that sent them; this is its "
                    "forked child.",
                    cure="Wait in the parent, or connect() in the child.",
                )
            if left <= 0 or self.closed:
                return reached()
            self.pump(min(left, WAIT_STEP_S), reached)
        return True

    def look_once(self, *, busy: bool) -> float:
        """One look of the stream's own thread; returns for how long to rest."""
        if busy:
            self.pump(0.0)
            return LOOK_EVERY_S
        if not self._lead.is_wanted() and self._lead.take_now():
            self._poll_and_give(IDLE_POLL_S)
            return LOOK_EVERY_S if self._lead.is_wanted() else 0.0
        return LOOK_EVERY_S

    def rest(self, seconds: float) -> bool:
        """Rest; True where the stream was closed meanwhile."""
        return self._rest.wait(seconds)

    def wake(self) -> None:
        """Have whoever polls look up."""
        self._waker.set()

    # --- life ---------------------------------------------------------------------------------

    def open(self, deadline: float, timeout_s: float) -> None:
        """Greet all viewers and wait for their answers until `deadline`.

        Raises
        ------
        ViewerUnreachable
            One did not answer in time.
        Refused, ProtocolMismatch
            One did, and takes no session.
        """
        for link in self.links:
            self._watch(set(), link.filenos())
        # Nobody else has this stream yet, and Ctrl-C may end the wait.
        self._lead.take_now()
        try:
            for link in self.links:
                with self.lock:
                    link.start()
            while any(not link.is_open and not link.is_closed for link in self.links):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._poll(min(left, WAIT_STEP_S))
        finally:
            self._lead.give()
        for link in self.links:
            if link.error is not None:
                raise copy(link.error)
            if not link.is_open:
                raise _no_answer(link, timeout_s)

    def attach(self, link: Link, address: str, lane: Lane, hello: Hello) -> bool:
        """Greet a viewer anew, on a fresh lane; False: it is not wanted any more."""
        with self.leading(), self.lock:
            if self.closed or not link.is_lost:
                return False
            link.greet(address, lane, hello)
            self._watch(set(), {lane.fileno()})
        return True

    def detach(self, link: Link, error: StreamError) -> None:
        """Give up a greeting that nobody answers."""
        with self.leading(), self.lock:
            if link.session.is_away:
                self._tend(link, lambda: link.lose(error))

    def say_bye(self) -> None:
        """End the sessions on purpose, then let go."""
        if not self._lead.take(LEAD_S):
            self.let_go()
            return
        try:
            with self.lock:
                for link in self.open_links():
                    link.carry_out([SendControl(Bye())])
                    if link.shares_memory:
                        # There its end would come first, and be taken for this process's death.
                        link.send_data(encode(Bye()))
            self._let_go()
        finally:
            self._lead.give()

    def let_go(self) -> None:
        """End everything without a word. Whoever still waits is woken."""
        self.closed = True
        self._rest.set()
        self._waker.set()
        # Sockets may be closed by the leader only, and nobody leads for long.
        if not self._lead.take(LEAD_S):
            logger.error("a thread still uses the stream's connections; they are left to it")
            return
        try:
            self._let_go()
        finally:
            self._lead.give()

    def _let_go(self) -> None:
        self.closed = True
        self._rest.set()
        self._waker.set()
        with self.lock:
            gone = ViewerLost("the stream was closed before that was told.")
            for link in self.links:
                link.end(gone)
                link.close()
                if link.tracker is not None:
                    link.tracker.close()

    def abandon_after_fork(self) -> None:
        """In a forked child: close what would keep the parent's sessions alive."""
        for link in self.links:
            link.abandon_after_fork()

    # --- by the leader ------------------------------------------------------------------------

    def _poll(self, timeout_s: float) -> None:
        if self.closed:
            return
        live = [link for link in self.links if not link.is_closed]
        if not any(link.has_input() for link in live):
            # Rounded up: a poll of 0 ms would spin through the rest of a wait.
            self._poller.poll(int(timeout_s * 1000 + 0.999))
        self._waker.clear()
        for link in live:
            self._tend(link, lambda link=link: link.work(self.lock))  # type: ignore[misc]

    def _tend(self, link: Link, work: Callable[[], object]) -> None:
        """Have a link do something, after which its lanes may be others."""
        before = link.filenos()
        was_lost = link.is_lost
        work()
        after = link.filenos()
        if after != before:
            self._watch(before, after)
        link.close_discarded()
        if link.is_lost and not was_lost and self.on_away is not None:
            self.on_away(link)

    def _watch(self, before: set[int], after: set[int]) -> None:
        for fileno in before - after:
            self._poller.unregister(fileno)
        for fileno in after - before:
            self._poller.register(fileno, select.POLLIN)


def _nothing() -> None:
    pass


def _no_answer(link: Link, timeout_s: float) -> ViewerUnreachable:
    what = f"no viewer answered at {link.address} within {timeout_s:g} s"
    lane = link.control
    if isinstance(lane, ZmqLane) and lane.connected:
        what += "; what listens there speaks ZeroMQ, and does not answer a greeting"
    return ViewerUnreachable(
        f"{what}.",
        cure="Start one with `openhcs-stream napari`, or look at `openhcs-stream status`; it may "
        "be busy or stopped.",
    )
