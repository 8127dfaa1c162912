"""One ROI of each kind."""

from __future__ import annotations

import numpy as np
import pytest

from openhcs_stream.rois import KINDS, Roi, RoiKind

VERTICES = np.array([(3, 4), (9, 5), (7.25, 11.5), (2, 9)])

_COUNTS = {"line": 2, "rectangle": 2, "oval": 2, "ellipse": 3, "angle": 3}


@pytest.fixture(params=sorted(KINDS))
def any_roi(request: pytest.FixtureRequest) -> Roi:
    """A ROI of one kind, with every field set."""
    kind: RoiKind = request.param
    coordinates = VERTICES[: _COUNTS.get(kind)]
    if kind == "ellipse":  # the third point is square to the major axis
        coordinates = np.array([(2.0, 10.0), (10.0, 10.0), (6.0, 12.0)])
    return Roi(
        kind,
        coordinates,
        name="nucleus µ 𝄞",
        stroke_color="#ff000080",
        fill_color="#00ff0040",
        stroke_width=2.75,
        group=7,
        position=(1, 2, 3),
        properties={"area": "12.5", "𝄞": "ü: x"},
    )
