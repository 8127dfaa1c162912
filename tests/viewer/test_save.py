"""What stands in a viewer is written to files that other programs read."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from openhcs_stream.errors import UsageError
from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi, from_geojson, read_imagej
from openhcs_stream.viewer import Arrival, Placement, Scene, SceneLayer, save_places

if TYPE_CHECKING:
    from pathlib import Path

ROIS = [Roi.rectangle(1, 2, 5, 9, name="a"), Roi.text(1, 1, 9, 9, "words")]
POINTS = np.array([(1 / 3, 2.0), (3.0, 1e-17)])
PLANE = np.arange(12, dtype=np.uint32).reshape(3, 4) * 70_000


def layer(kind: Any, payload: Any, *, source: str = "plate 1", name: str = "nuclei") -> SceneLayer:
    axes = "" if kind == "rois" else "YX"
    spec = LayerSpec(kind, name, axes, ("well", "z"), source=source)
    scene = Scene()
    placed = Placement(spec).place(("A01", 3), payload)
    changes = scene.commit([Arrival(0, placed)])
    (key,) = changes.layers
    return scene.layers[key]


AT = ("A01", 3)


def test_rois_for_imagej_and_qupath(tmp_path: Path) -> None:
    written = save_places(tmp_path / "new" / "folder", [(layer("rois", ROIS), AT)])
    assert [path.name for path in written] == [
        "plate 1_nuclei_well-A01_z-3.zip", "plate 1_nuclei_well-A01_z-3.geojson",
    ]  # fmt: skip
    assert [roi.kind for roi in read_imagej(written[0])] == ["rectangle", "text"]
    assert from_geojson(json.loads(written[1].read_text(encoding="utf-8")))[0].name == "a"


def test_labels_and_points_to_the_last_bit(tmp_path: Path) -> None:
    tif, csv = save_places(tmp_path, [(layer("labels", PLANE), AT), (layer("points", POINTS), AT)])
    np.testing.assert_array_equal(tifffile.imread(tif), PLANE, strict=True)
    assert csv.read_text().splitlines()[0] == "y,x"
    np.testing.assert_array_equal(np.loadtxt(csv, delimiter=",", skiprows=1), POINTS)


def test_what_is_not_there_and_what_nobody_edits_is_left_out(tmp_path: Path) -> None:
    places = [
        (layer("rois", []), ("A09", 1)),
        (layer("labels", PLANE), ("A09", 1)),
        (layer("image", PLANE), AT),
    ]
    assert save_places(tmp_path, places) == []


def test_names_that_are_no_file_names(tmp_path: Path) -> None:
    odd = layer("points", POINTS, source="../../etc", name="a/b\\c:*?\n" + "x" * 4000)
    same = layer("points", POINTS, source="..|..|etc", name="A/b\\c:*?\n" + "x" * 4000)
    written = save_places(tmp_path, [(odd, AT), (same, AT)])
    assert len({path.name.casefold() for path in written}) == 2
    assert all(path.parent == tmp_path for path in written)
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_long_names_of_any_alphabet_fit_a_file_system(tmp_path: Path) -> None:
    written = save_places(tmp_path, [(layer("rois", ROIS, source="細胞" * 90, name="核" * 90), AT)])
    assert [path.suffix for path in written] == [".zip", ".geojson"]
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_a_layer_without_any_name_stays_in_the_folder(tmp_path: Path) -> None:
    placed = Placement(LayerSpec("points", "", "YX")).place((), POINTS)
    scene = Scene()
    (key,) = scene.commit([Arrival(0, placed)]).layers
    folder = tmp_path / "folder"
    (written,) = save_places(folder, [(scene.layers[key], ())])
    assert written.parent == folder
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_an_empty_list_is_a_file_too(tmp_path: Path) -> None:
    """Somebody deleted all of it: that is what stands now."""
    path, _ = save_places(tmp_path, [(layer("rois", []), AT)])
    assert read_imagej(path) == []


def test_where_it_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"can't be written.*another folder"):
        save_places(tmp_path / "file", [(layer("rois", ROIS), AT)])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UsageError, match=r"openhcs-stream\[images\]"):
        save_places(tmp_path, [(layer("labels", PLANE), AT)])
