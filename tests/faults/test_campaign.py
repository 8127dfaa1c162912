"""The campaigns of `scripts/faults` and `scripts/soak` in short, and that they can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts._campaign.plan import PHASES, RECONNECT_S, SCENARIOS, plan

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc"),
]


def run(module: str, *arguments: str) -> dict[str, Any]:
    """Run one of the commands; its report."""
    done = subprocess.run(
        [sys.executable, "-m", f"scripts._campaign.{module}", "--json", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == bool(report["found"] or report.get("broken")), done.stderr
    return report


def test_kills_leave_nothing_and_hurt_nobody() -> None:
    report = run("faults", "--short", "--faults", "kill", "--trials", "16", "--jobs", "2")
    assert report["found"] == []
    assert report["broken"] == []
    assert report["trials"] == 16
    for key in ("survivors_hurt", "bytes_left", "names_left", "processes_left", "descriptors_left"):
        assert report[key] == 0, report
    books = report["books"]
    assert books["sent"] == books["displayed"] + books["failed"] + books["dropped"] > 0
    # Some viewers were started again, and streams went on by themselves.
    assert report["returns"] > 0


def test_a_campaign_of_300_kills_everybody_in_every_phase() -> None:
    trials = plan(300, 1)
    assert [trial.number for trial in trials] == list(range(300))
    for scenario in SCENARIOS:
        mine = [trial for trial in trials if trial.scenario == scenario.name]
        if scenario.name in ("memory", "napari headless", "napari Qt", "Fiji headless",
                             "Fiji windows", "two: napari, Fiji"):  # fmt: skip
            pairs = {(phase.name, victim) for phase in PHASES for victim in scenario.victims}
            assert {(trial.phase, trial.victim) for trial in mine} == pairs
            # Viewers that die come back in every way to those that live on.
            assert {trial.again for trial in mine if trial.victim != "sender"} == {*RECONNECT_S}
    assert {trial.victim for trial in trials} == {"sender", "viewer", "both", "launcher"}


def test_the_same_numbers_give_the_same_trials() -> None:
    assert plan(40, 7) == plan(40, 7) != plan(40, 8)


def test_faults_without_a_kill_keep_every_deadline() -> None:
    report = run("faults", "--short", "--faults", "other", "--jobs", "2")
    assert report["found"] == []
    assert report["broken"] == []
    assert report["trials"] >= 10


def test_the_originals_scheme_is_seen_to_leak() -> None:
    before = set(os.listdir("/dev/shm"))
    report = run("faults", "--scheme", "original", "--trials", "12", "--jobs", "2")
    assert report["names_left"] > 0
    assert report["bytes_left"] > 0
    assert report["broken"] == []
    # What it left was counted first, and removed then.
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}


def test_a_short_soak_accounts_for_every_item() -> None:
    report = run("soak", "--minutes", "0.25", "--workers", "3", "--viewers", "memory,memory")
    assert report["found"] == []
    assert report["unaccounted"] == 0
    assert report["sent"] == report["displayed"] + report["failed"] + report["dropped"] > 0
