"""The benchmark measures what it says, with real processes, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openhcs_stream.bench import DEMANDS, Figure, Report
from openhcs_stream.bench._original import OriginalSender
from openhcs_stream.bench._report import flat
from openhcs_stream.bench._run import _copies, _rounds, _stream
from openhcs_stream.bench._viewers import Child, start
from openhcs_stream.errors import ViewerUnreachable

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_a_figure_is_a_median_between_quartiles() -> None:
    figure = Figure.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (figure.q1, figure.median, figure.q3) == (2.0, 3.0, 4.0)
    assert figure.spread == 2.0
    assert Figure.of([7.0]).to_json() == {"median": 7.0, "q1": 7.0, "q3": 7.0}


def test_rounds_that_disagree_are_not_believed() -> None:
    quiet = Report(ratios={"a": Figure(1.0, 0.9, 1.1), "b": {"c": Figure(2.0, 1.9, 2.1)}})
    assert quiet.believable
    noisy = Report(ratios={"a": Figure(1.0, 0.9, 1.1), "b": {"c": Figure(2.0, 1.0, 3.0)}})
    assert noisy.doubtful == ["b.c"]
    assert noisy.to_json()["believable"] is False
    assert noisy.to_json()["b"] == {"c": {"median": 2.0, "q1": 1.0, "q3": 3.0}}
    # Counts of faults are near nothing, where a ratio of quartiles says nothing.
    assert Report(ratios={"faults_per_image": {"x": Figure(0.1, 0.0, 0.4)}}).believable


def test_paths_run_there_and_back_again() -> None:
    order: list[str] = []

    def path(name: str) -> Any:
        def act() -> float:
            order.append(name)
            return 0.5

        return (name, act, 4)

    rates = _rounds([path("a"), path("b")], 2)
    assert order == list("abba" * 3)  # the first round is not counted
    assert rates == {"a": [8.0, 8.0], "b": [8.0, 8.0]}


def test_the_originals_scheme_really_sends(
    own_runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def token_hex(nbytes: int) -> str:
        made.append(os.urandom(nbytes).hex())
        return made[-1]

    monkeypatch.setattr("openhcs_stream.bench._original.secrets.token_hex", token_hex)
    with Child("original") as receiver:
        sender = OriginalSender(receiver.address)
        sender.send([np.ones((64, 64), np.uint16)] * 3)
        sender.close()
    assert len(made) >= 3
    assert not [name for name in os.listdir("/dev/shm") if any(each in name for each in made)]


@pytest.mark.parametrize("name", ["touch", "map", "keep"])
def test_each_receiver_takes_images(own_runtime_folder: Path, name: str) -> None:
    with start(name) as child, _stream(child) as stream:
        images = [np.ones((64, 64), np.uint16)] * 2
        assert _copies(stream, images, 8, 1, 2) > 0
        assert _copies(stream, images, 9, 4, 2) > 0
        assert stream.status()[0].displayed == 17
        assert child.minor_faults() > 0


def test_a_process_that_does_not_start_is_named(own_runtime_folder: Path) -> None:
    with pytest.raises(ViewerUnreachable, match="exit status"):
        Child("nonsense")


@pytest.mark.timeout(240)
def test_the_quick_form_gives_every_figure(own_runtime_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "openhcs_stream", "bench", "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    found = {
        name: value
        for name in {demand.partition(".")[0] for demand in DEMANDS}
        for name, value in _figures(name, answer[name]).items()
    }
    assert found.keys() == DEMANDS.keys()
    for figure in found.values():
        assert figure.keys() == {"median", "q1", "q3"}
    assert isinstance(answer["believable"], bool)
    assert found["faults_per_image.8MiB"]["median"] < 1
    assert found["faults_per_image.128MiB"]["median"] < 10


def _figures(name: str, tree: dict[str, Any]) -> dict[str, dict[str, float]]:
    if "median" in tree:
        return {name: tree}
    return {f"{name}.{case}": figure for case, figure in tree.items()}


def test_every_demand_has_a_name_of_its_own() -> None:
    assert flat({"a": {"b": Figure(1, 1, 1)}, "c": Figure(1, 1, 1)}).keys() == {"a.b", "c"}
