"""Runs in our own environment, as a process of its own: streams to a viewer, and reports.

A JSON object comes on standard input; one goes to the file that the argument names.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from cases import pixels

import openhcs_stream
from openhcs_stream.errors import InvalidItem, StreamError
from openhcs_stream.rois import Roi

CANONICAL = {"z_index": "z", "timepoint": "time"}


def place_of(item: dict[str, Any]) -> dict[str, Any]:
    """The item's place by our names."""
    return {CANONICAL.get(name, name): value for name, value in item["components"].items()}


def send(stream: openhcs_stream.Stream, item: dict[str, Any]) -> openhcs_stream.Receipt:
    """One item of a batch."""
    place = place_of(item)
    match item["kind"]:
        case "image":
            array = pixels(item["shape"], item["dtype"], item["number"])
            if array.ndim == 3:
                place.pop("z")
            return stream.image(array, name="raw", place=place)
        case "rois":
            return stream.rois(
                [roi_of(shape) for shape in item["shapes"]], name="cells", place=place
            )
        case "points":
            return stream.points(item["yx"], name="spots", place=place)
        case other:
            raise AssertionError(other)


def roi_of(shape: dict[str, Any]) -> Roi:
    """One region."""
    if shape["shape"] == "polygon":
        return Roi.polygon(shape["yx"])
    (y, x), (ry, rx) = shape["center"], shape["radii"]
    return Roi.oval(y + 0.5 - ry, x + 0.5 - rx, y + 0.5 + ry, x + 0.5 + rx)


def main() -> None:
    """Do the task."""
    task = json.load(sys.stdin)
    report: dict[str, Any] = {"refused": {}, "states": [], "error": ""}
    stream = openhcs_stream.connect(
        task["target"], source="plate", timeout_s=task.get("timeout_s", 20.0)
    )
    report["viewer"] = stream.request("status")
    receipts = []
    pause = task.get("pause_s", 0.0)
    for batch in task["batches"]:
        for item in batch:
            receipts.append(send(stream, item))
            time.sleep(pause)
    if task.get("die_at"):
        # As a worker that is killed in the midst of it.
        os.kill(os.getpid(), 9)
    try:
        stream.flush(task.get("flush_s", 30.0))
    except StreamError as error:
        report["error"] = f"{type(error).__name__}: {error}"
    report["states"] = sorted({receipt.state for receipt in receipts})
    report["reasons"] = sorted({receipt.reason for receipt in receipts if receipt.reason})[:3]
    (queue,) = stream.status()
    report["queue"] = {
        name: getattr(queue, name)
        for name in ("sent", "received", "displayed", "failed", "dropped", "waiting")
    }
    small = pixels((32, 40, 3), "uint8", 1)
    for what, refused in (
        ("tracks", lambda: stream.tracks([(1, 0, 2.0, 3.0)])),
        ("rgb", lambda: stream.image(small, axes="YXS", name="rgb")),
        ("axis", lambda: stream.image(small, axes="YXQ", name="axis")),
    ):
        try:
            refused().wait("received", timeout_s=15)
            report["refused"][what] = "taken"
        except InvalidItem as error:
            report["refused"][what] = str(error)
    stream.close(timeout_s=5.0)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(report, file, default=str)


if __name__ == "__main__":
    main()
