"""What a viewer has taken of a stream, remembered across the lanes that the stream loses."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, TypeVar

from openhcs_stream.messages import Failure, Report

__all__ = ["MAX_OUTSTANDING", "Account", "Accounts"]

#: Items that a sender may have sent and not heard the end of. A viewer remembers the end of as
#: many, so that none is told in vain because a lane was lost with the report.
MAX_OUTSTANDING: Final = 16_384
#: Streams that lost their lanes and may come back are remembered, so many of them.
MAX_REMEMBERED: Final = 64
#: Bounds of one report, so that it fits into a packet of the side lane: numbers of each kind,
#: failures, and characters of a failure's reason.
MAX_REPORTED: Final = 4096
MAX_FAILURES: Final = 16
MAX_REASON: Final = 1000


class Account:
    """The items of one stream at one viewer, whatever lanes it came by.

    Attributes
    ----------
    attempt : int
        Of the last greeting; an earlier one that comes late is refused.
    last_seq : int
        Number of the last item that was taken; they count up.
    in_use : bool
        Whether a session stands: its sender hears of what is noted here.
    """

    __slots__ = (
        "_displayed",
        "_ended",
        "_failed",
        "_gone",
        "_reasons",
        "_received",
        "_released",
        "_waiting",
        "attempt",
        "in_use",
        "last_seq",
    )

    def __init__(self) -> None:
        self.attempt = -1
        self.last_seq = -1
        self.in_use = True
        self._waiting: set[int] = set()
        #: The last that were displayed or failed; of the latter the reasons too.
        self._ended: deque[int] = deque()
        self._reasons: dict[int, str] = {}
        # What is to be told.
        self._received: list[int] = []
        self._displayed: list[int] = []
        self._failed: list[Failure] = []
        self._released: list[int] = []
        self._gone: list[int] = []

    def received(self, seq: int) -> None:
        """The item's bytes are copied out."""
        self._waiting.add(seq)
        self._received.append(seq)

    def displayed(self, seq: int) -> None:
        """The item is on the screen."""
        self._end(seq)
        self._displayed.append(seq)

    def failed(self, seq: int, reason: str) -> None:
        """The item can't be shown."""
        self._end(seq)
        reason = self._reasons[seq] = reason[:MAX_REASON]
        self._failed.append(Failure(seq, reason))

    def released(self, lease: int) -> None:
        """A part of an item that is still arriving is copied out."""
        self._released.append(lease)

    def gone(self, seq: int) -> None:
        """The item was displayed, and had to make room for later ones."""
        if self.in_use:
            self._gone.append(seq)

    def report(self) -> Report | None:
        """What waits to be told, as one message of bounded size; None if there is nothing."""
        waiting = self._received or self._displayed or self._failed or self._released or self._gone
        if not waiting:
            return None
        return Report(
            _take(self._received, MAX_REPORTED),
            _take(self._displayed, MAX_REPORTED),
            _take(self._failed, MAX_FAILURES),
            _take(self._released, MAX_REPORTED),
            _take(self._gone, MAX_REPORTED),
        )

    def tell_again(self) -> None:
        """Tell all that is remembered: what was told last may be lost with the lanes."""
        ended, reasons = self._ended, self._reasons
        self._received = sorted(self._waiting)
        self._displayed = [seq for seq in ended if seq not in reasons]
        self._failed = [Failure(seq, reasons[seq]) for seq in ended if seq in reasons]
        self._released = []  # leases of lanes that are gone

    def _end(self, seq: int) -> None:
        self._waiting.discard(seq)
        ended = self._ended
        ended.append(seq)
        if len(ended) > MAX_OUTSTANDING:
            self._reasons.pop(ended.popleft(), None)


class Accounts:
    """All accounts of one receiver, by the names of the sessions."""

    def __init__(self) -> None:
        self._open: dict[str, Account] = {}
        self._left: OrderedDict[str, Account] = OrderedDict()

    def open(self, session: str, attempt: int) -> Account | None:
        """A session begins, or goes on where `attempt` is not 0; None: a later one did already."""
        account = self._open.get(session) or self._left.get(session)
        if attempt == 0 or account is None:
            account = Account()
        elif attempt <= account.attempt:
            return None
        else:
            account.tell_again()
        self._left.pop(session, None)
        self._open[session] = account
        account.attempt = attempt
        account.in_use = True
        return account

    def leave(self, session: str, account: Account) -> None:
        """Its lanes are lost: the sender may come back."""
        if self._open.get(session) is account:
            del self._open[session]
            account.in_use = False
            self._left[session] = account
            if len(self._left) > MAX_REMEMBERED:
                self._left.popitem(last=False)

    def close(self, session: str, account: Account) -> None:
        """The sender said goodbye, or is refused."""
        if self._open.get(session) is account:
            del self._open[session]
            account.in_use = False


_T = TypeVar("_T")


def _take(waiting: list[_T], most: int) -> tuple[_T, ...]:
    taken = tuple(waiting[:most])
    del waiting[:most]
    return taken
