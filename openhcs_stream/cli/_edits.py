"""``openhcs-stream edits``: what persons changed and no worker has taken; save it, if wanted.

The viewer sends the data and this process writes the files: a viewer never writes where a peer
tells it to.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import ASK_TIMEOUT_S, add_target, find_one, label
from openhcs_stream.errors import ProtocolViolation, UsageError

if TYPE_CHECKING:
    import argparse

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.stream import Edit

__all__ = ["add_arguments", "run"]

_LONGEST = 180


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="write the corrected layers there, one file a place: ROIs as .zip for ImageJ, labels "
        "as .tif, points as .csv",
    )
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    endpoint = find_one(arguments.to)
    found = _waiting(endpoint)
    saved = _save(endpoint, found, arguments.save) if arguments.save else []
    if arguments.json:
        rows = [
            {
                "number": edit.number,
                "time": edit.time.isoformat(timespec="seconds"),
                "who": edit.who,
                "action": edit.action,
                "kind": edit.kind,
                "name": edit.name,
                "source": edit.source,
                "place": dict(edit.place),
            }
            for edit in found
        ]
        print(json.dumps({"edits": rows, "saved": [str(path) for path in saved]}))
        return 0
    if not found:
        print(f"Nothing waits in {label(endpoint)}: workers have taken every edit.")
    for edit in found:
        print(f"{edit.time.astimezone():%H:%M:%S}  {edit.who}  {edit}")
    for path in saved:
        print(path)
    return 0


def _waiting(endpoint: Endpoint) -> list[Edit]:
    from openhcs_stream.messages import Edited, decode
    from openhcs_stream.stream import Edit, ask

    answer: Any = ask(endpoint, "waiting_edits", timeout_s=4 * ASK_TIMEOUT_S)
    edits = []
    for frame in answer if isinstance(answer, list) else ():
        message = decode(frame)
        if not isinstance(message, Edited):
            raise ProtocolViolation(f"{label(endpoint)} answered with something else than edits.")
        edits.append(Edit.of_record(message.edit, endpoint.name))
    return edits


def _save(endpoint: Endpoint, edits: list[Edit], folder: Path) -> list[Path]:
    """What stands now at every place that was edited."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} can't be made: {error.strerror or error}.", cure="Choose another folder."
        ) from error
    wanted = {
        (edit.kind, edit.source, edit.name, tuple(sorted(edit.place.items()))): edit
        for edit in edits
    }
    stems = _stems(list(wanted.values()))
    return [_save_one(endpoint, edit, folder / stem) for stem, edit in stems]


def _save_one(endpoint: Endpoint, edit: Edit, stem: Path) -> Path:
    import numpy as np

    from openhcs_stream import rois
    from openhcs_stream.pixels import numpy_dtype
    from openhcs_stream.stream import ask

    answer: Any = ask(
        endpoint, "read", timeout_s=4 * ASK_TIMEOUT_S, kind=edit.kind, name=edit.name,
        source=edit.source, place=dict(edit.place),
    )  # fmt: skip
    if edit.kind == "rois":
        path = stem.with_name(stem.name + ".zip")
        rois.write_imagej(path, rois.decode(answer["data"]))
        return path
    array = np.frombuffer(answer["data"], numpy_dtype(answer["dtype"])).reshape(answer["shape"])
    if edit.kind == "points":
        path = stem.with_name(stem.name + ".csv")
        np.savetxt(path, array, fmt="%.17g", delimiter=",", header="y,x", comments="")
        return path
    path = stem.with_name(stem.name + ".tif")
    _write_tiff(path, array)
    return path


def _write_tiff(path: Path, array: Any) -> None:
    try:
        import tifffile
    except ImportError as error:
        raise UsageError(
            "labels are saved as TIFF, for which tifffile is not installed.",
            cure='Install it: pip install "openhcs-stream[images]".',
        ) from error
    tifffile.imwrite(path, array)


def _stems(edits: list[Edit]) -> list[tuple[str, Edit]]:
    """For each a file's name of its own without its end, also where names differ by signs alone."""
    stems: list[tuple[str, Edit]] = []
    taken: set[tuple[str, str]] = set()
    for edit in edits:
        stem, number = _stem(edit), 1
        while (stem.casefold(), edit.kind) in taken:  # some systems don't tell A from a
            number += 1
            stem = f"{_stem(edit)}-{number}"
        taken.add((stem.casefold(), edit.kind))
        stems.append((stem, edit))
    return stems


def _stem(edit: Edit) -> str:
    """A file's name without its end: source, layer and place."""
    place: dict[str, PlaceValue] = dict(edit.place)
    words = [edit.source, edit.name, *(f"{key}-{value}" for key, value in place.items())]
    stem = "_".join(re.sub(r"[^\w-]+", "-", word) for word in words if word)[:_LONGEST]
    return stem or "unnamed"  # an empty name would be the folder's own
