"""One ROI of each kind."""

from __future__ import annotations

import numpy as np
import pytest

from openhcs_stream.rois import (
    KINDS,
    Arrow,
    Corners,
    Details,
    Markers,
    Path,
    Roi,
    RoiKind,
    Text,
)

VERTICES = np.array([(3, 4), (9, 5), (7.25, 11.5), (2, 9)])
#: The third point is square to the axis through the first two.
AXES = np.array([(2.0, 10.0), (10.0, 10.0), (6.0, 12.0)])

_COUNTS = {
    "line": 2, "rectangle": 2, "oval": 2, "angle": 3, "rounded rectangle": 2, "arrow": 2, "text": 2,
}  # fmt: skip
_DETAILS: dict[str, Details] = {
    "point": Markers("dot", size=3, labels=True, counters=(0, 7, 255, 1), slices=(1, 0, 2, 65536)),
    "rounded rectangle": Corners(5),
    "composite": Path(bytes([0, 1, 2, 4])),
    "arrow": Arrow("notched", head_size=7, outline=True, double_headed=True),
    "text": Text(
        "Zelle 𝄞\n2", font="Serif 𝄞", size=9, bold=True, justification="right", angle=-12.5,
        draw_string=True,
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(KINDS))
def any_roi(request: pytest.FixtureRequest) -> Roi:
    """A ROI of one kind, with every field set."""
    kind: RoiKind = request.param
    return Roi(
        kind,
        AXES if kind in ("ellipse", "rotated rectangle") else VERTICES[: _COUNTS.get(kind)],
        name="nucleus µ 𝄞",
        stroke_color="#ff000080",
        fill_color="#00ff0040",
        stroke_width=2.75,
        group=7,
        position=(1, 2, 3),
        properties={"area": "12.5", "𝄞": "ü: x"},
        details=_DETAILS.get(kind),
        imagej_options=8192,
    )
