"""Running viewers and how they are found: endpoint files, the locks on them, and the launcher."""

from __future__ import annotations

from openhcs_stream.discovery._endpoints import (
    Endpoint,
    Publication,
    endpoints,
    find,
    publish,
    stale_files,
)
from openhcs_stream.discovery._folder import runtime_folder
from openhcs_stream.discovery._kinds import ENTRY_POINTS, installed_viewers, unknown_viewer
from openhcs_stream.discovery._launch import DETACH_VARIABLE, detach, launch, log_file

__all__ = [
    "DETACH_VARIABLE",
    "ENTRY_POINTS",
    "Endpoint",
    "Publication",
    "detach",
    "endpoints",
    "find",
    "installed_viewers",
    "launch",
    "log_file",
    "publish",
    "runtime_folder",
    "stale_files",
    "unknown_viewer",
]
