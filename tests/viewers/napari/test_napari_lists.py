"""ROIs, points and tracks: those of the current place are shown, and only those."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi

if TYPE_CHECKING:
    from pathlib import Path

    from tests.viewers.napari.conftest import Stage

SQUARE = np.array([(2.0, 2.0), (2.0, 8.0), (8.0, 8.0), (8.0, 2.0)])
BOW_TIE = np.array([(0.0, 0.0), (10.0, 10.0), (0.0, 10.0), (10.0, 0.0), (4.0, 12.0)])


def spec(kind: Any, **changes: Any) -> LayerSpec:
    axes = {"rois": "", "points": "YX", "tracks": "TYX", "image": "YX"}[kind]
    fields: dict[str, Any] = {"name": kind, "axes": axes, "components": ("well",)}
    return LayerSpec(kind=kind, **{**fields, **changes})


def pixels() -> Any:
    return np.zeros((20, 30), "u1")


def test_rois_of_the_current_place_are_shown(stage: Stage) -> None:
    stage.show((spec("image"), ("A01",), pixels()), (spec("image"), ("A02",), pixels()))
    native = stage.native(
        (spec("rois"), ("A01",), [Roi.polygon(SQUARE, name="one", stroke_color="#ff0000")]),
        (spec("rois"), ("A02",), [Roi.rectangle(1, 2, 5, 9), Roi.line((0, 0), (4, 4))]),
    )
    assert stage.viewer.place == {"well": "A01"}
    assert len(native.data) == 1
    np.testing.assert_array_equal(native.data[0][:4], SQUARE)
    np.testing.assert_allclose(native.edge_color[0], (1, 0, 0, 1))
    assert native.face_color[0][3] == 0
    assert list(native.features["name"]) == ["one"]
    heard: list[object] = []
    native.events.data.connect(heard.append)
    stage.viewer.go_to(well="A02")
    assert list(native.shape_type) == ["rectangle", "line"]
    np.testing.assert_array_equal(native.data[1], [(0, 0), (4, 4)])
    stage.show((spec("rois"), ("A02",), [Roi.oval(1, 2, 5, 9)]))
    assert list(native.shape_type) == ["ellipse"]
    stage.show((spec("rois"), ("A01",), []))
    assert list(native.shape_type) == ["ellipse"]
    stage.viewer.go_to(well="A01")
    assert not native.data
    assert not heard  # nobody edited


def test_all_kinds_of_rois_at_once(stage: Stage) -> None:
    rois = [
        Roi.polygon(SQUARE),
        Roi.polygon(SQUARE, fill_color="#00ff0080"),
        Roi.rectangle(1, 2, 5, 9),
        Roi.oval(1, 2, 5, 9),
        Roi.line((0, 0), (4, 4)),
        Roi.polyline(SQUARE),
        Roi.points([(3, 3), (6, 6)]),
        Roi("ellipse", np.array([(2.0, 5.0), (12.0, 5.0), (7.0, 8.0)])),
    ]
    native = stage.native((spec("rois"), ("A01",), rois))
    assert len(native.data) == len(rois)
    assert list(native.features["kind"]) == [roi.kind for roi in rois]
    np.testing.assert_allclose(native.face_color[1], (0, 1, 0, 128 / 255), atol=0.01)


def test_one_bad_roi_does_not_take_the_others(
    stage: Stage, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where napari writes what it can't cut
    degenerate = np.array([(1.0, 1.0), (1.0, 1.0), (1.0, 2.0)])
    shapes = [SQUARE, BOW_TIE, degenerate, *np.random.default_rng(3).random((20, 30, 2)) * 20]
    fill = {"fill_color": "#ffffff40"}  # an area that is painted must be cut into triangles
    rois = [Roi.polygon(shape, **fill) for shape in shapes] + [Roi.polygon(s) for s in shapes]
    native = stage.native((spec("rois"), ("A01",), rois))
    assert len(native.data) == len(rois)
    assert not list(tmp_path.iterdir())


def test_triangulation_that_fails_falls_back_to_outlines(model: Stage, monkeypatch: Any) -> None:
    from napari.layers import Shapes

    add = Shapes.add

    def picky(self: Any, data: Any, **given: Any) -> None:
        if "polygon" in given["shape_type"]:
            raise RuntimeError("Triangulation failed. Data saved to nowhere")
        add(self, data, **given)

    monkeypatch.setattr(Shapes, "add", picky)
    rois = [Roi.polygon(SQUARE, fill_color="#ffffff"), Roi.line((0, 0), (4, 4))]
    native = model.native((spec("rois"), ("A01",), rois))
    assert list(native.shape_type) == ["path", "line"]


def test_sliders_without_any_image(stage: Stage) -> None:
    native = stage.native(
        (spec("points"), ("A01",), np.array([(1.0, 2.0)])),
        (spec("points"), ("A02",), np.array([(3.0, 4.0), (5.0, 6.0)])),
    )
    model = stage.viewer.model
    assert model.dims.nsteps[0] == 2
    model.reset_view()
    model.dims.set_current_step(0, 1)
    assert stage.viewer.place == {"well": "A02"}
    np.testing.assert_array_equal(native.data, [(3, 4), (5, 6)])
    stage.show((spec("image"), ("A02",), pixels()))
    assert [layer.name for layer in model.layers] == ["image", "points"]
    assert stage.viewer.place == {"well": "A02"}
    assert model.dims.nsteps[0] == 2


def test_points_follow_the_place_and_their_own_columns(stage: Stage) -> None:
    deep = spec("points", axes="ZYX")
    points = np.array([(0.0, 1, 2), (1.0, 3, 4), (1.0, 5, 6)])
    stage.show((spec("image", axes="ZYX"), ("A01",), np.zeros((3, 20, 30), "u1")))
    stage.show((deep, ("A01",), points))
    layer = next(each for key, each in stage.scene.layers.items() if key.kind == "points")
    native = stage.viewer.native_layer(layer)
    stage.viewer.go_to(z=1)
    np.testing.assert_array_equal(native.data, points[1:, 1:])
    stage.viewer.go_to(z=2)
    assert len(native.data) == 0


TRACKS = np.array([(1.0, 0, 2, 3), (1.0, 1, 4, 5), (1.0, 2, 6, 7), (2.0, 0, 8, 9), (2.0, 2, 9, 9)])


@pytest.mark.parametrize("axes", ["TYX", "TZYX"])
def test_tracks_stand_on_the_time_slider(stage: Stage, axes: str) -> None:
    movie = np.zeros((3, 20, 30) if axes == "TYX" else (3, 2, 20, 30), "u1")
    stage.show((spec("image", axes=axes), ("A01",), movie))
    native = stage.native((spec("tracks"), ("A01",), TRACKS))
    dims = stage.viewer.model.dims
    stage.viewer.go_to(time=2)
    np.testing.assert_array_equal(native.data[:, 1], TRACKS[:, 1])
    np.testing.assert_array_equal(native.data[:, -2:], TRACKS[:, 2:])
    assert native.data.shape[1] == (4 if axes == "TYX" else 5)
    assert dims.ndim == len(stage.scene.axes) + 2
    assert native.axis_labels[0] == "time"
    if axes == "TZYX":
        stage.viewer.go_to(z=1)
        assert set(native.data[:, 2]) == {1}


def test_tracks_where_time_is_no_slider(stage: Stage) -> None:
    stage.show((spec("image"), ("A01",), pixels()), (spec("image"), ("A02",), pixels()))
    native = stage.native((spec("tracks"), ("A01",), TRACKS))
    assert set(native.data[:, 1]) == {0}  # the slider in front of Y is wells: all is shown
    stage.viewer.go_to(well="A02")
    assert len(native.data) == 1  # a single vertex, which draws nothing
    stage.viewer.go_to(well="A01")
    assert len(native.data) == len(TRACKS)


def test_tracks_alone(stage: Stage) -> None:
    native = stage.native((spec("tracks", components=()), (), TRACKS))
    assert stage.viewer.model.dims.nsteps[0] == 3
    np.testing.assert_array_equal(native.data, TRACKS)


@pytest.mark.parametrize("last", [2.0**31, 2.0**40, 1e300, -1.0, 0.5])
def test_numbers_of_tracks_that_napari_can_not_take(stage: Stage, last: float) -> None:
    """It would need 16 GiB for the first, and mix up the second with track 0."""
    sent = TRACKS.copy()
    sent[3:, 0] = last
    stage.show((spec("image", axes="TYX"), ("A01",), np.zeros((3, 20, 30), "u1")))
    native = stage.native((spec("tracks"), ("A01",), sent))
    assert stage.viewer.model.dims.ndim == 4
    first, second = sorted({*native.data[:, 0]})
    assert 0 <= first < second <= 1
    rows = native.data[native.data[:, 0] == (second if last > 1 else first)]
    np.testing.assert_array_equal(rows[:, 1:], TRACKS[3:, 1:])


@pytest.mark.parametrize("size", [(), (0.5, 0.25), (2.0, 0.5, 0.25)], ids=len)
@pytest.mark.parametrize("around", ["", "TYX", "TZYX"], ids=["alone", "TYX", "TZYX"])
def test_columns_of_tracks_have_their_size_and_name(
    stage: Stage, around: str, size: tuple[float, ...]
) -> None:
    common: dict[str, Any] = {"components": (), "pixel_size": size, "unit": "um" if size else ""}
    if around:
        movie = np.zeros((3, 4, 20, 30) if around == "TZYX" else (3, 20, 30), "u1")
        stage.show((spec("image", axes=around, **common), (), movie))
    deep = np.insert(TRACKS, 2, (0, 1, 1.5, 2, 3), axis=1)
    native = stage.native((spec("tracks", axes="TZYX", **common), (), deep))
    z = size[0] if len(size) == 3 else 1.0
    yx = size[-2:] or (1.0, 1.0)
    if around == "TYX":  # without a z slider, z has no place on the screen
        np.testing.assert_array_equal(native.data, TRACKS)
        assert tuple(native.scale) == (1.0, *yx)
        assert native.axis_labels == ("time", "y", "x")
    else:
        np.testing.assert_array_equal(native.data, deep)
        assert tuple(native.scale) == (1.0, z, *yx)
        assert native.axis_labels == ("time", "z", "y", "x")
        units = [str(unit) for unit in native.units]
        assert units == ["pixel", "micrometer" if len(size) == 3 else "pixel",
                         *["micrometer" if size else "pixel"] * 2]  # fmt: skip
    assert not any(native.translate)


def test_a_deleted_list_comes_back(stage: Stage) -> None:
    native = stage.native((spec("rois"), ("A01",), [Roi.polygon(SQUARE)]))
    stage.viewer.model.layers.remove(native)
    stage.viewer.go_to(well="A01")
    again = stage.native((spec("rois"), ("A01",), [Roi.polygon(SQUARE)]))
    assert again in stage.viewer.model.layers
