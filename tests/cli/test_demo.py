"""The demo: its plate, its analysis, what it shows, and all of it together."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import discovery
from openhcs_stream.cli import _demo, _demo_plate
from openhcs_stream.cli._demo_progress import Board, Counts, Progress, Row
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("skimage")

DATA = Path(_demo_plate.__file__).parent / "_demo_data"


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plate")
    _demo_plate.make_plate(folder, wells=2, sites=1, depth=3)
    return folder


def test_the_plate_is_the_same_each_time(plate: Path, tmp_path: Path) -> None:
    paths = _demo_plate.make_plate(tmp_path, wells=2, sites=1, depth=3)
    assert len(paths) == 2 * 1 * 2 * 3
    for path in paths:
        assert path.read_bytes() == (plate / path.name).read_bytes()


def test_every_image_of_the_plate_differs(plate: Path) -> None:
    images = {path.name: tifffile.imread(path) for path in plate.glob("*.tif")}
    assert {(image.dtype, image.ndim) for image in images.values()} == {(np.dtype("u2"), 2)}
    assert len({image.tobytes() for image in images.values()}) == len(images)


def test_a_field_is_read_by_z_and_channel(plate: Path) -> None:
    field = list(_demo_plate.open_field(plate, "A02", 1))
    assert [(image.z, image.channel) for image in field] == [
        (z, channel) for z in (1, 2, 3) for channel in _demo_plate.CHANNELS
    ]
    assert {(image.well, image.site) for image in field} == {("A02", 1)}


def test_well_names() -> None:
    assert _demo_plate.well_names(6) == ["A01", "A02", "A03", "B01", "B02", "B03"]
    assert _demo_plate.well_names(96)[-1] == "H12"
    assert len(set(_demo_plate.well_names(96))) == 96


def test_segmentation_finds_the_annotated_nuclei() -> None:
    """Against the label image that people drew, which the analysis never sees."""
    image = tifffile.imread(DATA / "nuclei.tif")
    truth = tifffile.imread(DATA / "nuclei_mask.tif")
    found = _demo_plate.segment_nuclei(_demo_plate.remove_background(image))
    assert f1_score(found, truth) > 0.7
    assert set(np.unique(found)) == set(range(int(found.max()) + 1))


def test_segmentation_of_nothing_is_nothing() -> None:
    assert _demo_plate.segment_nuclei(np.zeros((64, 64), np.float32)).max() == 0


def test_progress_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board([Row("worker 1"), Row("worker 2")], expected=2)
    with Progress(board, interval_s=0.0) as progress:
        board.rows[0].counts = Counts(1, 1, 0, 1, 0)
        board.rows[1].counts = Counts(1, 1, 1)
        progress.update()
        assert not board.is_complete
        board.rows[0].counts = Counts(1, 1, 1)
    assert board.is_complete
    said = capsys.readouterr().out
    assert "sent 2 of 2, received 2, displayed 1, failed 1, dropped 0" in said
    table = said[said.index(" worker ") :]
    assert "worker 2" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("options", [["--workers", "0"], ["--wells", "97"]])
def test_numbers_out_of_range(options: list[str], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    _demo.add_arguments(parser)
    with pytest.raises(UsageError, match=f"{options[0]} is {options[1]}"):
        _demo.run(parser.parse_args([*options, "--out", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(200)
@pytest.mark.skipif("not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'))")
def test_the_demo(tmp_path: Path) -> None:
    done = run_demo("--wells", "2", "--workers", "2", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    items = 2 * _demo.SITES * _demo.DEPTH * _demo.ITEMS_PER_PLANE
    picture = Path(result.pop("screenshot"))
    assert result == {
        "sent": items,
        "received": items,
        "displayed": items,
        "failed": 0,
        "dropped": 0,
    }
    assert picture.parent == tmp_path
    assert shows_outlines_and_labels(picture)
    assert discovery.endpoints() == []  # the viewer has ended


@pytest.mark.timeout(200)
def test_a_viewer_without_a_screen_is_no_success(tmp_path: Path) -> None:
    """Everything is displayed, but there is no picture of it: the status says so."""
    done = run_demo("memory", "--wells", "1", "--workers", "2", "--json", "--out", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["screenshot"] is None
    assert result["displayed"] == _demo.SITES * _demo.DEPTH * _demo.ITEMS_PER_PLANE
    assert "no screenshot" in done.stderr
    assert discovery.endpoints() == []


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "openhcs_stream", "demo", *options],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def shows_outlines_and_labels(path: Path) -> bool:
    """Yellow outlines, and inside of them many colours that a gray image has not."""
    from skimage import io

    picture = io.imread(path)[..., :3].astype(int)
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    outlines = int(((red > 220) & (green > 220) & (blue < 60)).sum())
    coloured = int((np.ptp(picture, axis=-1) > 40).sum())
    return outlines > 1000 and coloured > 10 * outlines


def f1_score(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Of objects that overlap by more than half (intersection over union)."""
    overlap = np.zeros((int(found.max()) + 1, int(truth.max()) + 1))
    np.add.at(overlap, (found.ravel(), truth.ravel()), 1)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)[1:, 1:]
    objects = len(np.unique(found)) + len(np.unique(truth)) - 2
    return float(2 * (iou > 0.5).sum() / objects)
