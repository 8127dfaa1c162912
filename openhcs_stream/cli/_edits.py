"""``openhcs-stream edits``: what persons changed and no worker has taken; save it, if wanted.

The viewer sends the data and this process writes the files: a viewer never writes where a peer
tells it to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import ASK_TIMEOUT_S, add_target, find_one, label
from openhcs_stream.errors import ProtocolViolation, Refused

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.stream import Edit
    from openhcs_stream.viewer import Standing

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="write the corrected layers there, place by place: ROIs as .zip for ImageJ and "
        ".geojson for QuPath, labels as .tif, points as .csv",
    )
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    endpoint = find_one(arguments.to)
    found = _waiting(endpoint)
    saved: list[Path] = []
    gone: list[str] = []
    if arguments.save:
        from openhcs_stream.viewer import save_standing

        saved = save_standing(arguments.save, _standing(endpoint, found, gone))
    for each in gone:
        print(f"not saved: {each}", file=sys.stderr)
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
        return 1 if gone else 0
    if not found:
        print(f"Nothing waits in {label(endpoint)}: workers have taken every edit.")
    for edit in found:
        print(f"{edit.time.astimezone():%H:%M:%S}  {edit.who}  {edit}")
    for path in saved:
        print(path)
    return 1 if gone else 0


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


def _standing(endpoint: Endpoint, edits: list[Edit], gone: list[str]) -> Iterator[Standing]:
    """What stands now at every place that was edited; in `gone`, what does not stand any more."""
    from openhcs_stream.stream import ask
    from openhcs_stream.viewer import Standing

    wanted = {
        (edit.kind, edit.source, edit.name, tuple(sorted(edit.place.items()))): edit
        for edit in edits
    }
    for edit in wanted.values():
        try:
            answer: Any = ask(
                endpoint, "read", timeout_s=4 * ASK_TIMEOUT_S, kind=edit.kind, name=edit.name,
                source=edit.source, place=dict(edit.place),
            )  # fmt: skip
        except Refused as error:
            gone.append(str(error))
            continue
        yield Standing(edit.kind, edit.source, edit.name, edit.place, _data(edit, answer))


def _data(edit: Edit, answer: Any) -> Any:
    import numpy as np

    from openhcs_stream import rois
    from openhcs_stream.pixels import numpy_dtype

    if edit.kind == "rois":
        return rois.decode(answer["data"])
    return np.frombuffer(answer["data"], numpy_dtype(answer["dtype"])).reshape(answer["shape"])
