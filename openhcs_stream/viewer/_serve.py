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

import numpy as np

from openhcs_stream import discovery
from openhcs_stream.dialects import dialect_for, ipc_address
from openhcs_stream.errors import (
    InvalidItem,
    ProtocolViolation,
    StreamError,
    UsageError,
    ViewerLost,
)
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaOffer,
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
    TakePart,
    UnmapArena,
    ViewerFacts,
)
from openhcs_stream.transport import (
    InProcessListener,
    LaneClosed,
    UnixListener,
    Waker,
    ZmqPusher,
    ZmqRouter,
    has_unix_lanes,
    machine_id,
    new_token,
)
from openhcs_stream.viewer._placement import RASTER_KINDS, Placement
from openhcs_stream.viewer._png import encode_png
from openhcs_stream.viewer._scene import Arrival, Scene
from openhcs_stream.viewer._sessions import Peer, close_fds, payload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.dialects import ForeignBatch
    from openhcs_stream.discovery import Endpoint, Publication
    from openhcs_stream.messages import Item, LayerSpec, Message
    from openhcs_stream.protocol import Effect
    from openhcs_stream.transport import Frame, Lane, RouterMessage
    from openhcs_stream.viewer._base import Viewer
    from openhcs_stream.viewer._scene import SceneLayer

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


class _Foreign:
    """Ticket of an item of another project's sender."""

    __slots__ = ("batch", "item_id")

    def __init__(self, batch: ForeignBatch, item_id: str) -> None:
        self.batch = batch
        self.item_id = item_id


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
        self._pushers: dict[str, ZmqPusher] = {}
        self._kept: dict[tuple[Any, ...], Any] = {}
        # Between the two threads; a deque's ends are safe without a lock.
        self._arrivals: deque[Arrival] = deque()
        self._outcomes: deque[tuple[object, str | None]] = deque()
        self._asked: deque[tuple[Peer, Request]] = deque()
        self._replies: deque[tuple[Peer, Reply]] = deque()

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
            self._replies.append((peer, self._answer(request)))
            told = True
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
            broken = dict.fromkeys(changes.layers, _reason(error))
        for key, coords in changes.layers.items():
            if key in broken:
                continue
            try:
                viewer.show_layer(scene.layers[key], coords)
            except Exception as error:
                logger.exception("the viewer could not show %s", scene.layers[key].title)
                broken[key] = _reason(error)
        for arrival in arrivals:
            why = failed.get(id(arrival))
            if why is None and broken:
                keys = (each.key for each in arrival.placed)
                why = next((broken[key] for key in keys if key in broken), None)
            self._outcomes.append((arrival.ticket, why))

    def _answer(self, request: Request) -> Reply:
        try:
            value = self._do(request.verb, request.args)
        except StreamError as error:
            return Reply(request.number, False, None, error.what, error.cure)
        except Exception as error:
            logger.exception("request %r failed", request.verb)
            return Reply(request.number, False, None, _reason(error))
        return Reply(request.number, True, value)

    def _do(self, verb: str, args: Mapping[str, Any]) -> Any:
        match verb:
            case "clear":
                return self.clear()
            case "layers":
                return [_describe(layer) for layer in self.scene.layers.values()]
            case "read":
                return self._read(args)
            case "screenshot":
                picture = self.viewer.screenshot()
                return {"shape": list(picture.shape), "png": encode_png(picture)}
            case "stop":
                self.viewer.stop()
                return None
            case _:
                raise UsageError(
                    f"there is no request {verb!r}.",
                    cure="Known are status, layers, read, screenshot, clear and stop.",
                )

    def clear(self) -> int:
        """Take all layers off the screen; the number that there were. On the viewer's thread."""
        gone = self.scene.clear()
        self._kept.clear()
        for layer in gone:
            self.viewer.remove_layer(layer)
        self.viewer.set_axes(self.scene.axes)
        return len(gone)

    def _read(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """One plane as the viewer holds it, for those who want to look behind the picture."""
        title, place = args.get("layer"), dict(args.get("place") or {})
        layer = next((each for each in self.scene.layers.values() if each.title == title), None)
        if layer is None or layer.kind not in RASTER_KINDS:
            known = [each.title for each in self.scene.layers.values()]
            raise InvalidItem(
                f"there is no image or label layer {title!r}.", cure=f"There are {known}."
            )
        coords = tuple(place.get(component, "") for component in layer.components)
        plane = layer.stack.planes.get(coords)
        if plane is None:
            raise InvalidItem(
                f"layer {title!r} has nothing at {place}.",
                cure=f"It is stacked by {layer.components}.",
            )
        array = np.ascontiguousarray(plane)
        return {"shape": list(array.shape), "dtype": array.dtype.str, "data": array.tobytes()}

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
            peer.session.failed(item.seq, _reason(error))
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
            peer.session.failed(item.seq, _reason(error))
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
    ) -> Any:
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
        self._asked.append((peer, request))

    # --- other people's senders ---------------------------------------------------------------

    def _take_foreign(self, message: RouterMessage) -> None:
        frame = message.frames[0] if message.frames else memoryview(b"")
        dialect = dialect_for(frame)
        if dialect is None:
            logger.warning("ignored a message of %d bytes in no known dialect", len(frame))
            if message.delimited:
                # A REQ socket waits for ever otherwise.
                self._reply_foreign(message, b'{"status": "error", "message": "not understood"}')
            return
        try:
            batch = dialect.read(
                frame,
                viewer=self.viewer.name,
                viewer_port=self._port or (self.endpoint.port if self.endpoint else 0) or 0,
                local_ipc=not message.peer_address,
            )
        except ProtocolViolation as error:
            logger.warning("refused a message of an OpenHCS sender: %s", error)
            self._reply_foreign(message, dialect.error_reply(str(error)))
            return
        failed: dict[str, str] = {}
        for item in batch.items:
            try:
                placement = self._placement(item.spec)
                if item.spec.kind in RASTER_KINDS:
                    placed = self._keep(placement, item.spec, item.place, item.payload, owned=False)
                else:
                    placed = placement.place(item.place, item.payload)
                self._arrivals.append(Arrival(_Foreign(batch, item.id), placed, dict(item.info)))
            except Exception as error:
                logger.info("an item of an OpenHCS sender can't be shown: %s", error)
                failed[item.id] = _reason(error)
            finally:
                item.finish()
        self._reply_foreign(message, batch.reply(failed))
        for item_id, reason in [*batch.failures, *failed.items()]:
            self._push_ack(batch, item_id, reason)

    def _reply_foreign(self, message: RouterMessage, reply: bytes) -> None:
        assert self._router is not None
        if message.delimited:
            try:
                self._router.send(message.identity, [reply], delimited=True)
            except LaneClosed:
                logger.debug("an OpenHCS sender was gone before its answer")

    def _push_ack(self, batch: ForeignBatch, item_id: str, reason: str | None) -> None:
        address = batch.ack_address
        if address is None:
            return
        pusher = self._pushers.get(address)
        if pusher is None:
            pusher = self._pushers[address] = ZmqPusher(address)
        pusher.send(batch.ack(item_id, displayed=reason is None, reason=reason or ""))

    # --- telling, tending ---------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell the senders what became of their items, all that waits in one message each."""
        while self._outcomes:
            ticket, reason = self._outcomes.popleft()
            if isinstance(ticket, _Foreign):
                self._push_ack(ticket.batch, ticket.item_id, reason)
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
        for pusher in self._pushers.values():
            pusher.close()
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


def _describe(layer: SceneLayer) -> dict[str, Any]:
    described: dict[str, Any] = {
        "title": layer.title,
        "kind": layer.kind,
        "name": layer.key.name,
        "source": layer.key.source,
        "split": dict(layer.key.split),
        "components": list(layer.components),
    }
    if layer.kind in RASTER_KINDS:
        described |= {
            "shape": list(layer.stack.shape),
            "dtype": layer.stack.dtype.str,
            "planes": [list(coords) for coords in layer.stack.planes],
        }
    else:
        described["items"] = [[list(coords), len(item)] for coords, item in layer.items.items()]
    return described


def _reason(error: BaseException) -> str:
    if isinstance(error, StreamError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000]


def _short() -> str:
    return secrets.token_hex(3)
