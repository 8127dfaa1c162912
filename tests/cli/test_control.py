"""``status``, ``stop``, ``clear``, ``screenshot`` on running viewers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream.stream
from openhcs_stream.cli import main
from openhcs_stream.discovery import endpoints
from openhcs_stream.stream import ask, connect
from openhcs_stream.viewer import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_status_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "No viewer is running" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"viewers": []}


def test_status_with_queues(start: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    started = start()
    with connect("memory", name="worker 3", launch=False) as stream:
        stream.image(np.zeros((4, 4), np.uint8)).wait()
        assert main(["status", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["viewers"]
        assert main(["status"]) == 0
        text = capsys.readouterr().out
    assert (row["viewer"], row["name"], row["pid"]) == ("memory", "memory", started.pid)
    assert row["answers"] is True
    assert row["uptime_s"] >= 0
    (facts,) = row["status"]["streams"]
    assert facts["displayed"] == 1
    assert {"received", "waiting", "dropped", "oldest_age_s", "items_per_s", "bytes_per_s"} <= set(
        facts
    )
    assert row["status"]["memory_nbytes"] > 0
    assert f"memory: pid {started.pid}, up " in text
    assert " MB, 1 layer, at ipc:///" in text
    heading, line = (each.split("  ") for each in text.splitlines()[1:])
    shown = [each.strip() for each in heading if each]
    assert shown[:4] == ["stream", "received", "shown", "failed"]
    values = dict(zip(shown, [each.strip() for each in line if each], strict=False))
    assert values["stream"].startswith("worker 3 (pid ")
    assert (values["received"], values["shown"], values["oldest"]) == ("1", "1", "-")


def test_status_of_streams_that_ended(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    with connect("memory", name="worker\x1b[31m 3", launch=False) as stream:
        stream.image(np.zeros((4, 4), np.uint8)).wait()
    deadline = time.monotonic() + 20
    while "ended" not in (text := status_text(capsys)):
        assert time.monotonic() < deadline
    assert re.search(r"ended \d+\.\d s ago: ", text)
    assert "no stream is connected" in text
    assert "\x1b" not in text


def status_text(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["status"]) == 0
    return capsys.readouterr().out


def test_watched_status_goes_on(start: Callable[..., Any]) -> None:
    start()
    with subprocess.Popen(
        [sys.executable, "-m", "openhcs_stream", "status", "--json", "--watch", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        rows = [json.loads(watching.stdout.readline())["viewers"] for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 130
    uptimes = [row[0]["status"]["uptime_s"] for row in rows]
    assert uptimes == sorted(uptimes)
    assert len(set(uptimes)) == 3


def test_status_of_one_that_does_not_answer(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    started = start("--name", "busy")
    start("--name", "well")
    started.process.send_signal(signal.SIGSTOP)
    assert main(["status", "--timeout", "1"]) == 1
    text = capsys.readouterr().out
    assert "memory 'busy'" in text
    assert "does not answer" in text
    assert "no stream is connected" in text


def test_stop_of_the_only_one(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    started = start()
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == f"memory (pid {started.pid}) has ended.\n"
    assert started.process.wait(20) == 0


def test_stop_says_which(start: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    one, two = start("--name", "one"), start("--name", "two")
    assert main(["stop"]) == 2
    assert "2 viewers are running: memory 'two', memory 'one'" in capsys.readouterr().err
    assert main(["stop", "three"]) == 1
    assert "no running viewer is called 'three'" in capsys.readouterr().err
    assert main(["stop", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "stopped": [{"name": "one", "pid": one.pid}],
        "failed": [],
    }
    assert [endpoint.pid for endpoint in endpoints()] == [two.pid]
    assert main(["stop", "--all"]) == 0
    assert endpoints() == []
    assert main(["stop", "--all"]) == 0
    assert "No viewer is running" in capsys.readouterr().out


def test_stop_by_address(start: Callable[..., Any]) -> None:
    start("--port", "0")
    (endpoint,) = endpoints()
    assert main(["stop", f"tcp://127.0.0.1:{endpoint.port}"]) == 0


def test_stop_of_one_that_does_not_answer(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    started = start()
    started.process.send_signal(signal.SIGSTOP)
    assert main(["stop", "--timeout", "0.5"]) == 1
    assert f"(pid {started.pid}) still runs after 0.5 s. Add --force" in capsys.readouterr().err
    assert main(["stop", "--timeout", "0.5", "--force"]) == 0
    assert started.process.wait(20) == -signal.SIGKILL
    assert endpoints() == []


def test_clear(start: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    start()
    with connect("memory", launch=False) as stream:
        stream.image(np.zeros((4, 4), np.uint8)).wait()
        assert len(stream.request("layers")) == 1
        assert main(["clear", "--to", "memory", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cleared"] is True
        assert stream.request("layers") == []


def test_screenshot_is_written_by_who_asked(
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start()
    png = encode_png(np.zeros((2, 3, 4), np.uint8))
    monkeypatch.setattr(
        openhcs_stream.stream, "ask", lambda *_, **__: {"shape": [2, 3, 4], "png": png}
    )
    monkeypatch.chdir(tmp_path)
    assert main(["screenshot", "shot.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "shot.png"),
        "shape": [2, 3, 4],
    }
    assert (tmp_path / "shot.png").read_bytes() == png
    assert main(["screenshot"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'screenshot.png'}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["screenshot.png", "shot.png"]


@pytest.mark.parametrize("answer", [None, {}, {"png": "text"}, {"png": b"GIF89a"}])
def test_answer_that_is_no_picture_is_not_written(
    answer: object,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start()
    monkeypatch.setattr(openhcs_stream.stream, "ask", lambda *_, **__: answer)
    assert main(["screenshot", str(tmp_path / "shot.png")]) == 1
    assert "no picture" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_screenshot_of_a_viewer_without_a_screen(
    start: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert main(["screenshot", str(tmp_path / "shot.png")]) == 1
    assert "no screen" in capsys.readouterr().err
    assert ask("memory", "status")["layers"] == 0  # and the next question is answered
