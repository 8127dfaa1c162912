"""Other people's senders at a receiver: their doors, their items, what they are told.

OpenHCS's senders find a viewer by its port: at sockets in the home folder that are named after
it, and over tcp. All of them come in at the receiver's own router, told apart by content; those
that publish, and control requests, come in at a desk with a thread of its own.
"""

from __future__ import annotations

import logging
import select
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from openhcs_stream.dialects import FAMILIES, dialect_for, family_of
from openhcs_stream.errors import InvalidItem, ProtocolViolation, StreamError, printable
from openhcs_stream.transport import (
    Door,
    LaneClosed,
    SparingLog,
    ZmqPusher,
    ZmqRouter,
    ZmqSorter,
    ZmqSubscriber,
    parse_address,
)
from openhcs_stream.viewer._foreign_desk import Desk, Settlement
from openhcs_stream.viewer._scene import Arrival

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from openhcs_stream.dialects import ForeignBatch, ForeignItem, SenderRoute
    from openhcs_stream.transport import RouterMessage
    from openhcs_stream.viewer._base import Viewer
    from openhcs_stream.viewer._placement import LayerKey, PlacedItem
    from openhcs_stream.viewer._scene import Scene

__all__ = ["ForeignSenders", "ForeignTicket", "reason_of"]

logger = logging.getLogger(__name__)

#: Addresses to which acknowledgements are pushed at the same time; the one that was not used for
#: longest is let go of.
_MOST_PUSHERS: Final = 256
#: Messages that are answered when the viewer is closed.
_MOST_REFUSED: Final = 10_000
#: How long somebody who has just connected may take then to say what for, seconds.
_LAST_WORDS_S: Final = 0.5
_CLOSED: Final = "The viewer was closed before it showed this."
#: Bytes of a control request; see `dialects.load_plain`.
_MOST_CONTROL: Final = 1 << 16


class ForeignTicket:
    """Ticket of an item of another project's sender."""

    __slots__ = ("batch", "cycle", "item_id", "process", "route", "run")

    def __init__(
        self,
        batch: ForeignBatch,
        item_id: str,
        route: SenderRoute | None,
        *,
        process: int,
        cycle: int,
        run: int,
    ) -> None:
        self.batch = batch
        self.item_id = item_id
        self.route = route
        self.process = process  #: of the sender; 0 where nobody tells
        self.cycle = cycle  #: of the settlement
        self.run = run  #: how many times viewers were to begin anew before it came


class ForeignSenders:
    """What a receiver owes to senders that don't speak the native protocol.

    Parameters
    ----------
    viewer : Viewer
    scene : Scene
    place : callable
        Copies an item to where it will stand; raises what is wrong with it.
    arrive : callable
        Takes an item that was placed; what becomes of it comes back through `tell`.
    wake : callable
        Makes the receiver's thread call `take_waiting` soon.
    """

    def __init__(
        self,
        viewer: Viewer,
        scene: Scene,
        *,
        place: Callable[[ForeignItem], tuple[PlacedItem, ...]],
        arrive: Callable[[Arrival], None],
        wake: Callable[[], None],
    ) -> None:
        self._viewer = viewer
        self._scene = scene
        self._place = place
        self._arrive = arrive
        self._wake = wake
        self._port = 0
        self._tell_refused = SparingLog(logger, logging.WARNING, burst=10)
        self._router: ZmqRouter | None = None
        self._closing = False
        self._sorter: ZmqSorter | None = None
        self._desk: Desk | None = None
        self._settlement = Settlement()
        self._pushers: OrderedDict[tuple[str, int], ZmqPusher] = OrderedDict()
        #: Of items that came and of which nothing was told yet.
        self._untold: set[ForeignTicket] = set()
        self._run = 0
        #: Of each layer that was made of foreign items: the run in which it was last shown.
        self._runs: dict[LayerKey, int] = {}

    # --- life ---------------------------------------------------------------------------------

    def open(self, port: int | None, router: ZmqRouter, tcp: Sequence[str] = ()) -> None:
        """Listen where OpenHCS's senders of this port look.

        Parameters
        ----------
        port : int or None
            0 or None: nobody knows the port before, so nowhere.
        router : ZmqRouter
            The receiver's, bound to an ipc address first.
        tcp : sequence of str
            Where to listen as well, for everybody: what is no publisher's goes on to the router.

        Raises
        ------
        InvalidItem
            An address is taken by another viewer, or can't be used.
        """
        self._router = router
        if not port:
            return
        self._port = port
        subscriber = ZmqSubscriber()
        routers: list[ZmqRouter] = []
        try:
            doors: dict[str, Door] = {}
            for name in FAMILIES:
                address = family_of(name).ipc(port, make_folder=True)
                doors.setdefault(
                    address, Door(address, subscriber.address, router.addresses[0], name)
                )
            for address in tcp:
                doors[address] = Door(address, subscriber.address, router.addresses[0])
            self._sorter = ZmqSorter(list(doors.values()))
            routers = _control_routers(port)
        except BaseException:
            subscriber.close()
            for each in routers:
                each.close()
            raise
        self._desk = Desk(
            self._viewer.name,
            port,
            routers=routers,
            subscriber=subscriber,
            settlement=self._settlement,
            clear=self._begin_anew,
            stop=self._viewer.stop,
            wake=self._wake,
        )

    def refuse_rest(self) -> None:
        """Before the router is closed: answer what came and will not be shown any more.

        Blocks of such items are removed as those of others.
        """
        self._closing = True
        if self._router is not None:
            for message in _last_of(self._router):
                if not message.is_native and message.is_own_user:
                    self.take(message, self._router)
        if self._desk is not None:
            self._desk.close()
            self.take_waiting()
        for ticket in list(self._untold):
            self.tell(ticket, _CLOSED)

    def close(self) -> None:
        """Let go of all sockets; after the router, whose last answers are still passed on."""
        if self._sorter is not None:
            self._sorter.close()
        for pusher in self._pushers.values():
            pusher.close()
        self._pushers.clear()

    # --- on the receiver's thread -------------------------------------------------------------

    def take(self, message: RouterMessage, router: ZmqRouter) -> None:
        """Take in one message that is not native, and answer it where it came by a REQ socket."""
        frame = message.frames[0] if message.frames else memoryview(b"")
        answer = self._take_frame(
            frame,
            local_ipc=not message.peer_address,
            family=message.door,
            process=message.process,
        )
        if message.delimited:
            try:
                router.send(message.identity, [answer], delimited=True)
            except LaneClosed:
                logger.debug("an OpenHCS sender was gone before its answer")

    def take_waiting(self) -> None:
        """Take in what was published since the last time."""
        while self._desk is not None and (messages := self._desk.published()):
            for message in messages:
                self._take_frame(
                    message.data,
                    local_ipc=not message.peer_address,
                    family="",
                    process=message.process,
                )
            if not self._closing:
                return  # the rest when others have had their turn

    def _take_frame(
        self, frame: memoryview, *, local_ipc: bool, family: str, process: int
    ) -> bytes:
        dialect = dialect_for(frame)
        if dialect is None:
            self._tell_refused("ignored a message of %d bytes in no known dialect", len(frame))
            # A REQ socket waits for ever otherwise.
            return b'{"status": "error", "message": "not understood"}'
        try:
            batch = dialect.read(
                frame,
                viewer=self._viewer.name,
                viewer_port=self._port,
                local_ipc=local_ipc,
                family=family,
            )
        except ProtocolViolation as error:
            self._tell_refused("refused a message of an OpenHCS sender: %s", error)
            return dialect.error_reply(str(error))
        return self._take_batch(batch, process)

    def _take_batch(self, batch: ForeignBatch, process: int) -> bytes:
        cycle = self._settlement.received(len(batch.items) + len(batch.failures))
        routes = [each.route for each in batch.items] + [each.route for each in batch.failures]
        for route in routes:
            if route is not None:
                self._pusher(route, process)  # begins to connect
        failed: list[tuple[ForeignTicket, str]] = [
            (self._ticket(batch, each.id, each.route, process, cycle), each.reason)
            for each in batch.failures
        ]
        lost: list[tuple[str, str]] = []
        for item in batch.items:
            ticket = self._ticket(batch, item.id, item.route, process, cycle)
            self._untold.add(ticket)
            try:
                if self._closing:
                    raise InvalidItem(_CLOSED)
                placed = self._place(item)
                item.finish()  # what is shown leaves nothing behind
                self._arrive(Arrival(ticket, placed, dict(item.info)))
            except Exception as error:
                logger.info("an item of an OpenHCS sender can't be shown: %s", error)
                lost.append((item.id, reason_of(error)))
                failed.append((ticket, reason_of(error)))
            finally:
                item.finish()
        for ticket, reason in failed:
            self.tell(ticket, reason)
        return batch.reply(lost)

    def _ticket(
        self,
        batch: ForeignBatch,
        item_id: str,
        route: SenderRoute | None,
        process: int,
        cycle: int,
    ) -> ForeignTicket:
        return ForeignTicket(batch, item_id, route, process=process, cycle=cycle, run=self._run)

    def tell(self, ticket: ForeignTicket, reason: str | None) -> None:
        """Acknowledge an item: displayed, or failed for a reason."""
        self._untold.discard(ticket)
        if reason is None:
            self._settlement.displayed(ticket.cycle)
        else:
            self._settlement.failed(ticket.cycle, reason)
        if ticket.route is None:
            return
        pusher = self._pusher(ticket.route, ticket.process)
        if pusher is not None:
            pusher.send(ticket.batch.ack(ticket.item_id, ticket.route, reason=reason))

    def _pusher(self, route: SenderRoute, process: int) -> ZmqPusher | None:
        # Where all senders name one address, whoever bound it last has it. A connection stays
        # with whom it was made to, so each sender has its own, from its first item on.
        key = (route.address, process if route.is_shared else 0)
        pusher = self._pushers.get(key)
        if pusher is None:
            try:
                where = parse_address(route.address)
                if where.scheme not in ("ipc", "tcp") or not where.is_local:
                    raise InvalidItem(f"{where} is not on this machine.")
                pusher = ZmqPusher(route.address)
            except StreamError as error:
                logger.warning("acknowledgements can't go where they were wanted: %s", error)
                return None
            self._pushers[key] = pusher
            if len(self._pushers) > _MOST_PUSHERS:
                self._pushers.popitem(last=False)[1].close()
        self._pushers.move_to_end(key)
        return pusher

    # --- on the viewer's own thread -----------------------------------------------------------

    def prepare(self, arrivals: Iterable[Arrival]) -> None:
        """Before items are shown: take off layers of runs before theirs, and name values.

        A client that begins a new run clears what was accumulated; what stands is replaced when
        the first new item of its layer comes.
        """
        for arrival in arrivals:
            ticket = arrival.ticket
            if not isinstance(ticket, ForeignTicket):
                continue
            for placed in arrival.placed:
                key = placed.key
                if self._runs.get(key, ticket.run) < ticket.run:
                    layer = self._scene.remove(key)
                    if layer is not None:
                        self._viewer.remove_layer(layer)
                        self._viewer.set_axes(self._scene.axes)
                self._runs[key] = ticket.run
            if ticket.batch.names:
                self._viewer.name_values(ticket.batch.names)

    def _begin_anew(self) -> None:
        """On the desk's thread: a client begins a new run."""
        self._run += 1


def _last_of(router: ZmqRouter) -> Iterator[RouterMessage]:
    """What came; where somebody has connected and said nothing yet, what he says soon."""
    end = time.monotonic() + _LAST_WORDS_S
    for _ in range(_MOST_REFUSED):
        somebody_comes = router.has_input()
        message = router.receive()
        if message is not None:
            yield message
            continue
        if not somebody_comes:
            return
        poller = select.poll()
        poller.register(router.fileno(), select.POLLIN)
        while not router.has_input():
            left = end - time.monotonic()
            if left <= 0:
                return
            poller.poll(1000 * left)


def _control_routers(port: int) -> list[ZmqRouter]:
    """Listen at the control addresses of all families, as far as they are free."""
    routers: list[ZmqRouter] = []
    wanted: dict[str, None] = {}
    for name in FAMILIES:
        family = family_of(name)
        control = port + family.control_offset
        if control > 65535:
            logger.warning("port %d leaves no control port: OpenHCS won't find this viewer", port)
            continue
        wanted[family.ipc(control, make_folder=True)] = None
        wanted[f"tcp://127.0.0.1:{control}"] = None
    for address in wanted:
        try:
            routers.append(ZmqRouter([address], max_frame=_MOST_CONTROL, receive_high_water=16))
        except InvalidItem as error:
            logger.warning("OpenHCS's clients can't ask this viewer there: %s", error)
    return routers


def reason_of(error: BaseException) -> str:
    """What a sender is told of an error: one line, bounded."""
    if isinstance(error, StreamError):
        return str(error)
    text = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {text}", 1000)
