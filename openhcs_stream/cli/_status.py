"""``openhcs-stream status``: the running viewers with their queues."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli._target import ASK_TIMEOUT_S
from openhcs_stream.discovery import Endpoint, endpoints
from openhcs_stream.errors import PeerError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

#: Facts in a viewer's answer that stand in its first line, or are for programs.
_TOLD_ALREADY = frozenset({"viewer", "name", "pid", "user", "uptime_s", "age_s", "nbytes"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--timeout",
        type=float,
        default=ASK_TIMEOUT_S,
        metavar="SECONDS",
        help="how long a viewer may take to answer (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    running = endpoints()
    with ThreadPoolExecutor(max(1, min(16, len(running)))) as pool:
        rows = list(pool.map(lambda each: _row(each, arguments.timeout), running))
    if arguments.json:
        print(json.dumps({"viewers": rows}))
    elif not rows:
        print("No viewer is running. Start one with `openhcs-stream napari`.")
    else:
        print("\n".join(line for row in rows for line in _lines(row)))
    return 0 if all(row["answers"] for row in rows) else 1


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
    lines = [
        f"{name}{' (headless)' if row['headless'] else ''}: pid {row['pid']}, "
        f"up {_duration(row['uptime_s'])}, at {' and '.join(row['addresses'])}"
    ]
    if not row["answers"]:
        return [*lines, f"  does not answer: {row['error']}"]
    told = [
        f"{_words(key)} {value}"
        for key, value in row["status"].items()
        if _is_plain(value) and key not in _TOLD_ALREADY
    ]
    if told:
        lines.append(f"  {', '.join(told)}")
    streams = [each for each in row["status"].get("streams", ()) if isinstance(each, dict)]
    for stream in streams:
        counts = ", ".join(
            f"{_words(key)} {value}"
            for key, value in stream.items()
            if _is_plain(value) and key not in _TOLD_ALREADY
        )
        pid = f" (pid {stream['pid']})" if stream.get("pid") else ""
        lines.append(f"  {stream.get('name') or 'stream'}{pid}: {counts or 'nothing yet'}")
    if not streams:
        lines.append("  no stream is connected")
    return lines


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value != ""


def _words(key: str) -> str:
    return key.replace("_", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
