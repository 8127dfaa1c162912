"""``openhcs-stream gc``: remove what the dead left, and only that."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.discovery import sweep
from openhcs_stream.errors import printable
from openhcs_stream.runtime import Found, nobody_listens

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from openhcs_stream.runtime import Sweep

__all__ = ["add_arguments", "facts", "look_around", "run"]

_SHARED_MEMORY = Path("/dev/shm")
#: How OpenHCS's senders name their blocks, in all generations.
_FOREIGN_BLOCK = re.compile(r"^(fiji|napari)_[0-9a-f]{8}([0-9a-f]{4})?\Z")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--logs", action="store_true", help="also logs of ended viewers, which else stay for a day"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    swept = sweep(dry_run=arguments.dry_run, logs=arguments.logs)
    swept.kept += look_around(swept)
    if arguments.json:
        told = {
            "dry_run": arguments.dry_run,
            "removed": [facts(found) for found in swept.removed],
            "kept": [facts(found) for found in swept.kept],
            "nbytes": sum(found.nbytes for found in swept.removed),
        }
        print(json.dumps(told))
        return 0
    verb = "would remove" if arguments.dry_run else "removed"
    for found in swept.removed:
        print(f"{verb} the {_line(found)}")
    for found in swept.kept:
        print(f"left the {_line(found)}")
    nbytes = sum(found.nbytes for found in swept.removed)
    count = len(swept.removed)
    what = f"{count} thing{'' if count == 1 else 's'} ({_size(nbytes)})" if count else "Nothing"
    print(f"{what} {'would be' if arguments.dry_run else 'was' if count < 2 else 'were'} removed.")
    return 0


def look_around(swept: Sweep) -> Iterator[Found]:
    """What looks like a leftover of OpenHCS's own programs; whose it is can't be decided."""
    from openhcs_stream.dialects import FAMILIES, family_of

    known = {found.path for found in (*swept.removed, *swept.kept)} | swept.living
    why = "an OpenHCS sender named it; whether one needs it can't be told"
    for path in _own_files(_SHARED_MEMORY, _FOREIGN_BLOCK):
        if path not in known:
            yield Found("segment", path, f"{why}; to remove it: rm {path}", _nbytes(path))
    why = "nobody listens there, but it is not one that we made"
    for family in map(family_of, FAMILIES):
        names = re.compile(rf"{re.escape(family.prefix)}-\d+{re.escape(family.extension)}\Z")
        for path in _own_files(family.folder, names):
            if path not in known and nobody_listens(path):
                yield Found("socket", path, f"{why}; to remove it: rm {path}", _nbytes(path))


def _own_files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        with os.scandir(folder) as listed:
            return sorted(
                Path(each.path)
                for each in listed
                if pattern.match(each.name)
                and each.stat(follow_symlinks=False).st_uid == os.getuid()
            )
    except OSError:  # there is no such folder, or a file went meanwhile
        return []


def _nbytes(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _line(found: Found) -> str:
    size = f" ({_size(found.nbytes)})" if found.nbytes else ""
    return printable(f"{found.kind} {found.path}{size}: {found.why}")


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:.1f} kB"


def facts(found: Found) -> dict[str, Any]:
    """One thing, JSON-able."""
    return {"kind": found.kind, "path": str(found.path), "why": found.why, "nbytes": found.nbytes}
