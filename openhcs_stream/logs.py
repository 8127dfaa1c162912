"""Structured logs: one line an event, with its fields; silent until a program asks for them.

A library only writes to its loggers; this package's have no handler that prints. What is logged:

========  =======================================================================================
level     what
========  =======================================================================================
ERROR     a defect, or a viewer that can't go on
WARNING   something was lost or refused: an item that failed, a limit that was reached, a peer
          that broke the rules
INFO      what a person wants to follow: sessions opened and ended, viewers started, leftovers
          removed
DEBUG     every step
========  =======================================================================================

Tokens and keys are never logged. Text that came from a peer is made printable, so that no name
can look like a line of its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BoundedFileHandler", "JsonLines", "RecentLines", "TextLines", "log_event"]

#: Characters of one line.
MAX_LINE = 4096
#: Characters that need no quotes in a field's value.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@+,*")


def log_event(logger: logging.Logger, level: int, event: str, /, **fields: Any) -> None:
    """Log one event with its fields.

    Parameters
    ----------
    logger : Logger
        The module's own.
    level : int
        `logging.INFO`, ...
    event : str
        What happened, in a few fixed words: "session opened".
    **fields
        With what: numbers, texts, None (left out).

    Examples
    --------
    >>> log_event(logging.getLogger("demo"), logging.DEBUG, "session opened", stream="worker 3")
    """
    if logger.isEnabledFor(level):
        told = {name: value for name, value in fields.items() if value is not None}
        logger.log(
            level, "%s%s", event, _Fields(told), extra={"event": event, "fields": told},
            stacklevel=2,
        )  # fmt: skip


class _Fields:
    """Fields as they stand behind an event in a line of text; put together when it is written."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return "".join(f" {name}={_value(value)}" for name, value in self._fields.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(str(value), MAX_LINE)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)


class TextLines(logging.Formatter):
    """``2026-01-31 12:00:00,123 INFO session opened stream="worker 3" pid=4711``.

    Parameters
    ----------
    tracebacks : bool
        Whether an exception's traceback follows on lines of its own; else its last line stands
        in the event's.
    """

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in the record."""
        line = f"{self.formatTime(record)} {record.levelname} {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            line += f" error={_value(_last_line(record.exc_info[1]))}"
        line = printable(line, MAX_LINE)
        if self._tracebacks and record.exc_info:
            told = "".join(traceback.format_exception(*record.exc_info))
            line += "".join(f"\n  {printable(each)}" for each in told.splitlines())
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, event, the fields, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in the record."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "event": getattr(record, "event", None) or printable(record.getMessage(), MAX_LINE),
        }
        fields = getattr(record, "fields", {})
        told |= {name: _plain(value) for name, value in fields.items() if name not in told}
        if record.exc_info and record.exc_info[1] is not None:
            told["error"] = printable(_last_line(record.exc_info[1]), MAX_LINE)
            told["traceback"] = "".join(traceback.format_exception(*record.exc_info))[-8192:]
        return json.dumps(told)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return printable(str(value), MAX_LINE)


def _last_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())


class RecentLines(logging.Handler):
    """Keeps the last lines in memory, for whoever asks what happened.

    Parameters
    ----------
    most : int
        Lines that are kept.
    """

    def __init__(self, most: int = 500) -> None:
        super().__init__()
        self.setFormatter(TextLines())
        self._lines: deque[str] = deque(maxlen=most)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)

    def lines(self) -> list[str]:
        """What is kept, the oldest first."""
        return list(self._lines)


class BoundedFileHandler(logging.Handler):
    """Writes to an open file that others append to as well, and keeps it from growing.

    Beyond `most` bytes its first half is cut away: what a program in the background says goes
    into one file for as long as it runs.

    Parameters
    ----------
    fd : int
        Open for appending; it is not closed.
    most : int
        Bytes that the file may have.
    """

    def __init__(self, fd: int, *, most: int = 1 << 20) -> None:
        super().__init__()
        self._fd = fd
        self._most = most
        self._cutting = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            os.write(self._fd, (self.format(record) + "\n").encode("utf-8", "replace"))
            if os.fstat(self._fd).st_size > self._most:
                self._cut()
        except Exception:
            self.handleError(record)

    def _cut(self) -> None:
        with self._cutting:
            path = f"/proc/self/fd/{self._fd}"
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(self._fd).st_size - self._most // 2))
                file.readline()  # the rest of a line
                kept = file.read(self._most)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, kept)
