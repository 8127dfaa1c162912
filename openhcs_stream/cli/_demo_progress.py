"""What the demo shows while it runs and at its end: a row per worker, and the queue's counts."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from rich.live import Live
    from rich.table import Table

__all__ = ["Board", "Counts", "Progress", "Row"]


@dataclass(frozen=True)
class Counts:
    """What became of items so far; each is counted in every state that it has reached."""

    sent: int = 0
    received: int = 0
    displayed: int = 0
    failed: int = 0
    dropped: int = 0

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


@dataclass
class Row:
    """One worker."""

    name: str
    doing: str = "starting"
    counts: Counts = Counts()


@dataclass
class Board:
    """Everything that is shown."""

    rows: list[Row]
    expected: int  #: items that all workers send together
    started: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> Counts:
        """Of all workers."""
        return sum((row.counts for row in self.rows), Counts())

    @property
    def is_complete(self) -> bool:
        """Whether every item was displayed."""
        total = self.total
        return total == Counts(self.expected, self.expected, self.expected)


class Progress:
    """Shows a board: live on a terminal, else a plain line now and then.

    Parameters
    ----------
    board : Board
        Read at each `update`.
    interval_s : float
        Of the plain lines.
    """

    def __init__(self, board: Board, *, interval_s: float = 1.0) -> None:
        self._board = board
        self._interval_s = interval_s
        self._next = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            from rich.live import Live

            # Refreshed by update() alone: rich would start a thread for it.
            self._live = Live(self._table(), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update(now=True)
        if self._live is not None:
            self._live.stop()
        elif kind is None:
            self._print_table()

    def update(self, *, now: bool = False) -> None:
        """Show what has changed, at most so often."""
        clock = time.monotonic()
        if clock < self._next and not now:
            return
        if self._live is not None:
            self._next = clock + 0.1
            self._live.update(self._table(), refresh=True)
        else:
            self._next = clock + self._interval_s
            print(self._line(), flush=True)

    def _line(self) -> str:
        total = self._board.total
        where = ", ".join(row.doing for row in self._board.rows)
        return (
            f"{time.monotonic() - self._board.started:5.1f} s  sent {total.sent} of "
            f"{self._board.expected}, received {total.received}, displayed {total.displayed}, "
            f"failed {total.failed}, dropped {total.dropped}  [{where}]"
        )

    def _print_table(self) -> None:
        from rich.console import Console

        Console(width=max(80, Console().width)).print(self._table())

    def _table(self) -> Table:
        from rich.box import SIMPLE
        from rich.table import Table

        board = self._board
        table = Table(box=SIMPLE, show_footer=True)  # fits into 80 columns
        total = board.total
        table.add_column("worker", "all")
        table.add_column("at", f"{total.displayed} of {board.expected}", min_width=18)
        for column in fields(Counts):
            table.add_column(column.name, str(getattr(total, column.name)), justify="right")
        for row in board.rows:
            table.add_row(row.name, row.doing, *map(str, asdict(row.counts).values()))
        return table
