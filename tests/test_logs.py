"""Logs: one line an event, in two forms, bounded, and nothing that nobody asked for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream.logs import BoundedFileHandler, JsonLines, RecentLines, TextLines, log_event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.logs")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


class Kept(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def kept(logger: logging.Logger, formatter: logging.Formatter) -> list[str]:
    handler = Kept(formatter)
    logger.addHandler(handler)
    return handler.lines


def test_a_line_of_text(logger: logging.Logger) -> None:
    lines = kept(logger, TextLines())
    log_event(logger, logging.INFO, "session opened", stream="worker 3", pid=12, user=None,
              rate=0.123456789, ok=True, path="/tmp/a-b", empty="")  # fmt: skip
    assert lines[0].split(" INFO ")[1] == (
        'session opened stream="worker 3" pid=12 rate=0.123457 ok=true path=/tmp/a-b empty=""'
    )
    logger.warning("plain %d", 7)
    assert lines[1].endswith(" WARNING plain 7")


def test_an_event_below_the_level_costs_nothing(logger: logging.Logger) -> None:
    class Dear:
        def __str__(self) -> str:
            raise AssertionError

    lines = kept(logger, TextLines())
    log_event(logger, logging.DEBUG, "step", value=Dear())
    assert lines == []


@pytest.mark.parametrize("form", [TextLines(), JsonLines()], ids=["text", "json"])
def test_no_name_forges_a_line(logger: logging.Logger, form: logging.Formatter) -> None:
    lines = kept(logger, form)
    forged = 'x\n2026-01-01 ERROR all is lost\x1b[2J\u202e "quoted" pid=1'
    log_event(logger, logging.WARNING, "session opened", stream=forged)
    logger.warning("ended the session of %s", forged)
    for line in lines:
        assert len(line.splitlines()) == 1
        assert line.isprintable()
    if isinstance(form, JsonLines):
        assert json.loads(lines[0])["stream"].startswith("x\\n2026")
    else:
        assert lines[0].count("pid=1") == 1
        assert lines[0].endswith('pid=1"')  # inside of the quotes


def test_a_line_has_a_length(logger: logging.Logger) -> None:
    lines = kept(logger, TextLines())
    log_event(logger, logging.INFO, "session opened", stream="x" * 100_000)
    assert len(lines[0]) == 4096


def test_json_lines(logger: logging.Logger) -> None:
    lines = kept(logger, JsonLines())
    log_event(logger, logging.INFO, "session opened", stream="worker 3", pid=12, level="mine")
    told = json.loads(lines[0])
    assert told["time"].endswith("Z")
    assert {key: told[key] for key in ("level", "logger", "event", "stream")} == {
        "level": "info",
        "logger": "tests.logs",
        "event": "session opened",
        "stream": "worker 3",
    }
    assert told["pid"] == os.getpid()  # no field takes a fixed one's place
    logger.error("plain %s", "text")
    assert json.loads(lines[1])["event"] == "plain text"


def test_exceptions(logger: logging.Logger) -> None:
    text, long, objects = (
        kept(logger, form) for form in (TextLines(), TextLines(tracebacks=True), JsonLines())
    )
    try:
        raise ValueError("no\nroom")
    except ValueError:
        logger.exception("it failed")
    assert text[0].endswith('ERROR it failed error="ValueError: no room"')
    assert long[0].splitlines()[0] == text[0]
    assert 'raise ValueError("no\\nroom")' in long[0]
    told = json.loads(objects[0])
    assert told["error"] == "ValueError: no room"
    assert "Traceback" in told["traceback"]


def test_recent_lines_are_the_last(logger: logging.Logger) -> None:
    handler = RecentLines(3)
    logger.addHandler(handler)
    for number in range(10):
        logger.info("%d", number)
    assert [line.split()[-1] for line in handler.lines()] == ["7", "8", "9"]


def test_a_file_is_kept_from_growing(logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    handler = BoundedFileHandler(fd, most=10_000)
    handler.setFormatter(TextLines())
    logger.addHandler(handler)
    largest = 0
    for number in range(1000):
        logger.info("number %d", number)
        os.write(fd, b"what a library prints\n")
        largest = max(largest, path.stat().st_size)
    os.close(fd)
    assert 5000 < largest < 11_000
    lines = path.read_text().splitlines()
    assert lines[-2].endswith("number 999")
    assert b"\0" not in path.read_bytes()
    numbers = [int(line.split()[-1]) for line in lines if "number" in line]
    assert numbers == list(range(numbers[0], 1000))


QUIET = """
import logging
import openhcs_stream, openhcs_stream.viewer, openhcs_stream_napari, openhcs_stream_fiji
for name in ("openhcs_stream.viewer", "openhcs_stream_napari", "openhcs_stream_fiji._create"):
    logging.getLogger(name).error("something")
logging.getLogger("another").error("its own")
"""


def test_the_library_is_silent_until_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == ""
    assert done.stderr == "its own\n"


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ([], "warning"),
        (["-v"], "info"),
        (["-vv"], "debug"),
        (["--log-level", "error"], "error"),
        (["--debug"], "debug"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_levels_and_forms_of_the_command(words: list[str], level: str, form: str) -> None:
    program = """
import logging, sys
from openhcs_stream.cli import _status, main
def run(arguments):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("openhcs_stream.x"), level)("it is %s", level)
    return 0
_status.run = run
sys.exit(main(sys.argv[1:]))
"""
    for order in (["status", *words], [*words, "status"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *order, "--log-format", form],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        lines = done.stderr.splitlines()
        levels = ["debug", "info", "warning", "error"]
        wanted = levels[levels.index(level) :]
        if form == "json":
            told: list[Any] = [json.loads(line) for line in lines]
            assert [each["level"] for each in told] == wanted
            assert told[0]["event"] == f"it is {level}"
        else:
            assert [line.split()[-1] for line in lines] == wanted
