"""The receiver: takes streams in on a thread of its own and feeds a viewer at display rate.

The thread copies pixels out, gives the senders' memory back and says *received*, whatever the
window is doing. The viewer's own thread calls `tick`, which places everything that came since
the last one, draws once, and says *displayed* or *failed*.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import logging
import os
import secrets
import select
import threading
import time
from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, get_args

from openhcs_stream import discovery
from openhcs_stream.errors import (
    InvalidItem,
    OutOfSpace,
    ProtocolViolation,
    StreamError,
    UsageError,
    ViewerLost,
    printable,
)
from openhcs_stream.logs import RecentLines, log_event
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaOffer,
    Edited,
    FileShown,
    Hello,
    LaneOpened,
    LayerDeclared,
    Mode,
    PlaceValue,
    Refusal,
    Reply,
    Request,
    canonical_component,
    decode,
    encode,
)
from openhcs_stream.pixels import MAX_ARENA_NBYTES, Copier, give_back_free_memory
from openhcs_stream.protocol import (
    SILENCE_S,
    Accounts,
    Answer,
    Ended,
    MapArena,
    Opened,
    ReceiverPhase,
    ReceiverSession,
    SendControl,
    Take,
    TakeFile,
    Taken,
    TakePart,
    UnmapArena,
    ViewerFacts,
)
from openhcs_stream.runtime import runtime_folder
from openhcs_stream.transport import (
    InProcessListener,
    LaneClosed,
    SparingLog,
    UnixListener,
    Waker,
    ZmqLane,
    ZmqRouter,
    has_unix_lanes,
    machine_id,
    new_token,
)
from openhcs_stream.viewer._budget import (
    PLACE_NBYTES,
    Budget,
    check_memory,
    default_memory_nbytes,
)
from openhcs_stream.viewer._counts import (
    CLOSED_BY_WORKER,
    EndedStreams,
    package_version,
    resident_nbytes,
)
from openhcs_stream.viewer._descriptors import RESERVE, spare_descriptors
from openhcs_stream.viewer._edits import EditBook, Wanted
from openhcs_stream.viewer._files import formats
from openhcs_stream.viewer._foreign import ForeignSenders, ForeignTicket, reason_of
from openhcs_stream.viewer._kept import Keeper, Removal, WhenMemoryFull
from openhcs_stream.viewer._placement import RASTER_KINDS, Placement
from openhcs_stream.viewer._png import encode_png
from openhcs_stream.viewer._queries import describe_layers, places, read
from openhcs_stream.viewer._questions import Questions
from openhcs_stream.viewer._reach import Reach
from openhcs_stream.viewer._requests import (
    MAX_LISTENERS,
    AskArgs,
    DroppedArgs,
    EditsArgs,
    NoEditsArgs,
    WithdrawArgs,
    arguments,
)
from openhcs_stream.viewer._scene import Arrival, Scene
from openhcs_stream.viewer._sessions import Peer, as_array, close_fds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

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
#: Pieces of shared memory that all sessions may have mapped, and their bytes: senders have filled
#: them, so that they are no more than the machine has. The system allows 65530 mappings.
MAX_MAPPED = 16_384
MAX_MAPPED_NBYTES = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
#: Side lanes that have not said whose they are.
MAX_NEW_LANES = 64
#: Requests that wait for the viewer's own thread.
MAX_ASKED = 1024
#: A side lane, or a session, that says nothing for this long is closed.
GREETING_S = 10.0
#: Memory that many messages took is given back after so many, and not more often than this.
TRIM_AFTER = 1000
TRIM_EVERY_S = 10.0
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
    public : str or None
        Who may connect at the port besides this user's processes on this machine. None: nobody.
        Else whoever has a copy of `viewer_file`, from other machines as well: "" or how they call
        this one; "localhost": from this machine only. The port is then encrypted, and OpenHCS
        senders meet it at the ipc address alone.
    new_keys : bool
        Make new keys for that: copies that were given out before are void.
    memory_nbytes : int or None
        What items may take up here, pixels and lists, waiting or shown. None: half of the memory
        that this process may use.
    when_memory_full : "refuse" or "oldest"
        What happens to an item for which there is no room. "refuse": it fails, with that reason.
        "oldest": the time points that were written longest ago go, or where there are none, the
        images; that is told in the log, in `status` and to whoever had sent them.

    Attributes
    ----------
    viewer_file : Path or None
        With `public`: what others need a copy of, from `start` on.
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
        public: str | None = None,
        new_keys: bool = False,
        memory_nbytes: int | None = None,
        when_memory_full: WhenMemoryFull = "refuse",
    ) -> None:
        if memory_nbytes is None:
            memory_nbytes = default_memory_nbytes()
        if when_memory_full not in get_args(WhenMemoryFull):
            raise InvalidItem(
                f"when_memory_full={when_memory_full!r} is no policy.",
                cure='Use "refuse" or "oldest".',
            )
        self.viewer = viewer
        viewer.copier = Copier()
        self.scene = Scene()
        self.endpoint: Endpoint | None = None
        self._name = name
        self._port = port
        self._addresses = tuple(addresses)
        self._modes = {canonical_component(key): mode for key, mode in (modes or {}).items()}
        self._required = tuple(canonical_component(component) for component in required)
        self._headless = headless
        self._publish = publish
        self._public = public
        self._new_keys = new_keys
        self.viewer_file: Path | None = None
        self._facts: ViewerFacts | None = None
        self._router: ZmqRouter | None = None
        self._listeners: list[UnixListener | InProcessListener] = []
        self._side_address = ""
        self._publication: Publication | None = None
        self._thread: threading.Thread | None = None
        self._waker = Waker()
        self._poller = select.poll()
        self._polled: dict[int, int] = {}  #: what is registered there
        self._stopping = False
        self._started = time.time()
        self._peers: dict[int, Peer] = {}
        self._by_identity: dict[bytes, Peer] = {}
        self._accounts = Accounts()
        self._lane_peers: dict[int, tuple[Lane, Peer]] = {}
        self._new_lanes: dict[int, tuple[Lane, float, bool]] = {}
        self._keys = itertools.count()
        self._history = EndedStreams()
        # What a peer can bring about as often as it likes.
        #: Messages by ZeroMQ since memory that they took was given back to the system, and when.
        self._taken = 0
        self._trimmed_at = time.monotonic()
        self._foreign_refused = SparingLog(logger, logging.WARNING)
        self._tell_closed = SparingLog(logger, logging.WARNING, burst=10)
        self._tell_full = SparingLog(logger, logging.WARNING)
        self._tell_ended = SparingLog(logger, logging.WARNING, burst=10)
        self._log = RecentLines()
        # Between the two threads; a deque's ends are safe without a lock.
        self._arrivals: deque[Arrival | Removal] = deque()
        budget = Budget(check_memory(memory_nbytes))
        self._keeper = Keeper(viewer, budget, when_memory_full, self._arrivals)
        self._outcomes: deque[tuple[object, str | None]] = deque()
        self._gone: deque[_Own] = deque()
        self._asked: deque[tuple[Peer, Request]] = deque()
        self._replies: deque[tuple[Peer, Reply]] = deque()
        self._edited: deque[EditRecord] = deque()
        self.edits = EditBook()
        self._questions = Questions(viewer)
        self._ended: deque[Peer] = deque()
        viewer.receiver = self
        viewer.watch_edits(self._note_edit)
        self._foreign = ForeignSenders(
            viewer,
            self.scene,
            place=self._place_foreign,
            arrive=self._arrivals.append,
            wake=self._waker.set,
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
        ipc = runtime_folder() / f"{self.viewer.name}-{os.getpid()}-{_short()}.ipc"
        plain.insert(0, f"ipc://{ipc}")
        reach = Reach.of(self._port, public=self._public, new_keys=self._new_keys)
        # Where other people's senders look for a port, publishers may come as well.
        sorted_tcp = reach.addresses if self._port and reach.keys is None else ()
        plain += [each for each in reach.addresses if each not in sorted_tcp]
        try:
            self._router = ZmqRouter(plain, keys=reach.keys, token=reach.token)
            self._foreign.open(self._port, self._router, sorted_tcp)
            for address in self._addresses:
                if address.startswith("inproc://"):
                    self._listeners.append(InProcessListener(address.removeprefix("inproc://")))
            if has_unix_lanes():
                # Others' lanes are opened by a key that is told in secret to who knows the token.
                side = UnixListener(allow_other_users=reach.keys is not None)
                self._side_address = side.address
                self._listeners.append(side)
            endpoint = discovery.Endpoint(
                viewer=self.viewer.name,
                name=self._name or self.viewer.name,
                pid=os.getpid(),
                started=self._started,
                protocol=(MAJOR, MINOR),
                addresses=reach.told((*self._router.addresses, *sorted_tcp)),
                token=reach.token,
                headless=self._headless,
            )
            if self._publish:
                self._publication = discovery.publish(endpoint, number=self._name is None)
                endpoint = self._publication.endpoint
            self.viewer_file = reach.share(endpoint)
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
            run=secrets.token_hex(16),
            # Others' files stay others': whoever is let in from outside sends the pixels.
            files=formats() if self.viewer.reads_files and self._public is None else (),
        )
        for each in self._loggers():
            each.addHandler(self._log)
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
        for each in self._loggers():
            each.removeHandler(self._log)

    def _loggers(self) -> list[logging.Logger]:
        return [logging.getLogger(f"openhcs_stream{end}") for end in ("", f"_{self.viewer.name}")]

    def __enter__(self) -> Receiver:
        if self.endpoint is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- on the viewer's own thread -----------------------------------------------------------

    def tick(self) -> None:
        """Show everything that came since the last tick, and answer what was asked."""
        # Only what was asked by now, for what came before it is shown below; more comes meanwhile.
        ended, asked = len(self._ended), len(self._asked)
        told = asked > 0
        if self._arrivals:
            arrivals: list[Arrival] = []
            while self._arrivals:
                each = self._arrivals.popleft()
                if isinstance(each, Arrival):
                    arrivals.append(each)
                else:
                    self._show(arrivals)
                    arrivals = []
                    self._take_off(each)
            self._show(arrivals)
            told = True
        for _ in range(asked):
            peer, request = self._asked.popleft()
            reply = self._answer(peer, request)
            if reply is not None:
                self._replies.append((peer, reply))
        for _ in range(ended):
            self._questions.withdraw_of(self._ended.popleft())
        if told:
            self._waker.set()

    def _show(self, arrivals: list[Arrival]) -> None:
        viewer, scene = self.viewer, self.scene
        failed: dict[int, str] = {}
        broken: dict[object, str] = {}
        self._foreign.prepare(arrivals)
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
                logger.exception("the viewer could not show %s", printable(scene.layers[key].title))
                broken[key] = reason_of(error)
        for arrival in arrivals:
            why = failed.get(id(arrival))
            if why is None and broken:
                keys = (each.key for each in arrival.placed)
                why = next((broken[key] for key in keys if key in broken), None)
            self._outcomes.append((arrival.ticket, why))

    @property
    def n_questions(self) -> int:
        """How many questions of workers stand open at this viewer; on its own thread."""
        return len(self._questions)

    def _take_off(self, removal: Removal) -> None:
        """Let go of what has to make room."""
        removed = self.scene.take_off(removal.spots, removal.times)
        try:
            if removed.axes_changed:
                self.viewer.set_axes(self.scene.axes)
            for layer, gone in removed.layers:
                if layer.key in self.scene.layers:
                    self.viewer.places_gone(layer, gone)
                else:
                    self.viewer.remove_layer(layer)
        except Exception:
            logger.exception("the viewer could not let go of what was oldest")
        self._keeper.carried_out(removed.count)
        self._gone.extend(each for each in removal.tickets if isinstance(each, _Own))
        log_event(
            logger, logging.WARNING, "memory full, oldest removed", places=removed.count,
            limit_nbytes=self._keeper.budget.limit_nbytes,
        )  # fmt: skip

    def _note_edit(self, change: Change | Painting) -> None:
        """On the viewer's own thread: a person changed something."""
        self.scene.add(change.layer)
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
                return read(self.scene, args, self.viewer.own_tracks())
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
                    cure="Known are status, log, dropped, layers, places, read, edits, no_edits, "
                    "waiting_edits, ask, withdraw, screenshot, clear and stop.",
                )

    def clear(self) -> int:
        """Take all layers off the screen; the number that there were. On the viewer's thread."""
        gone = self.scene.clear()
        self._keeper.clear()
        for layer in gone:
            self.viewer.remove_layer(layer)
        self.viewer.set_axes(self.scene.axes)
        return len(gone)

    # --- from anywhere ------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """This viewer and its streams: JSON-able."""
        endpoint = self.endpoint
        return {
            **self.viewer.describe(),
            "viewer": self.viewer.name,
            "name": endpoint.name if endpoint else "",
            "pid": os.getpid(),
            "version": package_version(),
            "user": getpass.getuser(),
            "headless": self._headless,
            "addresses": list(endpoint.addresses) if endpoint else [],
            "uptime_s": round(time.time() - self._started, 3),
            "layers": len(self.scene.layers),
            "memory_nbytes": resident_nbytes(),
            "kept": self._keeper.describe(),
            "streams": [
                {**facts, **peer.counts.describe(), "age_s": round(peer.counts.age_s, 3)}
                for peer in list(self._peers.values())
                if (facts := peer.facts) is not None
            ],
            "ended": self._history.describe(),
        }

    # --- the receiver's thread ----------------------------------------------------------------

    def _run(self) -> None:
        assert self._router is not None
        _let_senders_go_on()
        self.viewer.copier.start()
        try:
            while not self._stopping:
                ready = self._wait()
                self._waker.clear()
                if self._router.fileno() in ready:
                    self._take_router()
                self._foreign.take_waiting()
                for listener in self._listeners:
                    if listener.fileno() in ready:
                        self._accept(listener)
                for lane, _, trusted in list(self._new_lanes.values()):
                    if lane.fileno() in ready:
                        self._greet(lane, trusted)
                for lane, peer in list(self._lane_peers.values()):
                    if lane.fileno() in ready:
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

    def _wait(self) -> set[int]:
        """Wait until something comes in or can be sent; the descriptors where that is so."""
        router = self._router
        assert router is not None
        wanted = {each.fileno(): select.POLLIN for each in (self._waker, router, *self._listeners)}
        for lane, _, _ in self._new_lanes.values():
            wanted[lane.fileno()] = select.POLLIN
        for lane, peer in self._lane_peers.values():
            out = select.POLLOUT if peer.wants_to_send() and lane.polls_out else 0
            wanted[lane.fileno()] = select.POLLIN | out
        if wanted != self._polled:
            self._poller, self._polled = select.poll(), wanted
            for fileno, events in wanted.items():
                self._poller.register(fileno, events)
        # Of what waits on ZeroMQ's sockets their descriptor does not always tell.
        router_has = router.has_input()
        ready = {fd for fd, _ in self._poller.poll(0 if router_has else LOOK_EVERY_S * 1000)}
        if router_has:
            ready.add(router.fileno())
        return ready

    def _take_router(self) -> None:
        assert self._router is not None
        for _ in range(256):
            message = self._router.receive()
            if message is None:
                return
            self._taken += 1
            if message.is_native:
                self._take_native(message)
            elif message.is_own_user:
                self._foreign.take(message, self._router)
            else:
                # It knows no token, and what it names in shared memory may be another's.
                self._foreign_refused("refused a message of a sender that is not this user's")

    def _take_native(self, message: RouterMessage) -> None:
        assert self._router is not None
        peer = self._by_identity.get(message.identity)
        lane = self._router.lane(message.identity)
        if peer is None:
            refusal = self._no_room()
            if refusal is not None:
                self._tell_full("limit reached: %s", refusal.what)
                with contextlib.suppress(LaneClosed):  # it may be gone already
                    lane.send(encode(refusal))
                lane.close()
                return
            # Over ipc the system says who it is; over tcp a token does, whoever it is.
            trusted = not message.peer_address and message.is_own_user
            peer = self._new_peer(lane, trusted=trusted)
            self._by_identity[message.identity] = peer
        if len(message.frames[0]) > ZmqLane.max_frame:
            error = ProtocolViolation(
                f"a sender sent a message of {len(message.frames[0])} bytes, and "
                f"{ZmqLane.max_frame} is the most; pixels follow on it."
            )
            self._carry_out(peer, peer.session.lost(error), None)
            return
        lane.deliver(message.to_frame())
        self._take_lane(peer, lane)

    def _no_room(self) -> Refusal | None:
        """Why no more sessions are taken; None: they are."""
        if len(self._peers) >= MAX_SESSIONS:
            return Refusal(
                f"{MAX_SESSIONS} sessions are open already.", "Close some, or use one more often."
            )
        if spare_descriptors() < RESERVE:
            return Refusal(
                f"the viewer may open hardly any more files; {len(self._peers)} sessions are open.",
                "Close some, or start the viewer with a higher limit (ulimit -n).",
            )
        return None

    def _new_peer(self, lane: Lane, *, trusted: bool) -> Peer:
        assert self._facts is not None
        side = "" if lane.carries_fds else self._side_address
        session = ReceiverSession(
            self._facts, lane=side, key=new_token(), trusted=trusted, accounts=self._accounts
        )
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
                if len(self._new_lanes) > MAX_NEW_LANES:
                    # The oldest: who opens a lane says at once whose it is.
                    oldest, _, _ = self._new_lanes.pop(next(iter(self._new_lanes)))
                    oldest.close()

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
            self._tell_closed("closed a lane: %s", error)
            del self._new_lanes[id(lane)]
            lane.close()
            return
        del self._new_lanes[id(lane)]
        peer.side = lane
        self._lane_peers[id(lane)] = (lane, peer)
        self._take_lane(peer, lane)

    def _take_lane(self, peer: Peer, lane: Lane) -> int:
        """Take in what waits on one lane; a peer's fault ends its session and no other.

        Returns
        -------
        int
            How many frames were taken, at most a turn's.
        """
        count = 0
        try:
            for message, frame in peer.frames(lane):
                self._take(peer, message, frame)
                count += 1
        except LaneClosed as error:
            peer.how_ended = "the worker died"
            gone = ViewerLost(f"{peer.label} is gone: {error.what}")
            self._carry_out(peer, peer.session.lost(gone), None)
        except StreamError as error:
            self._tell_ended("ended the session of %s: %s", peer.label, error)
            self._carry_out(peer, peer.session.lost(error), None)
        if not peer.is_closed:
            peer.send_report()
        return 0 if peer.is_closed else count

    def _go_on(self, peer: Peer, hello: Hello) -> None:
        """A sender that lost its lanes greets anew: the lanes that it had before are over.

        It has let go of them, so that nothing more comes there; what came before is taken first.
        """
        for old in list(self._peers.values()):
            if old is peer or old.facts is None or old.session.hello is None:
                continue
            if old.session.hello.session != hello.session:
                continue
            while old.side is not None and self._take_lane(old, old.side):
                pass
            old.how_ended = "its connection was lost"
            gone = ViewerLost(f"{old.label} has connected anew.")
            self._carry_out(old, old.session.lost(gone), None)
        counts = self._history.take_back(hello.session)
        if counts is not None:
            peer.counts = counts

    def _take(self, peer: Peer, message: Message, frame: Frame) -> None:
        if isinstance(message, LayerDeclared):
            peer.declared(len(frame.data))
        if isinstance(message, Hello) and message.attempt and peer.session.admits(message):
            self._go_on(peer, message)
        if frame.fds and not isinstance(message, ArenaOffer | FileShown):
            close_fds(frame)
            raise ProtocolViolation("descriptors came with a message that has none.")
        try:
            effects = peer.session.receive(message, time.monotonic())
        except StreamError:
            close_fds(frame)
            raise
        if frame.fds and not any(isinstance(effect, MapArena | TakeFile) for effect in effects):
            close_fds(frame)  # the session is over: nobody takes it
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
                case TakeFile(message=shown, spec=spec):
                    assert frame is not None
                    if len(frame.fds) != 1:
                        close_fds(frame)
                        raise ProtocolViolation(
                            f"a file came with {len(frame.fds)} descriptors, not one."
                        )
                    self._keep_file(peer, shown, spec, frame.fds[0])
                case MapArena(arena=arena, nbytes=nbytes):
                    assert frame is not None
                    if len(frame.fds) != 1:
                        close_fds(frame)
                        raise ProtocolViolation(
                            f"an arena came with {len(frame.fds)} descriptors, not one."
                        )
                    self._check_mapped(frame, nbytes)
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
                    level = logging.DEBUG if peer.facts is None else logging.INFO
                    log_event(logger, level, "session opened", **peer.who)
                case Ended(error=error):
                    self._note_end(peer, error)
                    self._drop(peer)
                case _:
                    pass

    def _check_mapped(self, frame: Frame, nbytes: int) -> None:
        """Bound what all peers together have mapped, for all use the same addresses."""
        arenas = [each.arenas for each in self._peers.values()]
        mapped = sum(each.nbytes for each in arenas) + min(nbytes, MAX_ARENA_NBYTES)
        if sum(map(len, arenas)) >= MAX_MAPPED or mapped > MAX_MAPPED_NBYTES:
            close_fds(frame)
            raise OutOfSpace(
                f"{sum(map(len, arenas))} pieces of shared memory are mapped already, and with "
                f"this one they would have {mapped} bytes.",
                cure="Close some streams.",
            )

    def _collect(self, peer: Peer, effect: TakePart, frame: Frame) -> None:
        item = effect.item
        if peer.has_failed(item.seq):
            return  # with an earlier part of the same message
        try:
            if not peer.has_begun(item.seq):
                self._keeper.make_room(item.nbytes + PLACE_NBYTES)
                peer.begin(item, self._keeper.budget)
            array = peer.collect(effect, frame.blobs)
        except MemoryError as error:
            peer.forget(item.seq)
            self._failed(peer, item.seq, reason_of(error))
            return
        if array is not None:
            self._keep_own(peer, item, effect.spec, array, owned=True)

    def _failed(self, peer: Peer, seq: int, reason: str, *, was_received: bool = False) -> None:
        peer.session.failed(seq, reason)
        peer.counts.lost(was_received=was_received)
        untold = peer.failures_told.due()
        if untold is not None:
            log_event(
                logger, logging.WARNING, "item failed", stream=peer.label, item=seq, why=reason,
                untold=untold or None,
            )  # fmt: skip

    def _keep_own(
        self, peer: Peer, item: Item, spec: LayerSpec, array: npt.NDArray[Any], *, owned: bool
    ) -> None:
        placed: tuple[PlacedItem, ...] = ()
        ticket = _Own(peer, item.seq)
        try:
            if self.viewer.takes_items:
                self.viewer.take_item(peer.label, spec, item.place, array, item.info)
            else:
                placement = self._placement_of(peer, item, spec)
                placed = self._keep(placement, item.place, array, owned=owned, ticket=ticket)
        except ProtocolViolation:
            raise
        except Exception as error:
            # Whatever is wrong with one item, the others go on; the sender learns the reason.
            self._failed(peer, item.seq, reason_of(error))
            return
        peer.session.received(item.seq)
        peer.counts.took(item.nbytes)
        self._arrivals.append(Arrival(ticket, placed, item.info))

    def _keep_file(self, peer: Peer, shown: FileShown, spec: LayerSpec, fd: int) -> None:
        """As `_keep_own`, for an image that stays in its file."""
        item = shown.item
        ticket = _Own(peer, item.seq)
        try:
            placement = self._placement_of(peer, item, spec)
            placed = self._keeper.keep_file(placement, item.place, shown, fd, ticket)
        except ProtocolViolation:
            raise
        except Exception as error:
            self._failed(peer, item.seq, reason_of(error))
            return
        peer.session.received(item.seq)
        peer.counts.took(0)
        self._arrivals.append(Arrival(ticket, placed, item.info))

    def _placement_of(self, peer: Peer, item: Item, spec: LayerSpec) -> Placement:
        placement = peer.placements.get(item.layer)
        if placement is None:
            placement = peer.placements[item.layer] = self._placement(spec)
        return placement

    def _placement(self, spec: LayerSpec) -> Placement:
        return Placement(spec, modes=self._modes, splits=self.viewer.splits)

    def _keep(
        self,
        placement: Placement,
        place: tuple[PlaceValue, ...],
        array: npt.NDArray[Any],
        *,
        owned: bool,
        ticket: object = None,
    ) -> tuple[PlacedItem, ...]:
        """Copy an item to where it will stand, and say where that is."""
        if placement.spec.kind in RASTER_KINDS:
            return self._keeper.keep(placement, place, array, owned=owned, ticket=ticket)
        return self._keeper.read_list(placement, place, array)

    def _take_request(self, peer: Peer, request: Request) -> None:
        if request.verb in ("status", "log"):
            # Answered here, so that it works while the window is busy.
            told = self.status() if request.verb == "status" else self._log.lines()
            peer.send_control(Reply(request.number, True, told))
            return
        if request.verb == "dropped":
            peer.counts.dropped = arguments(request, DroppedArgs).items
            return
        if request.verb not in ("edits", "no_edits"):
            if len(self._asked) < MAX_ASKED:
                peer.has_asked = peer.has_asked or request.verb == "ask"
                self._asked.append((peer, request))
                return
            busy = f"{MAX_ASKED} requests wait for the window already."
            peer.send_control(Reply(request.number, False, None, busy, "Ask again later."))
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

    def _place_foreign(self, item: ForeignItem) -> tuple[PlacedItem, ...]:
        placement, spec = self._placement(item.spec), item.spec
        placed: list[PlacedItem] = []
        if self.viewer.takes_items:
            for place, payload in item.parts:
                self.viewer.take_item("OpenHCS", spec, place, as_array(payload), item.info)
            return ()
        for place, payload in item.parts:
            if spec.kind in RASTER_KINDS:
                placed += self._keep(placement, place, payload, owned=False)
            else:
                placed += self._keeper.take_list(placement, place, payload)
        return tuple(placed)

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
            if reason is None:
                peer.counts.shown()
                peer.session.displayed(ticket.seq)
            else:
                self._failed(peer, ticket.seq, reason, was_received=True)
        while self._gone:
            own = self._gone.popleft()
            own.peer.session.gone(own.seq)
        while self._edited:
            edit = self._edited.popleft()
            for peer in self._peers.values():
                peer.send_edit(edit)
        while self._replies:
            peer, reply = self._replies.popleft()
            if not peer.is_closed:
                peer.send_control(reply)
        for peer in list(self._peers.values()):
            peer.send_report()
            peer.flush()
            if peer.is_deaf:
                deaf = ViewerLost(f"{peer.label} does not read what it is told.")
                self._carry_out(peer, peer.session.lost(deaf), None)

    def _tend(self) -> None:
        """Close what was opened and never said who it is, and senders that fell silent."""
        now = time.monotonic()
        if self._taken > TRIM_AFTER and now - self._trimmed_at > TRIM_EVERY_S:
            self._taken, self._trimmed_at = 0, now
            give_back_free_memory()
        for lane, since, _ in list(self._new_lanes.values()):
            if now - since > GREETING_S:
                del self._new_lanes[id(lane)]
                lane.close()
        for peer in list(self._peers.values()):
            session = peer.session
            limit = GREETING_S if session.phase is ReceiverPhase.WAITING else SILENCE_S
            # With a side lane the end of file tells; without one only silence does.
            if peer.side is None and now - session.heard_at > limit:
                peer.how_ended = f"it said nothing for {limit:g} s"
                self._carry_out(peer, session.fell_silent(f"{peer.how_ended}."), None)

    def _note_end(self, peer: Peer, error: StreamError | None) -> None:
        key = next((key for key, each in self._by_identity.items() if each is peer), id(peer))
        if peer.session.hello is None:
            if error is None:
                # A good-bye that came after the end of its side lane, by the other way.
                self._history.correct(key, CLOSED_BY_WORKER)
            return
        how = peer.how_ended or (error.what if error is not None else CLOSED_BY_WORKER)
        level = logging.INFO if how == CLOSED_BY_WORKER else logging.WARNING
        if peer.facts is None:
            level = logging.DEBUG
        log_event(logger, level, "session ended", **peer.who, how=how, **peer.counts.totals())
        if peer.facts is not None:
            self._history.add(key, peer.facts, peer.counts, how, peer.session.hello.session)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(id(peer), None)
        if peer.has_asked:
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
            peer.how_ended = "the viewer was closed"
            self._carry_out(peer, peer.session.close("it was closed."), None)
        for lane, _, _ in self._new_lanes.values():
            lane.close()
        self._new_lanes.clear()
        for listener in self._listeners:
            listener.close()
        self._foreign.refuse_rest()
        if self._router is not None:
            self._router.close()
        self._foreign.close()
        self._keeper.clear()
        self.viewer.copier.end()


def _let_senders_go_on() -> None:
    """Have the kernel not run this thread in place of the one whose message woke it.

    Linux may let it run at once on the sender's processor, though others idle: there it would copy
    while the send waits to go on, 1 to 2 ms with 8 MiB. A batch thread takes no other's turn.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def serve(
    viewer: Viewer,
    *,
    name: str | None = None,
    port: int | None = None,
    addresses: Sequence[str] = (),
    modes: Mapping[str, Mode] | None = None,
    required: Sequence[str] = (),
    headless: bool = False,
    public: str | None = None,
    new_keys: bool = False,
    memory_nbytes: int | None = None,
    when_memory_full: WhenMemoryFull = "refuse",
    on_ready: Callable[[Endpoint], None] | None = None,
    alongside: Callable[[Receiver], AbstractContextManager[object]] | None = None,
) -> None:
    """Run a viewer with its receiver on this thread until it is stopped.

    Parameters are those of `Receiver`; `on_ready` is called when it can be found, and what
    `alongside` gives is entered before and left at the end.
    """
    receiver = Receiver(
        viewer, name=name, port=port, addresses=addresses, modes=modes, required=required,
        headless=headless, public=public, new_keys=new_keys, memory_nbytes=memory_nbytes,
        when_memory_full=when_memory_full,
    )  # fmt: skip
    endpoint = receiver.start()
    try:
        with nullcontext() if alongside is None else alongside(receiver):
            if on_ready is not None:
                on_ready(endpoint)
            viewer.run(receiver.tick, TICK_S)
    finally:
        receiver.close()


def _short() -> str:
    return secrets.token_hex(3)
