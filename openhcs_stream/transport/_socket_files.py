"""Unix sockets with a name in the file system: made, told living from dead, and removed.

A socket listens before it gets its name. So whatever has a name and is refused by the system is
dead, and not one that is about to listen. The name stands in this process's ledger, by which a
sweeper tells it from other programs' when this process is killed.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from openhcs_stream.runtime import Held

__all__ = ["SocketFile"]

_log = logging.getLogger(__name__)

_BACKLOG = 64
_PATIENCE_S = 2.0


class SocketFile:
    """A listening stream socket and its file, which only this user can connect to.

    Attributes
    ----------
    listening : socket.socket
        Not blocking. `remove` leaves it open: whoever uses it closes it.
    """

    def __init__(self, listening: socket.socket, held: Held) -> None:
        self.listening = listening
        self._held = held

    @classmethod
    def bind(cls, name: str) -> SocketFile:
        """Listen at a path; a socket file on which nobody listens any more is replaced.

        Raises
        ------
        OSError
            EADDRINUSE: somebody listens there. EEXIST: another kind of file is there.
        UsageError
            The runtime folder, in which the ledger lies, can't be trusted.
        """
        from pathlib import Path

        from openhcs_stream.runtime import hold, locked_folder

        path = Path(name)
        # Two viewers must not remove and bind at one time.
        with locked_folder(path.parent, patience_s=_PATIENCE_S):
            _remove_dead(path)
            held = hold("socket", path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listening.setblocking(False)
                _bind(listening, held.temporary)
                os.chmod(held.temporary, 0o600)
                listening.listen(_BACKLOG)
                held.made()
            except BaseException as error:
                listening.close()
                held.abandon()
                if isinstance(error, FileExistsError):
                    # A program that takes no notice of our lock was quicker.
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
                raise
            return cls(listening, held)

    def remove(self) -> None:
        """Remove the file, where it still is this socket's; in a forked child, and again: nothing.

        Do it before the socket is closed: from then on another viewer may listen at that path.
        """
        try:
            self._held.remove()
        except OSError as error:
            _log.warning("the socket file %s can't be removed: %s", self._held.entry.final, error)


def _bind(listening: socket.socket, path: Path) -> None:
    """Bind by a short path: a socket's may have 107 bytes, and the random name may be longer."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{folder}"
        listening.bind(f"{short}/{path.name}" if os.path.isdir(short) else str(path))
    finally:
        os.close(folder)


def _remove_dead(path: Path) -> None:
    """Remove a socket file on which nobody listens; raise OSError where somebody does."""
    from openhcs_stream.runtime import nobody_listens

    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is no socket is there")
    if nobody_listens(path):
        path.unlink(missing_ok=True)  # a sweeper may have been quicker
    elif os.path.lexists(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
