"""The command behind scripts/soak: workers send for long to viewers of which one does not last."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import openhcs_stream
from openhcs_stream.errors import StreamError
from scripts._campaign.cell import Cell, wait_for

if TYPE_CHECKING:
    from scripts._campaign.cell import Program

SAMPLE_S: Final = 2.0
#: The first part of the time, in which memory may grow to what it will be.
WARM_UP: Final = 0.25
#: With less than this nothing can be said of growth.
LEAST_MINUTES: Final = 3.0
#: What may be more in the last quarter than in the second: a part, or this much.
GROWTH: Final = 0.10
GROWTH_MIB: Final = 48.0
#: Seconds between two troubles of the viewer that does not last.
TROUBLES_S: Final = (8.0, 40.0)


@dataclass
class Watch:
    """Memory of one process over the time: (seconds, MiB of its own)."""

    name: str
    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)

    def look(self, now_s: float) -> None:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
            found = dict(line.split(":") for line in lines if ":" in line and "-" not in line[:20])
            self.samples.append((now_s, int(found["Pss_Anon"].split()[0]) / 1024))

    @property
    def most_mib(self) -> float:
        """The most that it ever had."""
        return round(max((mib for _, mib in self.samples), default=0.0), 1)

    def tell(self, seconds: float) -> dict[str, Any]:
        """How much there is, and how it grows after the warm-up."""
        warm = [each for each in self.samples if each[0] >= WARM_UP * seconds]
        if len(warm) < 8:
            return {"mib": round(self.samples[-1][1], 1) if self.samples else None}
        times, mib = np.array(warm).T
        quarter = len(warm) // 3
        early, late = statistics.median(mib[:quarter]), statistics.median(mib[-quarter:])
        return {
            "mib": round(late, 1),
            "most_mib": self.most_mib,
            "growth_mib": round(late - early, 1),
            "slope_mib_per_min": round(float(np.polyfit(times / 60, mib, 1)[0]), 3),
            "is_flat": bool(late - early <= max(GROWTH * early, GROWTH_MIB)),
        }


class Soak:
    """One run."""

    def __init__(self, cell: Cell, *, workers: int, seed: int, kinds: tuple[str, str]) -> None:
        self.cell = cell
        self.dice = random.Random(seed)
        self.kinds = kinds
        self.found: list[str] = []
        self.troubles: Counter[str] = Counter()
        self.steady = cell.ready_viewer(kinds[0])
        self.other = self.cell.viewer(kinds[1], name="other")
        self.watches = [Watch(f"steady {kinds[0]}", self.steady.pid)]
        self.lives: list[Watch] = [Watch(kinds[1], self.other.pid)]
        self.workers: list[Program] = []
        targets = (["steady"], ["steady"], ["other"], ["steady", "other"])
        names = {"steady": self.steady.name, "other": "other"}
        for number in range(workers):
            wanted = [names[each] for each in targets[number % len(targets)]]
            worker = cell.start(
                [
                    sys.executable, "-m", "scripts._campaign.soak_worker",
                    json.dumps({
                        "name": f"soak {number}", "viewers": wanted, "seed": seed * 1000 + number,
                        "unsteady": [name for name in wanted if name == "other"],
                    }),
                ]
            )  # fmt: skip
            self.workers.append(worker)
            self.watches.append(Watch(f"worker {number}", worker.pid))

    def run(self, seconds: float) -> None:
        """Let it go on, with troubles now and then."""
        begin = time.monotonic()
        next_trouble = self.dice.uniform(*TROUBLES_S) / 2
        while (now := time.monotonic() - begin) < seconds:
            for watch in (*self.watches, self.lives[-1]):
                watch.look(now)
            for worker in self.workers:
                if worker.is_over():
                    self.found.append(f"a worker ended: {worker.last_words()[-500:]}")
                    return
            if self.steady.program.is_over():
                self.found.append(f"the steady viewer ended: {self.steady.program.last_words()}")
                return
            if now >= next_trouble:
                self.trouble()
                next_trouble = time.monotonic() - begin + self.dice.uniform(*TROUBLES_S)
            time.sleep(min(SAMPLE_S, max(0.0, seconds - now)))

    def trouble(self) -> None:
        """Kill, end or stop the viewer that does not last; in the end one runs again."""
        what = self.dice.choice(("killed", "killed", "ended", "stopped"))
        self.troubles[what] += 1
        other = self.other
        if what == "stopped":
            os.kill(other.pid, signal.SIGSTOP)
            time.sleep(self.dice.uniform(0.5, 4.0))
            os.kill(other.pid, signal.SIGCONT)
            return
        if what == "ended":
            with contextlib.suppress(StreamError):
                openhcs_stream.ask(other.address, "stop", timeout_s=10.0)
            if not wait_for(other.program.is_over, 30.0):
                self.found.append("a viewer that was asked to stop did not end")
        other.program.kill()
        self.cell.forget(other)
        self.other = self.cell.revive(other)
        self.lives.append(Watch(self.kinds[1], self.other.pid))

    def end(self) -> list[dict[str, Any]]:
        """What each worker says of itself at its end."""
        for worker in self.workers:
            worker.order(do="end")
        words = []
        for worker in self.workers:
            word = worker.hear("ended", timeout_s=120.0)
            if word is None:
                self.found.append(f"a worker did not end: {worker.last_words()[-500:]}")
            else:
                words.append(word)
        return words

    def compare(self, words: list[dict[str, Any]]) -> None:
        """The workers' books with each other, and with the steady viewer's."""
        books = openhcs_stream.ask(self.steady.address, "status")["campaign"]
        shown = books["displayed"]
        if books["twice"]:
            self.found.append(f"the steady viewer displayed items twice: {books['twice']}")
        for word in words:
            name, items = word["name"], word["items"]
            self.found += [f"{name}: {each}" for each in word["hurt"]]
            self.found += [f"{name} holds {n} more {what}" for what, n in word["left"].items()]
            ended = sum(items.get(state, 0) for state in ("displayed", "failed", "dropped"))
            if items.get("sent", 0) != ended:
                self.found.append(f"{name}: its books don't close: {items}")
            mine = word["by_viewer"].get(self.steady.name)
            if mine is None:
                continue
            if mine["failed"] and len(word["by_viewer"]) == 1:
                self.found.append(f"{name}: {mine['failed']} items failed in the steady viewer")
            if mine["displayed"] != shown.get(name, 0):
                self.found.append(
                    f"{name}: was told of {mine['displayed']} displayed items, the viewer "
                    f"displayed {shown.get(name, 0)}"
                )


def main(argv: list[str] | None = None) -> int:
    """Run the soak; 0 only where nothing was found."""
    arguments = _parser().parse_args(argv)
    seconds = 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="ohs-"))
    cell = Cell(folder / "cell")
    try:
        soak = Soak(cell, workers=arguments.workers, seed=arguments.seed,
                    kinds=tuple(arguments.viewers.split(",", 1)))  # fmt: skip
        soak.run(seconds)
        words = soak.end()
        soak.compare(words)
        report = _report(soak, words, seconds)
    finally:
        cell.end()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report) if arguments.json else _table(report))
    return 1 if report["found"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", usage="scripts/soak [options]", description=__doc__,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M")
    parser.add_argument("--workers", type=int, default=8, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--viewers", default="memory,napari", metavar="STEADY,OTHER")
    return parser


def _report(soak: Soak, words: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    cell, steady = soak.cell, soak.steady
    cell.end_programs()
    problem = cell.check(steady)
    left = cell.look()
    left.descriptors += cell.back_to_base(steady)
    memory = {watch.name: watch.tell(seconds) for watch in soak.watches}
    found = [*soak.found, *([problem] if problem else [])]
    found += [*left.names, *left.processes, *left.descriptors]
    if seconds >= 60 * LEAST_MINUTES:
        found += [f"{name} grows: {told}" for name, told in memory.items()
                  if not told.get("is_flat", True)]  # fmt: skip
    items: Counter[str] = Counter()
    for word in words:
        items.update(word["items"])
    return {
        "minutes": round(seconds / 60, 2),
        "workers": len(soak.workers),
        **{state: items[state] for state in ("sent", "displayed", "failed", "dropped")},
        "unaccounted": items["sent"] - sum(items[s] for s in ("displayed", "failed", "dropped")),
        "gib": round(sum(word["nbytes"] for word in words) / 2**30, 2),
        "sessions": sum(word["sessions"] for word in words),
        "returns": sum(word["returns"] for word in words),
        "troubles": dict(soak.troubles),
        "memory": memory,
        "most_mib_of_lives": [each.most_mib for each in soak.lives],
        "bytes_left": left.nbytes,
        "names_left": len(left.names),
        "processes_left": len(left.processes),
        "descriptors_left": len(left.descriptors),
        "found": found,
    }


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{key.replace('_', ' '):20s}{value}"
        for key, value in report.items()
        if key not in ("memory", "found")
    ]
    lines.append("")
    for name, told in report["memory"].items():
        lines.append(f"{name:20s}" + ", ".join(f"{key} {value}" for key, value in told.items()))
    return "\n".join([*lines, "", *(report["found"] or ["nothing was found"])])


if __name__ == "__main__":
    sys.exit(main())
