"""`scripts/interop`: our package against the real ones, each in an environment of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from checks import Outcome, all_checks
from envs import REQUIREMENTS, make
from record import record
from running import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "dialects" / "recorded"
VARIABLE = "OPENHCS_STREAM_INTEROP_ENVS"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/interop",
        description="Senders and viewers of the real OpenHCS packages against ours, both ways.",
    )
    parser.add_argument(
        "--envs", type=Path, default=os.environ.get(VARIABLE) or ROOT / "build" / "interop",
        help=f"folder of the environments, made once; default: ${VARIABLE}, else build/interop",
    )  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="TEXT",
        help="checks whose line has all of these words: 'gen1 fiji', 'drop-in'",
    )  # fmt: skip
    parser.add_argument("--record", action="store_true", help="record the messages of each anew")
    parser.add_argument("--to", type=Path, default=RECORDED, help="where recordings go")
    parser.add_argument("--list", action="store_true", help="list the checks and end")
    parser.add_argument(
        "--json", action="store_true", help="the outcomes as JSON, on the last line"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs, and say where they are")
    parser.add_argument(
        "--limit", type=float, default=2400.0, metavar="SECONDS",
        help="most time for all checks, without making environments; default: %(default)s",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the checks; 0 where all passed."""
    options = parse(arguments)
    words = options.only.lower().split()
    chosen = [
        check
        for check in all_checks()
        if all(word in f"{check.name} {check.generation} {check.viewer}".lower() for word in words)
    ]
    if options.list:
        for check in chosen:
            print(f"{check.generation:10} {check.viewer:7} {check.name}")
        return 0
    needed = sorted(
        REQUIREMENTS
        if options.record
        else {name for check in chosen for name in check.generation.split("+")}
    )
    with ThreadPoolExecutor(len(needed) or 1) as pool:
        made = dict(
            zip(needed, pool.map(lambda name: make(options.envs, name), needed), strict=True)
        )
    run = Run(made, options.limit)
    end_in_time(run, options.limit)
    try:
        if options.record:
            problems = record(run, options.to)
            for problem in problems:
                print(problem, file=sys.stderr)
            return 1 if problems else 0
        outcomes = []
        for check in chosen:
            outcome = check(run)
            outcomes.append(outcome)
            show(outcome)
        failed = [outcome for outcome in outcomes if not outcome.passed]
        print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} passed")
        if options.json:
            print(json.dumps([asdict(outcome) for outcome in outcomes], default=str))
        return 1 if failed or not outcomes else 0
    finally:
        run.close(keep=options.keep)
        if options.keep:
            print(f"logs are in {run.folder}", file=sys.stderr)


def show(outcome: Outcome) -> None:
    """One line of the table, when it is known."""
    mark = "ok  " if outcome.passed else "FAIL"
    print(
        f"{mark} {outcome.generation:10} {outcome.viewer:7} {outcome.check:32} "
        f"{outcome.seconds:6.1f} s  {outcome.said}",
        flush=True,
    )


def end_in_time(run: Run, limit_s: float) -> None:
    """Whatever hangs: soon after the limit this process ends, and what it started with it."""

    def end() -> None:
        print(f"the limit of {limit_s:g} s has passed", file=sys.stderr)
        run.close()
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Timer(limit_s + 60.0, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
