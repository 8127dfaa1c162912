"""Looking for viewers that were lost, on a thread that is there as long as one is away.

It reads endpoint files and asks whoever listens, which may take a while: nobody waits for it.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import msgspec

from openhcs_stream.errors import StreamError, ViewerUnreachable
from openhcs_stream.transport import SparingLog

if TYPE_CHECKING:
    from openhcs_stream.messages import Hello
    from openhcs_stream.stream._link import Link
    from openhcs_stream.stream._links import LinkGroup
    from openhcs_stream.stream._reach import Found

__all__ = ["Seeker"]

logger = logging.getLogger(__name__)

#: Seconds between two looks, at first and after a while.
FIRST_LOOK_S = 0.05
LOOK_EVERY_S = 1.0
#: Longest that a viewer of another project may take for one message.
BRIDGE_S = 30.0


class Seeker:
    """Finds the viewers of one stream again.

    Parameters
    ----------
    group : LinkGroup
    hello : Hello
        The greeting of the stream, without the token of a viewer.
    """

    def __init__(self, group: LinkGroup, hello: Hello) -> None:
        self._group = group
        self._hello = hello
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._interval_s = FIRST_LOOK_S
        #: What is being greeted, by the link's number, and how often it was.
        self._tried: dict[int, Found] = {}
        self._attempts: dict[int, int] = {}
        self._tell = SparingLog(logger, logging.INFO)

    def start(self, link: Link) -> None:
        """A viewer was lost, or one that was greeted in its place; look for it from now on."""
        self._tried.pop(link.number, None)
        with self._lock:
            if self._thread is None and not self._group.closed:
                self._interval_s = FIRST_LOOK_S
                self._thread = threading.Thread(
                    target=self._run, name="openhcs-stream-seek", daemon=True
                )
                self._thread.start()

    def join(self, timeout_s: float) -> None:
        """After the stream's end: wait for the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        group = self._group
        while not group.rest(self._interval_s):
            with self._lock:
                away = [link for link in group.links if link.session.is_away]
                if not away:
                    self._thread = None
                    return
                self._interval_s = min(2 * self._interval_s, LOOK_EVERY_S)
            for link in away:
                try:
                    self._look(link)
                except StreamError as error:
                    self._tell("%s is not there yet: %s", link.target.viewer, error)
                except Exception:
                    logger.exception("looking for %s failed", link.target.viewer)

    def _look(self, link: Link) -> None:
        group = self._group
        taken = {each.address for each in group.links if each is not link and each.is_open}
        found = link.target.again(taken=taken, only_at=link.address if link.session.haunted else "")
        if not link.is_lost:
            # Somebody is greeted; he is waited for, unless the viewer is elsewhere by now.
            if found == self._tried.get(link.number):
                return
            moved = ViewerUnreachable(f"{link.target.viewer} is not at {link.address} any more.")
            group.detach(link, moved)
        if found is None:
            return
        attempt = self._attempts[link.number] = self._attempts.get(link.number, 0) + 1
        self._tried[link.number] = found
        reached = found.open(timeout_s=BRIDGE_S)
        hello = msgspec.structs.replace(self._hello, token=reached.token, attempt=attempt)
        if not group.attach(link, reached.address, reached.lane, hello):
            reached.lane.close()
