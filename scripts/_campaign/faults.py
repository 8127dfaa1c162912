"""The command behind scripts/faults: plans trials, runs them side by side, prints what came."""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scripts._campaign.original import plan_original
from scripts._campaign.others import OtherTrial, plan_others
from scripts._campaign.plan import PHASES, SCENARIOS, SHORT_SCENARIOS, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts._campaign.original import OriginalTrial
    from scripts._campaign.plan import Trial

    AnyTrial = Trial | OtherTrial | OriginalTrial

ROOT: Final = Path(__file__).resolve().parents[2]
USAGE: Final = "scripts/faults [options]"
#: What a trial may leave, as the report counts it.
LEFT: Final = ("names", "processes", "descriptors")
#: What the table says of all trials together.
COUNTS: Final = (
    "trials",
    "survivors_hurt",
    "bytes_left",
    *(f"{kind}_left" for kind in LEFT),
    "names_swept",
    "missed",
    "returns",
    "relapses",
    "seconds",
)


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; 0 only where nobody was hurt and nothing was left."""
    arguments = _parser().parse_args(argv)
    trials = _plan(arguments)
    begin = time.monotonic()
    results, broken = run(trials, jobs=arguments.jobs)
    report = summarise(trials, results, seconds=time.monotonic() - begin)
    report |= {"scheme": arguments.scheme, "seed": arguments.seed, "broken": broken}
    print(table(trials, results, report), file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(report))
    return 1 if report["found"] or broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/faults", usage=USAGE, description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--trials", type=int, default=300, metavar="N", help="kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn")
    parser.add_argument("--json", action="store_true", help="one object; the table goes to stderr")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="trials side by side"
    )
    parser.add_argument(
        "--faults",
        choices=("all", "kill", "other"),
        default="all",
        help="kills, or those without a kill (stopped, slow, full, taken), or both",
    )
    parser.add_argument(
        "--scheme",
        choices=("ours", "original"),
        default="ours",
        help="original: a plain one of one named segment per image, which leaks",
    )
    parser.add_argument(
        "--scenario",
        action="append",
        default=[],
        choices=[each.name for each in SCENARIOS],
        help="kills of these scenarios only",
    )
    parser.add_argument(
        "--short", action="store_true", help="only what starts soon: no windows, no Java"
    )
    parser.add_argument(
        "--only", type=int, action="append", metavar="NUMBER", help="of all that are drawn, these"
    )
    return parser


def _plan(arguments: argparse.Namespace) -> list[AnyTrial]:
    trials: list[AnyTrial] = []
    if arguments.scheme == "original":
        trials += plan_original(arguments.trials, arguments.seed)
    else:
        if arguments.faults != "other":
            wanted = arguments.scenario or (SHORT_SCENARIOS if arguments.short else ())
            trials += plan(arguments.trials, arguments.seed, wanted)
        if arguments.faults != "kill":
            trials += plan_others(first=len(trials), short=arguments.short)
    return [each for each in trials if arguments.only is None or each.number in arguments.only]


def run(trials: Sequence[AnyTrial], *, jobs: int) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Run trials in several cells side by side.

    Returns
    -------
    (results, broken)
        Results by the trials' numbers; what went wrong in the campaign itself.
    """
    waiting: queue.SimpleQueue[AnyTrial] = queue.SimpleQueue()
    for trial in trials:
        waiting.put(trial)
    results: dict[int, dict[str, Any]] = {}
    broken: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="ohs-"))

    def cell() -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts._campaign.trial", str(folder)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            while True:
                try:
                    trial = waiting.get_nowait()
                except queue.Empty:
                    break
                process.stdin.write(json.dumps(asdict(trial)) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    broken.append(f"{trial}: the cell ended")
                    return
                result = results[trial.number] = json.loads(line)
                if result["broken"]:
                    broken.append(f"{trial}:\n{result['broken']}")
                _tell(trial, result, len(results), len(trials))
            process.stdin.close()
            process.wait(60)

    threads = [threading.Thread(target=cell) for _ in range(min(jobs, len(trials)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(folder, ignore_errors=True)
    return results, broken


def findings(result: dict[str, Any]) -> list[str]:
    """What a trial found, a line each."""
    left = result["left"]
    found = [*result["hurt"], *(each for kind in LEFT for each in left[kind])]
    return [*found, f"{left['nbytes']} bytes"] if left["nbytes"] else found


def _tell(trial: AnyTrial, result: dict[str, Any], done: int, of: int) -> None:
    said = "; ".join(findings(result) + ([result["broken"]] if result["broken"] else []))
    if not said:
        said = "missed its moment" if result["missed"] else "ok"
    print(f"{done}/{of} {trial}: {result['seconds']:.1f} s, {said}", file=sys.stderr, flush=True)


def summarise(
    trials: Sequence[AnyTrial], results: dict[int, dict[str, Any]], *, seconds: float
) -> dict[str, Any]:
    """All results as one object."""
    books: Counter[str] = Counter()
    for result in results.values():
        books.update(result["books"])
    lefts = [result["left"] for result in results.values()]
    done = [trial for trial in trials if trial.number in results]
    return {
        "trials": len(done),
        "kills": sum(not isinstance(trial, OtherTrial) for trial in done),
        "scenarios": dict(Counter(trial.scenario for trial in done)),
        "victims": dict(Counter(getattr(trial, "victim", "nobody") for trial in done)),
        "survivors_hurt": sum(bool(result["hurt"]) for result in results.values()),
        "bytes_left": sum(left["nbytes"] for left in lefts),
        **{f"{kind}_left": sum(len(left[kind]) for left in lefts) for kind in LEFT},
        "names_swept": sum(len(left["swept"]) for left in lefts),
        "missed": sum(result["missed"] for result in results.values()),
        "returns": sum(result["returns"] for result in results.values()),
        "relapses": sum(result["relapses"] for result in results.values()),
        "books": dict(books),
        "seconds": round(seconds, 1),
        "found": [
            {"trial": str(trial), "problems": findings(results[trial.number])}
            for trial in done
            if findings(results[trial.number])
        ],
    }


def table(
    trials: Sequence[AnyTrial], results: dict[int, dict[str, Any]], report: dict[str, Any]
) -> str:
    """Phases down, scenarios across: how many trials, with "!" how many found something."""
    done = [trial for trial in trials if trial.number in results]
    phases = [each.name for each in PHASES]
    phases += sorted({each.phase for each in done if not isinstance(each, OtherTrial)} - {*phases})
    names = [*(each.name for each in SCENARIOS), "original"]
    names = [name for name in names if any(each.scenario == name for each in done)]
    lines = []
    if names:
        width = max(map(len, names)) + 2
        lines.append(" " * 18 + "".join(name.rjust(width) for name in names))
        for phase in phases:
            cells = [_cell(done, results, phase, name).rjust(width) for name in names]
            if "".join(cells).strip():
                lines.append(f"{phase:18s}" + "".join(cells))
        lines.append("")
    others = [each for each in done if isinstance(each, OtherTrial)]
    lines += [
        f"{each.does:48s} {'found something!' if findings(results[each.number]) else 'ok'}"
        for each in others
    ]
    lines += [""] if others else []
    lines += [f"{key.replace('_', ' '):18s}{report[key]}" for key in COUNTS]
    if report["books"]:
        books = ", ".join(f"{count} {state}" for state, count in report["books"].items())
        lines.append(f"{'survivors sent':18s}{books.replace(' sent', '')}")
    for each in report["found"]:
        lines += ["", each["trial"], *(f"    {problem}" for problem in each["problems"])]
    return "\n".join([*lines, *report["broken"]])


def _cell(
    done: Sequence[AnyTrial], results: dict[int, dict[str, Any]], phase: str, scenario: str
) -> str:
    those = [each for each in done if each.scenario == scenario and each.phase == phase]
    bad = sum(bool(findings(results[each.number])) for each in those)
    return (f"{len(those)}" + (f" {bad}!" if bad else "")) if those else ""


if __name__ == "__main__":
    sys.exit(main())
