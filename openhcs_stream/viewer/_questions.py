"""Questions that workers ask the person at the viewer: one at a time, Done or Skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.viewer._base import Viewer

__all__ = ["MAX_QUESTIONS", "Outcome", "Question", "Questions"]

Outcome: TypeAlias = Literal["done", "skipped"]

#: Questions that may wait for one person.
MAX_QUESTIONS: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a worker asks.

    Attributes
    ----------
    text : str
    worker : str
        Who asks.
    names : tuple of str
        Layers that it is about; empty: none in particular.
    place : dict of component to value
        Where to look; what it does not name stays.
    waiting : int
        How many more wait behind it, when it is shown.
    answer : callable
        To be called with "done" or "skipped", once, on the viewer's own thread.
    """

    text: str
    worker: str
    names: tuple[str, ...]
    place: Mapping[str, PlaceValue]
    waiting: int
    answer: Callable[[Outcome], None]


@dataclass(slots=True, eq=False)
class _Asked:
    peer: object
    number: int
    text: str
    worker: str
    names: tuple[str, ...]
    place: Mapping[str, PlaceValue]
    answered: Callable[[Outcome], None]


class Questions:
    """The questions that wait for the person at one viewer; on the viewer's own thread only."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._asked: list[_Asked] = []
        self._shown: _Asked | None = None

    def __len__(self) -> int:
        return len(self._asked)

    def ask(
        self,
        peer: object,
        number: int,
        text: str,
        *,
        worker: str,
        names: tuple[str, ...],
        place: Mapping[str, PlaceValue],
        answered: Callable[[Outcome], None],
    ) -> None:
        """Put a peer's question, known by a number of its own, at the end of the queue.

        `answered` is called with what was chosen.

        Raises
        ------
        UsageError
            Nobody can answer at this viewer, or too many questions wait.
        """
        if not self._viewer.can_ask:
            raise UsageError(
                f"this {self._viewer.name} has no window, so nobody can answer.",
                cure="Start it without --headless, or go on without asking.",
            )
        if len(self._asked) >= MAX_QUESTIONS:
            raise UsageError(
                f"{MAX_QUESTIONS} questions wait at this viewer already.", cure="Ask later."
            )
        self._asked.append(_Asked(peer, number, text, worker, names, place, answered))
        self._show_next()

    def withdraw(self, peer: object, number: int) -> None:
        """The worker does not wait for its answer any more."""
        self._asked = [x for x in self._asked if (x.peer, x.number) != (peer, number)]
        self._show_next()

    def withdraw_of(self, peer: object) -> None:
        """The worker is gone, with all that it asked."""
        self._asked = [each for each in self._asked if each.peer is not peer]
        self._show_next()

    def _show_next(self) -> None:
        first = self._asked[0] if self._asked else None
        if first is self._shown:
            return
        self._shown = first
        if first is None:
            self._viewer.show_question(None)
            return

        def answer(outcome: Outcome, asked: _Asked = first) -> None:
            if asked in self._asked:  # else it was withdrawn, or answered by a double click
                self._asked.remove(asked)
                asked.answered(outcome)
                self._show_next()

        self._viewer.show_question(
            Question(
                first.text, first.worker, first.names, first.place, len(self._asked) - 1, answer
            )
        )
