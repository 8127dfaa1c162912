"""The receiver: takes streams in on a thread of its own and feeds a viewer at display rate.

The thread copies pixels out, gives the senders' memory back and says *received*, whatever the
window is doing. The viewer's own thread calls `tick`, which places everything that came since
the last one, draws once, and says *displayed* or *failed*.
"""

from __future__ import annotations

import getpass
import itertools
import logging
import os
import secrets
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from openhcs_stream import discovery
from openhcs_stream.dialects import ipc_address
from openhcs_stream.errors import (
    ProtocolViolation,
    StreamError,
    UsageError,
    ViewerLost,
)
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaOffer,
    Edited,
    LaneOpened,
    Mode,
    PlaceValue,
    Refusal,
    Reply,
    Request,
    canonical_component,
    decode,
    encode,
)
from openhcs_stream.protocol import (
    SILENCE_S,
    Answer,
    Ended,
    MapArena,
    Opened,
    ReceiverPhase,
    ReceiverSession,
    SendControl,
    Take,
    Taken,
    TakePart,
    UnmapArena,
    ViewerFacts,
)
from openhcs_stream.transport import (
    InProcessListener,
    LaneClosed,
    UnixListener,
    Waker,
    ZmqRouter,
    has_unix_lanes,
    machine_id,
    new_token,
)
from openhcs_stream.viewer._edits import EditBook, Wanted
from openhcs_stream.viewer._foreign import ForeignSenders, ForeignTicket, reason_of
from openhcs_stream.viewer._placement import RASTER_KINDS, Placement
from openhcs_stream.viewer._png import encode_png
from openhcs_stream.viewer._queries import describe_layers, places, read
from openhcs_stream.viewer._questions import Questions
from openhcs_stream.viewer._requests import (
    MAX_LISTENERS,
    AskArgs,
    EditsArgs,
    NoEditsArgs,
    WithdrawArgs,
    arguments,
)
from openhcs_stream.viewer._scene import Arrival, Scene
from openhcs_stream.viewer._sessions import Peer, close_fds, payload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.dialects import ForeignItem
    from openhcs_stream.discovery import Endpoint, Publication
    from openhcs_stream.messages import EditRecord, Item, LayerSpec, Message
    from openhcs_stream.protocol import Effect
    from openhcs_stream.transport import Frame, Lane, RouterMessage
    from openhcs_stream.viewer._base import Viewer
    from openhcs_stream.viewer._edits import Change, Painting
    from openhcs_stream.viewer._placement import PlacedItem
    from openhcs_stream.viewer._questions import Outcome

__all__ = ["TICK_S", "Receiver", "serve"]

logger = logging.getLogger(__name__)

#: How often a viewer with a window places and draws what came: 30 times a second.
TICK_S = 0.033
#: Sessions at the same time.
MAX_SESSIONS = 1024
#: A side lane, or a session, that says nothing for this long is closed.
GREETING_S = 10.0
#: Longest sleep of the receiver's thread; it only bounds how late silence is noticed.
LOOK_EVERY_S = 1.0


class _Own:
    """Ticket of an item of a native session."""

    __slots__ = ("peer", "seq")

    def __init__(self, peer: Peer, seq: int) -> None:
        self.peer = peer
        self.seq = seq


class Receiver:
    """Serves one viewer to any number of senders.

    Parameters
    ----------
    viewer : Viewer
    name : str or None
        What this running viewer is called; None: the viewer's kind, numbered if that is taken.
    port : int or None
        TCP port on the loopback interface, 0 for any free one; None: no TCP. OpenHCS senders
        meet it there, and at the ipc address that they derive from the port.
    addresses : sequence of str
        Further addresses: "ipc:///path", "tcp://127.0.0.1:5555", "inproc://name".
    modes : mapping of component to mode
        How components are shown where the stream does not say.
    required : sequence of str
        Components that every place must have.
    headless : bool
        Told to those who look for a viewer with a window.
    publish : bool
        Whether others can find it by name.
    """

    def __init__(
        self,
        viewer: Viewer,
        *,
        name: str | None = None,
        port: int | None = None,
        addresses: Sequence[str] = (),
        modes: Mapping[str, Mode] | None = None,
        required: Sequence[str] = (),
        headless: bool = False,
        publish: bool = True,
    ) -> None:
        self.viewer = viewer
        self.scene = Scene()
        self.endpoint: Endpoint | None = None
        self._name = name
        self._port = port
        self._addresses = tuple(addresses)
        self._modes = {canonical_component(key): mode for key, mode in (modes or {}).items()}
        self._required = tuple(canonical_component(component) for component in required)
        self._headless = headless
        self._publish = publish
        self._facts: ViewerFacts | None = None
        self._router: ZmqRouter | None = None
        self._listeners: list[UnixListener | InProcessListener] = []
        self._side_address = ""
        self._publication: Publication | None = None
        self._thread: threading.Thread | None = None
        self._waker = Waker()
        self._stopping = False
        self._started = time.time()
        self._peers: dict[int, Peer] = {}
        self._by_identity: dict[bytes, Peer] = {}
        self._lane_peers: dict[int, tuple[Lane, Peer]] = {}
        self._new_lanes: dict[int, tuple[Lane, float, bool]] = {}
        self._keys = itertools.count()
        self._kept: dict[tuple[Any, ...], Any] = {}
        # Between the two threads; a deque's ends are safe without a lock.
        self._arrivals: deque[Arrival] = deque()
        self._outcomes: deque[tuple[object, str | None]] = deque()
        self._asked: deque[tuple[Peer, Request]] = deque()
        self._replies: deque[tuple[Peer, Reply]] = deque()
        self._edited: deque[EditRecord] = deque()
        self.edits = EditBook()
        self._questions = Questions(viewer)
        self._ended: deque[Peer] = deque()
        viewer.watch_edits(self._note_edit)
        self._foreign = ForeignSenders(
            viewer.name, place=self._place_foreign, arrive=self._arrivals.append
        )

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> Endpoint:
        """Bind, begin to receive, and become findable.

        Raises
        ------
        UsageError
            An address or the name is taken, or can't be used.
        """
        plain = [each for each in self._addresses if not each.startswith("inproc://")]
        ipc = discovery.runtime_folder() / f"{self.viewer.name}-{os.getpid()}-{_short()}.ipc"
        plain.insert(0, f"ipc://{ipc}")
        if self._port is not None:
            plain.append(f"tcp://127.0.0.1:{self._port}")
            if self._port:
                plain.append(ipc_address(self._port, make_folder=True))
        try:
            self._router = ZmqRouter(plain)
            for address in self._addresses:
                if address.startswith("inproc://"):
                    self._listeners.append(InProcessListener(address.removeprefix("inproc://")))
            if has_unix_lanes():
                side = UnixListener()
                self._side_address = side.address
                self._listeners.append(side)
            endpoint = discovery.Endpoint(
                viewer=self.viewer.name,
                name=self._name or self.viewer.name,
                pid=os.getpid(),
                started=self._started,
                protocol=(MAJOR, MINOR),
                addresses=self._router.addresses,
                token=new_token(),
                headless=self._headless,
            )
            if self._publish:
                self._publication = discovery.publish(endpoint, number=self._name is None)
                endpoint = self._publication.endpoint
        except BaseException:
            self.close()
            raise
        self.endpoint = endpoint
        self._facts = ViewerFacts(
            viewer=self.viewer.name,
            name=endpoint.name,
            pid=endpoint.pid,
            host=machine_id(),
            token=endpoint.token,
            modes=self._modes,
            required=self._required,
        )
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()
        return endpoint

    def close(self) -> None:
        """End all sessions, let go of all addresses. Idempotent; what is on the screen stays."""
        self._stopping = True
        self._waker.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)
        if self._publication is not None:
            self._publication.close()
        if self._thread is None:
            # Else the thread, which alone may touch the sockets, has let go of them.
            self._let_go()
        self._waker.close()

    def __enter__(self) -> Receiver:
        if self.endpoint is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- on the viewer's own thread -----------------------------------------------------------

    def tick(self) -> None:
        """Show everything that came since the last tick, and answer what was asked."""
        told = False
        if self._arrivals:
            arrivals = []
            while self._arrivals:
                arrivals.append(self._arrivals.popleft())
            self._show(arrivals)
            told = True
        while self._asked:
            peer, request = self._asked.popleft()
            reply = self._answer(peer, request)
            if reply is not None:
                self._replies.append((peer, reply))
            told = True
        while self._ended:
            self._questions.withdraw_of(self._ended.popleft())
        if told:
            self._waker.set()

    def _show(self, arrivals: list[Arrival]) -> None:
        viewer, scene = self.viewer, self.scene
        failed: dict[int, str] = {}
        broken: dict[object, str] = {}
        changes = scene.commit(arrivals)
        for arrival, reason in changes.failures:
            failed[id(arrival)] = reason
        try:
            if changes.axes_changed:
                viewer.set_axes(scene.axes)
        except Exception as error:
            logger.exception("the viewer could not take its new axes")
            broken = dict.fromkeys(changes.layers, reason_of(error))
        for key, coords in changes.layers.items():
            if key in broken:
                continue
            try:
                viewer.show_layer(scene.layers[key], coords)
            except Exception as error:
                logger.exception("the viewer could not show %s", scene.layers[key].title)
                broken[key] = reason_of(error)
        for arrival in arrivals:
            why = failed.get(id(arrival))
            if why is None and broken:
                keys = (each.key for each in arrival.placed)
                why = next((broken[key] for key in keys if key in broken), None)
            self._outcomes.append((arrival.ticket, why))

    def _note_edit(self, change: Change | Painting) -> None:
        """On the viewer's own thread: a person changed something."""
        self._edited.extend(self.edits.take(change))
        self._waker.set()

    def _answer(self, peer: Peer, request: Request) -> Reply | None:
        """The answer, or None where it comes when a person has given it."""
        try:
            if request.verb == "ask":
                self._ask(peer, request)
                return None
            if request.verb == "withdraw":
                number = arguments(request, WithdrawArgs).number
                self._questions.withdraw(peer, number)
                return Reply(request.number, True)
            value = self._do(request.verb, request.args)
        except StreamError as error:
            return Reply(request.number, False, None, error.what, error.cure)
        except Exception as error:
            logger.exception("request %r failed", request.verb)
            return Reply(request.number, False, None, reason_of(error))
        return Reply(request.number, True, value)

    def _ask(self, peer: Peer, request: Request) -> None:
        question = arguments(request, AskArgs)

        def answered(outcome: Outcome) -> None:
            self.viewer.finish_edits()
            self._replies.append((peer, Reply(request.number, True, outcome)))
            self._waker.set()

        self._questions.ask(
            peer,
            request.number,
            question.text,
            worker=peer.label,
            names=question.names,
            place=question.place,
            answered=answered,
        )

    def _do(self, verb: str, args: Mapping[str, Any]) -> Any:
        match verb:
            case "clear":
                return self.clear()
            case "layers":
                return describe_layers(self.scene)
            case "places":
                self.viewer.finish_edits()
                return places(self.scene, args)
            case "read":
                self.viewer.finish_edits()
                return read(self.scene, args)
            case "waiting_edits":
                self.viewer.finish_edits()
                return [encode(Edited(each, ())) for each in self.edits.waiting()]
            case "screenshot":
                picture = self.viewer.screenshot()
                return {"shape": list(picture.shape), "png": encode_png(picture)}
            case "stop":
                self.viewer.stop()
                return None
            case _:
                raise UsageError(
                    f"there is no request {verb!r}.",
                    cure="Known are status, layers, places, read, edits, no_edits, "
                    "waiting_edits, ask, withdraw, screenshot, clear and stop.",
                )

    def clear(self) -> int:
        """Take all layers off the screen; the number that there were. On the viewer's thread."""
        gone = self.scene.clear()
        self._kept.clear()
        for layer in gone:
            self.viewer.remove_layer(layer)
        self.viewer.set_axes(self.scene.axes)
        return len(gone)

    # --- from anywhere ------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """This viewer and its streams: JSON-able."""
        endpoint = self.endpoint
        return {
            "viewer": self.viewer.name,
            "name": endpoint.name if endpoint else "",
            "pid": os.getpid(),
            "user": getpass.getuser(),
            "headless": self._headless,
            "addresses": list(endpoint.addresses) if endpoint else [],
            "uptime_s": round(time.time() - self._started, 3),
            "layers": len(self.scene.layers),
            "streams": [
                {
                    "name": peer.label,
                    "pid": peer.session.hello.pid,
                    "shared_memory": peer.side is not None,
                    "received": peer.received,
                    "displayed": peer.displayed,
                    "failed": peer.failed,
                    "waiting": peer.waiting,
                    "nbytes": peer.nbytes,
                    "age_s": round(time.monotonic() - peer.started, 3),
                }
                for peer in list(self._peers.values())
                if peer.session.hello is not None and peer.session.hello.role == "stream"
            ],
            **self.viewer.describe(),
        }

    # --- the receiver's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wait()
                self._waker.clear()
                self._take_router()
                for listener in self._listeners:
                    self._accept(listener)
                for lane, _, trusted in list(self._new_lanes.values()):
                    self._greet(lane, trusted)
                for lane, peer in list(self._lane_peers.values()):
                    self._take_lane(peer, lane)
                if self._arrivals or self._asked:
                    # Once for all that came: a wake-up for each would make the threads take turns.
                    self.viewer.poke()
                self._tell()
                self._tend()
        except Exception as error:
            # Without its receiver a viewer only pretends to live.
            logger.exception("the receiver's thread failed")
            self._stopping = True
            self._error = error
            self.viewer.stop()
        finally:
            self._let_go()

    def _wait(self) -> None:
        router = self._router
        assert router is not None
        if router.has_input():
            return
        poller = select.poll()
        poller.register(self._waker.fileno(), select.POLLIN)
        poller.register(router.fileno(), select.POLLIN)
        for listener in self._listeners:
            poller.register(listener.fileno(), select.POLLIN)
        for lane, _, _ in self._new_lanes.values():
            poller.register(lane.fileno(), select.POLLIN)
        for lane, peer in self._lane_peers.values():
            out = select.POLLOUT if peer.wants_to_send() and lane.polls_out else 0
            poller.register(lane.fileno(), select.POLLIN | out)
        poller.poll(LOOK_EVERY_S * 1000)

    def _take_router(self) -> None:
        assert self._router is not None
        for _ in range(256):
            message = self._router.receive()
            if message is None:
                return
            if message.is_native:
                self._take_native(message)
            else:
                self._take_foreign(message)

    def _take_native(self, message: RouterMessage) -> None:
        assert self._router is not None
        peer = self._by_identity.get(message.identity)
        lane = self._router.lane(message.identity)
        if peer is None:
            if len(self._peers) >= MAX_SESSIONS:
                logger.warning("refused a session: %d are open", MAX_SESSIONS)
                refusal = Refusal(
                    f"{MAX_SESSIONS} sessions are open already.",
                    "Close some, or use one more often.",
                )
                lane.send(encode(refusal))
                lane.close()
                return
            # Over ipc the socket's folder and the system's own check prove who it is.
            peer = self._new_peer(lane, trusted=not message.peer_address)
            self._by_identity[message.identity] = peer
        lane.deliver(message.to_frame())
        self._take_lane(peer, lane)

    def _new_peer(self, lane: Lane, *, trusted: bool) -> Peer:
        assert self._facts is not None
        side = "" if lane.carries_fds else self._side_address
        session = ReceiverSession(self._facts, lane=side, key=new_token(), trusted=trusted)
        peer = Peer(session, lane)
        session.heard_at = time.monotonic()
        self._peers[id(peer)] = peer
        return peer

    def _accept(self, listener: UnixListener | InProcessListener) -> None:
        while (lane := listener.accept()) is not None:
            if isinstance(listener, InProcessListener):
                peer = self._new_peer(lane, trusted=True)
                peer.side = lane
                self._lane_peers[id(lane)] = (lane, peer)
            else:
                self._new_lanes[id(lane)] = (lane, time.monotonic(), True)

    def _greet(self, lane: Lane, trusted: bool) -> None:
        """A new side lane says which session it belongs to, or is closed."""
        try:
            frame = lane.receive()
            if frame is None:
                return
            close_fds(frame)
            message = decode(frame.data)
            if not isinstance(message, LaneOpened):
                raise ProtocolViolation("a new lane began with something else than LaneOpened.")
            peer = next(
                (
                    each
                    for each in self._peers.values()
                    if each.session.hello is not None
                    and each.session.hello.session == message.session
                ),
                None,
            )
            if peer is None:
                raise ProtocolViolation("a lane was opened for a session that is not there.")
            peer.session.lane_opened(message, time.monotonic())
        except StreamError as error:
            logger.warning("closed a lane: %s", error)
            del self._new_lanes[id(lane)]
            lane.close()
            return
        del self._new_lanes[id(lane)]
        peer.side = lane
        self._lane_peers[id(lane)] = (lane, peer)
        self._take_lane(peer, lane)

    def _take_lane(self, peer: Peer, lane: Lane) -> None:
        """Take in what waits on one lane; a peer's fault ends its session and no other."""
        try:
            for message, frame in peer.frames(lane):
                self._take(peer, message, frame)
        except LaneClosed as error:
            gone = ViewerLost(f"{peer.label} is gone: {error.what}")
            self._carry_out(peer, peer.session.lost(gone), None)
        except StreamError as error:
            logger.warning("ended the session of %s: %s", peer.label, error)
            self._carry_out(peer, peer.session.lost(error), None)
        if not peer.is_closed:
            peer.send_report()

    def _take(self, peer: Peer, message: Message, frame: Frame) -> None:
        if frame.fds and not isinstance(message, ArenaOffer):
            close_fds(frame)
            raise ProtocolViolation("descriptors came with a message that has none.")
        try:
            effects = peer.session.receive(message, time.monotonic())
        except StreamError:
            close_fds(frame)
            raise
        if frame.fds and not any(isinstance(effect, MapArena) for effect in effects):
            close_fds(frame)  # the session is over: nobody maps it
        self._carry_out(peer, effects, frame)

    def _carry_out(self, peer: Peer, effects: Sequence[Effect], frame: Frame | None) -> None:
        for effect in effects:
            match effect:
                case Take(item=item, spec=spec):
                    assert frame is not None
                    array = peer.array(item, frame.blobs)
                    self._keep_own(peer, item, spec, array, owned=False)
                case TakePart(item=item, spec=spec):
                    assert frame is not None
                    self._collect(peer, effect, frame)
                case MapArena(arena=arena, nbytes=nbytes):
                    assert frame is not None
                    if len(frame.fds) != 1:
                        close_fds(frame)
                        raise ProtocolViolation(
                            f"an arena came with {len(frame.fds)} descriptors, not one."
                        )
                    peer.arenas.add(arena, nbytes, frame.fds[0])
                case UnmapArena(arena=arena):
                    peer.arenas.retire(arena)
                case SendControl(message=message):
                    peer.send_control(message)
                case Answer(request=request):
                    self._take_request(peer, request)
                case Taken(numbers=numbers):
                    self.edits.taken(numbers)
                case Opened():
                    logger.debug("session with %r opened", peer.label)
                case Ended(error=error):
                    if error is not None:
                        logger.info("%s", error)
                    self._drop(peer)
                case _:
                    pass

    def _collect(self, peer: Peer, effect: TakePart, frame: Frame) -> None:
        item = effect.item
        try:
            array = peer.collect(effect, frame.blobs)
        except MemoryError as error:
            peer.forget(item.seq)
            peer.session.failed(item.seq, reason_of(error))
            peer.failed += 1
            return
        if array is not None:
            self._keep_own(peer, item, effect.spec, array, owned=True)

    def _keep_own(
        self, peer: Peer, item: Item, spec: LayerSpec, array: npt.NDArray[Any], *, owned: bool
    ) -> None:
        try:
            placement = peer.placements.get(item.layer)
            if placement is None:
                placement = peer.placements[item.layer] = self._placement(spec)
            placed = self._keep(placement, spec, item.place, array, owned=owned)
        except ProtocolViolation:
            raise
        except Exception as error:
            # Whatever is wrong with one item, the others go on; the sender learns the reason.
            logger.info("an item of %s can't be shown: %s", peer.label, error)
            peer.session.failed(item.seq, reason_of(error))
            peer.failed += 1
            return
        peer.session.received(item.seq)
        peer.received += 1
        peer.waiting += 1
        peer.nbytes += item.nbytes
        self._arrivals.append(Arrival(_Own(peer, item.seq), placed, dict(item.info)))

    def _placement(self, spec: LayerSpec) -> Placement:
        return Placement(spec, modes=self._modes, splits=self.viewer.splits)

    def _keep(
        self,
        placement: Placement,
        spec: LayerSpec,
        place: tuple[PlaceValue, ...],
        array: npt.NDArray[Any],
        *,
        owned: bool,
    ) -> tuple[PlacedItem, ...]:
        """Copy an item to where it will stand, and say where that is."""
        if spec.kind not in RASTER_KINDS:
            columns = len(spec.axes) + (spec.kind == "tracks")
            payload = payload_of(spec.kind, array, columns)
            return placement.place(place, payload)
        # The same place, shape and dtype again: its memory is written over, not made anew.
        key = (spec.kind, spec.source, spec.name, spec.axes, spec.components, place,
               array.shape, array.dtype.str)  # fmt: skip
        recycled = self._kept.get(key)
        planes = placement.arrange(array)
        if owned:
            kept = self.viewer.adopt(planes, spec)
        else:
            kept = self.viewer.keep(planes, recycled, spec)
        placed = placement.cut(place, kept)
        self._kept[key] = kept
        return placed

    def _take_request(self, peer: Peer, request: Request) -> None:
        if request.verb == "status":
            # Answered here, so that it works while the window is busy.
            peer.send_control(Reply(request.number, True, self.status()))
            return
        if request.verb not in ("edits", "no_edits"):
            self._asked.append((peer, request))
            return
        try:
            self._listen(peer, request)
        except UsageError as error:
            peer.send_control(Reply(request.number, False, None, error.what, error.cure))
            return
        peer.send_control(Reply(request.number, True))

    def _listen(self, peer: Peer, request: Request) -> None:
        """A sender wants to hear of edits, or no longer."""
        if request.verb == "no_edits":
            peer.wanted.pop(arguments(request, NoEditsArgs).listener, None)
            return
        args = arguments(request, EditsArgs)
        if len(peer.wanted) >= MAX_LISTENERS:
            raise UsageError(
                f"{MAX_LISTENERS} listeners of {peer.label} are open already.", cure="Close some."
            )
        wanted = Wanted(frozenset(args.names), dict(args.place))
        peer.wanted[args.listener] = wanted
        for edit in self.edits.waiting(wanted):
            peer.send_edit(edit)

    def _take_foreign(self, message: RouterMessage) -> None:
        assert self._router is not None
        port = self._port or (self.endpoint.port if self.endpoint else 0) or 0
        self._foreign.take(message, self._router, port)

    def _place_foreign(self, item: ForeignItem) -> tuple[PlacedItem, ...]:
        placement = self._placement(item.spec)
        if item.spec.kind not in RASTER_KINDS:
            return placement.place(item.place, item.payload)
        return self._keep(placement, item.spec, item.place, item.payload, owned=False)

    # --- telling, tending ---------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell the senders what became of their items, all that waits in one message each."""
        while self._outcomes:
            ticket, reason = self._outcomes.popleft()
            if isinstance(ticket, ForeignTicket):
                self._foreign.tell(ticket, reason)
                continue
            assert isinstance(ticket, _Own)
            peer = ticket.peer
            peer.waiting -= 1
            if reason is None:
                peer.displayed += 1
                peer.session.displayed(ticket.seq)
            else:
                peer.failed += 1
                peer.session.failed(ticket.seq, reason)
        while self._edited:
            edit = self._edited.popleft()
            for peer in self._peers.values():
                peer.send_edit(edit)
        while self._replies:
            peer, reply = self._replies.popleft()
            if not peer.is_closed:
                peer.send_control(reply)
        for peer in self._peers.values():
            peer.send_report()
            peer.flush()

    def _tend(self) -> None:
        """Close what was opened and never said who it is, and senders that fell silent."""
        now = time.monotonic()
        for lane, since, _ in list(self._new_lanes.values()):
            if now - since > GREETING_S:
                del self._new_lanes[id(lane)]
                lane.close()
        for peer in list(self._peers.values()):
            session = peer.session
            limit = GREETING_S if session.phase is ReceiverPhase.WAITING else SILENCE_S
            # With a side lane the end of file tells; without one only silence does.
            if peer.side is None and now - session.heard_at > limit:
                self._carry_out(peer, session.lost(None), None)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(id(peer), None)
        self._ended.append(peer)
        if peer.side is not None:
            self._lane_peers.pop(id(peer.side), None)
        for identity, each in list(self._by_identity.items()):
            if each is peer:
                del self._by_identity[identity]
        peer.flush()
        peer.close()

    def _let_go(self) -> None:
        for peer in list(self._peers.values()):
            self._drop(peer)
        for lane, _, _ in self._new_lanes.values():
            lane.close()
        self._new_lanes.clear()
        for listener in self._listeners:
            listener.close()
        self._foreign.close()
        if self._router is not None:
            self._router.close()
        self._kept.clear()


def serve(
    viewer: Viewer,
    *,
    name: str | None = None,
    port: int | None = None,
    addresses: Sequence[str] = (),
    modes: Mapping[str, Mode] | None = None,
    required: Sequence[str] = (),
    headless: bool = False,
    on_ready: Callable[[Endpoint], None] | None = None,
) -> None:
    """Run a viewer with its receiver on this thread until it is stopped.

    Parameters are those of `Receiver`; `on_ready` is called when it can be found.
    """
    receiver = Receiver(
        viewer, name=name, port=port, addresses=addresses, modes=modes, required=required,
        headless=headless,
    )  # fmt: skip
    endpoint = receiver.start()
    try:
        if on_ready is not None:
            on_ready(endpoint)
        viewer.run(receiver.tick, TICK_S)
    finally:
        receiver.close()


def _short() -> str:
    return secrets.token_hex(3)
