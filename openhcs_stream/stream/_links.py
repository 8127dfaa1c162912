"""All viewers of one stream, and the rule by which threads take turns with their lanes.

One thread *leads*: it polls the lanes and takes in what the viewers report. Whoever waits for
something becomes the leader and looks for itself, without a hand-over between threads; the
stream's own thread leads while nobody waits. The lock is held only while books are changed.
Always the lead first, then the lock.
"""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from openhcs_stream.errors import ForkedStream, StreamError, ViewerLost, ViewerUnreachable
from openhcs_stream.messages import Bye, encode
from openhcs_stream.protocol import SendControl
from openhcs_stream.transport import Waker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.messages import Welcome
    from openhcs_stream.stream._link import Link

__all__ = ["LinkGroup"]

#: How often the stream's own thread looks for reports while items are on their way. Callers that
#: wait look for themselves at once; this only bounds how late the tracker's events may be.
LOOK_EVERY_S = 0.005
#: The same while nothing is on its way: only a viewer's death and edits can come.
IDLE_POLL_S = 1.0
#: A waiting thread looks up this often, whatever comes.
WAIT_STEP_S = 0.1


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
        self._pid = os.getpid()
        self._leader = threading.Lock()
        self._waiting = 0
        self._rest = threading.Event()
        self._waker = Waker()
        self._poller = select.poll()
        self._poller.register(self._waker.fileno(), select.POLLIN)

    # --- who is there -------------------------------------------------------------------------

    def open_links(self) -> list[Link]:
        """The links that items can go to."""
        return [link for link in self.links if link.is_open]

    def welcomes(self) -> Iterator[tuple[str, Welcome]]:
        """What each viewer said of itself."""
        for link in self.links:
            if link.session.welcome is not None:
                yield link.label, link.session.welcome

    def nobody(self) -> StreamError:
        """The error for when no viewer is left: what became of the first that was lost."""
        error = next((link.error for link in self.links if link.error is not None), None)
        return error or ViewerLost("no viewer is connected.", cure="Connect anew.")

    # --- taking turns -------------------------------------------------------------------------

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Lead; whoever polls now is woken to hand over."""
        if not self._leader.acquire(blocking=False):
            with self.lock:
                self._waiting += 1
            self._waker.set()
            try:
                self._leader.acquire()
            finally:
                with self.lock:
                    self._waiting -= 1
        try:
            yield
        finally:
            self._leader.release()

    def sending(self) -> AbstractContextManager[object]:
        """The lock, and the lead first where a viewer's data goes through its ZeroMQ socket."""
        if any(link.needs_leader and link.is_open for link in self.links):
            return self._leading_with_lock()
        return self.lock

    @contextmanager
    def _leading_with_lock(self) -> Iterator[None]:
        with self.leading(), self.lock:
            yield

    def pump(self, timeout_s: float) -> None:
        """Take in what the viewers report; wait for something up to `timeout_s`."""
        if timeout_s > 0:
            with self.leading():
                self._poll(timeout_s)
        elif self._leader.acquire(blocking=False):
            try:
                self._poll(0.0)
            finally:
                self._leader.release()

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Pump until `reached`; whether it was within `timeout_s` seconds.

        Raises
        ------
        ForkedStream
            It was not, and this is a forked child, which will never be told.
        """
        deadline = time.monotonic() + timeout_s
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
            self.pump(min(left, WAIT_STEP_S))
        return True

    def look_once(self, *, busy: bool) -> float:
        """One look of the stream's own thread; returns for how long to rest."""
        if busy:
            self.pump(0.0)
            return LOOK_EVERY_S
        if self._waiting == 0 and self._leader.acquire(blocking=False):
            try:
                self._poll(IDLE_POLL_S)
            finally:
                self._leader.release()
            return 0.0 if not self._waiting else LOOK_EVERY_S
        return LOOK_EVERY_S

    def rest(self, seconds: float) -> bool:
        """Rest; True where the stream was closed meanwhile."""
        return self._rest.wait(seconds)

    # --- life ---------------------------------------------------------------------------------

    def open(self, timeout_s: float) -> None:
        """Greet all viewers and wait for their answers.

        Raises
        ------
        ViewerUnreachable
            One did not answer in time.
        Refused, ProtocolMismatch
            One did, and takes no session.
        """
        for link in self.links:
            self._watch(set(), link.filenos())
        with self.leading():
            for link in self.links:
                with self.lock:
                    link.start()
            deadline = time.monotonic() + timeout_s
            while any(not link.is_open and not link.is_closed for link in self.links):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._poll(min(left, WAIT_STEP_S))
        for link in self.links:
            if link.error is not None:
                raise link.error
            if not link.is_open:
                raise ViewerUnreachable(
                    f"no viewer answered at {link.address} within {timeout_s:g} s.",
                    cure="Start one with `openhcs-stream napari`, or look at `openhcs-stream "
                    "status`; it may be busy or stopped.",
                )

    def say_bye(self) -> None:
        """End the sessions on purpose, then let go."""
        with self.leading():
            with self.lock:
                for link in self.open_links():
                    link.carry_out([SendControl(Bye())])
                    if link.shares_memory:
                        # There its end would come first, and be taken for this process's death.
                        link.send_data(encode(Bye()))
            self.let_go()

    def let_go(self) -> None:
        """End everything without a word. Whoever still waits is woken."""
        self.closed = True
        self._rest.set()
        self._waker.set()
        with self.lock:
            gone = ViewerLost("the stream was closed before that was told.")
            for link in self.links:
                if not link.is_closed:
                    link.lose(gone)
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
            before = link.filenos()
            link.drain(self.lock)
            link.tick(self.lock)
            after = set() if link.is_closed else link.filenos()
            if after != before:
                self._watch(before, after)
            if link.is_closed:
                link.close()

    def _watch(self, before: set[int], after: set[int]) -> None:
        for fileno in before - after:
            self._poller.unregister(fileno)
        for fileno in after - before:
            self._poller.register(fileno, select.POLLIN)
