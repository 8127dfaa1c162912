"""Medians with quartiles, and whether a run can be believed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MOST_SPREAD", "Figure", "Report", "flat"]

#: Upper over lower quartile of a ratio, beyond which its rounds disagree too much.
MOST_SPREAD: Final = 1.6


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and its quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)

    @property
    def spread(self) -> float:
        """Upper over lower quartile; 1 where all rounds agree."""
        return self.q3 / self.q1 if self.q1 > 0 else 1.0

    def to_json(self) -> dict[str, float]:
        """JSON-able, to four digits."""
        return {key: float(f"{getattr(self, key):.4g}") for key in ("median", "q1", "q3")}


@dataclass(slots=True)
class Report:
    """What a run measured.

    Attributes
    ----------
    ratios : dict of name to figure, or to a dict of case to figure
    rates : dict of path to dict of case to figure
        Images a second of this run: they say nothing about another machine, or another hour.
    limits : dict of name to figure
        Of this machine: copies in GB/s, round trips in microseconds.
    facts : dict
        The machine's kind, versions, how long it took.
    """

    ratios: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, dict[str, Figure]] = field(default_factory=dict)
    limits: dict[str, Figure] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def doubtful(self) -> list[str]:
        """Ratios whose rounds disagree too much."""
        return [
            name
            for name, figure in flat(self.ratios).items()
            if not name.startswith("faults") and figure.spread > MOST_SPREAD
        ]

    @property
    def believable(self) -> bool:
        """Whether the rounds of every ratio agree."""
        return not self.doubtful

    def to_json(self) -> dict[str, Any]:
        """One JSON-able object: each figure as {median, q1, q3}."""
        return {
            **_plain(self.ratios),
            "believable": self.believable,
            "doubtful": self.doubtful,
            "rates": _plain(self.rates),
            "limits": _plain(self.limits),
            "machine": self.facts,
        }


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Figure]:
    """Figures of a nested mapping by their full names, ``group.case``."""
    found: dict[str, Figure] = {}
    for name, value in tree.items():
        if isinstance(value, Figure):
            found[before + name] = value
        else:
            found |= flat(value, f"{before}{name}.")
    return found


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.to_json() if isinstance(value, Figure) else _plain(value)
        for name, value in tree.items()
    }
