"""The scripts that people run: what they set up, what they leave alone, what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
FOR_PEOPLE = [
    "bench_backpressure",
    "bench_big",
    "bench_costs",
    "bench_device",
    "bench_draw",
    "bench_fiji_growth",
    "bench_many_rois",
    "bench_rivals",
    "demo",
    "faults",
    "fiji_receiver",
    "fuzz",
    "interop",
    "profile_image",
    "soak",
    "test",
]
SCRIPTS = [ROOT / "scripts" / name for name in ("_setup.sh", *FOR_PEOPLE)] + [ROOT / ".ci/run"]

#: Instead of a Python that takes minutes: makes an environment of files, and notes what pip does.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"-m venv "*)
        mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "version = 3.11.0" >"$3/pyvenv.cfg"
        echo made >>"$FAKE_LOG" ;;
    *"-m pip "*" --upgrade pip")
        exit "${FAKE_NEW_PIP_STATUS:-0}" ;;
    *"-m pip "*)
        echo installed >>"$FAKE_LOG"
        sleep "${FAKE_PIP_S:-0}"
        exit "${FAKE_PIP_STATUS:-0}" ;;
    -V) echo "Python 3.11.0" ;;
esac
"""


class Checkout:
    """A copy of the scripts in a folder of their own, with a Python that only pretends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.parent / "log"
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        (folder / "pyproject.toml").write_text("[project]\n")
        python = folder.parent / "python"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        self.env = {
            **os.environ,
            "FAKE_LOG": str(self.log),
            "OPENHCS_STREAM_PYTHON": str(python),
            "OPENHCS_STREAM_NO_SYSTEM_PACKAGES": "1",
        }

    def start(self, program: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"source scripts/_setup.sh\n{program}"],
            cwd=self.folder,
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set_up(self, env: Mapping[str, str] | None = None) -> int:
        process = self.start("set_up", env)
        process.communicate(timeout=30)
        return process.returncode

    def done(self) -> list[str]:
        """What was done since the last call."""
        done = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return done


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    assert script.name.startswith("_") or os.access(script, os.X_OK)


@pytest.mark.parametrize("name", FOR_PEOPLE)
def test_help_is_there_before_anything_is_set_up(checkout: Checkout, name: str) -> None:
    done = subprocess.run(
        [str(checkout.folder / "scripts" / name), "--help"],
        env=checkout.env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.startswith(f"usage: scripts/{name}")
    assert checkout.done() == []


def test_ci_runs_the_tests_and_nothing_else() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        'exec "$(dirname "${BASH_SOURCE[0]}")/../scripts/test"'
    ]


def test_the_second_run_finds_everything_done(checkout: Checkout) -> None:
    assert checkout.set_up() == 0
    assert checkout.done() == ["made", "installed"]
    assert checkout.set_up() == 0
    assert checkout.done() == []


def test_where_no_new_pip_is_to_be_had_the_old_one_does_it(checkout: Checkout) -> None:
    assert checkout.set_up({"FAKE_NEW_PIP_STATUS": "1"}) == 0
    assert checkout.done() == ["made", "installed"]


def test_other_requirements_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.set_up()
    checkout.done()
    (checkout.folder / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    checkout.set_up()
    assert checkout.done() == ["installed"]


def test_an_interrupted_set_up_is_done_anew(checkout: Checkout) -> None:
    assert checkout.set_up({"FAKE_PIP_STATUS": "1"}) == 1
    assert checkout.done() == ["made", "installed"]
    (checkout.folder / ".venv" / "half-written").touch()
    assert checkout.set_up() == 0
    assert checkout.done() == ["made", "installed"]
    assert not (checkout.folder / ".venv" / "half-written").exists()


def test_an_environment_that_was_copied_here_is_made_anew(checkout: Checkout) -> None:
    checkout.set_up()
    checkout.done()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    checkout.set_up()
    assert checkout.done() == ["made", "installed"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock keeps set-ups apart")
def test_of_two_at_once_one_installs(checkout: Checkout) -> None:
    both = [checkout.start("set_up", {"FAKE_PIP_S": "1"}) for _ in range(2)]
    for process in both:
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert checkout.done() == ["made", "installed"]


def test_without_python_it_says_what_to_install(checkout: Checkout, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "basename", "uname", "cat", "cksum", "flock", "head"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    process = checkout.start("set_up", {"PATH": str(tools), "OPENHCS_STREAM_PYTHON": ""})
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no Python 3.11 or later was found" in said


needs_xvfb = pytest.mark.skipif(
    shutil.which("Xvfb") is None or shutil.which("xauth") is None, reason="Xvfb is not installed"
)
SHOW = "exec bash -c 'echo $DISPLAY $XAUTHORITY; read -r'"


def start_with_display(checkout: Checkout, until: str) -> tuple[subprocess.Popen[str], str, Path]:
    process = subprocess.Popen(
        ["bash", "-c", f"source scripts/_setup.sh\nbring_display {until}\n{SHOW}"],
        cwd=checkout.folder,
        env={**checkout.env, "DISPLAY": "", "WAYLAND_DISPLAY": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    display, key = process.stdout.readline().split()
    return process, display, Path(key)


@needs_xvfb
@pytest.mark.parametrize("end", ["well", "killed"])
def test_the_display_that_it_brings_ends_with_the_program(checkout: Checkout, end: str) -> None:
    process, display, key = start_with_display(checkout, "program")
    number = display.removeprefix(":")
    assert is_served(number)
    assert key.exists()
    if end == "killed":
        process.send_signal(signal.SIGKILL)
    process.communicate("\n", timeout=20)
    wait_until(lambda: not is_served(number) and not key.exists())


@needs_xvfb
def test_a_display_for_windows_ends_where_there_are_none(checkout: Checkout) -> None:
    """As `scripts/demo --keep` has it: without a window that stays, nothing does."""
    process, display, key = start_with_display(checkout, "windows")
    process.communicate("\n", timeout=20)
    wait_until(lambda: not is_served(display.removeprefix(":")) and not key.exists())


def test_a_display_that_is_there_is_used(checkout: Checkout) -> None:
    process = checkout.start("bring_display program; echo $DISPLAY", {"DISPLAY": ":4711"})
    assert process.communicate(timeout=20)[0] == ":4711\n"


def is_served(number: str) -> bool:
    """Whether an X server listens there."""
    names = Path("/proc/net/unix").read_text().split()
    return f"@/tmp/.X11-unix/X{number}" in names or f"/tmp/.X11-unix/X{number}" in names


def wait_until(reached: object, timeout_s: float = 20.0) -> None:
    assert callable(reached)
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
