"""``openhcs-stream replay``: a recorded file into a viewer, or what is in it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import find_or_launch, label

if TYPE_CHECKING:
    from openhcs_stream.recording import Entry, Recording, Summary
    from openhcs_stream.stream import Stream

__all__ = ["add_arguments", "run"]

_SHOW_EVERY_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="made by openhcs-stream record")
    parser.add_argument(
        "--to",
        metavar="VIEWER",
        help="a kind of viewer (napari), which is started if none runs; or a running one's name "
        "or address. By default the one that started last, else napari",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="TIMES|max",
        help="2: twice as fast as it was recorded; max: as fast as the viewer takes it (1)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="only say what is in the file")
    what.add_argument(
        "--check", action="store_true", help="only read all of it, and say what is damaged"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long the viewer may take to start, and then to show the last items (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from openhcs_stream.recording import Recording

    with Recording(arguments.file) as recording:
        if arguments.list or arguments.check:
            return _tell(recording, as_json=arguments.json, check=arguments.check)
        return _replay(recording, arguments)


def _tell(recording: Recording, *, as_json: bool, check: bool) -> int:
    from openhcs_stream.recording import DamagedRecording

    problems: list[str] = []
    if check:
        try:
            for entry in recording.entries():
                try:
                    entry.check()
                except DamagedRecording as error:
                    problems.append(str(error))
        except DamagedRecording as error:
            problems.append(str(error))
    summary = None if problems else recording.summary()
    if as_json:
        told: dict[str, Any] = {"path": str(recording.path), "damaged": problems}
        print(json.dumps(told | (_facts(summary) if summary else {})))
    else:
        for line in _lines(summary) if summary else problems:
            print(line)
        if check and not problems:
            print("All of it is as it was recorded.")
    return 1 if problems else 0


def _facts(summary: Summary) -> dict[str, Any]:
    return {
        "program": summary.program,
        "started": summary.started,
        "duration_s": round(summary.duration_s, 3),
        "items": summary.items,
        "nbytes": summary.nbytes,
        "complete": summary.complete,
        "torn_nbytes": summary.torn_nbytes,
        "streams": summary.streams,
    }


def _lines(summary: Summary) -> list[str]:
    from openhcs_stream.errors import printable

    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.started))
    lines = [
        f"{summary.items} items, {summary.nbytes / 1e6:.1f} MB, in {summary.duration_s:.1f} s "
        f"from {day} on, by {printable(summary.program)}"
    ]
    for stream, layers in summary.streams.items():
        lines.append(f"  {printable(stream)}")
        lines += [f"    {printable(name)}: {count} items" for name, count in layers.items()]
    if not summary.complete:
        torn = f"; {summary.torn_nbytes} bytes of an item are left out" * (summary.torn_nbytes > 0)
        lines.append(f"  the recorder was killed, or is still at it{torn}")
    return lines


def _replay(recording: Recording, arguments: argparse.Namespace) -> int:
    from openhcs_stream.recording import replay
    from openhcs_stream.stream import connect

    count = recording.summary().items  # before anything is started: a damaged file says so here
    endpoint = find_or_launch(arguments.to, timeout_s=arguments.timeout)

    def open_stream(name: str) -> Stream:
        return connect(
            endpoint.addresses[0],
            name=name,
            timeout_s=arguments.timeout,
            token=endpoint.token,
            launch=False,
        )

    show = _Progress(count)
    try:
        done = replay(
            recording,
            open_stream,
            speed=arguments.speed,
            timeout_s=arguments.timeout,
            progress=show,
        )
    finally:
        show.end()
    if arguments.json:
        told = {
            "viewer": label(endpoint),
            "sent": done.sent,
            "displayed": done.displayed,
            "failed": done.failed,
            "damaged": done.damaged,
            "failures": done.failures,
        }
        print(json.dumps(told))
    else:
        print(f"{label(endpoint)} shows {done.displayed} of {count} items.")
        for line in done.failures:
            print(f"  {line}", file=sys.stderr)
    return 0 if done.displayed == count else 1


class _Progress:
    """A line that is written over; nothing into a pipe."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sent = 0
        self._shown_at = 0.0
        self._is_shown = sys.stderr.isatty()

    def __call__(self, entry: Entry) -> None:
        self._sent += 1
        now = time.monotonic()
        if self._is_shown and now - self._shown_at >= _SHOW_EVERY_S:
            self._shown_at = now
            text = f"\r{self._sent}/{self._count} items, {entry.time_s:.1f} s"
            print(text, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_shown:
            print(file=sys.stderr)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.001 <= speed <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no speed; use a number, or max")
    return speed
