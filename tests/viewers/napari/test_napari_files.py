"""An image that stays in its file, in napari: read plane by plane and level by level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.stream import connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer._files import FileImage
from openhcs_stream_napari._model import NapariModelViewer

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pixels were read each time."""
    sizes: list[int] = []
    original = FileImage.read

    def noted(self: FileImage, *arguments: Any) -> Any:
        found = original(self, *arguments)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(FileImage, "read", noted)
    return sizes


def test_a_stack_is_read_where_the_sliders_stand(tmp_path: Path, read: list[int]) -> None:
    stack = np.random.default_rng(0).integers(0, 65536, (40, 200, 100), np.uint16)
    tifffile.imwrite(tmp_path / "it.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    with run_receiver(NapariModelViewer()) as running:
        with connect(running.address) as stream:
            stream.image_file(tmp_path / "it.tif", name="it").wait()
        (layer,) = running.viewer.model.layers
        assert layer.data.shape == stack.shape
        assert sum(read) < stack.size / 2  # for the contrast, and to be seen
        read.clear()
        np.testing.assert_array_equal(np.asarray(layer.data[31]), stack[31])
        assert sum(read) == stack[0].size


def test_a_large_plane_is_a_pyramid_of_which_little_is_read(
    tmp_path: Path, read: list[int]
) -> None:
    path = tmp_path / "large.tif"
    mapped = tifffile.memmap(path, shape=(9000, 9000), dtype="uint8")
    mapped[::8, ::8] = 200
    mapped.flush()
    with run_receiver(NapariModelViewer()) as running:
        with connect(running.address) as stream:
            stream.image_file(path).wait()
        (layer,) = running.viewer.model.layers
        assert layer.multiscale
        assert sum(read) < mapped.size / 8
        read.clear()
        small = np.asarray(layer.data[-1])
        np.testing.assert_array_equal(small, mapped[::16, ::16])
        assert sum(read) == small.size
        read.clear()
        np.testing.assert_array_equal(np.asarray(layer.data[0][10:90, 20:50]), mapped[10:90, 20:50])
        assert sum(read) == 80 * 30
