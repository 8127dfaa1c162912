"""A stream to a viewer of OpenHCS: the stream sees a viewer of ours, and that viewer its sender.

The bridge is the receiving half of a native session, on the other end of a lane within this
process. It takes items out of the stream's shared memory, hands them over in the viewer's own
dialect, and reports back what became of them, so that everything a stream offers works as it does
with our viewers: batches, back-pressure, receipts, the queue tracker.

What is *received* the viewer's answer tells, or, where it answers nothing, that it has removed the
name of the memory. What is *displayed* is told by facts only: Fiji's acknowledgements, or that the
viewer says it has settled. Where there is no such fact, an item stays received.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import threading
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream import rois as roi_codecs
from openhcs_stream.dialects import AckRoute, OpenHCSOut
from openhcs_stream.errors import ProtocolViolation, StreamError
from openhcs_stream.messages import Bye, Reply, decode, encode
from openhcs_stream.pixels import MappedArenas, NamedBlocks, numpy_dtype
from openhcs_stream.protocol import (
    Answer,
    MapArena,
    ReceiverPhase,
    ReceiverSession,
    SendControl,
    Take,
    TakePart,
    UnmapArena,
    ViewerFacts,
)
from openhcs_stream.runtime import runtime_folder
from openhcs_stream.stream._bridged import BridgedLane
from openhcs_stream.stream._openhcs_acks import AckInbox, listen
from openhcs_stream.stream._openhcs_batches import Batches
from openhcs_stream.stream._openhcs_pieces import Item, Outcomes, Sending
from openhcs_stream.stream._openhcs_settle import Questions, Settling
from openhcs_stream.transport import InProcessLane, LaneClosed, Waker, machine_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream import messages
    from openhcs_stream.dialects import Piece
    from openhcs_stream.messages import LayerSpec, Message, Part, PlaceValue, Request
    from openhcs_stream.protocol import Effect
    from openhcs_stream.stream._openhcs_acks import AckListener
    from openhcs_stream.stream._openhcs_find import OpenHCSEndpoint
    from openhcs_stream.transport import Frame

__all__ = ["bridge"]

logger = logging.getLogger(__name__)

#: Longest sleep of a bridge's thread, and how soon it tries again what had no room in its lane.
_LOOK_EVERY_S = 1.0
_NO_ROOM_S = 0.01


def bridge(endpoint: OpenHCSEndpoint, *, timeout_s: float) -> BridgedLane:
    """Open a lane that ends at a viewer of OpenHCS.

    Parameters
    ----------
    endpoint : OpenHCSEndpoint
        A viewer that answered.
    timeout_s : float
        How long it may take to answer one message before it counts as lost.

    Raises
    ------
    InvalidItem
        This system has no shared memory that such a viewer could attach.
    """
    blocks = NamedBlocks()
    ours, theirs = BridgedLane.pair()
    made = _Bridge(endpoint, theirs, blocks, timeout_s=timeout_s)
    ours.tells_displayed = made.tells_displayed
    ours.check = made.check
    ours.thread = threading.Thread(target=made.run, name="openhcs-bridge", daemon=True)
    ours.thread.start()
    return ours


class _Bridge:
    """Runs on a thread of its own until the stream's session ends, or the viewer is lost."""

    def __init__(
        self,
        endpoint: OpenHCSEndpoint,
        lane: InProcessLane,
        blocks: NamedBlocks,
        *,
        timeout_s: float,
    ) -> None:
        self._endpoint = endpoint
        self._viewer = viewer = endpoint.viewer
        self._lane = lane
        self._blocks = blocks
        self._timeout_s = timeout_s
        self._waker = Waker()
        self._inbox = AckInbox(self._waker)
        self._listener, route = self._listen()
        kinds = viewer.kinds
        if viewer.subscribes and self._listener is None:
            # Of outlines it then tells nothing at all.
            kinds = tuple(kind for kind in kinds if kind != "rois")
        self.tells_displayed = not viewer.subscribes and (
            viewer.settles or self._listener is not None
        )
        facts = ViewerFacts(
            viewer=viewer.kind, name=f"{viewer.title} at {endpoint.port}", pid=viewer.pid,
            host=machine_id(), token="", kinds=kinds,
        )  # fmt: skip
        self._session = ReceiverSession(facts, lane="", key="", trusted=True)
        self._out = OpenHCSOut(viewer, scope=secrets.token_hex(4), route=route)
        #: Raises InvalidItem for a layer that can't be shown there; from any thread.
        self.check = self._out.check
        self._outcomes = Outcomes(self._session, viewer, tells_displayed=self.tells_displayed)
        self._arenas = MappedArenas()
        self._partial: dict[int, npt.NDArray[np.uint8]] = {}
        self._outbox: deque[bytes] = deque()

    def _listen(self) -> tuple[AckListener | None, AckRoute | None]:
        """Where acknowledgements come, and what has to be said of it in each item."""
        endpoint, viewer = self._endpoint, self._viewer
        if viewer.routes_acknowledgements:
            wanted = "tcp://127.0.0.1:*"
            if endpoint.is_ipc:
                wanted = f"ipc://{runtime_folder()}/acks-{os.getpid()}.ipc"
            listener = listen(wanted, self._inbox)
            if listener is None:
                return None, None
            route = AckRoute(listener.address, str(uuid.uuid4()), os.getpid(), _process_started())
            return listener, route
        listener = listen(endpoint.ack_address, self._inbox)
        if listener is None:
            logger.warning(
                "another program listens at %s, where %s sends its acknowledgements: it %s",
                endpoint.ack_address,
                viewer.title,
                "is asked what it displays."
                if viewer.settles
                else "can be told when it has received something, not when it displays it.",
            )
        return listener, None

    # --- the thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Carry items over until one side ends."""
        try:
            self._questions = Questions(self._endpoint.control_address, timeout_s=self._timeout_s)
            self._settling = Settling(
                self._viewer, self._outcomes, self._questions, timeout_s=self._timeout_s
            )
            self._batches = Batches(
                self._endpoint, self._out, self._blocks, self._outcomes, self._settling,
                timeout_s=self._timeout_s,
            )  # fmt: skip
            try:
                while not self._is_over:
                    self._take_lane()
                    wait = self._work(time.monotonic())
                    self._report()
                    self._sleep(wait)
            finally:
                self._questions.close()
                self._batches.close()
        except LaneClosed:
            logger.debug("the stream to %s has gone", self._viewer.title)
        except StreamError as error:
            self._end(error.what)
        except Exception as error:
            logger.exception("the bridge to %s failed", self._viewer.title)
            self._end(f"{type(error).__name__}: {error}")
        finally:
            self._let_go()

    @property
    def _is_over(self) -> bool:
        return self._session.phase is ReceiverPhase.CLOSED

    def _work(self, now: float) -> float:
        """Do whatever can be done; for how long there is nothing to do unless something comes."""
        while (ack := self._inbox.take()) is not None:
            self._outcomes.acknowledged(ack, now, settles=self._settling.is_possible)
        self._questions.take_answer(now)
        batches = self._batches
        waits = [batches.work(now)]
        is_idle = not batches.waiting
        waits.append(self._settling.work(now, is_idle=is_idle, is_sending=batches.is_sending))
        waits.append(self._questions.ask(now))
        if self._outbox:
            waits.append(_NO_ROOM_S)
        return min(waits)

    def _sleep(self, wait: float) -> None:
        sockets = (self._batches.socket, self._questions.socket)
        if self._is_over or wait <= 0 or any(each.has_input() for each in sockets):
            return
        poller = select.poll()
        for fileno in (self._lane.fileno(), self._waker.fileno(), *(s.fileno() for s in sockets)):
            if fileno >= 0:
                poller.register(fileno, select.POLLIN)
        poller.poll(min(wait, _LOOK_EVERY_S) * 1000)
        self._waker.clear()

    def _end(self, reason: str) -> None:
        """The viewer is lost: the stream is told why, and every item that is open fails."""
        try:
            self._report()
            self._tell(Bye(reason[:4096].rstrip(".")))
        except LaneClosed:
            logger.debug("the stream was gone before it was told: %s", reason)

    def _let_go(self) -> None:
        self._lane.close()
        if self._listener is not None:
            self._listener.leave(self._inbox)
        self._arenas.close()
        self._blocks.close()
        self._waker.close()

    # --- the stream's side ----------------------------------------------------------------------

    def _take_lane(self) -> None:
        while not self._is_over and (frame := self._lane.receive()) is not None:
            self._carry_out(self._session.receive(decode(frame.data), time.monotonic()), frame)

    def _carry_out(self, effects: Sequence[Effect], frame: Frame) -> None:
        for effect in effects:
            match effect:
                case Take(item=item, spec=spec):
                    self._take(item, spec, self._array(item, frame))
                case TakePart():
                    self._take_part(effect, frame)
                case MapArena(arena=arena, nbytes=nbytes):
                    self._arenas.add(arena, nbytes, frame.fds[0])
                case UnmapArena(arena=arena):
                    self._arenas.retire(arena)
                case SendControl(message=message):
                    self._tell(message)
                case Answer(request=request):
                    self._answer(request)
                case _:
                    pass  # opened, ended, edits taken: nothing is to be done here

    def _array(self, item: messages.Item, frame: Frame) -> npt.NDArray[Any]:
        """The item's array where it lies, valid until it is reported; else a copy."""
        dtype = numpy_dtype(item.dtype)
        if item.nbytes == 0:
            return np.empty(item.shape, dtype)
        part = item.parts[0]
        if part.arena >= 0:
            array = self._arenas.array(part, item.shape, item.dtype)
            # Without a lease it is valid until the next item is reported, which may go out first.
            return array if part.lease else array.copy()
        return np.frombuffer(_blob(part, frame), dtype).reshape(item.shape)

    def _take_part(self, effect: TakePart, frame: Frame) -> None:
        """Collect an item that is larger than the stream's memory."""
        item, part = effect.item, effect.part
        buffer = self._partial.get(item.seq)
        if buffer is None:
            buffer = self._partial[item.seq] = np.empty(item.nbytes, np.uint8)
        if part.arena >= 0:
            source = self._arenas.view(part)
        else:
            source = np.frombuffer(_blob(part, frame), np.uint8)
        np.copyto(buffer[effect.offset : effect.offset + part.nbytes], source)
        if part.lease:
            self._session.released(part.lease)
        if effect.last:
            del self._partial[item.seq]
            array = buffer.view(numpy_dtype(item.dtype)).reshape(item.shape)
            self._take(item, effect.spec, array)

    def _take(self, item: messages.Item, spec: LayerSpec, array: npt.NDArray[Any]) -> None:
        try:
            pieces = self._cut(spec, item.place, array, item.info)
        except StreamError as error:
            self._session.failed(item.seq, str(error))
            return
        whole = Item(item.seq, len(pieces), len(pieces))
        self._batches.put(Sending(whole, piece) for piece in pieces)

    def _cut(
        self,
        spec: LayerSpec,
        place: Sequence[PlaceValue],
        array: npt.NDArray[Any],
        info: Mapping[str, Any],
    ) -> list[Piece]:
        match spec.kind:
            case "rois":
                return self._out.rois(spec, place, roi_codecs.decode(array.tobytes()), info)
            case "points":
                return self._out.points(spec, place, array, info)
            case _:
                return self._out.image(spec, place, array, info)

    def _tell(self, message: Message) -> None:
        self._outbox.append(encode(message))
        self._flush()

    def _report(self) -> None:
        while (report := self._session.report()) is not None:
            self._outbox.append(encode(report))
        self._flush()

    def _flush(self) -> None:
        while self._outbox and self._lane.send(self._outbox[0]):
            self._outbox.popleft()

    def _answer(self, request: Request) -> None:
        """A request of the stream, as far as such a viewer has something like it."""
        number = request.number
        if request.verb == "status":
            self._tell(Reply(number, True, self._status()))
            return
        verbs = {"clear": "clear_state", "stop": "shutdown"}
        if request.verb not in verbs:
            what = f"{self._viewer.title} knows nothing like {request.verb!r}."
            self._tell(
                Reply(number, False, None, what, f"It can be asked for status, {', '.join(verbs)}.")
            )
            return

        def reply(answer: dict[str, Any] | None) -> None:
            ok = answer is not None and answer.get("status", "success") in ("success", "ok")
            what = "" if ok else f"{self._viewer.title} answered {answer!r}."[:4096]
            self._tell(Reply(number, ok, None, what))

        self._questions.put(verbs[request.verb], reply)

    def _status(self) -> dict[str, Any]:
        viewer = self._viewer
        return {
            "viewer": viewer.kind,
            "name": f"{viewer.title} at {self._endpoint.port}",
            "pid": viewer.pid,
            "addresses": [self._endpoint.address],
            "dialect": "openhcs",
            "generation": viewer.generation,
            "acknowledges": self._listener is not None,
            "tells_displayed": self.tells_displayed,
            "waiting": self._batches.waiting + len(self._outcomes.open),
        }


def _blob(part: Part, frame: Frame) -> memoryview | bytes:
    if part.offset >= len(frame.blobs):
        raise ProtocolViolation(f"a part names frame {part.offset} of {len(frame.blobs)}.")
    return frame.blobs[part.offset]


def _process_started() -> float:
    """When this process began, in seconds since 1970; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="ascii") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0
    return booted + ticks / os.sysconf("SC_CLK_TCK")
