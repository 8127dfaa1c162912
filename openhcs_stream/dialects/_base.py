"""What a dialect is: another project's wire, adapted at the edge and never in the middle."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from openhcs_stream.messages import LayerSpec, PlaceValue

__all__ = ["Dialect", "ForeignBatch", "ForeignItem"]


@dataclass(slots=True)
class ForeignItem:
    """One item of a foreign batch, ready to be placed and copied.

    `finish` must be called exactly when the receiver is done with `payload`, whether the item was
    shown or failed; a second call does nothing.
    """

    id: str  #: what its sender calls it; unique in its batch
    spec: LayerSpec  #: `spec.kind` is "image" or "rois"
    place: tuple[PlaceValue, ...]  #: one value per component of `spec.components`
    payload: Any  #: image: ndarray, C order, read-only, native byte order; rois: list of Roi
    info: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    release: Callable[[], None] | None = field(default=None, repr=False)  #: what `finish` does

    def finish(self) -> None:
        """Let go of the sender's memory, and remove it where the sender expects that.

        Copy the pixels first: `payload` is None afterwards. Idempotent; raises nothing.
        """
        self.payload = None
        release, self.release = self.release, None
        if release is not None:
            release()


@dataclass(slots=True)
class ForeignBatch:
    """What one foreign frame held.

    Attributes
    ----------
    items : list of ForeignItem
        What could be read, in the sender's order.
    failures : list of (id, reason)
        What could not even be read.
    ack_address : str or None
        ZeroMQ address to which `ack` messages are pushed (PUSH, connect); None: nobody listens.
    """

    items: list[ForeignItem]
    failures: list[tuple[str, str]]
    viewer: str = ""
    viewer_port: int = 0
    ack_address: str | None = None

    def reply(self, failed: Mapping[str, str]) -> bytes:
        """Encode the answer to the whole batch.

        The status is "success" only if nothing failed. The original says "success" as soon as it
        has looked at every item, so that its sender never learns that one could not be copied.

        Parameters
        ----------
        failed : mapping of id to reason
            Items of `items` that could not be copied; `failures` are added here.
        """
        lost = [*self.failures, *failed.items()]
        if not lost:
            return _json({"status": "success", "message": "Data copied, queued for processing"})
        count = len(self.items) + len(self.failures)
        told = "; ".join(f"{item_id}: {reason}" for item_id, reason in lost[:_TOLD])
        more = f"; and {len(lost) - _TOLD} more" if len(lost) > _TOLD else ""
        return _json(
            {
                "status": "error",
                "message": f"{len(lost)} of {count} items failed: {told}{more}",
            }
        )

    def ack(self, item_id: str, *, displayed: bool, reason: str = "") -> bytes:
        """Encode what became of one item, for `ack_address`.

        Parameters
        ----------
        item_id : str
            `ForeignItem.id`, or the id of a failure.
        displayed : bool
            True: it is on the screen. False: it failed.
        reason : str
            Why it failed.
        """
        message: dict[str, Any] = {
            "type": "image_ack",
            "image_id": item_id,
            "viewer_port": self.viewer_port,
            "viewer_type": self.viewer,
            "status": "success" if displayed else "error",
            "timestamp": time.time(),
        }
        if not displayed:
            message["error"] = reason or "the item could not be shown"
        return _json(message)


class Dialect(ABC):
    """One foreign wire. It has no state and does no network I/O: bytes in, items out."""

    #: The registered name: "openhcs1".
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
