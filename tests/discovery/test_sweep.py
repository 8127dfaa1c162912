"""Sweeping: everything of the dead goes, nothing of the living does, the rest is told."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.discovery import LOG_KEPT_S, endpoints, log_file, publish, sweep
from openhcs_stream.discovery._launch import _open_log
from openhcs_stream.runtime import hold, try_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.runtime import Found

CROWD = str(Path(__file__).with_name("crowd.py"))


@pytest.fixture
def endpoint() -> Endpoint:
    from openhcs_stream.discovery import Endpoint

    return Endpoint("memory", "one", os.getpid(), time.time(), (1, 0), ("ipc:///x",), "", True)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[None]:
    """A unix socket at `path`, by its short relative name: the whole one may be too long."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.name)
        sock.listen()
        yield


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_there(own_runtime_folder: Path) -> None:
    assert sweep() == sweep(dry_run=True)
    assert sweep().removed == sweep().kept == []


def test_what_the_living_use_is_in_no_list(own_runtime_folder: Path, endpoint: Endpoint) -> None:
    fd, _ = _open_log("memory")
    with publish(endpoint):
        held = hold("file", own_runtime_folder / "it")
        held.temporary.write_text("")
        os.utime(log_file("memory"), (1, 1))
        swept = sweep(logs=True)
        assert swept.removed == swept.kept == []
        assert sweep(dry_run=True, logs=True).removed == []
        held.remove()
    os.close(fd)


def test_dry_run_removes_nothing(own_runtime_folder: Path) -> None:
    names = [".launch-napari.lock", ".new-0123456789abcdef", "napari-napari.json"]
    for name in names:
        (own_runtime_folder / name).write_text("{}")
    would = sweep(dry_run=True)
    assert [found.path.name for found in would.removed] == names
    assert left(own_runtime_folder) == names
    done = sweep()
    assert done.removed == would.removed
    assert [found.kind for found in done.removed] == [
        "launch lock", "endpoint file", "endpoint file",
    ]  # fmt: skip
    assert left(own_runtime_folder) == []


def test_sockets_that_no_ledger_tells_of(own_runtime_folder: Path) -> None:
    dead, alive = (own_runtime_folder / f"memory-{number}-abcdef.ipc" for number in (1, 2))
    plain = own_runtime_folder / "memory-3-abcdef.ipc"
    plain.write_text("no socket at all")
    with listening(dead):
        pass
    with listening(alive):
        assert [found.path for found in sweep(dry_run=True).removed] == [dead]
        assert endpoints(clear=False) == []
        assert dead.exists()
        assert endpoints() == []  # whoever looks for viewers sweeps
        assert left(own_runtime_folder) == [alive.name, plain.name]


def test_socket_of_a_living_ledger_is_not_even_tried(
    own_runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection for each look would cost the viewer one each."""
    path = own_runtime_folder / "memory-1-abcdef.ipc"
    held = hold("socket", path)
    with listening(held.temporary):
        held.made()
        monkeypatch.setattr(socket, "socket", None)
        assert sweep().removed == []
    monkeypatch.undo()
    held.remove()


def test_what_is_nobodys_stays_and_is_told(own_runtime_folder: Path, tmp_path: Path) -> None:
    (own_runtime_folder / "notes.txt").write_text("mine")
    (own_runtime_folder / ".openhcs-stream-0123456789abcdef").write_text("whose?")
    (own_runtime_folder / "memory-link.json").symlink_to(tmp_path)
    swept = sweep()
    assert swept.removed == []
    assert [found.path.name for found in swept.kept] == left(own_runtime_folder)
    assert {found.why for found in swept.kept if found.kind == "file"} == {
        "no process of ours tells of it"
    }


def test_log_of_an_ended_viewer_is_kept_for_a_day(own_runtime_folder: Path) -> None:
    fd, _ = _open_log("memory")
    os.write(fd, b"last words\n")
    os.close(fd)
    path = log_file("memory")
    (kept,) = sweep().kept
    assert "24 hours" in kept.why
    old = time.time() - LOG_KEPT_S - 1
    os.utime(path, (old, old))
    assert [found.path for found in sweep(dry_run=True).removed] == [path]
    assert [found.path for found in sweep().removed] == [path]
    path.write_text("young")
    assert [found.path for found in sweep(logs=True).removed] == [path]


def test_log_that_a_sweeper_takes_is_opened_anew(
    own_runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openhcs_stream.discovery import _launch

    fd, _ = _open_log("memory")
    os.close(fd)
    removed: list[Found] = []

    def late(fd: int) -> bool:
        if not removed:
            removed.extend(sweep(logs=True).removed)
        return try_shared(fd)

    monkeypatch.setattr(_launch, "try_shared", late)
    fd, start = _open_log("memory")
    assert removed
    assert start == 0
    os.write(fd, b"here")
    os.close(fd)
    assert log_file("memory").read_text() == "here"


def test_a_folder_that_stays_locked_is_told(
    own_runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openhcs_stream.discovery import _files
    from openhcs_stream.runtime import locked_folder

    (own_runtime_folder / "napari-napari.json").write_text("{}")
    monkeypatch.setattr(_files.remove_if_left, "__kwdefaults__", {"shared": False, "patience_s": 0})
    with locked_folder(own_runtime_folder, patience_s=1):
        swept = sweep()
    assert swept.removed == []
    assert "stays locked" in swept.kept[0].why
    assert len(sweep().removed) == 1


def test_sweepers_beside_the_living_and_the_dying(own_runtime_folder: Path) -> None:
    """They sweep all the time; hundreds of makers are killed at any moment beside them."""
    outside = own_runtime_folder.with_name(f"{own_runtime_folder.name}-out")
    outside.mkdir(mode=0o700)

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, CROWD, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    sweepers = [start("sweep") for _ in range(3)]
    drivers = [start("live", "5", str(outside)) for _ in range(2)]
    try:
        lived = [json.loads(process.communicate(timeout=50)[0]) for process in drivers]
        swept = [json.loads(process.communicate("", timeout=20)[0]) for process in sweepers]
        last = sweep()
        assert [each["hurt"] for each in lived] == [[], []]
        assert sum(each["checked"] for each in lived) >= 20
        assert sum(each["born"] - each["checked"] for each in lived) >= 20
        assert sum(each["removed"] for each in swept) >= 20
        assert min(each["sweeps"] for each in swept) >= 20
        assert last.kept == []
        assert left(own_runtime_folder) == []
        assert left(outside) == []
    finally:
        for process in (*drivers, *sweepers):
            process.kill()
            process.wait()
        for path in outside.iterdir():
            path.unlink()
        outside.rmdir()
