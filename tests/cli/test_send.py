"""``openhcs-stream send``: files into a viewer process, and what is shown there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.cli import _send, main
from openhcs_stream.discovery import endpoints
from openhcs_stream.rois import Roi, to_imagej
from openhcs_stream.stream import ask
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One file of each kind that needs no image library but tifffile."""
    rng = np.random.default_rng(3)
    raw, mask = tmp_path / "raw.tif", tmp_path / "mask.tif"
    tifffile.imwrite(raw, rng.integers(0, 60_000, (3, 20, 30), np.uint16), imagej=True,
                     resolution=(2.0, 2.0), metadata={"axes": "ZYX", "unit": "um"})  # fmt: skip
    tifffile.imwrite(mask, rng.integers(0, 9, (20, 30), np.uint8))
    roi = tmp_path / "outline.roi"
    roi.write_bytes(to_imagej(Roi.polygon([(1, 1), (1, 9), (9, 9)])))
    geojson = tmp_path / "regions.geojson"
    geojson.write_text(json.dumps({"type": "Point", "coordinates": [3, 4]}))
    return {"raw": raw, "mask": mask, "roi": roi, "geojson": geojson}


def pixels(layer: str, place: dict[str, Any]) -> npt.NDArray[Any]:
    answer = ask("memory", "read", layer=layer, place=place)
    return np.frombuffer(answer["data"], answer["dtype"]).reshape(answer["shape"])


def test_place_values() -> None:
    assert _send._place("well=A01, site=1,z=-2,channel=07,time=0") == {
        "well": "A01",
        "site": 1,
        "z": -2,
        "channel": "07",  # a name: as a number it would be another
        "time": 0,
    }


def test_images_stand_pixel_exact_at_their_place(
    start: Callable[..., Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    words = [str(files["raw"]), "--to", "memory", "--place", "well=A01,site=2"]
    assert main(["send", *words]) == 0
    assert capsys.readouterr().out == "memory shows 1 of 1 items.\n"
    assert main(["send", *words, "--labels", "--name", "nuclei"]) == 0
    stack = tifffile.imread(files["raw"])
    for z, plane in enumerate(stack):
        place = {"well": "A01", "site": 2, "z": z}
        assert np.array_equal(pixels("raw", place), plane)
        assert np.array_equal(pixels("nuclei", place), plane)
    kinds = {layer["name"]: layer["kind"] for layer in ask("memory", "layers")}
    assert kinds == {"raw": "image", "nuclei": "labels"}


def test_several_files_of_several_kinds(
    start: Callable[..., Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert main(["send", *map(str, files.values()), "--json", "--source", "plate 1"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == {
        "viewer": "memory",
        "sent": 4,
        "displayed": 4,
        "failed": 0,
        "dropped": 0,
        "failures": [],
        "remarks": [],
    }
    layers = ask("memory", "layers")
    assert {layer["kind"] for layer in layers} == {"image", "rois"}
    assert {layer["source"] for layer in layers} == {"plate 1"}


def test_pictures(start: Callable[..., Any], tmp_path: Path) -> None:
    iio = pytest.importorskip("imageio.v3")
    start()
    image = np.random.default_rng(1).integers(0, 255, (9, 8, 3), np.uint8)
    iio.imwrite(tmp_path / "rgb.png", image)
    assert main(["send", str(tmp_path / "rgb.png")]) == 0
    assert np.array_equal(pixels("rgb", {}), image)


def test_viewer_is_started_where_none_runs(
    files: dict[str, Path], detached: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["send", str(files["mask"]), "--to", "memory"]) == 0
    (endpoint,) = endpoints()
    assert endpoint.viewer == "memory"
    assert np.array_equal(pixels("mask", {}), tifffile.imread(files["mask"]))


def test_by_name_and_by_address(start: Callable[..., Any], files: dict[str, Path]) -> None:
    start("--name", "one")
    start("--name", "two", "--port", "0")
    address = next(each for each in endpoints() if each.name == "two").addresses[-1]
    assert address.startswith("tcp://")
    assert main(["send", str(files["mask"]), "--to", "one"]) == 0
    assert main(["send", str(files["raw"]), "--to", address]) == 0
    assert [layer["name"] for layer in ask("one", "layers")] == ["mask"]
    assert [layer["name"] for layer in ask("two", "layers")] == ["raw"]


def test_nobody_at_an_address(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(files["mask"]), "--to", "ipc:///nowhere/at.all", "--timeout", "0.5"]
    assert main(["send", *words]) == 1
    assert "ipc:///nowhere/at.all" in capsys.readouterr().err


def test_unknown_viewer(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", str(files["mask"]), "--to", "nonsense"]) == 2
    assert "memory, napari" in capsys.readouterr().err


def test_nothing_is_started_or_sent_where_one_file_is_wrong(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.czi").write_text("")
    assert main(["send", str(files["mask"]), str(tmp_path / "a.czi"), "--to", "memory"]) == 2
    assert "a.czi is of no kind that can be read" in capsys.readouterr().err
    assert endpoints() == []


def test_one_file_would_hide_the_other(
    start: Callable[..., Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    words = [str(files["raw"]), str(files["mask"]), "--name", "same"]
    assert main(["send", *words]) == 2
    assert "would replace what" in capsys.readouterr().err


def test_missing_component_is_refused(
    start: Callable[..., Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start("--require", "well")
    assert main(["send", str(files["mask"])]) == 2
    assert "well" in capsys.readouterr().err
    assert main(["send", str(files["mask"]), "--place", "well=B02"]) == 0


def test_labels_must_be_whole_numbers(
    start: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 5), np.float32))
    assert main(["send", str(tmp_path / "a.tif"), "--labels"]) == 2
    assert "float32" in capsys.readouterr().err


class Napari(MemoryViewer):
    """A viewer that takes itself for napari."""

    name = "napari"


def test_what_the_viewer_cannot_hold_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "look.roi").write_bytes(to_imagej(Roi.arrow((1, 1), (9, 9))))
    words = ["send", str(tmp_path / "look.roi"), "--to", "napari"]
    remark = "napari: 1 arrow: it becomes a path that draws its head"
    with run_receiver(Napari(), publish=True):
        assert main(words) == 0
        assert f"  rois 'look', in {remark}.\n" in capsys.readouterr().err
        assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["remarks"] == [{"item": "rois 'look'", "remark": remark}]
    assert told["failures"] == []


class FakeReceipt:
    def __init__(self, state: str, reason: str = "") -> None:
        self.name, self.state, self.reason = "image 'a'", state, reason
        self.remarks = ()


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["displayed", "displayed"], 0),
        (["displayed", "failed"], 1),
        (["dropped"], 1),
        ([], 1),
    ],
)
def test_exit_status_says_whether_all_is_displayed(
    states: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    receipts: Any = [FakeReceipt(state, "no memory") for state in states]
    assert _send._report("memory", receipts, as_json=True) == status
    counts = json.loads(capsys.readouterr().out)
    assert counts["sent"] == len(states)
    assert len(counts["failures"]) == len([state for state in states if state != "displayed"])
    assert _send._report("memory", receipts, as_json=False) == status


@pytest.mark.parametrize("with_rich", [True, False])
def test_progress_goes_to_stderr(
    with_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    if with_rich:
        pytest.importorskip("rich")
    else:
        for name in ("rich", "rich.console", "rich.progress"):
            monkeypatch.setitem(sys.modules, name, None)
    with _send._progress(2, quiet=False) as progress:
        progress.sent("raw")
        progress.file_done()
        progress.done()
        progress.file_done()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "displayed" in captured.err
    assert "2/2" in captured.err
    assert "1/1" in captured.err


def test_waiting_is_bounded() -> None:
    from openhcs_stream.errors import DeadlineExceeded

    class Waiting(FakeReceipt):
        def wait(self, timeout_s: float) -> None:
            raise DeadlineExceeded("not yet")

    receipts: Any = [Waiting("received")]
    with (
        _send._progress(1, quiet=True) as progress,
        pytest.raises(DeadlineExceeded, match="0 of 1 items"),
    ):
        _send._wait(receipts, progress, 0.01)
