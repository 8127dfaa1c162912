"""ROIs in the ROI Manager and as overlays: what they are, where, and what ImageJ measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream.cli
from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi, from_labels

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.viewer import SceneLayer
    from tests.viewers.fiji.conftest import Stage

DATA = Path(openhcs_stream.cli.__file__).parent / "_demo_data"
SQUARE = np.array([[5.0, 5.0], [5.0, 12.0], [12.0, 12.0], [12.0, 5.0]])

_AREA, _MEAN, _INTEGRATED_DENSITY = 1, 2, 0x8000


def image(*components: str, **changes: Any) -> LayerSpec:
    fields: dict[str, Any] = {"kind": "image", "name": "raw", "axes": "YX", "source": "plate"}
    return LayerSpec(**{**fields, "components": components, **changes})


def rois(*components: str, **changes: Any) -> LayerSpec:
    return image(*components, **{"kind": "rois", "name": "cells", "axes": "", **changes})


def plane(value: int = 1) -> Any:
    return np.full((40, 150), value, np.uint8)


def manager(stage: Stage) -> list[Any]:
    """What the ROI Manager lists; without windows what is held."""
    if stage.viewer.has_windows:
        found = stage.viewer.java.RoiManager.getInstance()
        return [] if found is None else list(found.getRoisAsArray())
    return [roi for layer in stage.scene.layers.values() for roi in stage.viewer.rois(layer)]


def drawn(stage: Stage, layer: SceneLayer) -> list[Any]:
    """What is drawn over an image."""
    imp = stage.viewer.image(layer)
    overlay = imp.getCanvas().getShowAllList() if stage.viewer.has_windows else imp.getOverlay()
    return [] if overlay is None else list(overlay.toArray())


def place(roi: Any) -> tuple[int, int, int]:
    return roi.getCPosition(), roi.getZPosition(), roi.getTPosition()


# --- what they are --------------------------------------------------------------------------------

KINDS = {
    "polygon": (Roi.polygon(SQUARE), 2, (5, 5, 7, 7)),
    "rectangle": (Roi.rectangle(3, 4, 10, 24), 0, (4, 3, 20, 7)),
    "oval": (Roi.oval(3, 4, 10, 24), 1, (4, 3, 20, 7)),
    "line": (Roi.line((2, 3), (12, 13)), 5, (3, 2, 10, 10)),
    "polyline": (Roi.polyline([(2, 3), (12, 13), (9, 20)]), 6, (3, 2, 17, 10)),
    "freehand": (Roi("freehand", np.array([(1, 2), (9, 2), (9, 8)], float)), 3, (1, 2, 8, 6)),
    "traced": (Roi("traced", np.array([(1, 2), (9, 2), (9, 8)], float)), 4, (1, 2, 8, 6)),
    "freeline": (Roi("freeline", np.array([(1, 2), (9, 2), (9, 8)], float)), 7, (1, 2, 8, 6)),
    "angle": (Roi("angle", np.array([(1, 2), (9, 2), (9, 8)], float)), 8, (1, 2, 8, 6)),
    "ellipse": (Roi("ellipse", np.array([(2, 10), (22, 10), (12, 14)], float)), 3, (2, 6, 20, 8)),
    "point": (Roi.points([(2, 3), (12, 13)]), 10, (3, 2, 10, 10)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_bounds(stage: Stage, kind: str) -> None:
    roi, number, bounds = KINDS[kind]
    stage.show((image(), (), plane()), (rois(), (), [roi]))
    (native,) = manager(stage)
    assert native.getType() == number
    box = native.getBounds()
    assert (box.x, box.y, box.width, box.height) == pytest.approx(bounds, abs=1)


def test_names_colours_strokes_groups_and_properties(stage: Stage) -> None:
    sent = Roi.polygon(
        SQUARE, name="Zelle 7 \N{GREEK SMALL LETTER ALPHA}", stroke_color="#ff800080",
        fill_color="#00ff0040", stroke_width=2.75, group=3, properties={"score": "0.9"},
    )  # fmt: skip
    stage.show((image(), (), plane()), (rois(), (), [sent, Roi.polygon(SQUARE + 20)]))
    first, second = manager(stage)
    assert str(first.getName()) == "Zelle 7 \N{GREEK SMALL LETTER ALPHA}"
    stroke, fill = first.getStrokeColor(), first.getFillColor()
    assert [stroke.getRed(), stroke.getGreen(), stroke.getBlue(), stroke.getAlpha()] == [
        255, 128, 0, 128,
    ]  # fmt: skip
    assert [fill.getRed(), fill.getGreen(), fill.getBlue(), fill.getAlpha()] == [0, 255, 0, 64]
    assert first.getStrokeWidth() == 2.75
    assert first.getGroup() == 3
    assert str(first.getProperty("score")) == "0.9"
    assert str(first.getProperty("source")) == "plate"
    assert str(second.getName()) == "cells-0002"
    assert second.getGroup() == 0


# --- where they are -------------------------------------------------------------------------------


def test_positions_follow_the_image(stage: Stage) -> None:
    raw, cells = image("well", "channel", "z"), rois("well", "z")
    items = [(raw, (w, c, z), plane()) for w in ("A1", "A2") for c in ("a", "b") for z in (1, 2)]
    layer, _ = stage.show(*items, (cells, ("A2", 1), [Roi.polygon(SQUARE)]))
    assert [place(roi) for roi in drawn(stage, layer)] == [(0, 1, 2)]
    assert [place(roi) for roi in manager(stage)] == [(0, 1, 2)]
    # Values that come before the others move everything.
    stage.show((raw, ("A0", "a", 0), plane()))
    assert [place(roi) for roi in drawn(stage, layer)] == [(0, 2, 3)]
    assert [place(roi) for roi in manager(stage)] == [(0, 2, 3)]


def test_a_place_that_the_image_lacks_is_awaited(stage: Stage) -> None:
    layer, _ = stage.show(
        (image("well"), ("A1",), plane()), (rois("well"), ("A2",), [Roi.polygon(SQUARE)])
    )
    assert drawn(stage, layer) == []
    assert len(manager(stage)) == 1
    stage.show((image("well"), ("A2",), plane()))
    # With one slider ImageJ heeds a position only if all three numbers are there.
    assert [place(roi) for roi in drawn(stage, layer)] == [(1, 1, 2)]


def test_rois_that_come_before_their_image(stage: Stage) -> None:
    stage.show((rois("well"), ("A2",), [Roi.polygon(SQUARE)]))
    assert len(manager(stage)) == 1
    (layer,) = stage.show(*((image("well", "z"), (w, z), plane())
                            for w in ("A1", "A2") for z in (1, 2)))  # fmt: skip
    assert [place(roi) for roi in drawn(stage, layer)] == [(0, 0, 2)]


def test_what_says_less_than_its_image_is_everywhere(stage: Stage) -> None:
    layer, _ = stage.show(
        *((image("well", "site"), (w, s), plane()) for w in ("A1", "A2") for s in (1, 2)),
        (rois("well"), ("A2",), [Roi.polygon(SQUARE)]),
    )
    assert sorted(place(roi) for roi in drawn(stage, layer)) == [(1, 1, 3), (1, 1, 4)]


def test_their_own_position_counts_where_the_place_says_nothing(stage: Stage) -> None:
    layer, _ = stage.show(
        *((image("channel", "z"), (c, z), plane()) for c in ("a", "b") for z in (1, 2)),
        (rois("z"), (2,), [Roi.polygon(SQUARE, position=(2, 1, 0))]),
    )
    assert [place(roi) for roi in drawn(stage, layer)] == [(2, 2, 0)]


def test_rois_belong_to_the_image_of_their_source_and_split(stage: Stage) -> None:
    layers = stage.show(
        (image("well", modes={"well": "split"}), ("A1",), plane()),
        (image("well", modes={"well": "split"}), ("A2",), plane()),
        (image("well", source="other", modes={"well": "split"}), ("A2",), plane()),
        (rois("well"), ("A2",), [Roi.polygon(SQUARE)]),
        (rois("well", source="nobody"), ("A2",), [Roi.polygon(SQUARE)]),
    )
    split = {"well": "split"}
    stage.show((rois("well", name="split", modes=split), ("A2",), [Roi.polygon(SQUARE + 3)]))
    assert [len(drawn(stage, layer)) for layer in layers[:3]] == [1, 1, 0]
    assert len(manager(stage)) == 3


def test_rois_belong_to_the_image_of_their_folder(stage: Stage) -> None:
    (first,) = stage.show((image(source="a"), (), plane()), info={"path": "/plate/step1/x.tif"})
    (second,) = stage.show((image(source="b"), (), plane()), info={"path": "/plate/step2/x.tif"})
    stage.show((rois(source="c", images_dir="/plate/step2"), (), [Roi.polygon(SQUARE)]))
    assert [len(drawn(stage, layer)) for layer in (first, second)] == [0, 1]


def test_images_come_before_labels(stage: Stage) -> None:
    labels, raw, _ = stage.show(
        (image(kind="labels", name="nuclei"), (), plane()),
        (image(), (), plane()),
        (rois(), (), [Roi.polygon(SQUARE)]),
    )
    assert [len(drawn(stage, layer)) for layer in (labels, raw)] == [0, 1]


def test_replaced_emptied_removed(stage: Stage) -> None:
    raw, cells = stage.show(
        (image(), (), plane()), (rois(), (), [Roi.polygon(SQUARE), Roi.polygon(SQUARE + 5)])
    )
    stage.show((rois(name="others"), (), [Roi.polygon(SQUARE + 9)]))
    assert len(drawn(stage, raw)) == len(manager(stage)) == 3
    stage.show((rois(), (), [Roi.polygon(SQUARE + 1)]))
    assert len(drawn(stage, raw)) == len(manager(stage)) == 2
    stage.show((rois(), (), []))
    assert len(drawn(stage, raw)) == len(manager(stage)) == 1
    stage.viewer.remove_layer(cells)
    assert len(drawn(stage, raw)) == len(manager(stage)) == 1


def test_an_image_that_is_removed_leaves_its_rois_to_another(stage: Stage) -> None:
    first, second, _ = stage.show(
        (image(), (), plane()), (image(name="b"), (), plane()), (rois(), (), [Roi.polygon(SQUARE)])
    )
    assert [len(drawn(stage, layer)) for layer in (first, second)] == [1, 0]
    stage.viewer.remove_layer(first)
    assert len(drawn(stage, second)) == 1


# --- the ROI Manager and a person -----------------------------------------------------------------


def test_a_persons_own_rois_stay(window: Stage) -> None:
    """Of an image that is none of ours; on ours they join a layer."""
    java = window.viewer.java
    raw, _ = window.show((image(), (), plane()), (rois(), (), [Roi.polygon(SQUARE)]))
    found = java.RoiManager.getInstance()
    mine = java.IJ.createImage("mine", "8-bit", 50, 50, 1)

    def draw() -> None:
        mine.show()
        mine.setRoi(java.Roi(1, 2, 3, 4))
        found.runCommand("add")

    java.on_event_thread(draw)
    window.show((rois(), (), [Roi.polygon(SQUARE + 1), Roi.polygon(SQUARE + 2)]))
    assert sorted(roi.getBounds().height for roi in manager(window)) == [4, 8, 8]
    assert len(drawn(window, raw)) == 2
    window.scene.clear()
    mine.changes = False
    java.on_event_thread(mine.close)


def test_a_closed_manager_comes_back(window: Stage) -> None:
    java = window.viewer.java
    window.show((image(), (), plane()), (rois("z"), (1,), [Roi.polygon(SQUARE)]))

    def close() -> None:
        found = java.RoiManager.getInstance()
        found.reset()
        found.close()

    java.on_event_thread(close)
    window.show((rois("z"), (1,), [Roi.polygon(SQUARE)]), (rois("z"), (2,), [Roi.polygon(SQUARE)]))
    assert len(manager(window)) == 2


def test_show_all_stays_off_where_a_person_switched_it_off(window: Stage) -> None:
    java = window.viewer.java
    raw, _ = window.show((image(), (), plane()), (rois(), (), [Roi.polygon(SQUARE)]))
    java.on_event_thread(lambda: java.RoiManager.getInstance().runCommand("show none"))
    window.show((rois(name="others"), (), [Roi.polygon(SQUARE)]))
    assert drawn(window, raw) == []
    assert len(manager(window)) == 2


def test_ten_thousand_outlines_at_once(stage: Stage) -> None:
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=1) * 5
    centres = np.random.default_rng(0).uniform(10, 990, (10_000, 2))
    sent = [Roi.polygon(circle + centre, name=f"{n}") for n, centre in enumerate(centres)]
    raw, _ = stage.show((image(), (), np.zeros((1000, 1000), np.uint8)), (rois(), (), sent[:1]))
    stage.show((rois(name="many"), (), sent))
    assert len(drawn(stage, raw)) == len(manager(stage)) == 10_001
    # Smooth edges are what drawing so many takes.
    assert {bool(roi.getAntiAlias()) for roi in drawn(stage, raw)[1:]} == {False}


# --- points and tracks ----------------------------------------------------------------------------


def test_points_are_one_multi_point(stage: Stage) -> None:
    raw, _ = stage.show(
        (image(), (), plane()),
        (image(kind="points", name="spots"), (), np.array([[2.0, 3.0], [7.25, 9.5]])),
    )
    (roi,) = drawn(stage, raw)
    points = roi.getFloatPolygon()
    assert list(points.xpoints)[:2] == [3.0, 9.5]
    assert list(points.ypoints)[:2] == [2.0, 7.25]


def test_tracks_are_lines(stage: Stage) -> None:
    rows = np.array([(7, t, 2.0 * t, 3.0 * t) for t in range(4)])
    raw, _ = stage.show(
        (image("time"), (0,), plane()), (image(kind="tracks", name="paths", axes="TYX"), (), rows)
    )
    (roi,) = drawn(stage, raw)
    assert str(roi.getName()) == "paths 7"
    assert str(roi.getProperty("times")) == "0 1 2 3"
    assert list(roi.getFloatPolygon().xpoints)[:4] == [0.0, 3.0, 6.0, 9.0]


# --- measuring ------------------------------------------------------------------------------------


def outlined(labels: npt.NDArray[Any], label: int) -> npt.NDArray[np.bool_]:
    """What `from_labels` outlines: the largest part, with its holes."""
    from scipy import ndimage

    parts, _ = ndimage.label(labels == label, np.ones((3, 3)))
    filled = [ndimage.binary_fill_holes(parts == n) for n in range(1, parts.max() + 1)]
    return np.asarray(max(filled, key=np.count_nonzero), np.bool_)


def test_imagej_measures_what_the_worker_measures(stage: Stage) -> None:
    """The real nuclei, by the sent outlines: pixels, mean and integrated density are equal."""
    import tifffile
    from skimage.measure import regionprops

    intensity = tifffile.imread(DATA / "nuclei.tif")
    labels = tifffile.imread(DATA / "nuclei_mask.tif")
    own = np.zeros_like(labels)
    for label in np.unique(labels)[1:]:
        own[outlined(labels, label) & np.isin(labels, (0, label))] = label
    raw, _ = stage.show(
        (image(pixel_size=(0.5, 0.5), unit="um"), (), intensity),
        (rois(), (), from_labels(own)),
    )
    imp = stage.viewer.image(raw)
    measured = {}
    for roi in drawn(stage, raw):
        imp.setRoi(roi)
        stats = imp.getStatistics(_AREA | _MEAN | _INTEGRATED_DENSITY)
        measured[int(str(roi.getName()))] = (stats.pixelCount, stats.area, stats.mean)
    imp.deleteRoi()
    expected = regionprops(own, intensity)
    assert len(expected) == len(measured) > 50
    for region in expected:
        count, area, mean = measured[region.label]
        assert count == region.num_pixels
        assert area == pytest.approx(region.num_pixels * 0.25, rel=1e-12)
        assert mean == pytest.approx(region.intensity_mean, rel=1e-12)
        total = int(intensity[own == region.label].sum(dtype=np.int64))
        assert round(count * mean) == total


def test_the_managers_own_measure_gives_the_same(window: Stage) -> None:
    java = window.viewer.java
    pixels = np.arange(40 * 150, dtype=np.uint16).reshape(40, 150)
    sent = [Roi.rectangle(3, 4, 10, 24, name="a"), Roi.rectangle(20, 30, 35, 31, name="b")]
    raw, _ = window.show((image(), (), pixels), (rois(), (), sent))
    imp = window.viewer.image(raw)
    analyzer = java.jpype.JClass("ij.plugin.filter.Analyzer")
    analyzer.setMeasurements(_AREA | _MEAN | _INTEGRATED_DENSITY)
    table = java.jpype.JClass("ij.measure.ResultsTable").getResultsTable()
    table.reset()

    def measure() -> None:
        java.RoiManager.getInstance().runCommand(imp, "Measure")

    java.on_event_thread(measure)
    expected = [pixels[3:10, 4:24], pixels[20:35, 30:31]]
    assert list(table.getColumn("Area")) == [part.size for part in expected]
    assert list(table.getColumn("Mean")) == pytest.approx([part.mean() for part in expected])
    assert list(table.getColumn("RawIntDen")) == [part.sum() for part in expected]
    table.reset()
    results = java.jpype.JClass("ij.WindowManager").getWindow("Results")
    if results is not None:
        java.on_event_thread(results.dispose)
