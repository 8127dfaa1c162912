"""``openhcs-stream clear``: remove everything that a viewer shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from openhcs_stream.cli._target import ASK_TIMEOUT_S, add_target, find_one, label

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from openhcs_stream.stream import ask

    endpoint = find_one(arguments.to)
    ask(endpoint, "clear", timeout_s=2 * ASK_TIMEOUT_S)
    if arguments.json:
        print(json.dumps({"viewer": endpoint.viewer, "name": endpoint.name, "cleared": True}))
    else:
        print(f"{label(endpoint)} shows nothing now.")
    return 0
