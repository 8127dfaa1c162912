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

Beside it there is one warning, `LossyConversion`, of what a conversion or a viewer can't hold.

*Your* mistakes and the *peer's* are different classes on purpose: the first are mended in the
calling code, the second are retried, reported or waited for. The text of each says what happened,
with the values, and then what to do about it. It may quote what a peer sent, so it goes through
`printable`: one line, whatever is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DeadlineExceeded",
    "ForkedStream",
    "InvalidItem",
    "ItemFailed",
    "LossyConversion",
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
    "printable",
]

#: Characters of an error's text; a reason that a viewer gives has up to 4096.
_MAX_TEXT = 8192


def printable(text: str, most: int = _MAX_TEXT) -> str:
    """Make one line of a text that may come from a peer, for logs, tables, errors and terminals.

    Line breaks, control characters, terminal escapes, marks that change the direction of writing,
    invisible characters and halves of characters are written as escapes: ``\\n``, ``\\x1b``,
    ``\\u202e``. So nothing that a peer calls itself can look like a line of its own, overwrite
    one, or hide.

    Parameters
    ----------
    text : str
        Whatever came.
    most : int
        Characters of the result; a longer one is cut, with "..." at its end.

    Examples
    --------
    >>> printable("worker 1\\n2026-01-01 ERROR all is lost")
    'worker 1\\\\n2026-01-01 ERROR all is lost'
    """
    if not text.isprintable():
        # Of a text that is too long only what can be kept is looked at.
        text = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
            for each in text[: most + 1]
        )
    return text if len(text) <= most else f"{text[: max(most - 3, 0)]}..."


class StreamError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    what : str
        What happened, with the values.
    cure : str
        What the reader can do about it; a whole sentence.
    lines : sequence of str
        What another program wrote: it stands between the two, each on a line of its own.
    """

    def __init__(self, what: str, *, cure: str = "", lines: Sequence[str] = ()) -> None:
        self.what = printable(what)
        self.cure = printable(cure)
        between = " " if not lines else "\n"
        super().__init__(between.join((self.what, *map(printable, lines), self.cure)).rstrip())


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
        self.failures = tuple((printable(name), printable(reason)) for name, reason in failures)


class DeadlineExceeded(PeerError, TimeoutError):
    """Something was not done within the time that the caller declared."""


class OutOfSpace(PeerError, MemoryError):
    """There is no memory for the pixels: the quota, the machine or /dev/shm is full."""


class LossyConversion(UserWarning):
    """What was asked for was done, and something of it is lost or not shown: the text says what.

    It is issued where that matters: the words of a text, say, and not a colour. What else changes
    is told by `openhcs_stream.rois.losses`.
    """
