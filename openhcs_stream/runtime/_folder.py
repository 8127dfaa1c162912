"""The runtime folder: private to one user, gone with the session where the system does that."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from openhcs_stream.errors import UsageError

__all__ = ["RUNTIME_VARIABLE", "runtime_folder"]

#: Names the runtime folder; everything that is to find each other must agree on it.
RUNTIME_VARIABLE = "OPENHCS_STREAM_RUNTIME_DIR"


def runtime_folder() -> Path:
    """Folder of the endpoint files of this user, created where it is missing.

    It is ``$OPENHCS_STREAM_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/openhcs-stream``, else
    ``openhcs-stream-UID`` in the folder for temporary files. Only its owner can enter it: the
    tokens in the endpoint files open a session with a viewer.

    Returns
    -------
    Path
        Absolute; mode 0700.

    Raises
    ------
    UsageError
        The folder can't be made, is no folder, belongs to another user, or others can enter it.
    """
    folder = _place()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make(folder)
        # Followed where a person named it, never in a folder that everybody may write to.
        status = os.stat(folder, follow_symlinks=RUNTIME_VARIABLE in os.environ)
    except OSError as error:
        raise UsageError(
            f"the runtime folder {folder} can't be made: {error.strerror or error}.",
            cure=f"Set {RUNTIME_VARIABLE} to a folder that you can write to.",
        ) from error
    _check(folder, status)
    return folder


def _place() -> Path:
    named = os.environ.get(RUNTIME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    # The variable often outlives its folder: in a container, after `su`, in a batch job.
    if session and os.path.isabs(session) and os.access(session, os.R_OK | os.W_OK | os.X_OK):
        return Path(session) / "openhcs-stream"
    import tempfile

    return Path(tempfile.gettempdir()).absolute() / f"openhcs-stream-{os.getuid()}"


def _make(folder: Path) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return
    os.chmod(folder, 0o700)  # a strict umask takes bits away that the owner needs


def _check(folder: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(
            f"the runtime folder {folder} is not a folder.",
            cure=f"Move it away, or set {RUNTIME_VARIABLE} to another folder.",
        )
    if status.st_uid != os.getuid():
        raise UsageError(
            f"the runtime folder {folder} belongs to user {status.st_uid}, and this process runs "
            f"as user {os.getuid()}.",
            cure=f"Set {RUNTIME_VARIABLE} to a folder of your own; what others own can't be "
            "trusted with session tokens.",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UsageError(
            f"the runtime folder {folder} has mode {mode:04o}, so that other users can enter it.",
            cure=f"Close it with `chmod 700 {folder}`, or set {RUNTIME_VARIABLE} to a folder "
            "that only you can enter.",
        )
