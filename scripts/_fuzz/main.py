"""The command behind scripts/fuzz."""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from scripts._fuzz import decoders, live
from scripts._fuzz.targets import TARGETS

ROOT: Final = Path(__file__).resolve().parents[2]
USAGE: Final = "scripts/fuzz [options]"


def main(argv: list[str] | None = None) -> int:
    """Feed everything for as long as it is said; 0 only where nothing was found."""
    arguments = _parser().parse_args(argv)
    report: dict[str, Any] = {"seed": arguments.seed, "engine": "", "decoders": {}, "live": None}
    if arguments.part != "live":
        report["decoders"] = _decoders(arguments, report)
    if arguments.part != "decoders":
        report["live"] = asdict(
            live.run(arguments.messages, arguments.live_seconds, arguments.seed)
        )
    findings = [each for counts in report["decoders"].values() for each in counts["findings"]]
    findings += report["live"]["findings"] if report["live"] else []
    report["findings"] = len(findings)
    if arguments.json:
        print(json.dumps(report))
    else:
        _print(report, findings)
    return 1 if findings else 0


def _decoders(arguments: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    names = arguments.only or list(TARGETS)
    corpus = arguments.keep.absolute()
    use_atheris = arguments.engine == "atheris" or (
        arguments.engine == "auto" and decoders.has_atheris()
    )
    report["engine"] = "atheris" if use_atheris else "own"
    if use_atheris:
        if not decoders.has_atheris():
            sys.exit("atheris is not installed: pip install atheris, or --engine own")
        found = decoders.fuzz_with_atheris(arguments.seconds, arguments.seed, names, corpus)
        return {name: asdict(counts) for name, counts in found.items()}
    # Processes of their own: an input that takes too much memory, or all of the process, is found.
    jobs = min(arguments.jobs, len(names))
    shares = [names[job::jobs] for job in range(jobs)]
    told: dict[str, Any] = {}
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=decoders.limit_memory
    ) as pool:
        running = [
            pool.submit(decoders.fuzz, arguments.seconds, arguments.seed + job, share, corpus)
            for job, share in enumerate(shares)
        ]
        for share, each in zip(shares, running, strict=True):
            try:
                told |= {name: asdict(counts) for name, counts in each.result().items()}
            except Exception as error:
                ended = {"target": ", ".join(share), "what": f"its process ended: {error}"}
                told |= {name: asdict(decoders.Findings()) for name in share}
                told[share[0]]["findings"].append(ended)
    return {name: told[name] for name in names}


def _print(report: dict[str, Any], findings: list[dict[str, Any]]) -> None:
    if report["decoders"]:
        print(f"{'decoder':<26}{'inputs':>12}{'taken':>10}{'refused':>12}{'findings':>10}")
        for name, counts in report["decoders"].items():
            print(
                f"{name:<26}{counts['inputs']:>12}{counts['accepted']:>10}{counts['refused']:>12}"
                f"{len(counts['findings']):>10}"
            )
    told = report["live"]
    if told:
        mib = {key: told[key] >> 20 for key in ("rss_begin", "rss_fifth", "rss_most", "rss_end")}
        ways = ", ".join(f"{way} {count}" for way, count in told["by_way"].items())
        print(
            f"a viewer was sent {told['messages']} hostile messages in {told['seconds']:g} s: "
            f"{ways}.\n"
            f"The good sender beside them: {told['good_displayed']} of {told['good_sent']} images "
            f"displayed, {told['good_verified']} read back.\n"
            f"Memory: {mib['rss_begin']} MiB at first, {mib['rss_fifth']} after a fifth of it, "
            f"{mib['rss_most']} at most, {mib['rss_end']} at the end. "
            f"Descriptors: {told['fds_begin']}, then {told['fds_end']}."
        )
    for each in findings:
        print(f"\n{each['target']}: {each['what']}\n{each.get('how', '')}".rstrip())
    print(f"{len(findings)} findings")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", usage=USAGE, add_help=False)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--live-seconds", type=float, default=900.0)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--part", choices=("all", "decoders", "live"), default="all")
    parser.add_argument("--engine", choices=("auto", "own", "atheris"), default="auto")
    parser.add_argument("--only", action="append", choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=ROOT / ".fuzz")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
