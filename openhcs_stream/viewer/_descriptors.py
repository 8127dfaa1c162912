"""How many more files a viewer may open: ZeroMQ ends a process that has none for a connection."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["RESERVE", "spare_descriptors"]

#: Kept for connections that come before they can be refused, and for what a viewer opens itself.
RESERVE: Final = 24

_FOLDERS: Final = ("/proc/self/fd", "/dev/fd")


def spare_descriptors() -> int:
    """Return how many more files this process may open; very many where nobody can tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 30
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 30
    for folder in _FOLDERS:
        try:
            return limit - len(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError:  # not even one, to look
            return 0
    return 1 << 30
