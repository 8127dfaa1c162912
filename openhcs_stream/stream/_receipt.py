"""What became of one item: the receipt that sending returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias

from openhcs_stream.errors import DeadlineExceeded, InvalidItem, ItemFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.tracker import ItemState

__all__ = ["Receipt"]

Await: TypeAlias = "Callable[[Callable[[], bool], float], bool]"


class Receipt:
    """One item on its way to one or several viewers.

    Attributes
    ----------
    name : str
        What was sent: ``image 'raw' at well A01, z 3``, with its id where it has one.
    id : str
        What the caller's metadata call it, under "id"; else empty.
    state : "sent", "received", "displayed", "failed" or "dropped"
        Of several viewers the least advanced counts; one failure makes it "failed".
    remarks : tuple of str
        What of it a viewer can't hold, and what it shows instead: "napari: 3 arrows: each becomes a
        path that draws its head". Empty where nothing worth a remark is lost.
    """

    __slots__ = ("_await", "_components", "_dropped", "_failures", "_kind", "_title", "_values",
                 "id", "remarks", "undisplayed", "unfinished", "unreceived")  # fmt: skip

    def __init__(
        self,
        await_: Await,
        kind: str,
        title: str,
        components: tuple[str, ...],
        values: tuple[PlaceValue, ...],
        id_: str = "",
    ) -> None:
        self.id = id_
        self.remarks: tuple[str, ...] = ()
        self._await = await_
        self._kind = kind
        self._title = title
        self._components = components
        self._values = values
        # For the stream: viewers that have still to say so, by number, and how many. Not even told
        # yet counts as one.
        self.unreceived = 1
        self.undisplayed = 1
        self.unfinished = 1
        self._failures: tuple[tuple[str, str], ...] = ()
        self._dropped = False

    @property
    def name(self) -> str:
        place = zip(self._components, self._values, strict=True)
        at = ", ".join(f"{component} {value}" for component, value in place)
        id_ = f" ({self.id})" if self.id else ""
        return f"{self._kind} {self._title!r}" + (f" at {at}" if at else "") + id_

    @property
    def state(self) -> ItemState:
        if self._failures:
            return "failed"
        if self._dropped:
            return "dropped"
        if self.undisplayed == 0:
            return "displayed"
        return "received" if self.unreceived == 0 else "sent"

    @property
    def reason(self) -> str:
        """Why it failed, by which viewer; empty otherwise."""
        return "; ".join(": ".join(filter(None, failure)) for failure in self._failures)

    def wait(
        self, state: Literal["received", "displayed"] = "displayed", *, timeout_s: float = 10.0
    ) -> Receipt:
        """Wait until every viewer received, or displayed, the item.

        Returns
        -------
        Receipt
            Itself, so that it can be written behind the send.

        Raises
        ------
        ItemFailed
            A viewer could not show it, or is gone.
        DeadlineExceeded
            Not within `timeout_s` seconds.
        """
        if state not in ("received", "displayed"):
            raise InvalidItem(
                f"a receipt can't be waited for to be {state!r}.",
                cure='Wait for "received" or "displayed".',
            )
        reached = self._is_received if state == "received" else self._is_displayed
        if not self._await(reached, timeout_s):
            raise DeadlineExceeded(
                f"{self.name} was not {state} within {timeout_s:g} s; it is {self.state}.",
                cure="Allow more time, or look at the viewer: it may be busy or stopped.",
            )
        if self._failures:
            raise ItemFailed(
                f"{self.name} could not be shown: {self.reason}",
                failures=((self.name, self.reason),),
            )
        return self

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"the receipt of {self.name} can't be sent to another process.",
            cure='Send its state, and its reason where that is "failed".',
        )

    def __repr__(self) -> str:
        return f"<Receipt {self.name}: {self.state}>"

    # --- the stream's side --------------------------------------------------------------------

    def _is_received(self) -> bool:
        return self.unreceived == 0 or self._is_displayed()

    def _is_displayed(self) -> bool:
        return self.undisplayed == 0 or bool(self._failures) or self._dropped

    def mark_sent(self, viewers: int, mask: int) -> None:
        """It goes out to that many viewers now; one bit of `mask` stands for each."""
        self.undisplayed = self.unfinished = viewers
        self.unreceived = mask

    def mark_failed(self, viewer: str, reason: str) -> None:
        """A viewer can't show it."""
        self._failures += ((viewer, reason),)

    def mark_dropped(self) -> None:
        """A policy let it go."""
        self._dropped = True
