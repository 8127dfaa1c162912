"""``openhcs-stream bundle``: what a bug report needs is in it, secrets and images are not."""

from __future__ import annotations

import json
import secrets
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.cli import _doctor, main
from openhcs_stream.cli._findings import Finding
from openhcs_stream.discovery import find, launch, log_file
from openhcs_stream.stream import ask, connect

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor has tests of its own, and opens windows."""
    monkeypatch.setattr(_doctor, "_CHECKS", (lambda: iter([Finding("python", "ok", "3")]),))


def unpacked(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        return {name: bundle.read(name).decode() for name in bundle.namelist()}


def test_without_a_viewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENHCS_STREAM_TOKEN", "abracadabra")
    monkeypatch.setenv("OPENHCS_STREAM_OTHER", str(Path.home() / "there"))
    monkeypatch.setenv("NOT_OURS", "private")
    assert main(["bundle"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("openhcs-stream-bundle-")
    files = unpacked(path)
    text = capsys.readouterr().out
    assert text.startswith(f"{path}:\n")
    assert all(f"  {name}" in text for name in files)
    assert json.loads(files["doctor.json"])["findings"][0]["check"] == "python"
    assert json.loads(files["versions.json"])["packages"]["numpy"] == np.__version__
    environment = json.loads(files["environment.json"])
    assert environment["OPENHCS_STREAM_TOKEN"] == "(set)"
    assert environment["OPENHCS_STREAM_OTHER"] == "~/there"
    everything = "".join(files.values())
    assert "abracadabra" not in everything
    assert "NOT_OURS" not in everything
    assert str(Path.home()) not in everything


def test_with_viewers_that_run(
    start: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("--name", "plate_3", "--debug")
    endpoint = find("memory")
    assert endpoint is not None
    # A worker that puts its token, and pixels, where a log could catch them.
    image = np.frombuffer(b"PIXELS" * 128, np.uint8)
    with connect("plate_3", name=f"worker {endpoint.token}", launch=False) as stream:
        stream.image(image.reshape(12, 64), name="raw").wait()
        assert main(["bundle", str(tmp_path / "it.zip"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    files = unpacked(tmp_path / "it.zip")
    assert [each["name"] for each in told["files"]] == list(files)
    assert all(each["nbytes"] == len(files[each["name"]]) for each in told["files"])
    assert json.loads(files["endpoints/memory-plate_3.json"])["token"] == "(taken out)"
    (row,) = json.loads(files["status.json"])
    assert row["status"]["streams"][0]["name"] == "worker (taken out)"
    assert "session opened" in files["logs/memory-plate_3.txt"]
    everything = "".join(files.values())
    assert endpoint.token not in everything
    assert "PIXELS" not in everything


def test_log_of_a_launched_viewer(tmp_path: Path, detached: object) -> None:
    endpoint = launch("memory", timeout_s=40)
    with connect("memory", name="worker 3", launch=False) as stream:
        stream.image(np.zeros((4, 4), np.uint8)).wait()
    deadline = time.monotonic() + 20
    while "session ended" not in log_file("memory").read_text():
        assert time.monotonic() < deadline
    assert main(["bundle", str(tmp_path / "it.zip")]) == 0
    log = unpacked(tmp_path / "it.zip")["logs/memory.log"]
    assert 'session opened stream="worker 3"' in log
    assert endpoint.token not in log


def test_whatever_looks_like_a_token_is_taken_out(own_runtime_folder: Path, tmp_path: Path) -> None:
    token = secrets.token_hex(32)
    (own_runtime_folder / "napari.log").write_text(f"key={token}, {token.upper()}; {'a' * 65}\n")
    assert main(["bundle", str(tmp_path / "it.zip")]) == 0
    log = unpacked(tmp_path / "it.zip")["logs/napari.log"]
    assert log == f"key=(taken out), (taken out); {'a' * 65}\n"


def test_a_viewer_that_does_not_tell(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from openhcs_stream.cli import _bundle

    started = start()
    assert ask("memory", "log") is not None
    started.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(_bundle, "_ASK_S", 0.3)
    assert main(["bundle", str(tmp_path / "it.zip")]) == 0
    assert "does not tell" in unpacked(tmp_path / "it.zip")["logs/memory-memory.txt"]


@pytest.mark.parametrize(
    ("name", "told"), [("it.tar", "no name of a zip file"), ("nowhere/it.zip", "no folder")]
)
def test_where_it_cannot_go(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
