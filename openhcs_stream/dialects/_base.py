"""What a dialect is: another project's wire, adapted at the edge and never in the middle."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from openhcs_stream.messages import LayerSpec, PlaceValue

__all__ = ["Dialect", "ForeignBatch", "ForeignFailure", "ForeignItem", "SenderRoute"]


@dataclass(frozen=True, slots=True)
class SenderRoute:
    """Where a sender wants to hear what became of an item.

    Attributes
    ----------
    address : str
        ZeroMQ address of a PULL socket, to be connected to. It is the sender's word: see that it
        is on this machine.
    is_shared : bool
        Every sender of this machine names the same address, and whoever listens there is told.
    echo : dict
        Fields of the acknowledgement that are repeated as they came.
    """

    address: str
    is_shared: bool = False
    echo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ForeignItem:
    """One item of a foreign batch, ready to be placed and copied.

    `finish` must be called exactly when the receiver is done with the payloads, whether the item
    was shown or failed; a second call does nothing.
    """

    id: str  #: what its sender calls it
    spec: LayerSpec  #: `spec.kind` is "image", "rois" or "points"
    #: (place, payload) of each part, mostly one. A place has one value for each of
    #: `spec.components`. A payload is an array in C order, read-only, of native byte order
    #: (image); a list of Roi (rois); (N, 2) float64, y and x (points).
    parts: list[tuple[tuple[PlaceValue, ...], Any]]
    info: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    route: SenderRoute | None = None
    release: Callable[[], None] | None = field(default=None, repr=False)  #: what `finish` does

    @property
    def place(self) -> tuple[PlaceValue, ...]:
        """The place of an item of one part."""
        ((place, _),) = self.parts
        return place

    @property
    def payload(self) -> Any:
        """The payload of an item of one part."""
        ((_, payload),) = self.parts
        return payload

    def finish(self) -> None:
        """Let go of the sender's memory, and remove it where the sender expects that.

        Copy the pixels first: there are no parts afterwards. Idempotent; raises nothing.
        """
        self.parts = []
        release, self.release = self.release, None
        if release is not None:
            release()


@dataclass(frozen=True, slots=True)
class ForeignFailure:
    """An item that could not even be read."""

    id: str
    reason: str
    route: SenderRoute | None = None


@dataclass(slots=True)
class ForeignBatch:
    """What one foreign frame held.

    Attributes
    ----------
    items : list of ForeignItem
        What could be read, in the sender's order.
    failures : list of ForeignFailure
        What could not.
    viewer : str
        The kind of viewer that the sender means: "napari", "fiji".
    viewer_port : int
        The port by which it knows this viewer.
    names : dict of component to dict of str to str
        What values are called: ``{"channel": {"1": "DAPI"}}``, by our names of components.
    """

    items: list[ForeignItem]
    failures: list[ForeignFailure]
    viewer: str = ""
    viewer_port: int = 0
    names: dict[str, dict[str, str]] = field(default_factory=dict)

    def reply(self, failed: Sequence[tuple[str, str]]) -> bytes:
        """Encode the answer to the whole batch.

        The status is "success" only if nothing failed. The original says "success" as soon as it
        has looked at every item, so that its sender never learns that one could not be copied.

        Parameters
        ----------
        failed : sequence of (id, reason)
            Items of `items` that could not be copied; `failures` are added here.
        """
        lost = [*((each.id, each.reason) for each in self.failures), *failed]
        answer: dict[str, Any] = {"status": "error" if lost else "success"}
        if self.viewer == "napari":
            answer["type"] = "batch"
        if lost:
            count = len(self.items) + len(self.failures)
            told = "; ".join(f"{item_id}: {reason}" for item_id, reason in lost[:_TOLD])
            more = f"; and {len(lost) - _TOLD} more" if len(lost) > _TOLD else ""
            answer["message"] = f"{len(lost)} of {count} items failed: {told}{more}"
        else:
            answer["message"] = "Data copied, queued for processing"
        return _json(answer)

    def ack(self, item_id: str, route: SenderRoute, *, reason: str | None = None) -> bytes:
        """Encode what became of one item, for `route.address`.

        Parameters
        ----------
        item_id : str
            What its sender calls it.
        route : SenderRoute
            Of the item, or of the failure.
        reason : str or None
            Why it failed; None: it is on the screen.
        """
        message: dict[str, Any] = {
            "type": "image_ack",
            "image_id": item_id,
            "viewer_port": self.viewer_port,
            "viewer_type": self.viewer,
            "status": "success" if reason is None else "error",
            "timestamp": time.time(),
        }
        if reason is not None:
            message["error"] = reason or "the item could not be shown"
        return _json({**message, **route.echo})


class Dialect(ABC):
    """One foreign wire. It has no state and does no network I/O: bytes in, items out."""

    #: The registered name: "openhcs".
    name: ClassVar[str]

    @abstractmethod
    def recognises(self, frame: bytes | memoryview) -> bool:
        """Whether `frame` is of this dialect; cheap, and never raises."""

    @abstractmethod
    def read(
        self,
        frame: bytes | memoryview,
        *,
        viewer: str,
        viewer_port: int,
        local_ipc: bool,
        family: str = "",
    ) -> ForeignBatch:
        """Decode one frame and map the pixels that it names.

        Parameters
        ----------
        frame : bytes-like
            One whole message, without the REQ socket's empty delimiter.
        viewer : str
            Registered name of the viewer that shows the items: "napari", "fiji".
        viewer_port : int
            The port on which the frame came; acknowledgements name it.
        local_ipc : bool
            Whether it came over an ipc socket rather than tcp.
        family : str
            By which family of addresses it came, where a dialect has several.

        Raises
        ------
        ProtocolViolation
            The frame as a whole can't be read; answer with `error_reply`. A single item that
            can't be read is a failure of the batch and raises nothing.
        """

    def error_reply(self, text: str) -> bytes:
        """Encode the answer to a frame that could not be read."""
        return _json({"status": "error", "message": text})


#: Failures that a reply spells out; the rest are counted.
_TOLD = 20


def _json(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode()
