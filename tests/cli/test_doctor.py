"""``openhcs-stream doctor``: each finding, and that it changes nothing."""

from __future__ import annotations

import ctypes.util
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream.cli import (
    _doctor,
    _doctor_files,
    _doctor_machine,
    _doctor_python,
    _doctor_windows,
    main,
)
from openhcs_stream.cli._findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes seconds; it has tests of its own."""
    slow = (_doctor_windows.window, _doctor_windows.of_viewers)
    checks = tuple(check for check in _doctor._CHECKS if check not in slow)
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
    for state, count in (("fail", "failed"), ("warn", "warned")):
        assert report[count] == sum(each["state"] == state for each in report["findings"])
    for finding in report["findings"]:
        assert set(finding) == {"check", "state", "text", "cure"}
        assert finding["text"]
        assert bool(finding["cure"]) == (finding["state"] != "ok"), finding
    assert {"python", "numpy", "viewers", "display", "memfd", "/dev/shm", "nofile", "memlock",
            "address space", "cgroup memory", "cuda", "runtime folder", "ipc folder", "stale files",
            "port 5555", "port 5565", "port 7555"} <= {
        finding["check"] for finding in report["findings"]
    }  # fmt: skip


def test_text(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out
    assert re.search(r"^ok    python +3\.", text, re.MULTILINE)
    assert re.search(r"\d+ checks: \d+ failed, \d+ with a warning\.$", text)


def test_one_failure_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("memory", "fail", "all gone", "buy some")
    monkeypatch.setattr(_doctor, "_CHECKS", (lambda: iter([finding]),))
    assert main(["doctor"]) == 1
    assert main(["doctor", "--json"]) == 1


def test_runtime_folder_that_others_can_enter(own_runtime_folder: Path) -> None:
    own_runtime_folder.chmod(0o755)
    finding = by_check(_doctor_files.runtime)["runtime folder"]
    assert finding.state == "fail"
    assert "chmod 700" in finding.cure


def test_stale_files_are_named_and_left(own_runtime_folder: Path) -> None:
    path = own_runtime_folder / "napari-napari.json"
    path.write_text("{}")
    finding = by_check(_doctor_files.leftovers)["stale files"]
    assert finding.state == "warn"
    assert "napari-napari.json" in finding.text
    assert "openhcs-stream gc" in finding.cure
    assert path.exists()


def test_runtime_folder_whose_path_is_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / ("x" * 100)
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(folder))
    finding = by_check(_doctor_files.runtime)["runtime folder"]
    assert finding.state == "fail"
    assert "shorter" in finding.cure


def test_runtime_folder_on_a_remote_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_files, "_file_system", lambda _: "nfs4")
    finding = by_check(_doctor_files.runtime)["runtime folder"]
    assert finding.state == "warn"
    assert "nfs4" in finding.text


def test_file_system_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "none / ext4 rw 0 0\nserver:/ /home nfs rw 0 0\nnone /home/a\\040b tmpfs rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    assert _doctor_files._file_system(Path("/tmp/x")) == "ext4"
    assert _doctor_files._file_system(Path("/home/c")) == "nfs"
    assert _doctor_files._file_system(Path("/home/a b/c")) == "tmpfs"


@pytest.mark.parametrize(
    ("mode", "state"), [(None, "ok"), (0o700, "ok"), (0o755, "ok"), (0o777, "warn")]
)
def test_ipc_folder(
    mode: int | None, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".openhcs" / "ipc"
    if mode is not None:
        folder.mkdir(parents=True)
        folder.chmod(mode)
    too_long = len(str(folder)) + len("/openhcs-zmq-65535.sock") > 107
    finding, other = _doctor_files.sockets()
    assert other.state == "ok"
    assert finding.state == ("warn" if too_long and mode is not None else state)
    assert str(folder) in finding.text


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(_doctor_files, "_PORTS", (port,))
        (finding,) = _doctor_files.ports()
        assert finding.state == "warn"
        assert "in use" in finding.text
        assert "--port" in finding.cure
    (finding,) = _doctor_files.ports()
    assert finding.state == "ok"


def test_port_of_our_own_viewer(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started = start("--port", "0", "--json")
    monkeypatch.setattr(_doctor_files, "_PORTS", (json.loads(started.line)["port"],))
    (finding,) = _doctor_files.ports()
    assert f"by the running viewer 'memory' (pid {started.pid})" in finding.text
    assert ", 1 running viewers" in by_check(_doctor_files.runtime)["runtime folder"].text


def test_port_of_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(_doctor_files, "_PORTS", (taken.getsockname()[1],))
        (finding,) = _doctor_files.ports()
    assert f"(pid {os.getpid()})" in finding.text
    assert "python" in finding.text


def test_running_viewers(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(_doctor_files.running()) == []
    monkeypatch.setattr(_doctor_files, "_ASK_S", 30.0)  # whatever else the machine does
    started = start()
    (finding,) = _doctor_files.running()
    assert finding.state == "ok"
    assert f"pid {started.pid}" in finding.text
    monkeypatch.setattr(_doctor_files, "installed_version", lambda _: "7.0")
    (finding,) = _doctor_files.running()
    assert finding.state == "warn"
    assert "and this is 7.0" in finding.text
    monkeypatch.setattr(_doctor_files, "_ASK_S", 0.3)
    started.process.send_signal(signal.SIGSTOP)
    (finding,) = _doctor_files.running()
    assert finding.state == "warn"
    assert "does not answer" in finding.text
    assert "--force" in finding.cure


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_blocks=64, f_bavail=60, f_frsize=1 << 20)
    )
    (finding,) = _doctor_machine._dev_shm()
    assert finding.state == "warn"
    assert finding.text == "64 MiB, 60 MiB free"
    assert "--shm-size" in finding.cure


def test_forbidden_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert by_check(_doctor_machine.shared_memory)["memfd"].state == "fail"


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    finding = by_check(_doctor_machine.limits)["nofile"]
    assert finding.state == "warn"
    assert finding.text == "256 open files, at most unlimited"
    assert "ulimit -n" in finding.cure


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are Linux's")
def test_a_small_container_is_told_up_front() -> None:
    """All of it at once, and for real: as many find it who start their first viewer in one."""
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    limits = "ulimit -n 256 && ulimit -l 64 && ulimit -v 4194304"
    enter = ["unshare", "-m", "sh", "-c", f'{mount} && {limits} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], check=False).returncode:
        pytest.skip("no other /dev/shm can be mounted here")
    code = """
import json
from openhcs_stream.cli import _doctor_machine as machine
found = [*machine.shared_memory(), *machine.limits()]
print(json.dumps({each.check: [each.state, each.text, each.cure] for each in found}))
"""
    done = subprocess.run(
        [*enter, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["memfd"][0] == "ok"  # our own pixels need no /dev/shm
    assert found["/dev/shm"][:2] == ["warn", "64 MiB, 64 MiB free"]
    assert "--shm-size" in found["/dev/shm"][2]
    assert found["nofile"][0] == "warn"
    assert found["nofile"][1].startswith("256 open files")
    assert found["memlock"][:2] == ["ok", "64 KiB of locked memory; none is needed"]
    assert found["address space"][0] == "warn"
    assert found["address space"][1].startswith("4096 MiB")


def test_little_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 30, 1 << 30))
    finding = by_check(_doctor_machine.limits)["address space"]
    assert finding.state == "warn"
    assert finding.text.startswith("1024 MiB")


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (None, "none is needed"),
        ("#!/bin/sh\necho 'Card A, 1.2'\n", "Card A, 1.2"),
        ("#!/bin/sh\nexit 9\n", "does not answer"),
    ],
    ids=["none", "card", "broken"],
)
def test_cuda_is_never_a_fault(
    program: str | None, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "nvidia-smi"
    if program is not None:
        path.write_text(program)
        path.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(path) if program else None)
    (finding,) = _doctor_machine.cuda()
    assert finding.state == "ok"
    assert text in finding.text


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
    monkeypatch.setattr(_doctor_machine, "_limit_files", lambda: [missing, tmp_path / "memory.max"])
    (finding,) = _doctor_machine._memory_limit()
    assert (finding.state, finding.text) == (state, text)


def test_limit_files_are_those_of_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "4:cpu,memory:/one\n0::/a/b\n")
    assert [str(path) for path in _doctor_machine._limit_files()] == [
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
    (finding,) = _doctor_windows.display()
    assert finding.state == state
    assert cure in finding.cure


@pytest.mark.parametrize(("display", "state"), [(True, "fail"), (False, "warn")])
def test_missing_libraries_name_their_packages(
    display: bool, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_doctor_windows, "find_spec", lambda _: object())
    monkeypatch.setattr(_doctor_windows, "has_display", lambda: display)
    monkeypatch.setattr(
        ctypes.util,
        "find_library",
        lambda name: None if name in ("EGL", "xcb-cursor") else "x",
    )
    (finding,) = _doctor_windows.libraries()
    assert finding.state == state
    assert "apt-get install libegl1 libxcb-cursor0" in finding.cure


def test_nothing_of_qt_is_looked_at_without_napari(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_windows, "find_spec", lambda _: None)
    monkeypatch.setattr(_doctor_python, "find_spec", lambda _: None)
    assert list(_doctor_windows.libraries()) == []
    assert list(_doctor_windows.window()) == []
    (first, *_) = _doctor_python.viewers()
    assert first.state == "fail"


def test_window_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_windows, "find_spec", lambda _: object())
    monkeypatch.setattr(_doctor_windows, "has_display", lambda: True)
    monkeypatch.setattr(_doctor_windows, "_OPEN_WINDOW", "import sys; sys.exit('no xcb here')")
    (finding,) = _doctor_windows.window()
    assert finding.state == "fail"
    assert "no xcb here" in finding.text
    monkeypatch.setattr(_doctor_windows, "_OPEN_WINDOW", "import signal; signal.pause()")
    monkeypatch.setattr(_doctor_windows, "_WINDOW_TIMEOUT_S", 1.0)
    (finding,) = _doctor_windows.window()
    assert finding.state == "fail"
    assert "within 1 s" in finding.text
    told = '{"window": "0.9 PyQt6", "opengl": "4.5 Mesa, llvmpipe"}'
    monkeypatch.setattr(_doctor_windows, "_OPEN_WINDOW", f"print('noise'); print('{told}')")
    opens, draws = _doctor_windows.window()
    assert (opens.state, opens.text) == ("ok", "napari opens one: 0.9 PyQt6")
    assert (draws.check, draws.state) == ("opengl", "ok")
    assert "in software" in draws.text
    monkeypatch.setattr(_doctor_windows, "_OPEN_WINDOW", 'print(\'{"window": "0.9"}\')')
    _, draws = _doctor_windows.window()
    assert draws.state == "fail"
    assert "libgl1-mesa-dri" in draws.cure


def test_window_is_not_tried_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_windows, "find_spec", lambda _: object())
    monkeypatch.setattr(_doctor_windows, "has_display", lambda: False)
    monkeypatch.setattr(subprocess, "run", None)
    (finding,) = _doctor_windows.window()
    assert finding.state == "warn"


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_python, "installed_version", lambda _: "")
    found = by_check(_doctor_python.packages)
    assert found["numpy"].state == "fail"
    assert found["napari"].state == "warn"
    assert "openhcs-stream[napari]" in found["napari"].cure


def test_packages_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_python, "requires", lambda _: ["numpy>=99.1", "rich; extra == 'x'"])
    found = by_check(_doctor_python.packages)
    assert found["numpy"].state == "fail"
    assert found["numpy"].text.endswith("is older than 99.1")
    assert "'numpy>=99.1'" in found["numpy"].cure


def test_python_that_is_newer_than_what_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = _doctor_python.python()
    assert finding.state == "ok"
    monkeypatch.setattr(_doctor_python, "_NEWEST", (3, 10))
    (finding,) = _doctor_python.python()
    assert finding.state == "warn"


class _Point:
    """An entry point of a viewer that has checks, or none, or is broken."""

    def __init__(self, name: str, checks: str) -> None:
        self.name = name
        self._checks = checks

    def load(self) -> SimpleNamespace:
        if self._checks == "broken":
            raise ImportError("no such module")
        return SimpleNamespace(checks=self._checks)


def two_findings() -> Iterator[tuple[str, str, str, str]]:
    yield "lens", "ok", "clean", ""
    yield "lamp", "warn", "old", "Change it."


def test_checks_of_the_viewers_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        _Point("c", "broken"), _Point("b", ""), _Point("a", f"{__name__}:two_findings"),
    ]  # fmt: skip
    monkeypatch.setattr(_doctor_windows, "entry_points", lambda **_: points)
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(two_findings=two_findings))
    assert list(_doctor_windows.of_viewers()) == [
        Finding("lens", "ok", "clean"),
        Finding("lamp", "warn", "old", "Change it."),
        Finding(
            "c", "fail", "its checks can't be made: ImportError: no such module",
            "Install the package that brings this viewer anew.",
        ),
    ]  # fmt: skip
