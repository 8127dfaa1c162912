"""Running viewers and how they are found: endpoint files, the locks on them, and the launcher."""

from __future__ import annotations

from openhcs_stream.discovery._endpoints import (
    Endpoint,
    Publication,
    endpoints,
    find,
    publish,
)
from openhcs_stream.discovery._kinds import ENTRY_POINTS, installed_viewers, unknown_viewer
from openhcs_stream.discovery._launch import DETACH_VARIABLE, detach, launch, log_file
from openhcs_stream.discovery._public import (
    VIEWER_SUFFIX,
    PublicIdentity,
    config_folder,
    is_public,
    public_identity,
    reachable_host,
    read_viewer_file,
    viewer_file,
    write_viewer_file,
)
from openhcs_stream.discovery._sweep import LOG_KEPT_S, sweep

__all__ = [
    "DETACH_VARIABLE",
    "ENTRY_POINTS",
    "LOG_KEPT_S",
    "VIEWER_SUFFIX",
    "Endpoint",
    "PublicIdentity",
    "Publication",
    "config_folder",
    "detach",
    "endpoints",
    "find",
    "installed_viewers",
    "is_public",
    "launch",
    "log_file",
    "public_identity",
    "publish",
    "reachable_host",
    "read_viewer_file",
    "sweep",
    "unknown_viewer",
    "viewer_file",
    "write_viewer_file",
]
