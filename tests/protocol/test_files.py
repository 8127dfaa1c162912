"""An image that stays in its file: who may say so, and when."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    FileShown,
    Hello,
    Item,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Part,
    Welcome,
)
from openhcs_stream.protocol import ReceiverSession, SendControl, TakeFile, ViewerFacts

FACTS = ViewerFacts("napari", "napari", 77, "host", "secret", files=("raw",))
HELLO = Hello(MAJOR, MINOR, "5e55", "stream", "worker", "ada", "host", 1, lanes=("unix",))
SPEC = LayerSpec("image", "raw", "YX")
ITEM = Item(0, 0, (), (2, 3), "<u2", 12, ())
SHOWN = FileShown(ITEM, "raw", 8)


def session(facts: ViewerFacts = FACTS, spec: LayerSpec = SPEC) -> ReceiverSession:
    made = ReceiverSession(facts, lane="unix:side", key="key", trusted=True)
    made.receive(HELLO, 0.0)
    made.lane_opened(LaneOpened("5e55", "key"), 0.0)
    made.receive(LayerDeclared(0, spec), 0.0)
    return made


def test_it_is_taken_once() -> None:
    made = session()
    assert made.receive(SHOWN, 1.0) == [TakeFile(SHOWN, SPEC)]
    with pytest.raises(ProtocolViolation, match="count up"):
        made.receive(SHOWN, 1.0)


@pytest.mark.parametrize("near", [True, False])
def test_only_who_can_hand_a_file_over_is_told_of_formats(near: bool) -> None:
    made = ReceiverSession(FACTS, lane="unix:side", key="key", trusted=True)
    hello = HELLO if near else msgspec.structs.replace(HELLO, host="far")
    welcome, *_ = (each.message for each in made.receive(hello, 0.0)
                   if isinstance(each, SendControl))  # fmt: skip
    assert isinstance(welcome, Welcome)
    assert welcome.files == (("raw",) if near else ())


def changed(**fields: Any) -> FileShown:
    return FileShown(msgspec.structs.replace(ITEM, **fields), "raw")


@pytest.mark.parametrize(
    ("message", "spec"),
    [
        (FileShown(ITEM, "zarr"), SPEC),
        (changed(layer=1), SPEC),
        (changed(place=("A01",)), SPEC),
        (changed(parts=(Part(0, 0, 12, 1),)), SPEC),
        (SHOWN, LayerSpec("labels", "cells", "YX")),
        (SHOWN, LayerSpec("points", "spots", "YX")),
    ],
    ids=["format", "layer", "place", "parts", "labels", "points"],
)
def test_what_is_not_allowed(message: FileShown, spec: LayerSpec) -> None:
    with pytest.raises(ProtocolViolation):
        session(spec=spec).receive(message, 1.0)


def test_a_viewer_that_reads_none_takes_none() -> None:
    with pytest.raises(ProtocolViolation, match="none"):
        session(ViewerFacts("fiji", "fiji", 77, "host", "secret")).receive(SHOWN, 1.0)


def test_a_control_session_has_no_files() -> None:
    made = ReceiverSession(FACTS, lane="", key="", trusted=True)
    made.receive(msgspec.structs.replace(HELLO, role="control"), 0.0)
    with pytest.raises(ProtocolViolation, match="control"):
        made.receive(SHOWN, 1.0)
