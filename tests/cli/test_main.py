"""The command line as a whole: commands, errors, exit statuses."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.cli import main
from openhcs_stream.cli._main import _COMMANDS
from openhcs_stream.errors import UsageError, ViewerUnreachable

if TYPE_CHECKING:
    from pathlib import Path


def test_help_lists_every_command_and_viewer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in [*_COMMANDS, "memory", "napari"]:
        assert f"    {name}" in text


@pytest.mark.parametrize("name", [*_COMMANDS, "memory", "napari"])
def test_help_of_each_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: openhcs-stream {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("openhcs-stream 0.")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["nonsense"], "'nonsense' is no command and no installed viewer"),
        (["nonsense"], "memory, napari"),
        (["--nonsense"], "openhcs-stream --help"),
        (["status", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["send"], "required: FILE. See `openhcs-stream send --help`"),
        (["send", "missing.tif"], "there is no file missing.tif"),
        (["send", "x", "--place", "well"], "'well' is no COMPONENT=VALUE"),
        (["send", "x", "--place", "z=1,z=2"], "z is given twice"),
        (["memory", "--port", "70000"], "'70000' is no port"),
        (["memory", "--port", "x"], "'x' is no port"),
        (["memory", "--stack", "z,"], "'z,' has an empty name in it"),
        (["memory", "--stack", "z,time", "--split", "z"], "z can't be stacked and split at once"),
        (["memory", "--option", "x"], "'x' is no NAME=VALUE"),
        (["memory", "--headl"], "unrecognized arguments: --headl"),
        (["status", "--watch", "0"], "'0' is no number of seconds"),
        (["--log-level", "loud", "status"], "invalid choice: 'loud'"),
        (["stop", "one", "--all"], "not allowed with argument"),
        (["screenshot", "picture.jpg"], "no name of a PNG file"),
        (["screenshot", "/nowhere/x.png"], "there is no folder /nowhere"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_asked_for(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("openhcs-stream: error: ")
    assert told in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["stop"], ["clear"], ["screenshot", "x.png"], ["stop", "one"], ["clear", "--to", "x"]]
)
def test_nobody_to_ask(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert "openhcs-stream napari" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(ViewerUnreachable):
        main(["stop", "--debug"])
    with pytest.raises(UsageError):
        main(["--debug", "nonsense"])


def test_runtime_folder_that_cannot_be_trusted(
    own_runtime_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_runtime_folder.chmod(0o755)
    assert main(["status"]) == 2
    assert f"chmod 700 {own_runtime_folder}" in capsys.readouterr().err


def test_logging_level_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("openhcs_stream")
    before = logger.level
    assert main(["status", "--debug"]) == 0
    assert logger.level == before


def test_reader_that_goes_away() -> None:
    """``openhcs-stream status | head -0``: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "openhcs_stream", "status"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=50,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def test_importing_the_command_is_cheap() -> None:
    """Counted in modules, which noise can't reach: these cost a tenth of a second and more."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import openhcs_stream.cli, json, sys; print(json.dumps(sorted(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    heavy = {"numpy", "zmq", "napari", "qtpy", "rich", "tifffile", "imageio", "skimage"}
    assert heavy & set(json.loads(done.stdout)) == set()
