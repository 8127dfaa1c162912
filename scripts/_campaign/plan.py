"""What is done to whom at which moment, and how trials are drawn."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "PHASES",
    "RECONNECT_S",
    "SCENARIOS",
    "SHORT_SCENARIOS",
    "Again",
    "By",
    "Phase",
    "Scenario",
    "Trial",
    "plan",
]

Victim: TypeAlias = Literal["sender", "viewer", "both", "launcher"]
Side: TypeAlias = Literal["sender", "viewer"]
#: How a surviving worker gets a viewer that died back. "anew": it never waits, and connects anew.
#: "late": the viewer is back after the worker gave up waiting. "soon": it is back while the worker
#: waits. After both of these the stream must go on by itself.
Again: TypeAlias = Literal["anew", "late", "soon"]
By: TypeAlias = Literal["name", "tcp"]

#: Seconds for which a worker waits for its viewer.
RECONNECT_S: Final[dict[Again, float]] = {"anew": 0.0, "late": 0.5, "soon": 120.0}


@dataclass(frozen=True)
class Phase:
    """What the sender is at when somebody dies.

    `does` names what the worker does over and over; `points` are the chosen moments: the side
    that stops there, the point, and how many times it may come to it first.
    """

    name: str
    does: tuple[str, ...]
    points: tuple[tuple[Side, str, int], ...]
    #: Seconds after it began, within which a random moment falls.
    span_s: float = 0.4
    quota_nbytes: int = 64 << 20


#: In the order of a session's life.
PHASES: Final[tuple[Phase, ...]] = (
    Phase("hello", ("connect",), (("sender", "hello", 3), ("viewer", "hello", 3))),
    Phase("link", ("connect",),
          (("sender", "lane", 3), ("sender", "linked", 3), ("viewer", "lane", 3))),
    Phase("copy", ("image", "big", "allocate"),
          (("sender", "arena", 2), ("sender", "copy", 20), ("sender", "publish", 20),
           ("viewer", "keep", 20))),
    Phase("map", ("image", "close"),
          (("sender", "offer", 3), ("viewer", "map", 1), ("viewer", "mapped", 1))),
    Phase("batch", ("batch",),
          (("sender", "batch", 5), ("sender", "sent", 30), ("viewer", "item", 30))),
    Phase("chunks", ("chunks",), (("sender", "more", 6), ("viewer", "more", 6)),
          quota_nbytes=8 << 20),
    Phase("display", ("display",),
          (("viewer", "show", 10), ("viewer", "received", 20), ("viewer", "displayed", 20))),
    Phase("flush", ("flush",), (("sender", "flush", 5), ("viewer", "show", 10))),
    Phase("close", ("close",),
          (("sender", "close", 5), ("sender", "bye", 5), ("viewer", "bye", 2))),
    Phase("exit", ("exit",), (("sender", "exit", 1), ("viewer", "show", 2)), span_s=0.2),
    Phase("fork", ("fork",), (("sender", "fork", 2), ("sender", "forked", 2))),
)  # fmt: skip

#: What a viewer comes to while a stream goes on with it.
RELAPSES: Final = ("hello", "lane", "map", "keep", "received", "show", "displayed")

#: Starting a viewer as `connect` does: whoever starts and whoever is started die together.
LAUNCH: Final = Phase("launch", ("launch",), (), span_s=1.2)


@dataclass(frozen=True)
class Scenario:
    """Which viewers run, and how many trials of a hundred are theirs."""

    name: str
    #: Each a kind, with "+" behind it where it has a window.
    viewers: tuple[str, ...]
    share: int
    victims: tuple[Victim, ...] = ("sender", "viewer", "both")
    phases: tuple[Phase, ...] = PHASES
    slow: bool = False


#: Of 300 trials those of napari, of Fiji and of both at once are enough for each phase and victim.
SCENARIOS: Final[tuple[Scenario, ...]] = (
    Scenario("memory", ("memory",), 16),
    Scenario("napari headless", ("napari",), 20),
    Scenario("napari Qt", ("napari+",), 15),
    Scenario("Fiji headless", ("fiji",), 13),
    Scenario("Fiji windows", ("fiji+",), 11),
    Scenario("two: memory", ("memory", "memory"), 4),
    Scenario("two: napari, Fiji", ("napari", "fiji"), 11),
    Scenario("launched memory", ("memory",), 4, ("launcher",), (LAUNCH,)),
    Scenario("launched napari", ("napari",), 4, ("launcher",), (LAUNCH,)),
    Scenario("launched Fiji", ("fiji",), 2, ("launcher",), (LAUNCH,)),
)

#: For the tests: what starts within a second or two.
SHORT_SCENARIOS: Final = ("memory", "napari headless", "two: memory", "launched memory")


@dataclass(frozen=True)
class Trial:
    """One kill."""

    number: int
    scenario: str
    viewers: tuple[str, ...]
    phase: str
    does: str
    victim: Victim
    #: Which of two viewers dies.
    which: int = 0
    #: (side, point, count), or None: `after_s` seconds after the phase began.
    point: tuple[Side, str, int] | None = None
    after_s: float = 0.0
    lane: Literal["unix", "zmq"] = "unix"
    quota_nbytes: int = 64 << 20
    again: Again = "anew"
    #: How the worker names its viewers; both lead to one that is back.
    by: By = "name"
    #: The point at which a viewer that is back dies once more, of its kind's own; "" if it lives.
    relapse: str = ""

    @property
    def moment(self) -> str:
        if self.point is None:
            return f"{self.after_s * 1000:.0f} ms after it began"
        side, point, count = self.point
        return f"{side} at {point!r} for the {count}. time"

    @property
    def recovery(self) -> str:
        once_more = f", dead again at {self.relapse!r}" if self.relapse else ""
        return f"back {self.again}{once_more}, by {self.by}"

    def __str__(self) -> str:
        return (
            f"trial {self.number}: {self.scenario}, {self.phase} ({self.does}, {self.lane}), "
            f"kill {self.victim} {self.which}, {self.moment}, {self.recovery}"
        )


def plan(trials: int, seed: int, scenarios: Sequence[str] = ()) -> list[Trial]:
    """Draw trials: every scenario by its share, every phase and victim of it in turn.

    The same numbers give the same trials. What the processes are at when a random moment comes
    differs from run to run all the same.
    """
    dice = random.Random(seed)
    chosen = [each for each in SCENARIOS if not scenarios or each.name in scenarios]
    total = sum(each.share for each in chosen)
    drawn: list[Trial] = []
    for scenario in chosen:
        count = max(1, round(trials * scenario.share / total))
        drawn += itertools.islice(_of(scenario, dice), count)
    dice.shuffle(drawn)
    # Rounding: one kind more or less.
    first = chosen[0]
    extra = _of(first, dice)
    while len(drawn) < trials:
        drawn.append(next(extra))
    return [_numbered(each, number) for number, each in enumerate(drawn[:trials])]


def _numbered(trial: Trial, number: int) -> Trial:
    return Trial(**{**trial.__dict__, "number": number})


def _of(scenario: Scenario, dice: random.Random) -> Iterator[Trial]:
    """Trials of one scenario without end: all pairs of phase and victim, and once more."""
    while True:
        pairs = list(itertools.product(scenario.phases, scenario.victims))
        dice.shuffle(pairs)
        for phase, victim in pairs:
            yield _draw(scenario, phase, victim, dice)


def _draw(scenario: Scenario, phase: Phase, victim: Victim, dice: random.Random) -> Trial:
    lane: Literal["unix", "zmq"] = "unix"
    if phase.name in ("copy", "batch", "chunks", "display", "close") and dice.random() < 0.2:
        lane = "zmq"
    points = [
        each
        for each in phase.points
        # Without shared memory nothing is offered, mapped or viewed.
        if lane == "unix" or each[1] not in ("offer", "map", "mapped", "item", "lane", "more")
    ]
    does = dice.choice(phase.does)
    if phase.name == "copy" and does == "allocate":
        points = [each for each in points if each[1] != "arena"]
    point = None
    if points and dice.random() < 0.6:
        side, name, most = dice.choice(points)
        if name == "copy" and does == "big":
            most = 3
        point = (side, name, dice.randint(1, most))
        if phase.name == "copy" and name in ("keep", "publish") and does != "image":
            point = (side, name, dice.randint(1, 3))
    which = dice.randrange(len(scenario.viewers))
    again: Again = dice.choice(("anew", "late", "soon"))
    return Trial(
        number=0,
        scenario=scenario.name,
        viewers=scenario.viewers,
        phase=phase.name,
        does=does,
        victim=victim,
        which=which,
        point=point,
        after_s=dice.uniform(0, phase.span_s),
        lane=lane,
        quota_nbytes=phase.quota_nbytes,
        again=again,
        by="tcp" if dice.random() < 0.25 else "name",
        relapse=dice.choice(RELAPSES) if again == "soon" and dice.random() < 0.5 else "",
    )
