"""The Fiji viewer: ImageJ's own windows and ROI Manager, embedded or in your own Fiji.

Nothing heavy is imported here: Java comes in when a viewer is made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openhcs_stream.viewer import ViewerInfo
    from openhcs_stream_fiji._create import create
    from openhcs_stream_fiji._viewer import FijiViewer

    VIEWER: ViewerInfo

__all__ = ["VIEWER", "FijiViewer", "create"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until asked for


def __getattr__(name: str) -> Any:
    match name:
        case "VIEWER":
            from openhcs_stream.viewer import ViewerInfo

            return ViewerInfo(
                name="fiji",
                summary="show everything in ImageJ's windows and ROI Manager, or in your own Fiji",
                extra="fiji",
                factory="openhcs_stream_fiji._create:create",
                checks="openhcs_stream_fiji._checks:checks",
            )
        case "FijiViewer":
            from openhcs_stream_fiji._viewer import FijiViewer

            return FijiViewer
        case "create":
            from openhcs_stream_fiji._create import create

            return create
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
