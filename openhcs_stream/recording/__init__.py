"""Streams into a file and back: the recorder is a viewer, and replaying is sending."""

from __future__ import annotations

from openhcs_stream.recording._format import (
    DamagedRecording,
    Entry,
    Recording,
    Summary,
    Writer,
)
from openhcs_stream.recording._recorder import RECORDER, Recorder, create_recorder
from openhcs_stream.recording._replay import Replayed, replay

__all__ = [
    "RECORDER",
    "DamagedRecording",
    "Entry",
    "Recorder",
    "Recording",
    "Replayed",
    "Summary",
    "Writer",
    "create_recorder",
    "replay",
]
