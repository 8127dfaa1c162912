"""What OpenHCS's viewers say: who they are, replies, acknowledgements, how far they have settled.

Their control sockets speak pickle. It is not unpickled but interpreted (`load_plain`); of a class
of theirs that an answer names only its one argument is kept, so that generation 3's enums are what
they stand for.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from openhcs_stream.dialects._pickles import load_plain
from openhcs_stream.errors import ProtocolViolation

if TYPE_CHECKING:
    from openhcs_stream.messages import Kind

__all__ = [
    "Acknowledgement",
    "BatchReply",
    "OpenHCSViewer",
    "Settlement",
    "control_request",
    "read_acknowledgement",
    "read_batch_reply",
    "read_control_answer",
    "read_settlement",
    "read_viewer",
]

#: Whose classes an answer may name.
_THEIR_PACKAGES: Final = ("openhcs.", "polystore.", "zmqruntime.")
_MAX_CHARS: Final = 1000

ViewerKind = Literal["napari", "fiji"]


@dataclass(frozen=True, slots=True)
class OpenHCSViewer:
    """A viewer of OpenHCS that answered a ping.

    Attributes
    ----------
    kind : "napari" or "fiji"
    generation : int
        1: openhcs to 0.5; 2: openhcs 0.8 with polystore to 0.2; 3: zmqruntime from 0.3.
    server : str
        What it calls itself.
    version : str
        Of its application; empty where it does not say.
    pid : int
        Its process; 0 where it does not say.
    """

    kind: ViewerKind
    generation: int
    server: str = ""
    version: str = ""
    pid: int = 0

    @property
    def subscribes(self) -> bool:
        """Whether its data socket is SUB, which answers nothing: napari's in generation 1."""
        return self.generation == 1 and self.kind == "napari"

    @property
    def takes_over_blocks(self) -> bool:
        """Whether it removes the name of each block of shared memory that it has read."""
        return self.generation == 1

    @property
    def routes_acknowledgements(self) -> bool:
        """Whether it sends them where each item says, and not to one port for all senders."""
        return self.generation >= 3

    @property
    def settles(self) -> bool:
        """Whether it can be asked how much of what it received is displayed."""
        return self.generation >= 2

    @property
    def acknowledges(self) -> Literal["received", "displayed", "queued"]:
        """What is true when it has acknowledged an item.

        Fiji acknowledges what stands in a window. napari does it when the item is queued for its
        layer's timer: in generation 1, whose socket answers nothing, that is when it is received.
        """
        if self.kind == "fiji":
            return "displayed"
        return "received" if self.subscribes else "queued"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it has a way to show; label images stand there as images."""
        if self.subscribes:
            return ("image", "labels", "rois")
        return ("image", "labels", "rois", "points")

    @property
    def title(self) -> str:
        """What a person calls it."""
        version = f" {self.version}" if self.version else f", generation {self.generation}"
        return f"OpenHCS's {'Fiji' if self.kind == 'fiji' else 'napari'}{version}"


# --- control: pickled dictionaries ----------------------------------------------------------------


def control_request(verb: str) -> bytes:
    """Encode a request: "ping", "settle", "clear_state", "shutdown", "force_shutdown"."""
    return pickle.dumps({"type": verb}, protocol=4)


def read_control_answer(octets: bytes) -> dict[str, Any]:
    """Decode the answer to a control request.

    Raises
    ------
    ProtocolViolation
        It is larger, deeper or other than any answer of theirs.
    """
    try:
        # Their enumerations stand for their values.
        answer = load_plain(octets, packages=_THEIR_PACKAGES)
    except ProtocolViolation as error:
        raise _unreadable(error.what.rstrip(".")) from error
    if not isinstance(answer, dict):
        raise _unreadable(f"it is {type(answer).__name__}, not a dictionary")
    return answer


def _unreadable(why: str) -> ProtocolViolation:
    return ProtocolViolation(
        f"the answer of a viewer's control socket can't be read: {why}.",
        cure="See what listens on that port; an OpenHCS viewer answers a ping with a dictionary.",
    )


def read_viewer(pong: dict[str, Any]) -> OpenHCSViewer | None:
    """Who answered a ping; None: it is no viewer of OpenHCS.

    A receiver of ours that also answers such pings says so under "openhcs_stream".
    """
    if pong.get("type") != "pong" or "openhcs_stream" in pong:
        return None
    named = (pong.get("viewer"), pong.get("server_type"), pong.get("server"))
    kinds = [kind for kind in ("napari", "fiji") for name in named if kind in str(name).lower()]
    if not kinds or pong.get("server_role", "viewer") != "viewer":
        return None
    generation = 1
    if "server_role" in pong:
        # zmqruntime began to tell of its launch and its usage with the routes of generation 3.
        generation = 3 if "launch" in pong or "process_usage" in pong else 2
    application, process = pong.get("application"), pong.get("process_identity")
    version = None
    if isinstance(application, dict):  # generations 2 and 3 each have a word of their own
        version = application.get("application_version") or application.get("version")
    pid = process.get("pid") if isinstance(process, dict) else 0
    return OpenHCSViewer(
        kind="napari" if kinds[0] == "napari" else "fiji",
        generation=generation,
        server=_text(pong.get("server")),
        version=_text(version),
        pid=pid if type(pid) is int and pid > 0 else 0,
    )


@dataclass(frozen=True, slots=True)
class Settlement:
    """How far a viewer is with displaying what it received."""

    phase: Literal["running", "complete", "failed"]
    reason: str = ""  #: where failed: which layer, and why


def read_settlement(answer: dict[str, Any]) -> Settlement | None:
    """What a settle request was answered; None: this viewer has no such thing."""
    phase = answer.get("settle_phase")
    if phase not in ("running", "complete", "failed"):
        return None
    reason = _text(answer.get("message")) if phase == "failed" else ""
    return Settlement(phase, reason.removeprefix("Viewer settlement failed: "))


# --- data: JSON -----------------------------------------------------------------------------------


class _Reply(Struct):
    status: str
    message: Any = None


@dataclass(frozen=True, slots=True)
class BatchReply:
    """The answer to a batch."""

    ok: bool
    reason: str = ""


def read_batch_reply(frame: bytes) -> BatchReply:
    """Decode the answer to a batch.

    Raises
    ------
    ProtocolViolation
        It says neither success nor error.
    """
    try:
        reply = msgspec.json.decode(frame, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(
            f"a viewer answered a batch with {len(frame)} bytes that are no answer: {error}.",
            cure="See what listens on that port.",
        ) from error
    if reply.status == "success":
        return BatchReply(ok=True)
    if reply.status != "error":
        raise ProtocolViolation(
            f"a viewer answered a batch with the status {reply.status[:80]!r}.",
            cure="Only success and error are known.",
        )
    return BatchReply(ok=False, reason=_text(reply.message) or "the viewer gave no reason")


class _Ack(Struct):
    type: Literal["image_ack"]
    image_id: Annotated[str, Meta(max_length=128)]
    status: str
    error: Any = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What became of one item."""

    image_id: str
    ok: bool
    reason: str = ""


def read_acknowledgement(frame: bytes) -> Acknowledgement:
    """Decode what a viewer pushes about an item.

    Raises
    ------
    ProtocolViolation
        It is no acknowledgement.
    """
    try:
        ack = msgspec.json.decode(frame, type=_Ack)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(
            f"{len(frame)} bytes on the port of acknowledgements are none: {error}.",
            cure="See who else sends to that port.",
        ) from error
    if ack.status == "success":
        return Acknowledgement(ack.image_id, ok=True)
    reason = _text(ack.error) or f"the viewer says {ack.status[:80]!r}"
    return Acknowledgement(ack.image_id, ok=False, reason=reason)


def _text(value: Any) -> str:
    """One line, bounded: it goes into errors and logs."""
    return "" if value is None else " ".join(str(value).split())[:_MAX_CHARS]
