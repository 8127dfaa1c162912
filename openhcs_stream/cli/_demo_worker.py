"""One worker of the demo, as a process of its own: reads fields, segments, streams every result.

It is told on stdin which field is next, a JSON object a line, and says on stdout what it does.
The end of stdin is the end of its work; so it ends as well when whoever started it is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._demo_plate import (
    NUCLEI,
    PIXEL_SIZE_UM,
    open_field,
    remove_background,
    segment_nuclei,
)
from openhcs_stream.cli._demo_progress import Counts
from openhcs_stream.errors import StreamError
from openhcs_stream.rois import from_labels
from openhcs_stream.stream import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.stream import Stream

__all__ = ["main"]

_COLORMAPS = {"DAPI": "gray", "GFP": "green"}
_REPORT_S = 0.1
_FLUSH_S = 60.0


class _Reporter:
    """Says on stdout what happens, a JSON object a line; from any thread."""

    def __init__(self) -> None:
        # A line that some library prints must not end up among the reports.
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()

    def say(self, event: str, **details: Any) -> None:
        with self._lock:
            print(json.dumps({"event": event, **details}), file=self._out, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m openhcs_stream.cli._demo_worker")
    parser.add_argument("viewers", nargs="+", help="names of the running viewers")
    parser.add_argument("--name", required=True, help="what this worker is called")
    parser.add_argument("--plate", required=True, type=Path, help="folder of the plate's images")
    args = parser.parse_args(arguments)
    # Ctrl-C reaches the whole process group; it is for the parent, which then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = _Reporter()
    try:
        _work(args.viewers, args.name, args.plate, report)
    except (StreamError, OSError) as error:
        report.say("error", what=str(error))
        return 1
    return 0


def _work(viewers: list[str], name: str, plate: Path, report: _Reporter) -> None:
    with connect(viewers, name=name, source="demo", launch=False) as stream:
        finished = threading.Event()

        def tell_counts() -> None:
            last = None
            while not finished.wait(_REPORT_S):
                if (counts := _counts(stream)) != last:
                    last = counts
                    report.say("counts", **vars(counts))

        teller = threading.Thread(target=tell_counts, name="demo counts", daemon=True)
        teller.start()
        try:
            report.say("ready")
            for line in sys.stdin:
                field = json.loads(line)
                process_field(stream, plate, **field)
                report.say("ready")
            stream.flush(timeout_s=_FLUSH_S)
        finally:
            finished.set()
            teller.join()
            report.say("counts", **vars(_counts(stream)))


def _counts(stream: Stream) -> Counts:
    """Of this stream's queues, one for each viewer."""
    return sum(
        (
            Counts(queue.sent, queue.received, queue.displayed, queue.failed, queue.dropped)
            for queue in stream.status()
        ),
        Counts(),
    )


def process_field(stream: Stream, plate: Path, well: str, site: int) -> None:
    """Analyse one field, sending each result as soon as it is there."""
    import tifffile

    scale: dict[str, Any] = {"pixel_size": PIXEL_SIZE_UM, "unit": "um"}
    for image in open_field(plate, well, site):
        field: dict[str, int | str] = {"well": well, "site": site, "z": image.z}
        place = {**field, "channel": image.channel}
        raw = tifffile.imread(image.path)
        look: dict[str, Any] = {"colormap": _COLORMAPS[image.channel], **scale}
        stream.image(raw, name="raw", place=place, **look)
        filtered = remove_background(raw)
        # Hidden at first: it would lie over the raw image.
        stream.image(filtered, name="filtered", place=place, visible=False, **look)
        if image.channel == NUCLEI:
            nuclei = segment_nuclei(filtered)
            stream.labels(nuclei, name="nuclei", place=field, opacity=0.4, **scale)
            stream.rois(from_labels(nuclei), name="outlines", place=field, **scale)


if __name__ == "__main__":
    sys.exit(main())
