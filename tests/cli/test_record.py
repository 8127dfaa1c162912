"""``openhcs-stream record`` and ``replay`` as processes."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.cli import main
from openhcs_stream.discovery import endpoints
from openhcs_stream.recording import Recording
from openhcs_stream.stream import ask, connect

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable


def send(count: int = 4) -> None:
    with connect("recorder", name="worker 3", launch=False) as stream:
        for z in range(count):
            stream.image(np.full((32, 32), z, np.uint8), name="raw", place={"z": z})


@pytest.fixture
def recorded(start: Callable[..., Any], tmp_path: Path) -> Path:
    path = tmp_path / "it.rec"
    started = start(str(path), kind="record")
    send()
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(20) == 0
    return path


def test_a_stream_to_a_file_and_back(
    recorded: Path, start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert main(["replay", str(recorded), "--to", "memory", "--speed", "max", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "viewer": "memory", "sent": 4, "displayed": 4, "failed": 0, "damaged": 0, "failures": [],
    }  # fmt: skip
    assert main(["replay", str(recorded), "--speed", "50"]) == 0
    assert capsys.readouterr().out == "memory shows 4 of 4 items.\n"
    (layer,) = ask("memory", "layers")
    assert (layer["name"], len(layer["planes"])) == ("raw", 4)


def test_replay_starts_a_viewer(recorded: Path, detached: object) -> None:
    assert main(["replay", str(recorded), "--to", "memory", "--speed", "max"]) == 0
    (endpoint,) = endpoints()
    (row,) = ask(endpoint, "status")["ended"]
    assert row["name"] == "worker 3"


def test_recording_has_a_name_a_status_and_an_end(
    start: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it.rec"
    started = start(str(path), "--name", "tape", "--json", kind="record")
    assert json.loads(started.line)["viewer"] == "recorder"
    send()
    status = ask("tape", "status")
    assert (status["items"], status["file"]) == (4, str(path))
    assert main(["stop", "tape"]) == 0
    assert started.process.wait(20) == 0
    with Recording(path) as recording:
        assert recording.summary().complete


def test_a_killed_recorder_loses_nothing_that_was_received(
    start: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it.rec"
    started = start(str(path), kind="record")
    with connect("recorder", name="worker 3", launch=False) as stream:
        receipts = [stream.image(np.full((512, 512), z, np.uint8)) for z in range(40)]
        receipts[30].wait("received")
        started.process.kill()
        started.process.wait()
        safe = stream.status()[0].received
        stream.close(timeout_s=0.0)
    assert safe >= 30
    assert main(["replay", str(path), "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["complete"] is False
    assert told["items"] >= safe
    assert main(["replay", str(path), "--list"]) == 0
    assert "the recorder was killed, or is still at it" in capsys.readouterr().out


def test_what_is_in_a_file(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recorded), "--list"]) == 0
    text = capsys.readouterr().out
    assert re.match(r"4 items, 0\.0 MB, in \d+\.\d s from \d{4}-.* by openhcs-stream \d", text)
    assert text.splitlines()[1:] == ["  worker 3", "    image raw: 4 items"]
    assert main(["replay", str(recorded), "--check"]) == 0
    assert capsys.readouterr().out.endswith("All of it is as it was recorded.\n")
    content = bytearray(recorded.read_bytes())
    content[-200] ^= 255
    recorded.write_bytes(bytes(content))
    assert main(["replay", str(recorded), "--check"]) == 1
    assert "is damaged" in capsys.readouterr().out
    assert main(["replay", str(recorded), "--check", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["damaged"]) == 1
    assert endpoints() == []


def test_an_existing_file_is_not_touched(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    path = tmp_path / "it.rec"
    path.write_text("mine")
    done = command("record", str(path))
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert path.read_text() == "mine"
    assert endpoints() == []
    done = command("replay", str(path), "--to", "memory")
    assert done.returncode == 1
    assert "is no recording" in done.stderr
    assert endpoints() == []


def test_in_the_background(
    command: Callable[..., subprocess.CompletedProcess[str]],
    detached: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file's name is meant where it was written, though the recorder runs somewhere else."""
    monkeypatch.chdir(tmp_path)
    done = command("record", "it.rec", "--detach", "--json")
    assert done.returncode == 0, done.stderr
    send()
    assert main(["stop"]) == 0
    deadline = time.monotonic() + 20
    while not _is_complete(Path("it.rec")):
        assert time.monotonic() < deadline


def _is_complete(path: Path) -> bool:
    with Recording(path) as recording:
        return recording.summary().complete


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["record"], "required: FILE"),
        (["record", "x", "--headless"], "unrecognized arguments: --headless"),
        (["replay", "absent.rec"], "can't be read"),
        (["replay", "x", "--speed", "fast"], "'fast' is no speed"),
        (["replay", "x", "--speed", "0"], "'0' is no speed"),
        (["replay", "x", "--list", "--check"], "not allowed with argument"),
        (["recorder"], "was not told which file to write"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_asked_for(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
