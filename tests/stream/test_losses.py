"""What a viewer can't hold of ROIs is told to whoever sends them."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import connect
from openhcs_stream.errors import LossyConversion
from openhcs_stream.rois import Roi
from openhcs_stream.viewer import MemoryViewer
from tests.stream.recorded_viewer import RecordedViewer

if TYPE_CHECKING:
    from collections.abc import Callable


class Napari(MemoryViewer):
    """What it is called decides: streams know viewers by what these tell."""

    name = "napari"


class Fiji(MemoryViewer):
    name = "fiji"


ARROWS = [Roi.arrow((0, 0), (9, n)) for n in (3, 4)]
TEXT = Roi.text(1, 1, 9, 20, "words")
SKEWED = Roi("ellipse", np.array([(0, 0), (8, 0), (6, 2)]))
OUTLINES = [Roi.polygon([(0, 0), (0, 4), (3, 0.1)], name=f"{n}") for n in range(9)]
AS_PATHS = "napari: 2 arrows: each becomes a path that draws its head"
NO_WORDS = "napari: 1 text: it becomes a rectangle, its box; the words are not shown"
AS_SQUARE = "fiji: 1 ellipse: it becomes one whose axes are square to each other"


@pytest.mark.parametrize(
    ("kind", "remarks"),
    [(Napari, (AS_PATHS, NO_WORDS)), (Fiji, (AS_SQUARE,)), (MemoryViewer, ())],
)
def test_one_warning_at_the_callers_line_and_the_receipts_remarks(
    serve_here: Callable[..., Any], kind: type[MemoryViewer], remarks: tuple[str, ...]
) -> None:
    served = serve_here(kind())
    with connect(served.address) as stream:
        with warnings.catch_warnings(record=True) as issued:
            warnings.simplefilter("always")
            receipt = stream.rois([*OUTLINES, *ARROWS, TEXT, SKEWED], name="marks")
        assert receipt.remarks == remarks
        assert [each.filename for each in issued] == [__file__] * bool(remarks)
        assert [each.category for each in issued] == [LossyConversion] * bool(remarks)
        for each in issued:
            assert str(each.message) == f"'marks' in {'; '.join(remarks)}."
        assert receipt.wait().state == "displayed"
        assert receipt.reason == ""


def test_nothing_is_told_where_nothing_is_lost(serve_here: Callable[..., Any]) -> None:
    with connect(serve_here(Napari()).address) as stream:
        assert stream.rois(OUTLINES).remarks == ()
        assert stream.rois([]).remarks == ()
        assert stream.image(np.zeros((4, 4), np.uint8)).remarks == ()


def test_several_viewers_tell_apart(serve_here: Callable[..., Any]) -> None:
    addresses = [serve_here(kind()).address for kind in (Napari, Fiji, Napari)]
    with connect(addresses) as stream:
        with pytest.warns(LossyConversion):
            receipt = stream.rois([*ARROWS, SKEWED])
        assert receipt.remarks == (AS_SQUARE, AS_PATHS)


def test_the_warning_can_be_left_to_the_receipt(serve_here: Callable[..., Any]) -> None:
    with connect(serve_here(Napari()).address) as stream:
        assert stream.rois(ARROWS, warn=False).remarks == (AS_PATHS,)


def test_where_warnings_are_errors_nothing_is_sent(serve_here: Callable[..., Any]) -> None:
    served = serve_here(Napari())
    with connect(served.address) as stream:
        with pytest.raises(LossyConversion, match=re.escape(AS_PATHS)):
            stream.rois(ARROWS)
        stream.rois(OUTLINES).wait()
        assert [queue.sent for queue in stream.status()] == [1]


@pytest.mark.parametrize("kind", ["napari", "fiji"])
@pytest.mark.usefixtures("home")
def test_viewers_of_openhcs_too(kind: str) -> None:
    with RecordedViewer("gen2", kind) as viewer:
        stream = connect(viewer.address)
        with pytest.warns(LossyConversion, match=kind):
            receipt = stream.rois([*ARROWS, SKEWED])
        assert receipt.remarks == ((AS_PATHS,) if kind == "napari" else (AS_SQUARE,))
        stream.flush(20)
        stream.close()
