"""Every error that this package raises, in one tree.

::

    StreamError
     +-- UsageError            what the caller asked for can't be done as asked
     |    +-- InvalidItem          (ValueError)  an array, ROI, place or setting that can't be shown
     |    +-- UnknownViewer        (ValueError)  no viewer of that name is installed
     |    +-- StreamClosed         the stream was closed, here, by its owner
     |    +-- ForkedStream         a stream that belongs to the parent process
     +-- PeerError             the viewer, or the machine between, did not do its part
          +-- ViewerUnreachable    (ConnectionError)  nobody answered at the address
          +-- ViewerLost           (ConnectionError)  it answered once and is gone
          +-- ProtocolMismatch     (ConnectionError)  it speaks another version
          +-- ProtocolViolation    it sent bytes that no version allows
          +-- Refused              it said no, with its reason
          +-- ItemFailed           it could not show an item, with its reason
          +-- DeadlineExceeded     (TimeoutError)  not done within the declared time
          +-- OutOfSpace           (MemoryError)  no memory for pixels within the quota

*Your* mistakes and the *peer's* are different classes on purpose: the first are mended in the
calling code, the second are retried, reported or waited for. The text of each says what happened,
with the values, and then what to do about it.
"""

from __future__ import annotations

__all__ = [
    "DeadlineExceeded",
    "ForkedStream",
    "InvalidItem",
    "ItemFailed",
    "OutOfSpace",
    "PeerError",
    "ProtocolMismatch",
    "ProtocolViolation",
    "Refused",
    "StreamClosed",
    "StreamError",
    "UnknownViewer",
    "UsageError",
    "ViewerLost",
    "ViewerUnreachable",
]


class StreamError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    what : str
        What happened, with the values.
    cure : str
        What the reader can do about it; a whole sentence.
    """

    def __init__(self, what: str, *, cure: str = "") -> None:
        super().__init__(f"{what} {cure}".rstrip())
        self.what = what
        self.cure = cure


class UsageError(StreamError):
    """The call can't be done as asked; nothing was sent."""


class InvalidItem(UsageError, ValueError):
    """An array, ROI list, place or setting that can't be shown as given."""


class UnknownViewer(UsageError, ValueError):
    """No installed viewer has that name."""


class StreamClosed(UsageError):
    """The stream was closed by its owner before this call."""


class ForkedStream(UsageError):
    """The stream belongs to the parent of this forked process."""


class PeerError(StreamError):
    """The viewer, or the machine between, did not do its part."""


class ViewerUnreachable(PeerError, ConnectionError):
    """Nobody answered at the address within the deadline."""


class ViewerLost(PeerError, ConnectionError):
    """The viewer was connected and is gone."""


class ProtocolMismatch(PeerError, ConnectionError):
    """The peer speaks another major version of the protocol."""


class ProtocolViolation(PeerError):
    """The peer sent bytes that no version of the protocol allows."""


class Refused(PeerError):
    """The viewer refused a session or a request and said why."""


class ItemFailed(PeerError):
    """The viewer received an item and could not show it.

    Attributes
    ----------
    failures : tuple of (item name, reason)
    """

    def __init__(
        self, what: str, *, cure: str = "", failures: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(what, cure=cure)
        self.failures = failures


class DeadlineExceeded(PeerError, TimeoutError):
    """Something was not done within the time that the caller declared."""


class OutOfSpace(PeerError, MemoryError):
    """There is no memory for the pixels: the quota, the machine or /dev/shm is full."""
