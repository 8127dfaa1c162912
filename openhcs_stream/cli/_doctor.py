"""``openhcs-stream doctor``: what this machine lacks, and how to mend it. Changes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli import (
    _doctor_files,
    _doctor_machine,
    _doctor_python,
    _doctor_windows,
)
from openhcs_stream.errors import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from openhcs_stream.cli._findings import Finding

__all__ = ["add_arguments", "examine", "report", "run"]

_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _doctor_python.python,
    _doctor_python.packages,
    _doctor_python.viewers,
    _doctor_windows.display,
    _doctor_windows.libraries,
    _doctor_windows.window,
    _doctor_windows.of_viewers,
    _doctor_machine.shared_memory,
    _doctor_machine.passing,
    _doctor_machine.limits,
    _doctor_machine.cuda,
    _doctor_files.runtime,
    _doctor_files.sockets,
    _doctor_files.leftovers,
    _doctor_files.ports,
    _doctor_files.running,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0, where everything that is needed is there, whatever the warnings; else 1."""
    if arguments.json:
        told = report()
        print(json.dumps(told))
        return 0 if told["ok"] else 1
    findings = []
    for finding in examine():
        findings.append(finding)
        print(f"{finding.state:<5} {finding.check:<15} {printable(finding.text)}", flush=True)
        if finding.cure:
            print(f"{'':<21} -> {printable(finding.cure)}")
    failed, warned = (sum(each.state == state for each in findings) for state in ("fail", "warn"))
    print(f"\n{len(findings)} checks: {failed} failed, {warned} with a warning.")
    return 1 if failed else 0


def examine() -> Iterator[Finding]:
    """Look at everything, one after the other."""
    for check in _CHECKS:
        yield from check()


def report() -> dict[str, Any]:
    """All of it: JSON-able."""
    findings = list(examine())
    failed = sum(finding.state == "fail" for finding in findings)
    return {
        "ok": not failed,
        "failed": failed,
        "warned": sum(finding.state == "warn" for finding in findings),
        "findings": [asdict(each) for each in findings],
    }
