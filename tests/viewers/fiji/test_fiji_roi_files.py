"""Files of every kind that the real ImageJ writes: read, written back, and read by ImageJ again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.rois import Roi, from_imagej, read_imagej, to_imagej, to_mask, write_imagej
from openhcs_stream_fiji._bulk import Bulk
from openhcs_stream_fiji._reading import NativeReader

if TYPE_CHECKING:
    from tests.viewers.fiji.conftest import Stage

KINDS = (
    "rectangle", "rounded_rectangle", "rotated_rectangle", "oval", "ellipse", "polygon",
    "freehand", "traced", "composite", "combined", "line", "polyline", "freeline", "arrow",
    "angle", "point", "text", "splined_polygon", "splined_freehand", "splined_traced",
    "splined_polyline", "splined_freeline",
)  # fmt: skip
_EACH = 12


@pytest.fixture(scope="session")
def made(java: Any) -> Any:
    """The script that has ImageJ make and save ROIs of every kind."""
    path = Path(__file__).parents[2] / "rois" / "make_imagej_masks.py"
    spec = importlib.util.spec_from_file_location("make_imagej_masks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def natives(made: Any, java: Any, kind: str) -> list[Any]:
    """ROIs of one kind with names, colours, positions and properties."""
    maker = made.Maker(7)
    assert set(KINDS) == set(maker.all)
    found = []
    for _ in range(_EACH):
        native = maker.all[kind]()
        maker.decorate(native)
        found.append(native)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind(java: Any, made: Any, kind: str) -> None:
    for native in natives(made, java, kind):
        data = bytes(java.RoiEncoder.saveAsByteArray(native))
        first = java.RoiDecoder.openFromByteArray(java.bytes(data))
        roi = from_imagej(data)
        again = java.RoiDecoder.openFromByteArray(java.bytes(to_imagej(roi)))
        told, told_again = made.facts(first), made.facts(again)
        if kind == "point":  # without counters it forgets a point's own position
            del told["position"], told_again["position"]
        assert told_again == told
        if roi.is_area and kind != "text":  # whose size depends on the fonts that there are
            np.testing.assert_array_equal(to_mask(roi, made.SHAPE), made.pixels(first))


def test_a_set_that_the_roi_manager_saves(
    java: Any, made: Any, window: Stage, tmp_path: Path
) -> None:
    """Through RoiSet.zip, both ways, and the manager's own commands."""
    saved = [native for kind in KINDS for native in natives(made, java, kind)[:2]]
    theirs, ours = tmp_path / "theirs.zip", tmp_path / "ours.zip"

    def save() -> Any:
        manager = java.RoiManager.getRoiManager()
        for number, native in enumerate(saved):
            native.setName(f"{number} {native.getName()}".replace("/", "-"))
            manager.addRoi(native)
        assert manager.save(str(theirs))
        manager.reset()
        assert manager.open(str(theirs))
        first = [made.facts(each) for each in manager.getRoisAsArray()]
        manager.reset()
        write_imagej(ours, read_imagej(theirs))
        assert manager.open(str(ours))
        again = [made.facts(each) for each in manager.getRoisAsArray()]
        manager.reset()
        manager.close()
        return first, again

    first, again = java.on_event_thread(save)
    assert len(first) == len(saved)
    for told, told_again in zip(first, again, strict=True):
        if "PointRoi" in told["class"]:
            del told["position"], told_again["position"]
        assert told_again == told


def test_imagej_names_what_was_written_without_a_name_by_its_file(
    java: Any, window: Stage, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.zip"
    roi = Roi.polygon([(0, 0), (0, 4), (3, 0)])
    write_imagej(ours, [roi, roi.replace(name="cell"), roi])
    write_imagej(tmp_path / "one.roi", roi)

    def opened() -> list[str]:
        manager = java.RoiManager.getRoiManager()
        assert manager.open(str(ours))
        names = [str(each.getName()) for each in manager.getRoisAsArray()]
        manager.reset()
        manager.close()
        return names

    assert java.on_event_thread(opened) == ["0001", "cell", "0003"]
    assert str(java.RoiDecoder(str(tmp_path / "one.roi")).getRoi().getName()) == "one"
    assert read_imagej(ours) == [roi, roi.replace(name="cell"), roi]


# --- read without files -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_bulk_as_through_a_file(java: Any, made: Any, kind: str) -> None:
    bulk = Bulk(java)
    found = natives(made, java, kind)
    read = NativeReader(java, bulk).read(bulk.array(found))
    for native, roi in zip(found, read, strict=True):
        expected = from_imagej(bytes(java.RoiEncoder.saveAsByteArray(native)))
        assert roi is not None
        if any(ord(letter) > 255 for text in expected.properties.values() for letter in text):
            roi = roi.replace(properties=expected.properties)
        assert roi == expected.replace(position=(0, 0, 0), flat_position=False)


def test_what_can_not_be_read_is_left_out(java: Any, caplog: pytest.LogCaptureFixture) -> None:
    bulk = Bulk(java)
    picture = java.jpype.JClass("ij.gui.ImageRoi")(
        0, 0, java.jpype.JClass("ij.process.ByteProcessor")(4, 4)
    )
    whole, short = (
        java.PolygonRoi(java.floats(x), java.floats(y), 2)
        for x, y in (([0, 9, 9], [0, 0, 9]), ([1, 2], [1, 2]))
    )
    read = NativeReader(java, bulk).read(bulk.array([picture, whole, short]))
    assert [roi is None for roi in read] == [True, False, True]
    assert "not supported: image" in caplog.text


def test_a_roi_of_many_vertices(java: Any) -> None:
    bulk = Bulk(java)
    angle = np.linspace(0, 6, 70_000)
    x, y = 100 + 90 * np.cos(angle), 100 + 90 * np.sin(angle)
    native = java.PolygonRoi(
        java.floats(x.astype(np.float32)), java.floats(y.astype(np.float32)), 2
    )
    (roi,) = NativeReader(java, bulk).read(bulk.array([native]))
    assert roi is not None
    assert roi.kind == "composite"  # as ImageJ itself saves it
    assert to_mask(roi, (200, 200)).any()
