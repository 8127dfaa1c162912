"""``openhcs-stream screenshot``: save what a viewer shows.

The viewer sends the picture and this process writes the file: a viewer never writes where a peer
tells it to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import ASK_TIMEOUT_S, add_target, find_one, label
from openhcs_stream.errors import ProtocolViolation, UsageError
from openhcs_stream.runtime import written_whole

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

_PNG = b"\x89PNG\r\n\x1a\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=Path("screenshot.png"),
        metavar="FILE.png",
        help="where to (%(default)s); an older file of that name is replaced",
    )
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from openhcs_stream.stream import ask

    path: Path = arguments.file.absolute()
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is no name of a PNG file.", cure="End it with .png.")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}.", cure="Make it, or choose another.")
    endpoint = find_one(arguments.to)
    answer: Any = ask(endpoint, "screenshot", timeout_s=4 * ASK_TIMEOUT_S)
    png = answer.get("png") if isinstance(answer, dict) else None
    if not isinstance(png, bytes) or not png.startswith(_PNG):
        raise ProtocolViolation(
            f"{label(endpoint)} answered with no picture.",
            cure="Make sure that viewer and command are of the same version.",
        )
    _write(path, png)
    if arguments.json:
        print(json.dumps({"path": str(path), "shape": list(answer.get("shape", ()))}))
    else:
        print(path)
    return 0


def _write(path: Path, content: bytes) -> None:
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UsageError(
            f"{path} can't be written: {error.strerror or error}.", cure="Choose another place."
        ) from error
