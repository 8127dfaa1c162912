"""Where the command's log lines go, which ones, and how they look."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from openhcs_stream.discovery import log_file
from openhcs_stream.errors import StreamError
from openhcs_stream.logs import BoundedFileHandler, JsonLines, TextLines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["VALUE_OPTIONS", "add_log_arguments", "log_options", "logging_to_stderr"]

#: Options of every command that have a value.
VALUE_OPTIONS = ("--log-level", "--log-format")

_LEVELS = ("debug", "info", "warning", "error")
#: Whose lines are shown from the level on that is asked for; others' from a warning on.
_OURS = ("openhcs_stream", "openhcs_stream_napari", "openhcs_stream_fiji")


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    import argparse

    group = parser.add_argument_group("log (to standard error)")
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=argparse.SUPPRESS,
        help="tell more of what happens; -vv: everything",
    )
    group.add_argument(
        "--log-level", choices=_LEVELS, default=argparse.SUPPRESS, help="from which level on"
    )
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default=argparse.SUPPRESS,
        help="lines for people, or one JSON object a line",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="everything, and the whole traceback of an error",
    )


def log_options(arguments: argparse.Namespace) -> list[str]:
    """The same on the command line of another process of ours."""
    told = [
        f"--{name.replace('_', '-')}={getattr(arguments, name)}"
        for name in ("log_level", "log_format")
        if hasattr(arguments, name)
    ]
    told += ["--verbose"] * getattr(arguments, "verbose", 0)
    return [*told, "--debug"] if getattr(arguments, "debug", False) else told


@contextlib.contextmanager
def logging_to_stderr(arguments: argparse.Namespace, *, level: int) -> Iterator[None]:
    """Log to standard error while a command runs; a program that logs already goes on as it does.

    Parameters
    ----------
    arguments : Namespace
        With what `add_log_arguments` added.
    level : int
        Of our own lines, where the arguments don't say.
    """
    debug = getattr(arguments, "debug", False)
    level = max(logging.DEBUG, level - 10 * getattr(arguments, "verbose", 0))
    if hasattr(arguments, "log_level"):
        level = getattr(logging, arguments.log_level.upper())
    if debug:
        level = logging.DEBUG
    root = logging.getLogger()
    handler: logging.Handler | None = None
    if not root.handlers:
        handler = _handler(getattr(arguments, "command", ""))
        is_json = getattr(arguments, "log_format", "text") == "json"
        handler.setFormatter(JsonLines() if is_json else TextLines(tracebacks=debug))
        root.addHandler(handler)
    ours = {logging.getLogger(name): logging.getLogger(name).level for name in _OURS}
    for logger in ours:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in ours.items():
            logger.setLevel(before)
        if handler is not None:
            root.removeHandler(handler)


def _handler(command: str) -> logging.Handler:
    """A launched viewer's standard error is the log of its kind, which must not grow for ever."""
    try:
        fd = sys.stderr.fileno()
        if os.path.samestat(os.fstat(fd), os.stat(log_file(command))):
            return BoundedFileHandler(fd)
    except (AttributeError, OSError, ValueError, StreamError):
        pass  # standard error is no file, or there is no such log
    return logging.StreamHandler()
