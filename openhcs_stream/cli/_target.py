"""Which viewer a command means: by its kind, its own name or its address."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from openhcs_stream.discovery import (
    VIEWER_SUFFIX,
    Endpoint,
    endpoints,
    find,
    installed_viewers,
    launch,
    read_viewer_file,
    unknown_viewer,
)
from openhcs_stream.errors import UsageError, ViewerUnreachable

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

__all__ = [
    "ASK_TIMEOUT_S",
    "add_target",
    "find_one",
    "find_or_launch",
    "is_own_process",
    "label",
]

#: How long a viewer may take to answer a question.
ASK_TIMEOUT_S = 5.0


def add_target(parser: argparse.ArgumentParser) -> None:
    """``--to``, as all commands have it that act on one viewer."""
    parser.add_argument(
        "--to",
        metavar="VIEWER",
        help="which viewer: its kind (napari), its name or its address as `openhcs-stream "
        "status` lists them, or a copy of its .viewer file; by default the only one that runs",
    )


def find_one(wanted: str | None) -> Endpoint:
    """The running viewer that is meant.

    Parameters
    ----------
    wanted : str or None
        A kind, a name or an address; None: the only one that runs.

    Raises
    ------
    ViewerUnreachable
        None such runs.
    UsageError
        Several run, and it is not said which.
    """
    running = endpoints()
    if wanted is None:
        if not running:
            raise ViewerUnreachable(
                "no viewer is running.", cure="Start one with `openhcs-stream napari`."
            )
        if len(running) > 1:
            raise UsageError(
                f"{len(running)} viewers are running: {_names(running)}.",
                cure="Say which one, by its name.",
            )
        return running[0]
    found = _matching(wanted, running)
    if found is None:
        raise ViewerUnreachable(
            f"no running viewer is called {wanted!r}; running: {_names(running) or 'none'}.",
            cure="Start one with `openhcs-stream napari`, or see `openhcs-stream status`.",
        )
    return found


def find_or_launch(wanted: str | None, *, timeout_s: float) -> Endpoint:
    """The running viewer that is meant, or one of that kind that is started now.

    Parameters
    ----------
    wanted : str or None
        A kind, a name or an address; None: the one that started last, else napari.
    timeout_s : float
        How long a viewer may take to start.

    Raises
    ------
    UnknownViewer
        It is no running viewer's name and no installed kind.
    ViewerUnreachable
        It is an address at which no viewer of this user runs, or the viewer could not be started.
    """
    running = endpoints()
    if wanted is None and running:
        return running[0]
    wanted = wanted or "napari"
    found = _matching(wanted, running)
    if found is not None:
        return found
    if "://" in wanted:
        # A viewer that published nothing here: of another user, machine or runtime folder.
        return Endpoint("", wanted, 0, 0.0, (0, 0), (wanted,), "", headless=False)
    if wanted not in installed_viewers():
        raise unknown_viewer(
            wanted,
            what=f"{wanted!r} is no running viewer ({_names(running) or 'none runs'}) and no "
            "installed one.",
        )
    return find(wanted) or launch(wanted, timeout_s=timeout_s)


def label(endpoint: Endpoint) -> str:
    """What a person calls a viewer: ``napari`` or ``napari 'plate 3'``."""
    if endpoint.name in (endpoint.viewer, endpoint.addresses[0]):
        return endpoint.name
    return f"{endpoint.viewer} {endpoint.name!r}"


def is_own_process(endpoint: Endpoint, path: Path) -> bool:
    """Whether the process of that number holds the endpoint file open: it is no other one's."""
    try:
        file = path.stat()
        with os.scandir(f"/proc/{endpoint.pid}/fd") as entries:
            return any(_is_same(entry, file) for entry in entries)
    except OSError:
        return False


def _is_same(entry: os.DirEntry[str], file: os.stat_result) -> bool:
    try:
        # By what is open, not by its name: the file had another one when it was opened.
        return os.path.samestat(os.stat(entry.path), file)
    except OSError:
        return False  # closed meanwhile


def _matching(wanted: str, running: list[Endpoint]) -> Endpoint | None:
    """By name first: a viewer's default name is its kind's, and a second one has another."""
    if wanted.endswith(VIEWER_SUFFIX):
        return read_viewer_file(wanted)
    for matches in (
        [each for each in running if each.name == wanted],
        [each for each in running if wanted in each.addresses],
        [each for each in running if each.viewer == wanted],
    ):
        if matches:
            return matches[0]
    return None


def _names(running: list[Endpoint]) -> str:
    return ", ".join(label(each) for each in running)
