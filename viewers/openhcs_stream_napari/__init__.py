"""The napari viewer: in a window, without one, and as a dock widget in your own napari.

Nothing heavy is imported here: napari and Qt come in when a viewer is made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openhcs_stream.viewer import ViewerInfo
    from openhcs_stream_napari._model import NapariModelViewer
    from openhcs_stream_napari._window import NapariWindowViewer

    VIEWER: ViewerInfo

__all__ = ["VIEWER", "NapariModelViewer", "NapariWindowViewer", "create"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until asked for


def __getattr__(name: str) -> Any:
    match name:
        case "VIEWER":
            from openhcs_stream.viewer import ViewerInfo

            return ViewerInfo(
                name="napari",
                summary="show everything in napari, in a window of its own",
                extra="napari",
                factory="openhcs_stream_napari._create:create",
            )
        case "NapariModelViewer":
            from openhcs_stream_napari._model import NapariModelViewer

            return NapariModelViewer
        case "NapariWindowViewer":
            from openhcs_stream_napari._window import NapariWindowViewer

            return NapariWindowViewer
        case "create":
            from openhcs_stream_napari._create import create

            return create
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
