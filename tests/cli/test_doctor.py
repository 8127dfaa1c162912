"""``openhcs-stream doctor``: each finding, and that it changes nothing."""

from __future__ import annotations

import ctypes.util
import errno
import json
import os
import re
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream.cli import _doctor, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.cli._doctor import Finding


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the window, which takes seconds; it has tests of its own."""
    checks = tuple(check for check in _doctor._CHECKS if check is not _doctor._window)
    monkeypatch.setattr(_doctor, "_CHECKS", checks)


def by_check(check: Callable[[], Iterator[Finding]]) -> dict[str, Finding]:
    return {finding.check: finding for finding in check()}


def test_json(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    states = {finding["state"] for finding in report["findings"]}
    assert states <= {"ok", "warn", "fail"}
    assert status == (1 if "fail" in states else 0)
    assert report["ok"] == ("fail" not in states)
    for finding in report["findings"]:
        assert set(finding) == {"check", "state", "text", "cure"}
        assert finding["text"]
        assert bool(finding["cure"]) == (finding["state"] != "ok"), finding
    assert {"python", "numpy", "viewers", "display", "memfd", "/dev/shm", "nofile", "memlock",
            "cgroup memory", "runtime folder", "stale files", "port 5555", "port 5565"} <= {
        finding["check"] for finding in report["findings"]
    }  # fmt: skip


def test_text(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out
    assert re.search(r"^ok    python +3\.", text, re.MULTILINE)
    assert re.search(r"\d+ checks: \d+ failed, \d+ with a warning\.$", text)


def test_one_failure_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = _doctor.Finding("memory", "fail", "all gone", "buy some")
    monkeypatch.setattr(_doctor, "_CHECKS", (lambda: iter([finding]),))
    assert main(["doctor"]) == 1
    assert main(["doctor", "--json"]) == 1


def test_runtime_folder_that_others_can_enter(own_runtime_folder: Path) -> None:
    own_runtime_folder.chmod(0o755)
    finding = by_check(_doctor._runtime)["runtime folder"]
    assert finding.state == "fail"
    assert "chmod 700" in finding.cure


def test_stale_files_are_named_and_left(own_runtime_folder: Path) -> None:
    path = own_runtime_folder / "napari-napari.json"
    path.write_text("{}")
    finding = by_check(_doctor._runtime)["stale files"]
    assert finding.state == "warn"
    assert "napari-napari.json" in finding.text
    assert path.exists()


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(_doctor, "_PORTS", (port,))
        (finding,) = _doctor._ports()
        assert finding.state == "warn"
        assert "in use" in finding.text
        assert "--port" in finding.cure
    (finding,) = _doctor._ports()
    assert finding.state == "ok"


def test_port_of_our_own_viewer(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started = start("--port", "0", "--json")
    monkeypatch.setattr(_doctor, "_PORTS", (json.loads(started.line)["port"],))
    (finding,) = _doctor._ports()
    assert f"by the running viewer 'memory' (pid {started.pid})" in finding.text
    assert ", 1 running viewers" in by_check(_doctor._runtime)["runtime folder"].text


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_blocks=64, f_bavail=60, f_frsize=1 << 20)
    )
    (finding,) = _doctor._dev_shm()
    assert finding.state == "warn"
    assert finding.text == "64 MiB, 60 MiB free"
    assert "--shm-size" in finding.cure


def test_forbidden_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert by_check(_doctor._shared_memory)["memfd"].state == "fail"


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    finding = by_check(_doctor._limits)["nofile"]
    assert finding.state == "warn"
    assert finding.text == "256 open files, at most unlimited"
    assert "ulimit -n" in finding.cure


@pytest.mark.parametrize(
    ("content", "state", "text"),
    [
        ("max", "ok", "no limit"),
        (str(512 << 20), "warn", "limited to 512 MiB"),
        (str(8 << 30), "ok", "limited to 8192 MiB"),
        (str((1 << 63) - 4096), "ok", "no limit"),
    ],
)
def test_memory_limit(
    content: str, state: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(content)
    missing = tmp_path / "missing"
    monkeypatch.setattr(_doctor, "_limit_files", lambda: [missing, tmp_path / "memory.max"])
    (finding,) = _doctor._memory_limit()
    assert (finding.state, finding.text) == (state, text)


def test_limit_files_are_those_of_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "4:cpu,memory:/one\n0::/a/b\n")
    assert [str(path) for path in _doctor._limit_files()] == [
        "/sys/fs/cgroup/memory/one/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/a/b/memory.max",
        "/sys/fs/cgroup/a/memory.max",
        "/sys/fs/cgroup/memory.max",
    ]


@pytest.mark.parametrize(
    ("display", "xvfb", "state", "cure"),
    [
        (":7", None, "ok", ""),
        ("", "/usr/bin/Xvfb", "warn", "xvfb-run"),
        ("", None, "warn", "apt-get install xvfb"),
    ],
)
def test_display(
    display: str, xvfb: str | None, state: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: xvfb)
    (finding,) = _doctor._display()
    assert finding.state == state
    assert cure in finding.cure


@pytest.mark.parametrize(("display", "state"), [(True, "fail"), (False, "warn")])
def test_missing_libraries_name_their_packages(
    display: bool, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_doctor, "find_spec", lambda _: object())
    monkeypatch.setattr(_doctor, "_has_display", lambda: display)
    monkeypatch.setattr(
        ctypes.util,
        "find_library",
        lambda name: None if name in ("EGL", "xcb-cursor") else "x",
    )
    (finding,) = _doctor._libraries()
    assert finding.state == state
    assert "apt-get install libegl1 libxcb-cursor0" in finding.cure


def test_nothing_of_qt_is_looked_at_without_napari(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "find_spec", lambda _: None)
    assert list(_doctor._libraries()) == []
    assert list(_doctor._window()) == []
    (first, *_) = _doctor._viewers()
    assert first.state == "fail"


def test_window_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "find_spec", lambda _: object())
    monkeypatch.setattr(_doctor, "_has_display", lambda: True)
    monkeypatch.setattr(_doctor, "_OPEN_WINDOW", "import sys; sys.exit('no xcb here')")
    (finding,) = _doctor._window()
    assert finding.state == "fail"
    assert "no xcb here" in finding.text
    monkeypatch.setattr(_doctor, "_OPEN_WINDOW", "import signal; signal.pause()")
    monkeypatch.setattr(_doctor, "_WINDOW_TIMEOUT_S", 1.0)
    (finding,) = _doctor._window()
    assert finding.state == "fail"
    assert "within 1 s" in finding.text
    monkeypatch.setattr(_doctor, "_OPEN_WINDOW", "print('0.9 PyQt6')")
    (finding,) = _doctor._window()
    assert (finding.state, finding.text) == ("ok", "napari opens one: 0.9 PyQt6")


def test_window_is_not_tried_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "find_spec", lambda _: object())
    monkeypatch.setattr(_doctor, "_has_display", lambda: False)
    monkeypatch.setattr(subprocess, "run", None)
    (finding,) = _doctor._window()
    assert finding.state == "warn"


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "_version", lambda _: "")
    found = by_check(_doctor._packages)
    assert found["numpy"].state == "fail"
    assert found["napari"].state == "warn"
    assert "openhcs-stream[napari]" in found["napari"].cure
