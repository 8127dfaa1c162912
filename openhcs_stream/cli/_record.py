"""``openhcs-stream record``: what workers stream, into a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from openhcs_stream.cli import _receive

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="the recording, which must not be there yet; workers connect to 'recorder'",
    )
    _receive.add_arguments(parser, shows=False)


def run(arguments: argparse.Namespace) -> int:
    arguments.command = "recorder"
    arguments.option = [("file", str(arguments.file.absolute()))]
    return _receive.run(arguments)
