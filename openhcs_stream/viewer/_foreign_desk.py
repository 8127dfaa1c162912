"""What other people's clients want at once: pings, and messages that are published only once.

A thread of its own answers, whatever the receiver copies and the window draws: their clients kill
a viewer that does not answer a ping within half a second, and what is published while nobody
listens is gone.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Literal

from openhcs_stream.dialects import (
    Heartbeat,
    Progress,
    control_answer,
    pong,
    read_command,
    refusal,
)
from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.transport import LaneClosed, SparingLog, Waker
from openhcs_stream.viewer._peer_packages import installed_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openhcs_stream.transport import PublishedMessage, RouterMessage, ZmqRouter, ZmqSubscriber

__all__ = ["Desk", "Settlement"]

logger = logging.getLogger(__name__)

#: Published messages that may wait for the receiver, and their bytes beyond which no more is
#: taken; then publishers wait, and drop at a limit of their own.
_MOST_WAITING: Final = 1000
_MOST_WAITING_NBYTES: Final = 64 << 20
#: The release of OpenHCS that is named to clients of whose own nothing is known.
NEWEST_OPENHCS: Final = "0.8.6"


class Settlement:
    """How far what other people's senders sent is on the screen. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cycle = 0
        self._total = self._completed = self._failed = 0
        self._reason = ""
        self._told = True

    def received(self, count: int) -> int:
        """A batch came; gives the cycle to which its items count.

        Where all before it is settled, and a failure of it was told, counting begins anew.
        """
        with self._lock:
            settled = self._completed + self._failed == self._total
            if settled and (self._told or not self._failed):
                self._begin()
            self._total += count
            self._told = False
            return self._cycle

    def displayed(self, cycle: int) -> None:
        """One more is on the screen."""
        with self._lock:
            if cycle == self._cycle:
                self._completed += 1

    def failed(self, cycle: int, reason: str) -> None:
        """One more will not be."""
        with self._lock:
            if cycle == self._cycle:
                self._failed += 1
                self._reason = self._reason or reason

    def reset(self) -> None:
        """A new run begins; what is still to be shown of the one before counts no more."""
        with self._lock:
            self._begin()

    def _begin(self) -> None:
        self._cycle += 1
        self._total = self._completed = self._failed = 0
        self._reason = ""
        self._told = True

    def tell(self) -> Progress:
        """How far it is now, for a client that asks."""
        with self._lock:
            phase: Literal["running", "complete", "failed"] = "running"
            if self._completed + self._failed == self._total:
                phase = "failed" if self._failed else "complete"
                self._told = True
            return Progress(phase, self._completed, self._total, self._reason)


class Desk:
    """Answers control requests and takes in what is published, on a thread of its own.

    Parameters
    ----------
    viewer : str
        Registered name of the viewer.
    port : int
        Its data port.
    routers : sequence of ZmqRouter
        Of the control addresses; they are the desk's from here on.
    subscriber : ZmqSubscriber or None
        As well.
    settlement : Settlement
    clear, stop, wake : callable
        What to do when a client wants the viewer to begin anew; to end; and when something was
        published.
    """

    def __init__(
        self,
        viewer: str,
        port: int,
        *,
        routers: Sequence[ZmqRouter],
        subscriber: ZmqSubscriber | None,
        settlement: Settlement,
        clear: Callable[[], None],
        stop: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._viewer = viewer
        self._port = port
        self._routers = tuple(routers)
        self._subscriber = subscriber
        self._settlement = settlement
        self._clear, self._stop, self._wake = clear, stop, wake
        self._published: deque[PublishedMessage] = deque()
        self._nbytes_in = self._nbytes_out = 0  #: bytes; each is counted by one thread
        self._waker = Waker()
        self._closing = False
        self._tell_refused = SparingLog(logger, logging.WARNING, burst=10)
        self._began = time.monotonic()
        self._version = version("openhcs-stream")
        self._created = _created()
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    def published(self) -> list[PublishedMessage]:
        """Take what was published since the last time; for the receiver's thread."""
        taken: list[PublishedMessage] = []
        while self._published and len(taken) < _MOST_WAITING:
            taken.append(self._published.popleft())
            self._nbytes_out += len(taken[-1].data)
        if taken:
            self._waker.set()  # there is room again
        return taken

    def close(self) -> None:
        """Let go of all sockets."""
        self._closing = True
        self._waker.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wait()
                self._waker.clear()
                for router in self._routers:
                    while (message := router.receive()) is not None:
                        self._answer(message, router)
                self._subscribe()
            self._subscribe()  # what came since is told of as well
        except Exception:
            logger.exception("OpenHCS's clients get no more answers: the thread for them failed")
        finally:
            for router in self._routers:
                router.close()
            if self._subscriber is not None:
                self._subscriber.close()
            self._waker.close()

    def _wait(self) -> None:
        if any(router.has_input() for router in self._routers):
            return
        poller = select.poll()
        poller.register(self._waker.fileno(), select.POLLIN)
        for router in self._routers:
            poller.register(router.fileno(), select.POLLIN)
        if self._subscriber is not None and self._has_room():
            if self._subscriber.has_input():
                return
            poller.register(self._subscriber.fileno(), select.POLLIN)
        poller.poll(None)

    def _has_room(self) -> bool:
        nbytes = self._nbytes_in - self._nbytes_out
        return len(self._published) < _MOST_WAITING and nbytes < _MOST_WAITING_NBYTES

    def _subscribe(self) -> None:
        if self._subscriber is None:
            return
        came = False
        while self._has_room() and (message := self._subscriber.receive()) is not None:
            self._nbytes_in += len(message.data)
            self._published.append(message)
            came = True
        if came:
            self._wake()

    # --- control ------------------------------------------------------------------------------

    def _answer(self, message: RouterMessage, router: ZmqRouter) -> None:
        frame = message.frames[0] if message.frames else memoryview(b"")
        command = ""
        if not message.local:
            logger.warning("refused a control message of %s: it is not local", message.peer_address)
            return
        try:
            command = read_command(frame)
            answer = self._obey(command, message)
        except ProtocolViolation as error:
            self._tell_refused("refused a control message of %d bytes: %s", len(frame), error)
            answer = refusal(str(error))
        if message.delimited:
            try:
                router.send(message.identity, [answer], delimited=True)
            except LaneClosed:
                logger.debug("an OpenHCS client was gone before its answer")
        if command in ("shutdown", "force_shutdown"):
            logger.info("an OpenHCS client ends this viewer (%s)", command)
            self._stop()

    def _obey(self, command: str, message: RouterMessage) -> bytes:
        if command == "ping":
            return self._pong(message.find_process())
        if command == "clear_state":
            self._settlement.reset()
            self._clear()
        progress = self._settlement.tell() if command == "settle" else Progress("complete", 0, 0)
        return control_answer(command, self._viewer, progress)

    def _pong(self, pid: int) -> bytes:
        theirs = installed_versions(pid, ("openhcs", "zmqruntime"))
        # zmqruntime 0.3 began generation 3; where it is absent, it is OpenHCS's first.
        generation: Literal[2, 3] = 3 if _is_third(theirs.get("zmqruntime", "")) else 2
        release = theirs.get("openhcs", "")
        if not release and generation == 2:
            release = os.environ.get("OPENHCS_STREAM_OPENHCS_VERSION", NEWEST_OPENHCS)
        heartbeat = Heartbeat(
            viewer=self._viewer,
            port=self._port,
            control_port=self._port + 1000,
            pid=os.getpid(),
            create_time=self._created,
            memory_mb=_memory_mb(),
            uptime_s=round(time.monotonic() - self._began, 3),
            version=self._version,
        )
        return pong(heartbeat, version=release, generation=generation)


def _is_third(release: str) -> bool:
    first, _, rest = release.partition(".")
    second = rest.partition(".")[0]
    return first.isdigit() and second.isdigit() and (int(first), int(second)) >= (0, 3)


def _created() -> float:
    """When this process began, seconds since the epoch: the number that psutil gives."""
    if sys.platform.startswith("linux"):
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = float(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="ascii") as file:
            boot = next(float(line.split()[1]) for line in file if line.startswith("btime"))
        return ticks / os.sysconf("SC_CLK_TCK") + boot
    return time.time() - time.process_time()


def _memory_mb() -> float:
    if not sys.platform.startswith("linux"):
        return 0.0
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024
