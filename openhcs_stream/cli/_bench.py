"""``openhcs-stream bench``: how fast this machine's paths are, beside its limits."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from openhcs_stream.bench import Figure, Report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="within a minute, less exact")
    parser.add_argument(
        "--rounds", type=int, default=9, metavar="N", help="rounds of each case (%(default)s)"
    )
    parser.add_argument(
        "--viewer",
        default="keep",
        metavar="NAME",
        help="which viewer keeps every image: an installed one, without its window (napari, "
        "fiji); by default a plain memory",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from openhcs_stream import bench

    # That queues get full is what it is for.
    logging.getLogger("openhcs_stream.stream").setLevel(logging.ERROR)

    def tell(what: str) -> None:
        if not arguments.json:
            print(f"measuring: {what} ...", file=sys.stderr, flush=True)

    report = bench.run(
        rounds=max(3, arguments.rounds), quick=arguments.quick, viewer=arguments.viewer, tell=tell
    )
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        print(_table(report))
    return 0


def _table(report: Report) -> str:
    from openhcs_stream.bench import DEMANDS, flat

    lines = ["", f"{'ratio':44} {'median':>8}  {'quartiles':>17}  {'demand':>9}"]
    figures = flat(report.ratios)
    for name, demand in DEMANDS.items():
        figure = figures[name]
        word = f">= {demand:g}" if demand > 0 else f"<= {-demand:g}"
        lines.append(f"{name:44} {_line(figure)}  {word:>9}")
    lines += ["", f"{'images a second':44} {'median':>8}  {'quartiles':>17}"]
    for case, paths in report.rates.items():
        lines += [f"{case + ' ' + path:44} {_line(figure)}" for path, figure in paths.items()]
    lines += ["", "limits of this machine"]
    lines += [f"{name:44} {_line(figure)}" for name, figure in report.limits.items()]
    facts = ", ".join(f"{key} {value}" for key, value in report.facts.items())
    lines += ["", facts]
    if report.believable:
        lines.append("The rounds agree: this run can be believed.")
    else:
        lines.append(
            "This run is too noisy to believe; its rounds disagree about "
            f"{', '.join(report.doubtful)}. Run it again on a machine that does nothing else."
        )
    return "\n".join(lines)


def _line(figure: Figure) -> str:
    return f"{figure.median:8.3g}  {figure.q1:8.3g} {figure.q3:8.3g}"
