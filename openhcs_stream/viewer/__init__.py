"""What a viewer is, how running ones serve, and where things go on the screen."""

from __future__ import annotations

from openhcs_stream.viewer._base import Viewer
from openhcs_stream.viewer._budget import parse_memory
from openhcs_stream.viewer._channels import channel_colormap
from openhcs_stream.viewer._edits import Change, Painting, place_of
from openhcs_stream.viewer._kept import WhenMemoryFull
from openhcs_stream.viewer._memory import MemoryViewer
from openhcs_stream.viewer._placement import (
    RASTER_KINDS,
    Axis,
    Coords,
    LayerKey,
    PlacedItem,
    Placement,
)
from openhcs_stream.viewer._png import encode_png
from openhcs_stream.viewer._questions import Outcome, Question
from openhcs_stream.viewer._registry import (
    MEMORY,
    ViewerInfo,
    create,
    viewers,
)
from openhcs_stream.viewer._save import Standing, save_places, save_standing
from openhcs_stream.viewer._scene import Arrival, Changes, Scene, SceneLayer
from openhcs_stream.viewer._serve import TICK_S, Receiver, serve
from openhcs_stream.viewer._stack import Patch, PlaneStack

__all__ = [
    "MEMORY",
    "RASTER_KINDS",
    "TICK_S",
    "Arrival",
    "Axis",
    "Change",
    "Changes",
    "Coords",
    "LayerKey",
    "MemoryViewer",
    "Outcome",
    "Painting",
    "Patch",
    "PlacedItem",
    "Placement",
    "PlaneStack",
    "Question",
    "Receiver",
    "Scene",
    "SceneLayer",
    "Standing",
    "Viewer",
    "ViewerInfo",
    "WhenMemoryFull",
    "channel_colormap",
    "create",
    "encode_png",
    "parse_memory",
    "place_of",
    "save_places",
    "save_standing",
    "serve",
    "viewers",
]
