"""Outlines that reach farther than any canvas, and splines of a length without bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi, Spline

if TYPE_CHECKING:
    from tests.viewers.napari.conftest import Stage

IMAGE = LayerSpec(kind="image", name="raw", axes="YX", components=("well",))
ROIS = LayerSpec(kind="rois", name="rois", axes="", components=("well",))
SQUARE = np.array([(2.0, 2.0), (2.0, 8.0), (8.0, 8.0), (8.0, 2.0)])
FAR = [5e6, 1e9, 1e300]


def far_rois(far: float) -> list[Roi]:
    corner = np.array([(0.0, 0.0), (0.0, far), (far, 0.0)])
    return [
        Roi.polygon(SQUARE, name="near"),
        Roi.polygon(corner, name="polygon"),
        Roi.polygon(-corner, name="other side"),
        Roi.rectangle(-far, -far, far, far, name="rectangle"),
        Roi.rectangle(far, far, 2 * far, 2 * far, name="away"),
        Roi("rotated rectangle", corner, name="rotated"),
        Roi.oval(-far, -far, far, far, name="oval"),
        Roi.line((-far, 0), (far, far), name="line"),
        Roi.polyline(corner, name="polyline"),
        Roi.points(corner, name="points"),
        Roi.arrow((0, 0), (far, far), name="arrow"),
        Roi("ellipse", corner, name="ellipse"),
        Roi("polygon", corner, details=Spline(), name="spline"),
        Roi("freeline", corner, details=Spline(), name="spline line"),
        Roi.polygon(corner, fill_color="#ff0000", name="filled"),
    ]


@pytest.mark.parametrize(("far", "pixel_size"), [*((far, None) for far in FAR), (4e9, 0.01)])
def test_what_reaches_far_is_shown_as_far_as_it_can(
    stage: Stage, far: float, pixel_size: float | None
) -> None:
    rois = far_rois(far)
    scaled: Any = {} if pixel_size is None else {"pixel_size": (pixel_size,) * 2, "unit": "um"}
    image = LayerSpec(kind="image", name="raw", axes="YX", components=("well",), **scaled)
    stage.show((image, ("A01",), np.zeros((20, 30), "u1")))
    native = stage.native((ROIS, ("A01",), rois))
    assert list(native.features["name"]) == [roi.name for roi in rois]
    np.testing.assert_array_equal(native.data[0][:4], SQUARE)
    if stage.viewer.__class__.__name__ == "NapariWindowViewer":
        stage.viewer.screenshot()
    for roi in rois:  # each alone: then it is what the layer's extent is of
        native = stage.native((ROIS, ("A01",), [roi]))
        assert native.nshapes == 1
    stage.viewer.go_to(well="A01")
    assert not stage.edits()


def test_what_is_near_of_an_outline_that_reaches_far_is_where_it_belongs(model: Stage) -> None:
    rois = [
        Roi.line((0, 0), (2e9, 1e9)),
        Roi.polygon([(0, 0), (2e9, 1e9), (2e9, 0)]),
        Roi.oval(0, -1e8, 2e8, 1e8),
    ]
    native = model.native((ROIS, ("A01",), rois))
    assert list(native.shape_type) == ["path", "path", "path"]
    for data in native.data[:2]:
        np.testing.assert_allclose(data[:2], [(0, 0), (4e6, 2e6)], atol=1)
    assert all(np.abs(data).max() <= 4e6 for data in native.data)
    oval = native.data[2]
    assert np.abs(oval[np.hypot(*oval.T) < 1000] - (-0.5, -0.5)).max() < 1


def test_an_outline_that_reaches_far_can_be_renamed_moved_and_removed(model: Stage) -> None:
    rois = [Roi.polygon(SQUARE), *far_rois(1e9)]
    native = model.native((ROIS, ("A01",), rois))
    names = list(native.features["name"])
    native.features = {"name": [f"{name}!" for name in names], "kind": native.features["kind"]}
    model.viewer.finish_edits()
    (edit,) = model.edits()
    assert [roi.coordinates.tolist() for roi in edit.after] == [
        roi.coordinates.tolist() for roi in rois
    ]
    native.data = [data + 1.0 for data in native.data]
    assert all(len(each.after) == len(rois) for each in model.edits())
    native.selected_data = {1}
    native.remove_selected()
    assert sum(len(each.before) - len(each.after) for each in model.edits()) == 1
