"""``openhcs-stream edits``: what no worker has taken is listed and can be saved."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from openhcs_stream import connect
from openhcs_stream.cli import main
from openhcs_stream.rois import Roi, from_geojson, read_imagej
from openhcs_stream.testing import RunningReceiver, run_receiver
from openhcs_stream.viewer import Change, MemoryViewer, Painting, save_places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A, B = Roi.rectangle(1, 1, 5, 5, name="a"), Roi.oval(10, 10, 20, 20, name="b")


@pytest.fixture
def edited() -> Iterator[RunningReceiver[MemoryViewer]]:
    """A viewer in which a person deleted an outline, moved a point and painted a pixel."""
    with run_receiver(MemoryViewer(), publish=True) as running:
        place: dict[str, int | str] = {"well": "A01", "site": 2}
        with connect(running.address) as stream:
            stream.rois([A, B], name="nuclei", place=place, source="plate 1").wait()
            stream.labels(np.zeros((8, 9), np.uint16), name="mask", place=place).wait()
            stream.points([[1.0, 2.0]], name="spots", place=place).wait()
            stream.request("layers")
        layers = {layer.key.name: layer for layer in running.viewer.layers.values()}

        def edit() -> None:
            at = ("A01", 2)
            base = layers["nuclei"].items[at]
            running.viewer.report_edit(Change(layers["nuclei"], at, base, [base[1]], [1]))
            spots = layers["spots"].items[at]
            running.viewer.report_edit(Change(layers["spots"], at, spots, spots + 0.5, [0]))
            plane = layers["mask"].stack.planes[at]
            before = plane[2:3, 3:4].copy()
            plane[2, 3] = 7
            running.viewer.report_edit(
                Painting(layers["mask"], at, 2, 3, before, plane[2:3, 3:4].copy())
            )

        running.viewer.do(edit)
        yield running


def test_edits_are_listed(
    edited: RunningReceiver[MemoryViewer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("removed 1 of rois 'nuclei' at well A01, site 2")
    assert lines[2].endswith("painted 1 pixels of labels 'mask' at well A01, site 2")
    assert main(["edits", "--json"]) == 0
    edits = json.loads(capsys.readouterr().out)["edits"]
    assert [each["action"] for each in edits] == ["removed", "changed", "painted"]
    assert edits[0]["place"] == {"well": "A01", "site": 2}


def test_what_stands_now_is_saved(
    edited: RunningReceiver[MemoryViewer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["edits", "--save", str(folder), "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)["saved"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "mask_well-A01_site-2.tif",
        "plate 1_nuclei_well-A01_site-2.geojson",
        "plate 1_nuclei_well-A01_site-2.zip",
        "spots_well-A01_site-2.csv",
    ]
    assert len(saved) == 4
    assert read_imagej(folder / "plate 1_nuclei_well-A01_site-2.zip") == [B]
    document = json.loads((folder / "plate 1_nuclei_well-A01_site-2.geojson").read_text("utf-8"))
    assert from_geojson(document) == [B]
    labels = tifffile.imread(folder / "mask_well-A01_site-2.tif")
    assert labels.dtype == np.uint16
    assert np.argwhere(labels).tolist() == [[2, 3]]
    table = np.loadtxt(folder / "spots_well-A01_site-2.csv", delimiter=",", skiprows=1)
    assert table.tolist() == [1.5, 2.5]


def test_each_layer_has_a_file_of_its_own_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its name: a path, one that differs by signs alone, or another kind's."""
    specs = [("points", "../a"), ("points", "//a"), ("labels", "../a")]
    with run_receiver(MemoryViewer(), publish=True) as running:
        with connect(running.address) as stream:
            for kind, name in specs:
                if kind == "points":
                    stream.points([[1.0, 2.0]], name=name).wait()
                else:
                    stream.labels(np.zeros((8, 9), np.uint16), name=name).wait()
            stream.request("layers")

        def edit() -> None:
            for layer in running.viewer.layers.values():
                if layer.key.kind == "points":
                    spots = layer.items[()]
                    running.viewer.report_edit(Change(layer, (), spots, spots + 0.5, [0]))
                else:
                    plane = layer.stack.planes[()]
                    before = plane[2:3, 3:4].copy()
                    plane[2, 3] = 7
                    after = plane[2:3, 3:4].copy()
                    running.viewer.report_edit(Painting(layer, (), 2, 3, before, after))

        running.viewer.do(edit)
        folder = tmp_path / "folder"
        assert main(["edits", "--save", str(folder), "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)["saved"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["-a-2.csv", "-a.csv", "-a.tif"]
    assert len(saved) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_where_nothing_waits_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with run_receiver(MemoryViewer(), publish=True):
        assert main(["edits"]) == 0
    assert "Nothing waits in" in capsys.readouterr().out


def test_a_window_would_have_saved_the_same_files(
    edited: RunningReceiver[MemoryViewer], tmp_path: Path
) -> None:
    assert main(["edits", "--save", str(tmp_path / "command")]) == 0
    layers = edited.viewer.layers.values()
    save_places(tmp_path / "window", [(layer, at) for layer in layers for at in layer.places])
    command, window = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("command", "window")
    )
    assert command == window


def test_what_does_not_stand_any_more_is_named_and_the_rest_saved(
    edited: RunningReceiver[MemoryViewer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = edited.receiver.scene
    spots = next(key for key in scene.layers if key.name == "spots")
    done = threading.Event()
    edited.viewer.do(lambda: scene.remove(spots))
    edited.viewer.do(done.set)
    assert done.wait(20)
    assert main(["edits", "--save", str(tmp_path)]) == 1
    assert "not saved: " in (told := capsys.readouterr().err)
    assert "no points 'spots'" in told
    assert {path.suffix for path in tmp_path.iterdir()} == {".tif", ".zip", ".geojson"}


def test_a_folder_that_cannot_be_made_is_named(
    edited: RunningReceiver[MemoryViewer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    assert main(["edits", "--save", str(tmp_path / "file")]) == 2
    assert "can't be written" in capsys.readouterr().err
