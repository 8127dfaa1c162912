"""Very many outlines at one place, and odd ones: the window stays usable and nothing vanishes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi
from openhcs_stream_napari import _crowd

if TYPE_CHECKING:
    from openhcs_stream.viewer import SceneLayer
    from tests.viewers.napari.conftest import Stage

SPEC = LayerSpec(kind="rois", name="cells", axes="", components=("well",))
IMAGE = LayerSpec(kind="image", name="raw", axes="YX", components=("well",))
RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)


def grid(rows: int, columns: int, pitch: float = 10.0) -> list[Roi]:
    """A ring of radius 3 around each point of a grid."""
    return [
        Roi.polygon(RING * 3 + (5 + pitch * row, 5 + pitch * column), name=f"{row}-{column}")
        for row in range(rows)
        for column in range(columns)
    ]


class Plate:
    """A well of 400 outlines where 100 are many and 40 may be drawn, and one of three."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.model = stage.viewer.model
        self.rois = grid(20, 20)
        stage.show((IMAGE, ("A01",), np.zeros((200, 200), "u1")), (IMAGE, ("A02",),
                   np.zeros((200, 200), "u1")))  # fmt: skip
        self.layer: SceneLayer
        (self.layer,) = stage.show((SPEC, ("A01",), self.rois), (SPEC, ("A02",), grid(1, 3)))
        self.native = stage.viewer.native_layer(self.layer)

    @property
    def overview(self) -> Any:
        found = [layer for layer in self.model.layers if layer.name.endswith("(overview)")]
        return found[0] if found else None

    @property
    def text(self) -> str:
        return str(self.model.canvas.overlays.text.text)

    def zoom(self, y: float, x: float, height: float) -> None:
        """Look at so many rows around a point, and stand still."""
        camera = self.model.scene.camera
        camera.center = (0.0, y, x)
        camera.zoom = min(self.model.canvas.size) / height
        for _ in range(3):
            self.stage.viewer.settle()

    def here(self) -> list[Roi]:
        found: list[Roi] = self.layer.items[("A01",)]
        return found


@pytest.fixture
def plate(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Plate:
    monkeypatch.setattr(_crowd, "MANY", 100)
    monkeypatch.setattr(_crowd, "IN_VIEW", 40)
    monkeypatch.setattr(_crowd, "STILL_S", 0.0)
    return Plate(stage)


def test_few_are_shapes(plate: Plate) -> None:
    plate.stage.viewer.go_to(well="A02")
    assert plate.native.nshapes == 3
    assert not plate.overview.visible
    plate.stage.viewer.go_to(well="A01")
    assert plate.overview.visible
    assert plate.native.nshapes == 0


def test_many_are_an_overview_that_says_so(plate: Plate) -> None:
    assert "400 outlines in an overview; zoom in to 40 to edit them" in plate.text
    assert len(np.unique(plate.overview.data)) == 401
    assert not plate.overview.editable
    names = [layer.name for layer in plate.model.layers]
    assert names.index(plate.overview.name) == names.index(plate.native.name) - 1
    assert not plate.stage.edits()


def test_who_zooms_in_gets_shapes_that_can_be_edited(plate: Plate) -> None:
    plate.zoom(55, 55, 30)
    assert 9 <= plate.native.nshapes <= 40
    assert not plate.overview.visible
    names = list(plate.native.features["name"])
    assert "5-5" in names
    assert "0-0" not in names
    at = names.index("5-5")
    plate.model.layers.selection.active = plate.native
    plate.native.scale_factor = 0.01
    plate.native.mode = "select"
    plate.native.selected_data = {at}
    centre = (55.0, 58.0)  # on its outline
    plate.stage.mouse.drag(centre, (56.0, 60.0), (57.0, 62.0))
    (edit,) = plate.stage.edits()
    assert (edit.action, edit.indices) == ("changed", (105,))
    assert edit.before == [plate.rois[105]]
    for number, roi in enumerate(plate.here()):
        assert (roi is plate.rois[number]) == (number != 105)
    plate.native.selected_data = {names.index("5-4")}
    plate.native.remove_selected()
    (edit,) = plate.stage.edits()
    assert (edit.action, edit.indices, edit.before[0].name) == ("removed", (104,), "5-4")
    plate.native.add(RING + 50.0, shape_type="polygon")
    (edit,) = plate.stage.edits()
    assert (edit.action, edit.indices) == ("added", (399,))
    plate.zoom(100, 100, 200)
    assert plate.overview.visible
    assert plate.native.nshapes == 0
    labels = np.asarray(plate.overview.data)
    assert labels[55, 45] == 0  # deleted
    assert labels[57, 60] != 0  # moved
    assert labels[50, 50] != 0  # drawn
    assert not plate.stage.edits()
    plate.stage.viewer.go_to(well="A02")
    plate.stage.viewer.go_to(well="A01")
    assert np.asarray(plate.overview.data)[55, 45] == 0
    assert len(plate.here()) == 400


def test_small_steps_draw_nothing_anew(plate: Plate) -> None:
    plate.zoom(55, 55, 20)
    drawn = list(plate.native.features["name"])
    plate.native.selected_data = {0}
    plate.zoom(57, 58, 20)
    assert list(plate.native.features["name"]) == drawn
    assert plate.native.selected_data == {0}
    plate.zoom(155, 155, 20)
    assert "15-15" in list(plate.native.features["name"])


def test_nothing_is_drawn_anew_under_the_hand(plate: Plate) -> None:
    plate.zoom(55, 55, 20)
    plate.model.layers.selection.active = plate.native
    plate.native.mode = "add_polygon"
    plate.stage.mouse.click(55, 55)
    drawn = plate.native.nshapes
    plate.zoom(155, 155, 20)
    assert plate.native.nshapes == drawn
    plate.stage.viewer.finish_drawing()


def test_what_can_not_be_drawn_ends_nothing(
    plate: Plate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from napari.layers import Shapes

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(Shapes, "add", refuse)
        plate.zoom(55, 55, 20)
    assert "on purpose" in caplog.text
    assert caplog.text.count("can't be drawn") == 1
    plate.zoom(155, 155, 20)
    assert "15-15" in list(plate.native.features["name"])
    assert plate.here() == plate.rois


def test_drawing_in_the_overview(plate: Plate) -> None:
    plate.native.add(RING + 50.0, shape_type="polygon")
    (edit,) = plate.stage.edits()
    assert (edit.action, edit.indices) == ("added", (400,))
    assert plate.here()[:400] == plate.rois
    assert np.asarray(plate.overview.data)[50, 50] != 0


def test_what_lies_beyond_the_overview_is_drawn(plate: Plate) -> None:
    far = Roi.polygon(RING * 3 + (-50, -60), name="negative")
    farther = Roi.rectangle(10**6, 10**6, 10**6 + 5, 10**6 + 9, name="far")
    plate.stage.show((SPEC, ("A01",), [far, *plate.rois, farther]))
    assert list(plate.native.features["name"]) == ["negative", "far"]
    assert plate.overview.data.shape[0] <= 200
    plate.zoom(-50, -60, 30)
    assert list(plate.native.features["name"]) == ["negative"]


def test_a_very_large_overview_is_coarse(plate: Plate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_crowd, "MOST_PIXELS", 100 * 100)
    plate.stage.show((SPEC, ("A01",), grid(20, 20)))
    labels = np.asarray(plate.overview.data)
    assert labels.size <= 100 * 100
    assert len(np.unique(labels)) == 401
    assert tuple(plate.overview.scale) == (2, 2)
    plate.zoom(55, 55, 20)
    plate.native.selected_data = {0}
    plate.native.remove_selected()
    assert len(plate.stage.edits()) == 1
    plate.zoom(100, 100, 200)
    assert len(np.unique(np.asarray(plate.overview.data))) == 400


def test_the_overview_follows_its_layer(plate: Plate) -> None:
    plate.native.visible = False
    plate.stage.viewer.settle()
    assert not plate.overview.visible
    plate.native.visible = True
    plate.stage.viewer.settle()
    assert plate.overview.visible
    plate.model.layers.remove(plate.overview)  # a person does not want it
    plate.stage.viewer.settle()
    assert not plate.overview
    plate.stage.show((SPEC, ("A01",), plate.rois))
    assert plate.overview.visible
    for layer in plate.stage.scene.clear():
        plate.stage.viewer.remove_layer(layer)
    assert not plate.overview
    assert not plate.model.layers


def test_a_layer_of_many_that_a_person_deleted(plate: Plate) -> None:
    plate.model.layers.remove(plate.native)
    plate.stage.show((SPEC, ("A01",), plate.rois))
    assert sum(layer.name.endswith("(overview)") for layer in plate.model.layers) == 1


# --- odd ones -------------------------------------------------------------------------------------


def odd() -> list[Roi]:
    angle = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    return [
        Roi.polygon([(0, 0), (10, 10), (0, 10), (10, 0)], name="crossing"),
        Roi.rectangle(5, 5, 5, 5, name="empty box"),
        Roi.oval(5, 5, 5, 5, name="empty oval"),
        Roi("polygon", np.full((3, 2), 3.0), name="no area"),
        Roi.rectangle(5, 5, 6, 6, name="one pixel"),
        Roi.points([(7, 7)], name="one point"),
        Roi.line((4, 4), (4, 4), name="no length"),
        Roi.polygon(
            np.stack([20 + 9 * np.sin(angle), 20 + 9 * np.cos(angle)], axis=1), name="fine"
        ),
        Roi.polygon(RING * 3 + (-40, -50), name="negative"),
        Roi.oval(10**5, 10**5, 10**5 + 20, 10**5 + 20, name="outside"),
        Roi.polygon(RING * 1e7, name="huge"),
    ]


@pytest.mark.parametrize("filled", ["", "#ff000080"])
@pytest.mark.parametrize("many", [1000, 5])
def test_odd_rois_neither_crash_nor_vanish(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, filled: str, many: int, tmp_path: Path
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where napari writes what it can't cut
    monkeypatch.setattr(_crowd, "MANY", many)
    rois = [roi.replace(fill_color=filled) for roi in odd()]
    stage.show((IMAGE, ("A01",), np.zeros((40, 60), "u1")))
    (layer,) = stage.show((SPEC, ("A01",), rois))
    native = stage.viewer.native_layer(layer)
    stage.viewer.settle()
    if many > len(rois):
        assert native.nshapes == len(rois)
    assert not stage.edits()
    names = list(native.features["name"])
    native.selected_data = {names.index(name) for name in ("crossing", "fine", "huge")}
    native.remove_selected()
    (edit,) = stage.edits()
    assert (edit.action, edit.indices) == ("removed", (0, 7, 10))
    assert layer.items[("A01",)] == [roi for at, roi in enumerate(rois) if at not in (0, 7, 10)]
    if stage.viewer.describe()["window"]:
        stage.viewer.screenshot()


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[3] / "scripts" / "_bench_many_rois_napari.py"
    done = subprocess.run(
        [sys.executable, script, "--count", "2500", "--vertices", "8", "--headless", "--json"],
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["count"] == 2500
    assert "all: shown" in told["seconds"]
    assert "500 as shapes: shown" in told["seconds"]
