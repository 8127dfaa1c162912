"""``openhcs-stream status``: the running viewers with their queues."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import ASK_TIMEOUT_S
from openhcs_stream.discovery import Endpoint, endpoints
from openhcs_stream.errors import PeerError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_arguments", "ask_all", "run"]

#: What the table shows of a stream: a key of the viewer's answer, and its heading.
_COLUMNS = (
    ("received", "received"),
    ("displayed", "shown"),
    ("failed", "failed"),
    ("waiting", "waiting"),
    ("dropped", "dropped"),
    ("oldest_age_s", "oldest"),
    ("items_per_s", "items/s"),
    ("bytes_per_s", "MB/s"),
)
_NAME_WIDTH = 32
_CLEAR = "\x1b[H\x1b[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=1.0,
        metavar="SECONDS",
        help="look again every second, or so often, until Ctrl-C",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=ASK_TIMEOUT_S,
        metavar="SECONDS",
        help="how long a viewer may take to answer (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    while True:
        rows = ask_all(arguments.timeout)
        if arguments.json:
            text = json.dumps({"viewers": rows})
        elif not rows:
            text = "No viewer is running. Start one with `openhcs-stream napari`."
        else:
            text = "\n".join(line for row in rows for line in _lines(row))
        if arguments.watch and not arguments.json and sys.stdout.isatty():
            text = _CLEAR + text
        print(text, flush=True)
        if not arguments.watch:
            return 0 if all(row["answers"] for row in rows) else 1
        time.sleep(arguments.watch)


def ask_all(timeout_s: float) -> list[dict[str, Any]]:
    """What every running viewer says of itself; of one that does not answer, why."""
    running = endpoints()
    with ThreadPoolExecutor(max(1, min(16, len(running)))) as pool:
        return list(pool.map(lambda each: _row(each, timeout_s), running))


def _row(endpoint: Endpoint, timeout_s: float) -> dict[str, Any]:
    from openhcs_stream.stream import ask

    row: dict[str, Any] = {
        "viewer": endpoint.viewer,
        "name": endpoint.name,
        "pid": endpoint.pid,
        "addresses": list(endpoint.addresses),
        "port": endpoint.port,
        "headless": endpoint.headless,
        "protocol": ".".join(map(str, endpoint.protocol)),
        "uptime_s": round(max(0.0, time.time() - endpoint.started), 1),
    }
    try:
        answer = ask(endpoint, "status", timeout_s=timeout_s)
    except PeerError as error:
        return row | {"answers": False, "error": str(error), "status": {}}
    return row | {"answers": True, "status": answer if isinstance(answer, dict) else {}}


def _lines(row: dict[str, Any]) -> list[str]:
    name = row["name"] if row["name"] == row["viewer"] else f"{row['viewer']} {row['name']!r}"
    head = f"{name}{' (headless)' if row['headless'] else ''}: pid {row['pid']}, up "
    head += _duration(row["uptime_s"])
    if not row["answers"]:
        return [f"{head}, at {' and '.join(row['addresses'])}",
                f"  does not answer: {row['error']}"]  # fmt: skip
    status = row["status"]
    if status.get("memory_nbytes"):
        head += f", {status['memory_nbytes'] / 1e6:.0f} MB"
    layers = status.get("layers", 0)
    head += f", {layers} layer{'' if layers == 1 else 's'}, at {' and '.join(row['addresses'])}"
    living = _streams(status, "streams")
    lines = [head, *_table([*living, *_streams(status, "ended")])]
    return lines if living else [*lines, "  no stream is connected"]


def _streams(status: dict[str, Any], key: str) -> list[dict[str, Any]]:
    streams = status.get(key)
    return [each for each in streams if isinstance(each, dict)] if streams else []


def _table(streams: Sequence[dict[str, Any]]) -> list[str]:
    if not streams:
        return []
    rows = [["stream", *(heading for _, heading in _COLUMNS), ""]]
    rows += [
        [_name(each), *(_cell(key, each.get(key)) for key, _ in _COLUMNS), _state(each)]
        for each in streams
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
                row[-1],
            ]
        ).rstrip()
        for row in rows
    ]


def _name(stream: dict[str, Any]) -> str:
    pid = stream.get("pid")
    name = printable(str(stream.get("name") or "stream"), _NAME_WIDTH)
    return f"{name} (pid {pid})" if pid else name


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    if key == "oldest_age_s":
        return _age(value) if value else "-"
    if key == "bytes_per_s":
        return f"{value / 1e6:.1f}"
    return f"{value:.1f}" if key == "items_per_s" else str(value)


def _state(stream: dict[str, Any]) -> str:
    if "ended" in stream:
        ago = _age(float(stream.get("ended_s_ago") or 0))
        return f"ended {ago} ago: {printable(str(stream['ended']), 200)}"
    return "" if stream.get("shared_memory", True) else "through ZeroMQ"


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else _duration(seconds)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds
