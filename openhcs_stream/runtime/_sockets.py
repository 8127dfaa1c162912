"""Whether anybody listens at a socket's file."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["nobody_listens"]


def nobody_listens(path: Path) -> bool:
    """Whether it is a stream socket at which, as the system says, nobody listens.

    False as well where nothing can be told: it is gone, no socket, busy, or its path is longer
    than a socket's may be.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.setblocking(False)
            trial.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
