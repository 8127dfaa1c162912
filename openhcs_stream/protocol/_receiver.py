"""The viewer's half of a session, without I/O: messages and times in, effects out.

::

    WAITING --Hello--> LINKING --LaneOpened--> OPEN --Bye, lost--> CLOSED
       |                  '-----items on the control lane--> OPEN
       '--Hello without a common side lane, or role "control"--> OPEN

A sender that lost its lanes greets again, by other lanes and so in another `ReceiverSession`. What
it had sent before is in the `Account` that both have in common.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from openhcs_stream.errors import (
    ProtocolMismatch,
    ProtocolViolation,
    StreamError,
    ViewerLost,
)
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaOffer,
    ArenaRetired,
    Bye,
    EditsTaken,
    FileShown,
    Hello,
    Item,
    Items,
    Kind,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Mode,
    More,
    Part,
    Ping,
    Pong,
    Refusal,
    Report,
    Request,
    Welcome,
)
from openhcs_stream.protocol._account import Account, Accounts
from openhcs_stream.protocol._effects import (
    Answer,
    Effect,
    Ended,
    MapArena,
    Opened,
    SendControl,
    Take,
    TakeFile,
    Taken,
    TakePart,
    UnmapArena,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.messages import Message

__all__ = ["MAX_LAYERS", "ReceiverPhase", "ReceiverSession", "ViewerFacts"]

#: Layers that one session may declare: placement by name needs far fewer.
MAX_LAYERS = 65_536
#: Items of one session that may arrive in parts at the same time.
MAX_PARTIAL = 64


class ReceiverPhase(Enum):
    WAITING = "waiting for its greeting"
    LINKING = "opening its lane"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True)
class ViewerFacts:
    """What every session of one receiver has in common.

    `token` is what a peer must show, unless its lane already proves that it is the same user;
    `run` is a random name of this run, by which senders tell it from the one before.
    """

    viewer: str
    name: str
    pid: int
    host: str
    token: str
    kinds: tuple[Kind, ...] = ("image", "labels", "rois", "points", "tracks")
    modes: Mapping[str, Mode] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    run: str = ""
    files: tuple[str, ...] = ()


@dataclass
class _Partial:
    item: Item
    spec: LayerSpec
    nbytes: int = 0


class ReceiverSession:
    """One sender, as a viewer sees it.

    Parameters
    ----------
    facts : ViewerFacts
        Who this viewer is.
    lane, key : str
        Address of the side lane to offer, and the secret that its opener must show; an empty
        address offers none.
    trusted : bool
        The control lane itself proves that the peer is this user: no token is needed.
    accounts : Accounts or None
        Those of this receiver; None: a sender that loses its lanes can't go on.
    """

    def __init__(
        self,
        facts: ViewerFacts,
        *,
        lane: str,
        key: str,
        trusted: bool,
        accounts: Accounts | None = None,
    ) -> None:
        self.facts = facts
        self.account = Account()
        self.phase = ReceiverPhase.WAITING
        self.hello: Hello | None = None
        self.heard_at = 0.0
        self._lane = lane
        self._key = key
        self._trusted = trusted
        self._accounts = accounts
        self._strayed = False
        self._layers: dict[int, LayerSpec] = {}
        self._partial: dict[int, _Partial] = {}

    # --- messages in --------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> list[Effect]:
        """Take one message of the sender, from whichever lane.

        Raises
        ------
        ProtocolViolation
            The message is not allowed in this phase, or contradicts an earlier one. The caller
            ends the session with `lost`; other sessions are not touched.
        """
        self.heard_at = now
        match self.phase, message:
            case ReceiverPhase.OPEN | ReceiverPhase.LINKING, Items():
                self._need_stream(message)
                self.phase = ReceiverPhase.OPEN
                return self._items(message)
            case ReceiverPhase.OPEN, More():
                return self._more(message)
            case ReceiverPhase.OPEN, FileShown():
                return self._file(message)
            case ReceiverPhase.CLOSED, _:
                return []
            case ReceiverPhase.WAITING, Hello():
                return self._greet(message)
            case _, Ping(number=number):
                return [SendControl(Pong(number))]
            case _, Pong():
                return []
            case ReceiverPhase.OPEN | ReceiverPhase.LINKING, LayerDeclared(layer=layer, spec=spec):
                self._need_stream(message)
                if len(self._layers) >= MAX_LAYERS:
                    raise ProtocolViolation(f"a sender declared more than {MAX_LAYERS} layers.")
                self._layers[layer] = spec
                return []
            case ReceiverPhase.OPEN, ArenaOffer(arena=arena, nbytes=nbytes):
                self._need_stream(message)
                return [MapArena(arena, nbytes)]
            case ReceiverPhase.OPEN, ArenaRetired(arena=arena):
                return [UnmapArena(arena)]
            case ReceiverPhase.OPEN | ReceiverPhase.LINKING, Request():
                return [Answer(message)]
            case ReceiverPhase.OPEN | ReceiverPhase.LINKING, EditsTaken(numbers=numbers):
                return [Taken(numbers)]
            case _, Bye():
                return self._end(None)
            case phase, _:
                self._strayed = phase is ReceiverPhase.WAITING
                raise ProtocolViolation(
                    f"a sender sent {type(message).__name__} while {phase.value}.",
                    cure="Install the same version of openhcs-stream on both sides.",
                )

    def lane_opened(self, message: LaneOpened, now: float) -> list[Effect]:
        """A side lane says that it belongs to this session.

        Raises
        ------
        ProtocolViolation
            It shows another key, or the session already has its lane.
        """
        self.heard_at = now
        if self.phase is not ReceiverPhase.LINKING or not _same(message.key, self._key):
            raise ProtocolViolation("a lane was opened that no session asked for.")
        self.phase = ReceiverPhase.OPEN
        return []

    def admits(self, hello: Hello) -> bool:
        """Whether this greeting opens a session; nothing changes by asking."""
        return self.phase is ReceiverPhase.WAITING and self._knows_token(hello)

    def lost(self, error: StreamError | None) -> list[Effect]:
        """The sender is gone, or can't be served: then it is told, so that it waits for nothing."""
        greeted = self.phase is not ReceiverPhase.WAITING
        told: Message | None = None
        if error is not None and not isinstance(error, ViewerLost):
            what, cure = error.what[:4096], error.cure[:4096]
            if self._strayed:
                # Its greeting was of lanes that were given up here.
                told = Bye(what, "lost")
            elif not greeted:
                told = Refusal(what, cure)
            elif isinstance(error, ProtocolMismatch | ProtocolViolation):
                told = Bye(what, "refused")
            else:
                told = Bye(what)
        may_return = error is None or isinstance(error, ViewerLost)
        effects = self._end(error, may_return=may_return)
        if effects and told is not None:
            effects.insert(0, SendControl(told))
        return effects

    def fell_silent(self, what: str) -> list[Effect]:
        """The sender answers nothing. Where it still reads, it learns that it has to greet anew."""
        effects = self._end(None, may_return=True)
        if effects:
            effects.insert(0, SendControl(Bye(what, "lost")))
        return effects

    def close(self, reason: str) -> list[Effect]:
        """The viewer is closed on purpose."""
        effects = self._end(None)
        if effects:
            effects.insert(0, SendControl(Bye(reason)))
        return effects

    # --- what became of items -----------------------------------------------------------------

    def received(self, seq: int) -> None:
        """The item's bytes are copied out."""
        self.account.received(seq)

    def displayed(self, seq: int) -> None:
        """The item is on the screen. Told also where this session has ended and another goes on."""
        self.account.displayed(seq)

    def failed(self, seq: int, reason: str) -> None:
        """The item can't be shown; what still arrives of it is thrown away."""
        self._partial.pop(seq, None)
        self.account.failed(seq, reason)

    def released(self, lease: int) -> None:
        """A part of an item that is still arriving is copied out."""
        self.account.released(lease)

    def gone(self, seq: int) -> None:
        """The item was displayed, and had to make room for later ones."""
        self.account.gone(seq)

    def report(self) -> Report | None:
        """What waits to be told, as one message of bounded size; None if there is nothing.

        Call it until it gives None: nearly always everything fits into the first.
        """
        return self.account.report()

    # --- inside -------------------------------------------------------------------------------

    def _greet(self, hello: Hello) -> list[Effect]:
        facts = self.facts
        if not self._knows_token(hello):
            return self._refuse(
                "the token is missing or wrong.",
                "Connect by name, or pass the token that the viewer printed.",
            )
        if self._accounts is not None and hello.role == "stream":
            account = self._accounts.open(hello.session, hello.attempt)
            if account is None:
                return self._refuse("this greeting was overtaken by a later one.")
            self.account = account
        self.hello = hello
        near = hello.role == "stream" and hello.host == facts.host and "unix" in hello.lanes
        lane = self._lane if near else ""
        self.phase = ReceiverPhase.LINKING if lane else ReceiverPhase.OPEN
        welcome = Welcome(
            MAJOR,
            MINOR,
            facts.viewer,
            facts.name,
            facts.pid,
            lane,
            self._key if lane else "",
            facts.kinds,
            dict(facts.modes),
            facts.required,
            self.account.last_seq + 1,
            facts.run,
            facts.files if lane else (),
        )
        return [SendControl(welcome), Opened(None)]

    def _knows_token(self, hello: Hello) -> bool:
        return self._trusted or _same(hello.token, self.facts.token)

    def _refuse(self, what: str, cure: str = "") -> list[Effect]:
        self.phase = ReceiverPhase.CLOSED
        return [SendControl(Refusal(what, cure)), Ended(None)]

    def _need_stream(self, message: Message) -> None:
        if self.hello is None or self.hello.role != "stream":
            raise ProtocolViolation(
                f"a control session sent {type(message).__name__}, which belongs to a stream."
            )

    def _items(self, message: Items) -> list[Effect]:
        effects: list[Effect] = []
        for item in message.items:
            seq, spec, parts = item.seq, self._spec(item), item.parts
            if (len(parts) == 1 and parts[0].nbytes == item.nbytes) or item.nbytes == 0:
                effects.append(Take(item, spec))
                continue
            if len(self._partial) >= MAX_PARTIAL:
                raise ProtocolViolation(f"more than {MAX_PARTIAL} items arrive in parts at once.")
            self._partial[seq] = _Partial(item, spec)
            effects += self._parts(self._partial[seq], parts)
        return effects

    def _spec(self, item: Item) -> LayerSpec:
        """The layer of a new item, which must be what its place was declared to be."""
        seq = item.seq
        if seq <= self.account.last_seq:
            raise ProtocolViolation(
                f"item {seq} came after item {self.account.last_seq}: numbers must count up."
            )
        self.account.last_seq = seq
        spec = self._layers.get(item.layer)
        if spec is None:
            raise ProtocolViolation(f"item {seq} names layer {item.layer}, never declared.")
        if len(item.place) != len(spec.components):
            raise ProtocolViolation(
                f"item {seq} has {len(item.place)} values for the "
                f"{len(spec.components)} components {spec.components}."
            )
        return spec

    def _file(self, message: FileShown) -> list[Effect]:
        self._need_stream(message)
        if message.format not in self.facts.files:
            raise ProtocolViolation(
                f"a sender sent a file of format {message.format!r}; this viewer reads "
                f"{', '.join(self.facts.files) or 'none'}."
            )
        spec = self._spec(message.item)
        if message.item.parts or spec.kind != "image":
            raise ProtocolViolation(f"item {message.item.seq} can't be in a file.")
        return [TakeFile(message, spec)]

    def _more(self, message: More) -> list[Effect]:
        partial = self._partial.get(message.seq)
        if partial is None:
            # The item failed meanwhile; its late parts are released unread.
            for part in message.parts:
                self.account.released(part.lease)
            return []
        return self._parts(partial, message.parts)

    def _parts(self, partial: _Partial, parts: tuple[Part, ...]) -> list[Effect]:
        effects: list[Effect] = []
        item = partial.item
        for part in parts:
            if part.nbytes == 0:
                raise ProtocolViolation(f"item {item.seq} came with a part of no bytes.")
            offset = partial.nbytes
            partial.nbytes += part.nbytes
            if partial.nbytes > item.nbytes:
                raise ProtocolViolation(
                    f"the parts of item {item.seq} have more than its {item.nbytes} bytes."
                )
            last = partial.nbytes == item.nbytes
            if last:
                del self._partial[item.seq]
            effects.append(TakePart(item, partial.spec, part, offset, last))
        return effects

    def _end(self, error: StreamError | None, *, may_return: bool = False) -> list[Effect]:
        if self.phase is ReceiverPhase.CLOSED:
            return []
        self.phase = ReceiverPhase.CLOSED
        for seq in self._partial:
            self.account.failed(seq, "the connection was lost while its parts arrived.")
        self._partial.clear()
        self._layers.clear()
        if self._accounts is not None and self.hello is not None:
            leave = self._accounts.leave if may_return else self._accounts.close
            leave(self.hello.session, self.account)
        return [Ended(error)]


def _same(shown: str, expected: str) -> bool:
    return bool(expected) and hmac.compare_digest(shown.encode(), expected.encode())
