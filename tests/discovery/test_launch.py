from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from openhcs_stream.discovery import (
    DETACH_VARIABLE,
    Endpoint,
    endpoints,
    find,
    log_file,
    unknown_viewer,
)
from openhcs_stream.discovery import launch as discovery_launch
from openhcs_stream.discovery._launch import launch_command
from openhcs_stream.errors import DeadlineExceeded, UnknownViewer, ViewerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A viewer without a viewer: detaches, publishes, waits for its end.
FAKE = """
import argparse, os, signal, sys, time
from openhcs_stream.discovery import Endpoint, detach, publish
ready = detach()
parser = argparse.ArgumentParser()
parser.add_argument("--name", default="fake")
parser.add_argument("--port", default="0")
parser.add_argument("--fail", action="store_true")
parser.add_argument("--hang", action="store_true")
args = parser.parse_args()
print("starting", args.name, flush=True)
if args.fail:
    sys.exit("no display here")
while args.hang:
    signal.pause()
with publish(Endpoint("fake", args.name, os.getpid(), time.time(), (1, 0),
                      ("tcp://127.0.0.1:" + args.port,), "", True)):
    ready()
    signal.sigwait({signal.SIGTERM})
"""

LAUNCHER = f"""
import sys
from openhcs_stream.discovery._launch import launch_command
endpoint = launch_command([sys.executable, "-c", {FAKE!r}], "fake", timeout_s=30.0,
                          name=None, port=None, options=(), env=None)
print(endpoint.pid, flush=True)
sys.stdin.read()
"""


def launch(
    *options: str, timeout_s: float = 30.0, name: str | None = None, port: int | None = None
) -> Endpoint:
    return launch_command(
        [sys.executable, "-c", FAKE],
        "fake",
        timeout_s=timeout_s,
        name=name,
        port=port,
        options=options,
        env=None,
    )


@pytest.fixture(autouse=True)
def _end_all(folder: Path) -> Iterator[None]:
    yield
    for endpoint in endpoints():
        os.kill(endpoint.pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has reaped it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True


def targets_of(pid: int) -> set[str]:
    """What a process has open."""
    targets = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.add(os.readlink(entry.path))
    return targets


def wait_until_gone(pid: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        os.sched_yield()


def test_launched_viewer_is_nobodys_child_and_in_its_own_session(folder: Path) -> None:
    before = psutil.Process().children()
    endpoint = launch()
    viewer = psutil.Process(endpoint.pid)
    assert os.getsid(endpoint.pid) != os.getsid(0)
    assert viewer.ppid() != os.getpid()
    assert psutil.Process().children() == before
    assert DETACH_VARIABLE not in viewer.environ() or "-c" in viewer.cmdline()
    assert find("fake") == endpoint
    assert "starting fake" in log_file("fake").read_text()
    viewer.terminate()
    wait_until_gone(endpoint.pid)
    assert endpoints() == []


def test_launched_viewer_inherits_no_descriptors(folder: Path) -> None:
    inherited, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    try:
        endpoint = launch()
        pipe = os.readlink(f"/proc/self/fd/{theirs}")
        assert pipe not in targets_of(endpoint.pid)
        # That by which it hears of its launcher's death goes once it is ready, soon after it is
        # found.
        deadline = time.monotonic() + 20.0
        while any(target.startswith("pipe:") for target in targets_of(endpoint.pid)):
            assert time.monotonic() < deadline
            os.sched_yield()
    finally:
        os.close(inherited)
        os.close(theirs)


def test_one_that_runs_is_taken(folder: Path) -> None:
    first = launch()
    assert launch() == first
    other = launch(name="other", port=4711)
    assert other.name == "other"
    assert other.port == 4711
    assert launch(name="other") == other


def test_launchers_at_once_start_one_viewer(folder: Path) -> None:
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = [process.communicate("", timeout=50)[0].strip() for process in crowd]
    assert len(set(answers)) == 1
    assert [endpoint.pid for endpoint in endpoints()] == [int(answers[0])]
    assert log_file("fake").read_text().count("starting") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["fake-fake.json", "fake.log"]


def test_threads_at_once_start_one_viewer(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: launch(), range(4)))
    assert len(set(found)) == 1


def test_viewer_survives_the_kill_of_the_launchers_group(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    assert not gone(pid)
    endpoint = find("fake")
    assert endpoint is not None
    assert endpoint.pid == pid


def test_killed_launcher_does_not_block_the_next_and_takes_with_it_what_it_started(
    folder: Path,
) -> None:
    slow = LAUNCHER.replace("options=()", "options=('--hang',)")
    with subprocess.Popen([sys.executable, "-c", slow]) as launcher:
        deadline = time.monotonic() + 30
        while not log_file("fake").exists() or "starting" not in log_file("fake").read_text():
            assert time.monotonic() < deadline
            os.sched_yield()
        hanging = [
            process
            for process in psutil.process_iter(["cmdline", "environ"])
            if "--hang" in (process.info["cmdline"] or [])
            and (process.info["environ"] or {}).get("OPENHCS_STREAM_RUNTIME_DIR") == str(folder)
        ]
        assert hanging
        launcher.kill()
        launcher.wait()
    assert launch().name == "fake"
    for process in hanging:
        wait_until_gone(process.pid)
    assert [endpoint.name for endpoint in endpoints()] == ["fake"]


def test_early_end_is_told_with_its_last_words(folder: Path) -> None:
    started = time.monotonic()
    with pytest.raises(
        ViewerUnreachable, match=r"(?s)ended before it was ready.*no display here.*doctor"
    ):
        launch("--fail")
    assert time.monotonic() - started < 20
    assert launch().name == "fake"


def test_one_that_is_not_ready_in_time_is_ended(folder: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"(?s)not ready within 3 s.*Allow more time"):
        launch("--hang", timeout_s=3.0)
    assert not [
        process
        for process in psutil.process_iter(["cmdline", "environ", "status"])
        if (process.info["environ"] or {}).get("OPENHCS_STREAM_RUNTIME_DIR") == str(folder)
        and "--hang" in (process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    assert launch().name == "fake"


def test_waiting_for_another_launcher_is_bounded(folder: Path) -> None:
    slow = LAUNCHER.replace("options=()", "options=('--hang',)").replace(
        "timeout_s=30.0", "timeout_s=5.0"
    )
    with subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.DEVNULL) as launcher:
        deadline = time.monotonic() + 30
        while not log_file("fake").exists():
            assert time.monotonic() < deadline
            os.sched_yield()
        with pytest.raises(DeadlineExceeded, match=r"another process.*fake\.log"):
            launch(timeout_s=0.5)
        launcher.wait(30)


def test_log_does_not_grow_without_bound(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    log_file("fake").write_bytes(b"x" * (2 << 20))
    launch()
    assert log_file("fake").stat().st_size < 1000


def test_unknown_kind_is_refused_before_anything_is_started(folder: Path) -> None:
    with pytest.raises(UnknownViewer, match=r"'nonsense' is installed.*Installed viewers:"):
        discovery_launch("nonsense", timeout_s=5.0)
    assert not folder.exists()
    assert "pip install 'openhcs-stream[napari]'" in str(unknown_viewer("napari"))
    assert "pip install 'openhcs-stream[fiji]'" in str(unknown_viewer("Fiji"))
