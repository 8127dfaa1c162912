"""What a target can't hold is told."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois import (
    TARGETS,
    Markers,
    Path,
    Roi,
    Spline,
    from_napari,
    losses,
    to_napari,
)
from openhcs_stream.rois._losses import remarks, warn_of

TRIANGLE = [(0, 0), (0, 4), (3, 0)]
XY = np.array(TRIANGLE, float)


@pytest.mark.parametrize(
    ("roi", "target", "told"),
    [
        (Roi.polygon(TRIANGLE), "napari", None),
        (Roi.polygon(TRIANGLE), "imagej", None),
        (Roi.polygon(TRIANGLE, stroke_color="#ff0000"), "geojson", None),
        (Roi.polygon(TRIANGLE), "labels", "only its pixels"),
        (Roi.polygon(TRIANGLE, group=2, stroke_width=1), "geojson", "stroke width.*group"),
        (Roi("polygon", XY, details=Spline()), "napari", "spline"),
        (Roi("composite", XY, details=Path(b"\0\2")), "geojson", "curves"),
        (Roi.composite([TRIANGLE]), "geojson", None),
        (Roi.composite([TRIANGLE]), "napari", "joined by lines"),
        (Roi.arrow((0, 0), (1, 1)), "napari", "path that draws its head"),
        (Roi.text(0, 0, 9, 9, "a"), "napari", "words are not shown"),
        (Roi.text(0, 0, 9, 9, "a"), "geojson", "named by the text"),
        (Roi.points([(0, 0)], details=Markers(size=2)), "napari", "markers"),
        (Roi.points([(0.1, 0)]), "imagej", "rounded to float32"),
        (Roi("ellipse", np.array([(0, 0), (8, 0), (4, 9)])), "imagej", "longer axis"),
        (Roi("ellipse", np.array([(0, 0), (8, 0), (6, 2)])), "imagej", "square"),
        (Roi.polygon(TRIANGLE, group=300), "imagej", "groups up to 255"),
        (Roi.polygon(TRIANGLE, group=3, stroke_color="#f00"), "imagej", "group's colour"),
        (Roi.polygon(TRIANGLE, fill_color="#00000000"), "imagej", "fill_color"),
        (Roi.polyline(np.zeros((65536, 2))), "imagej", "65535"),
    ],
    ids=str,
)
def test_losses(roi: Roi, target: Any, told: str | None) -> None:
    found = losses(roi, target)
    if told is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(told, found)


def test_what_napari_changes_is_told(any_roi: Roi) -> None:
    back = from_napari(*to_napari(any_roi, warn=False))
    changed = back.kind != any_roi.kind or back.details != any_roi.details
    # An upright one comes back as what looks the same.
    if any_roi.kind not in ("ellipse", "rotated rectangle"):
        assert changed == (losses(any_roi, "napari") is not None)


def test_unknown_targets() -> None:
    with pytest.raises(InvalidItem, match="'blob'"):
        losses(Roi.polygon(TRIANGLE), "blob")  # type: ignore[arg-type]
    assert sorted(TARGETS) == list(TARGETS)


ARROW = Roi.arrow((0, 0), (1, 1))
TEXT = Roi.text(0, 0, 9, 9, "a")
COUNTED = Roi.points([(0, 0)], details=Markers(counters=(3,)))
SKEWED = Roi("ellipse", np.array([(0, 0), (8, 0), (6, 2)]))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (
            "napari",
            (
                "2 arrows: each becomes a path that draws its head",
                "1 text: it becomes a rectangle, its box; the words are not shown",
                "1 point: it loses its markers and counters",
            ),
        ),
        (
            "geojson",
            (
                "2 arrows: each becomes a line string without a head",
                "1 text: it becomes a polygon, its box, named by the text",
                "1 point: it loses its markers and counters",
            ),
        ),
        (
            "labels",
            (
                "2 arrows: each becomes the pixels of a line without a head",
                "1 text: it becomes the pixels of its box; the words are lost",
                "1 point: it loses its markers and counters",
            ),
        ),
        (
            "imagej",
            (
                "1 ellipse: it becomes one whose axes are square to each other",
                "2 ROIs: each may lose its group: ImageJ 1.54p knows groups up to 255",
            ),
        ),
    ],
)
def test_what_is_worth_a_warning_is_summed_up(target: Any, told: tuple[str, ...]) -> None:
    rois = [ARROW, TEXT, COUNTED, ARROW, SKEWED, Roi.points([(1, 1)])]
    rois += [Roi.polygon(TRIANGLE, group=group) for group in (255, 256, 300)]
    assert remarks(rois, target) == told
    with pytest.warns(LossyConversion, match=re.escape("; ".join(told) + ".")) as issued:
        _converts(rois, target)
    assert [each.filename for each in issued] == [__file__]


def _converts(rois: list[Roi], target: Any) -> None:
    """Be the public function in between."""
    warn_of(iter(rois), target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_matter_of_form_is_not_worth_a_warning(target: Any) -> None:
    rois = [
        Roi.polygon(XY / 3, stroke_color="#ff0000", stroke_width=2, name="cell"),
        Roi("polygon", XY, details=Spline()),
        Roi.oval(0, 0, 4, 4),
        Roi.composite([TRIANGLE]),
        Roi.rounded_rectangle(0, 0, 9, 9, 3),
    ]
    assert remarks(rois, target) == ()
    warn_of(rois, target)
    warn_of([], target)


def test_a_warning_of_an_unknown_target() -> None:
    with pytest.raises(InvalidItem, match="'blob'"):
        warn_of([], "blob")  # type: ignore[arg-type]
