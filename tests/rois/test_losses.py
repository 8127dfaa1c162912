"""What a target can't hold is told."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem
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
    back = from_napari(*to_napari(any_roi))
    changed = back.kind != any_roi.kind or back.details != any_roi.details
    # An upright one comes back as what looks the same.
    if any_roi.kind not in ("ellipse", "rotated rectangle"):
        assert changed == (losses(any_roi, "napari") is not None)


def test_unknown_targets() -> None:
    with pytest.raises(InvalidItem, match="'blob'"):
        losses(Roi.polygon(TRIANGLE), "blob")  # type: ignore[arg-type]
    assert sorted(TARGETS) == list(TARGETS)
