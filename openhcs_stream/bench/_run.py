"""The cases, the order in which they are run, and the ratios that come out."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from openhcs_stream.bench._limits import BareCopy, measure_limits, sources
from openhcs_stream.bench._original import OriginalSender
from openhcs_stream.bench._report import Figure, Report
from openhcs_stream.bench._viewers import Child, start
from openhcs_stream.bench._worker import PLACE
from openhcs_stream.stream import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from openhcs_stream.stream import Stream

__all__ = ["DEMANDS", "run"]

#: What each ratio should be: at least that much, or, below zero, at most its absolute value.
DEMANDS: Final[dict[str, float]] = {
    "copy_over_bare.8MiB_x1": 0.65,
    "copy_over_bare.8MiB_x4": 0.80,
    "copy_over_bare.128MiB_x1": 0.90,
    "allocate_128MiB_over_64KiB": -3.0,
    "copy_over_original.64KiB_x1": 25.0,
    "copy_over_original.64KiB_x16": 25.0,
    "copy_over_original.8MiB_x1": 14.0,
    "copy_over_original.128MiB_x1": 14.0,
    "allocate_over_original.8MiB_x1": 150.0,
    "allocate_over_original.128MiB_x1": 200.0,
    "keep_over_original.8MiB_x1": 12.0,
    "keep_over_original.128MiB_x1": 12.0,
    "original_latency_over_ours.8MiB_x1": 8.0,
    "two_viewers_over_one": 0.8,
    "four_workers_over_one": 0.6,
    "faults_per_image.8MiB": -1.0,
    "faults_per_image.128MiB": -10.0,
}

#: Places that the images of a viewer that keeps them go to, over and over.
_KEPT_PLACES = 4
_WORKERS = 4
#: More than a stream has on its way.
_WARM_NBYTES = 128 << 20


class Case(NamedTuple):
    """One size of image, so many in a message; how many images a block of each path has."""

    name: str
    nbytes: int
    batch: int
    bare: int
    copy: int
    allocate: int
    original: int


CASES: Final = (
    Case("64KiB_x1", 64 << 10, 1, 0, 3000, 3000, 150),
    Case("64KiB_x16", 64 << 10, 16, 0, 4800, 0, 320),
    Case("8MiB_x1", 8 << 20, 1, 200, 160, 1200, 10),
    Case("8MiB_x4", 8 << 20, 4, 200, 160, 0, 0),
    Case("128MiB_x1", 128 << 20, 1, 16, 14, 120, 1),
)

Path = tuple[str, "Callable[[], float]", int]


def run(
    *,
    rounds: int = 9,
    quick: bool = False,
    viewer: str = "keep",
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure everything.

    Parameters
    ----------
    rounds : int
        Of each case; quartiles need at least three.
    quick : bool
        Smaller blocks and fewer rounds: within a minute.
    viewer : str
        The viewer that keeps every image: "keep", a plain memory, or an installed one without a
        window: "napari", "fiji".
    tell : callable
        Called with a line about what is measured now.

    Returns
    -------
    Report
    """
    begin = time.perf_counter()
    if quick:
        rounds = 3
    report = Report()
    tell("limits of this machine")
    report.limits = measure_limits(rounds)
    ratios: dict[str, Any] = defaultdict(dict)
    allocate_cost: dict[str, list[float]] = {}
    with ExitStack() as stack:
        touch = stack.enter_context(start("touch"))
        unseen = stack.enter_context(start("map"))
        keep = stack.enter_context(start(viewer))
        original = stack.enter_context(Child("original"))
        sender = OriginalSender(original.address)
        stack.callback(sender.close)
        for case in CASES:
            tell(case.name)
            found = _case(case, rounds, quick, touch, unseen, keep, sender)
            report.rates[case.name] = {
                path: Figure.of(values) for path, values in found.items() if path != "latency"
            }
            _ratios_of(case.name, found, ratios)
            if "allocate unseen" in found:
                allocate_cost[case.name] = [1 / rate for rate in found["allocate unseen"]]
        tell("latency")
        ratios["original_latency_over_ours"]["8MiB_x1"] = _latency(rounds, touch, sender)
        tell("two viewers")
        ratios["two_viewers_over_one"] = _two_viewers(rounds, quick, touch)
        tell("page faults")
        for name, nbytes, count in (("8MiB", 8 << 20, 40), ("128MiB", 128 << 20, 6)):
            ratios["faults_per_image"][name] = _faults(nbytes, count, rounds, touch)
        tell("four workers")
        ratios["four_workers_over_one"] = _four_workers(rounds, quick, touch)
    ratios["allocate_128MiB_over_64KiB"] = _quotients(
        allocate_cost["128MiB_x1"], allocate_cost["64KiB_x1"]
    )
    report.ratios = {name.partition(".")[0]: {} for name in DEMANDS}
    report.ratios |= dict(ratios)
    report.facts = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rounds": rounds,
        "viewer_that_keeps": viewer,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    return report


# --- one case -----------------------------------------------------------------------------------


def _case(
    case: Case,
    rounds: int,
    quick: bool,
    touch: Child,
    unseen: Child,
    keep: Child,
    sender: OriginalSender,
) -> dict[str, list[float]]:
    """Rates of all paths, images a second, a value for each round."""
    images = sources(case.nbytes)
    part = 3 if quick else 1
    with ExitStack() as stack:
        bare = BareCopy(images)
        stack.callback(bare.close)
        streams = {
            name: stack.enter_context(_stream(child))
            for name, child in (("touch", touch), ("map", unseen), ("keep", keep))
        }
        paths: list[Path] = []
        if case.bare:
            count = max(4, case.bare // part)
            paths.append(("bare", lambda: bare.run(count), count))
            if case.batch == 1:
                other = BareCopy(images)
                stack.callback(other.close)
                paths.append(("bare, two at once", lambda: bare.run_beside(other, count), count))
        copies = max(2 * case.batch, case.copy // part)
        paths.append(
            ("copy", lambda: _copies(streams["touch"], images, copies, case.batch, 1), copies)
        )
        if case.allocate:
            number = max(2, case.allocate // part)
            shape = images[0].shape
            paths += [
                ("allocate", lambda: _allocations(streams["touch"], shape, number), number),
                ("allocate unseen", lambda: _allocations(streams["map"], shape, number), number),
            ]
        if case.original and case.batch == 1 and case.bare:
            paths.append(
                (
                    "keep",
                    lambda: _copies(streams["keep"], images, copies, 1, _KEPT_PLACES),
                    copies,
                )
            )
        if case.original:
            few = max(case.batch, case.original // part)
            paths.append(("original", lambda: _originals(sender, images, few, case.batch), few))
        return _rounds(paths, rounds)


def _rounds(paths: Sequence[Path], rounds: int) -> dict[str, list[float]]:
    """Run the paths there and back again; the first round warms up and is not counted."""
    rates: dict[str, list[float]] = {name: [] for name, _, _ in paths}
    for number in range(rounds + 1):
        spent: dict[str, float] = dict.fromkeys(rates, 0.0)
        for name, act, _ in (*paths, *reversed(paths)):
            spent[name] += act()
        if number:
            for name, _, count in paths:
                rates[name].append(2 * count / spent[name])
    return rates


def _ratios_of(case: str, found: dict[str, list[float]], ratios: dict[str, Any]) -> None:
    for above, below in (
        ("copy", "bare"),
        ("copy", "original"),
        ("allocate", "original"),
        ("keep", "original"),
    ):
        name = f"{above}_over_{below}"
        wanted = any(demand.startswith(f"{name}.{case}") for demand in DEMANDS)
        if wanted and above in found and below in found:
            ratios[name][case] = _quotients(found[above], found[below])


def _quotients(above: Sequence[float], below: Sequence[float]) -> Figure:
    return Figure.of([one / other for one, other in zip(above, below, strict=True)])


# --- paths --------------------------------------------------------------------------------------


def _stream(*viewers: Child) -> Stream:
    return connect(
        [each.address for each in viewers], name="bench", launch=False, timeout_s=60.0,
        quota_nbytes=1 << 30,
    )  # fmt: skip


def _copies(
    stream: Stream, images: list[npt.NDArray[Any]], count: int, batch: int, places: int
) -> float:
    """Send ordinary arrays and wait until all are displayed; seconds."""
    where: list[dict[str, int | str]] = [{"well": "A01", "z": number} for number in range(places)]
    begin = time.perf_counter()
    if batch == 1:
        for number in range(count):
            stream.image(images[number % len(images)], name="raw", place=where[number % places])
    else:
        for first in range(0, count, batch):
            with stream.batch():
                for number in range(first, min(first + batch, count)):
                    stream.image(
                        images[number % len(images)], name="raw", place=where[number % places]
                    )
    stream.flush(60.0)
    return time.perf_counter() - begin


def _allocations(stream: Stream, shape: tuple[int, ...], count: int) -> float:
    """Send arrays that lie in shared memory already; seconds."""
    begin = time.perf_counter()
    for _ in range(count):
        stream.image(stream.allocate(shape, np.uint16), name="raw", place=PLACE)
    stream.flush(60.0)
    return time.perf_counter() - begin


def _originals(
    sender: OriginalSender, images: list[npt.NDArray[Any]], count: int, batch: int
) -> float:
    begin = time.perf_counter()
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        sender.send([images[number % len(images)] for number in numbers])
    return time.perf_counter() - begin


# --- latency, viewers, workers, faults ----------------------------------------------------------


def _latency(rounds: int, touch: Child, sender: OriginalSender) -> Figure:
    """The original's time to an acknowledged copy over ours, in lockstep: medians of a round."""
    images = sources(8 << 20)
    values = []
    with _stream(touch) as stream:
        for number in range(rounds + 1):
            ours, theirs = [], []
            for each in range(10):
                image = images[each % len(images)]
                begin = time.perf_counter()
                stream.image(image, name="raw", place=PLACE).wait("received")
                ours.append(time.perf_counter() - begin)
                if each < 5:
                    begin = time.perf_counter()
                    sender.send([image])
                    theirs.append(time.perf_counter() - begin)
            if number:
                values.append(statistics.median(theirs) / statistics.median(ours))
    return Figure.of(values)


def _two_viewers(rounds: int, quick: bool, touch: Child) -> Figure:
    images = sources(8 << 20)
    count = 50 if quick else 160
    with start("touch") as second, _stream(touch) as one, _stream(touch, second) as two:
        paths: list[Path] = [
            ("one", lambda: _copies(one, images, count, 1, 1), count),
            ("two", lambda: _copies(two, images, count, 1, 1), count),
        ]
        found = _rounds(paths, rounds)
    return _quotients(found["two"], found["one"])


def _four_workers(rounds: int, quick: bool, touch: Child) -> Figure:
    """The total rate of four processes over that of one, 8 MiB images into one viewer."""
    count = 40 if quick else 120
    with ExitStack() as stack:
        workers = [stack.enter_context(Child("worker", touch.address)) for _ in range(_WORKERS)]

        def send(some: Sequence[Child]) -> float:
            begin = time.perf_counter()
            for each in some:
                each.say(str(count))
            for each in some:
                each.read_line(120.0)
            return time.perf_counter() - begin

        paths: list[Path] = [
            ("one", lambda: send(workers[:1]), count),
            ("four", lambda: send(workers), _WORKERS * count),
        ]
        found = _rounds(paths, rounds)
    return _quotients(found["four"], found["one"])


def _faults(nbytes: int, count: int, rounds: int, touch: Child) -> Figure:
    """Minor page faults of sender and viewer together for each image, in steady state."""
    images = sources(nbytes)
    values = []
    with _stream(touch) as stream:
        # Every piece of memory is used once: the first use of each is no steady state.
        shape, most = images[0].shape, max(2, _WARM_NBYTES // nbytes)
        for array in [stream.allocate(shape, np.uint16) for _ in range(most)]:
            stream.image(array, name="raw", place=PLACE)
        _copies(stream, images, 2 * count, 1, 1)
        for _ in range(max(3, rounds // 2)):
            before = _own_faults() + touch.minor_faults()
            _copies(stream, images, count, 1, 1)
            values.append((_own_faults() + touch.minor_faults() - before) / count)
    return Figure.of(values)


def _own_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
