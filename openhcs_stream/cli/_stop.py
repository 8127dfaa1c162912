"""``openhcs-stream stop``: end one running viewer, or all."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from openhcs_stream.cli._target import ASK_TIMEOUT_S, find_one, is_own_process, label
from openhcs_stream.discovery import Endpoint, endpoints
from openhcs_stream.errors import DeadlineExceeded, PeerError, UsageError
from openhcs_stream.runtime import runtime_folder

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

_log = logging.getLogger(__name__)

_POLL_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "name", nargs="?", metavar="NAME", help="its name, kind or address; else the only one"
    )
    which.add_argument("--all", action="store_true", help="end every running viewer")
    parser.add_argument(
        "--force", action="store_true", help="kill what has not ended when the time is over"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long a viewer may take to end (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    chosen = endpoints() if arguments.all else [find_one(arguments.name)]
    stopped: list[Endpoint] = []
    failures: list[PeerError] = []
    for endpoint in chosen:
        try:
            _stop(endpoint, timeout_s=arguments.timeout, force=arguments.force)
        except PeerError as error:
            failures.append(error)
        else:
            stopped.append(endpoint)
    if arguments.json:
        print(
            json.dumps(
                {
                    "stopped": [{"name": each.name, "pid": each.pid} for each in stopped],
                    "failed": [str(error) for error in failures],
                }
            )
        )
    else:
        for endpoint in stopped:
            print(f"{label(endpoint)} (pid {endpoint.pid}) has ended.")
        if not chosen:
            print("No viewer is running.")
    if failures:
        if not arguments.json:
            raise failures[0]
        return 1
    return 0


def _stop(endpoint: Endpoint, *, timeout_s: float, force: bool) -> None:
    """Ask it, then tell it by a signal, then (by `force`) kill it.

    Raises
    ------
    DeadlineExceeded
        It still runs.
    """
    from openhcs_stream.stream import ask

    deadline = time.monotonic() + timeout_s
    try:
        ask(endpoint, "stop", timeout_s=min(ASK_TIMEOUT_S, timeout_s))
    except PeerError as error:
        # It may have ended before it could answer, and a busy one still hears a signal.
        _log.info("%s did not take the request to stop: %s", label(endpoint), error)
        _signal(endpoint, signal.SIGTERM)
    if _has_ended(endpoint, deadline):
        return
    if force and _signal(endpoint, signal.SIGKILL):
        if _has_ended(endpoint, time.monotonic() + ASK_TIMEOUT_S):
            return
    raise DeadlineExceeded(
        f"{label(endpoint)} (pid {endpoint.pid}) still runs after {timeout_s:g} s.",
        cure="Add --force to kill it; what it shows is lost.",
    )


def _has_ended(endpoint: Endpoint, deadline: float) -> bool:
    while endpoint in endpoints(endpoint.viewer):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _signal(endpoint: Endpoint, number: signal.Signals) -> bool:
    """Signal its process, if the number still is the process that holds the endpoint file."""
    path = runtime_folder() / f"{endpoint.viewer}-{endpoint.name}.json"
    if endpoint.pid <= 1 or not is_own_process(endpoint, path):
        return False
    try:
        os.kill(endpoint.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise UsageError(
            f"{label(endpoint)} (pid {endpoint.pid}) can't be signalled: {error.strerror}.",
            cure="End it as the user who started it.",
        ) from error
    return True
