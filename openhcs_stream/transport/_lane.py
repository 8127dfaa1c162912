"""What a lane is: the one way in which frames travel between two peers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from openhcs_stream.errors import InvalidItem, PeerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["MAX_BLOBS", "MAX_FDS", "Frame", "Lane", "LaneClosed", "Listener"]

#: File descriptors that one frame may carry.
MAX_FDS = 4
#: Blobs that one frame may carry; ROIs and pixels are cut into at most as many parts.
MAX_BLOBS = 4096


class LaneClosed(PeerError, ConnectionError):
    """The lane has ended: the peer closed it or died, or it was closed on this side.

    Every frame that the peer sent before was given out by `Lane.receive` first.
    """


class Frame(NamedTuple):
    """What `Lane.receive` gives: one frame, exactly as the peer sent it."""

    data: bytes  #: never empty
    fds: tuple[int, ...] = ()  #: open, not inheritable; whoever received them closes them
    #: Read-only; a view holds its memory as long as it lives.
    blobs: tuple[memoryview | bytes, ...] = ()


class Lane(ABC):
    """An ordered and reliable way for frames between two peers, in both directions.

    A frame arrives whole or not at all, in the order in which it was sent. No call ever waits:
    put `fileno` into a selector. Lanes are context managers; leaving the block closes the lane.
    """

    #: Whether `send` takes file descriptors.
    carries_fds: ClassVar[bool]
    #: Whether `send` takes blobs.
    carries_blobs: ClassVar[bool]
    #: How a loop learns that `send`, having returned False, may succeed again. True: `fileno`
    #: turns *writable*. False: `fileno` turns *readable* (and `receive` may then give None).
    polls_out: ClassVar[bool]

    #: Bytes of `data` that one frame may hold.
    max_frame: int

    @abstractmethod
    def send(
        self, data: bytes, *, fds: Sequence[int] = (), blobs: Sequence[memoryview] = ()
    ) -> bool:
        """Send one frame, now or not at all.

        Parameters
        ----------
        data : bytes
            From 1 to `max_frame` bytes.
        fds : sequence of int
            Open file descriptors, at most `MAX_FDS`. The peer gets duplicates; these stay the
            caller's and may be closed when this returns.
        blobs : sequence of memoryview
            C-contiguous memory that follows on the data, at most `MAX_BLOBS`. It is not copied:
            it must not change until the peer has said that it read it.

        Returns
        -------
        bool
            False: the lane is full at present and nothing of the frame was sent.

        Raises
        ------
        LaneClosed
            The peer is gone, or this side was closed.
        InvalidItem
            The frame can't be sent on this lane: it is empty or too large, a descriptor is not
            open, or the lane carries no descriptors or blobs.
        """

    @abstractmethod
    def receive(self) -> Frame | None:
        """Take the next frame; None where none waits now.

        Raises
        ------
        LaneClosed
            All frames were taken and the peer is gone, or this side was closed.
        ProtocolViolation
            The peer sent a frame that is larger, or has more descriptors, than any lane allows.
            The frame is lost and its descriptors are closed; end the session.
        """

    @abstractmethod
    def fileno(self) -> int:
        """Give the descriptor that is readable when `receive` may give something; -1: closed."""

    def has_input(self) -> bool:
        """Whether `receive` must be called before waiting for `fileno`, which would not tell.

        Always False where `fileno` is readable for as long as something waits. ZeroMQ's is not.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Close this side; again and again if you like. The peer can still take what was sent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Listener(ABC):
    """Where lanes come from, on the viewer's side. A context manager, as lanes are."""

    #: What peers connect to.
    address: str

    @abstractmethod
    def accept(self) -> Lane | None:
        """Take the next lane that a peer opened; None where none waits now.

        Raises
        ------
        LaneClosed
            This listener was closed.
        """

    @abstractmethod
    def fileno(self) -> int:
        """Give the descriptor that is readable when `accept` may give something; -1 once closed."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening, more than once if you like. Accepted lanes stay open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def closed_here(what: str) -> LaneClosed:
    """Make the error of a call on a lane or listener that this side has closed."""
    return LaneClosed(f"{what} was closed on this side.", cure="Open a new one.")


def peer_gone(what: str) -> LaneClosed:
    """Make the error of a call on a lane whose peer has gone."""
    return LaneClosed(
        f"the peer of {what} closed it or died.",
        cure="Connect again; what was not confirmed may not have arrived.",
    )


def refuse_length(nbytes: int, max_frame: int) -> InvalidItem:
    """Make the error of a frame that is empty or too large."""
    if nbytes == 0:
        return InvalidItem(
            "a frame of 0 bytes can't be sent: it would look like the end of the lane.",
            cure="Send at least one byte of data.",
        )
    return InvalidItem(
        f"a frame of {nbytes} bytes is too large for this lane, which takes {max_frame}.",
        cure="Send fewer items in one message.",
    )


def check_fds(fds: Sequence[int]) -> None:
    """Raise InvalidItem where there are more descriptors than a frame may carry."""
    if len(fds) > MAX_FDS:
        raise InvalidItem(
            f"a frame with {len(fds)} file descriptors can't be sent, {MAX_FDS} is the most.",
            cure="Send them in several frames.",
        )


def refuse_fds(what: str) -> InvalidItem:
    """Make the error of descriptors on a lane that carries none."""
    return InvalidItem(
        f"{what} carries no file descriptors.",
        cure="Look at the lane's carries_fds first, and send the bytes themselves as blobs.",
    )


def check_blobs(blobs: Sequence[memoryview], max_nbytes: int) -> None:
    """Raise InvalidItem where a blob can't be sent without copying it."""
    if len(blobs) > MAX_BLOBS:
        raise InvalidItem(
            f"a frame with {len(blobs)} blobs can't be sent, {MAX_BLOBS} is the most.",
            cure="Send them in several frames.",
        )
    for number, blob in enumerate(blobs):
        if not blob.c_contiguous:
            raise InvalidItem(
                f"blob {number} is not contiguous (strides {blob.strides}).",
                cure="Copy it first.",
            )
        if blob.nbytes > max_nbytes:
            raise InvalidItem(
                f"blob {number} has {blob.nbytes} bytes, {max_nbytes} is the most.",
                cure="Cut it into several blobs.",
            )


def refuse_blobs(what: str) -> InvalidItem:
    """Make the error of blobs on a lane that carries none."""
    return InvalidItem(
        f"{what} carries no blobs.",
        cure="Look at the lane's carries_blobs first, and send the bytes in shared memory.",
    )
