"""A viewer under hostile senders, for a moment: what scripts/fuzz does with a million messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Of a campaign in the tests; its own deadline is below each test's.
MESSAGES = 15_000
SECONDS = 30

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="it reads the viewer's memory and descriptors from /proc"
)


def run(*options: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "scripts._fuzz.main", "--json", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return done.returncode, report


@needs_linux
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_good_sender_is_served_beside_hostile_ones(seed: int) -> None:
    status, report = run(
        "--part", "live", "--messages", str(MESSAGES), "--live-seconds", str(SECONDS),
        "--seed", str(seed),
    )  # fmt: skip
    live = report["live"]
    assert isinstance(live, dict)
    assert live["findings"] == []
    assert status == 0
    assert live["messages"] > 1000
    assert sum(count > 0 for count in live["by_way"].values()) >= 4
    assert live["good_sent"] == live["good_displayed"] > 20
    assert live["good_verified"] > 0
    assert 0 < live["rss_end"] < live["rss_begin"] + (256 << 20)


def test_the_decoders_by_the_command(tmp_path: Path) -> None:
    status, report = run(
        "--part", "decoders", "--seconds", "2", "--engine", "own", "--jobs", "1",
        "--only", "addresses", "--only", "pickles", "--keep", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    assert report["engine"] == "own"
    assert report["findings"] == 0
    counts = report["decoders"]
    assert isinstance(counts, dict)
    assert set(counts) == {"addresses", "pickles"}
    assert all(each["inputs"] > 100 for each in counts.values())
    assert list(tmp_path.iterdir()) == []
