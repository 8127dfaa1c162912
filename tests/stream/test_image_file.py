"""An image by reference: a few bytes and the open file are sent, and the viewer reads the rest."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import InvalidItem, ItemFailed
from openhcs_stream.messages import FileShown, Item, encode
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from tests.stream.conftest import Served

tifffile = pytest.importorskip("tifffile")


class NoFiles(MemoryViewer):
    """As Fiji: it shows what it has in its own memory."""

    reads_files: ClassVar[bool] = False


@pytest.fixture
def stack() -> npt.NDArray[np.uint16]:
    return np.random.default_rng(1).integers(0, 65536, (5, 300, 200), np.uint16)


def shown(served: Served, name: str) -> Any:
    return next(each for each in served.viewer.layers.values() if each.key.name == name).stack


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("how", "axes"),
    [
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, "ZYX"),  # big-endian
        ({"metadata": {"axes": "TYX"}}, "TYX"),
        ({"ome": True, "metadata": {"axes": "CYX"}}, "CYX"),
        ({"bigtiff": True, "byteorder": ">", "metadata": {"axes": "ZYX"}}, "ZYX"),
    ],
    ids=["imagej", "tifffile", "ome", "bigtiff"],
)
def test_a_tiff_is_read_where_it_lies(
    served: Served, tmp_path: Path, stack: Any, how: dict[str, Any], axes: str
) -> None:
    path = tmp_path / "a stack.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", **how)
    with openhcs_stream.connect(served.address) as stream:
        receipt = stream.image_file(path, place={"well": "A01"})
        receipt.wait()
        assert receipt.state == "displayed"
        assert stream._pool.stats().slots == 0  # no pixels were sent
        layers = [each for each in served.viewer.layers.values() if each.key.name == "a stack"]
        assert {each.spec.axes for each in layers} == {axes}
        planes = [plane for each in layers for plane in each.stack.planes.values()]
        assert sum(plane.nbytes for plane in planes) == 0
        path.unlink()  # it is open
        for plane, expected in zip(planes, stack, strict=True):
            np.testing.assert_array_equal(np.asarray(plane), expected)


def test_rgb(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "rgb.ome.tif"
    pixels = np.random.default_rng(1).integers(0, 255, (30, 20, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb")
    with openhcs_stream.connect(served.address) as stream:
        stream.image_file(path).wait()
        np.testing.assert_array_equal(np.asarray(shown(served, "rgb")), pixels)


def test_it_is_a_few_bytes(stack: Any) -> None:
    item = Item(7, 0, ("A01", 3), stack.shape, "<u2", stack.nbytes, ())
    assert len(encode(FileShown(item, "raw", 352, True))) < 64


def test_what_replaces_it_is_an_ordinary_image(served: Served, tmp_path: Path, stack: Any) -> None:
    path = tmp_path / "it.tif"
    tifffile.imwrite(path, stack[0])
    before = path.read_bytes()
    with openhcs_stream.connect(served.address) as stream:
        for pixels in (stack[1], stack[2]):
            stream.image_file(path, name="it").wait()
            np.testing.assert_array_equal(shown(served, "it")[...], stack[0])
            stream.image(pixels, name="it").wait()
            np.testing.assert_array_equal(shown(served, "it")[...], pixels)
    assert path.read_bytes() == before


def test_files_are_closed_when_they_are_shown_no_more(
    served: Served, tmp_path: Path, stack: Any
) -> None:
    path = tmp_path / "it.tif"
    tifffile.imwrite(path, stack)
    with openhcs_stream.connect(served.address) as stream:
        stream.image(stack[0], name="other").wait()
        before = open_files()
        receipts = [stream.image_file(path, name=str(number), axes="ZYX") for number in range(10)]
        stream.flush()
        del receipts
        assert open_files() == before + 10  # the viewer's, in this process as well
        stream.request("clear")
        assert open_files() == before


def refuse(served: Served, path: Path, match: str, **options: Any) -> None:
    with openhcs_stream.connect(served.address, **options) as stream:
        with pytest.raises(InvalidItem, match=match) as caught:
            stream.image_file(path)
        assert "image()" in caught.value.cure or "path" in caught.value.cure
        stream.image(np.zeros((3, 3), np.uint8), name="next").wait()


def test_who_can_not_read_it_is_named(
    serve_here: Callable[..., Served], tmp_path: Path, stack: Any
) -> None:
    path = tmp_path / "it.tif"
    tifffile.imwrite(path, stack)
    refuse(serve_here(), path, "memory.* can't read", side_lane=False)
    refuse(serve_here(NoFiles()), path, "can't read")


def test_viewers_that_others_may_connect_to_read_no_files(
    serve_here: Callable[..., Served], tmp_path: Path, stack: Any
) -> None:
    path = tmp_path / "it.tif"
    tifffile.imwrite(path, stack)
    refuse(serve_here(port=0, public="localhost"), path, "can't read")


def test_what_is_no_such_file_is_refused(served: Served, tmp_path: Path, stack: Any) -> None:
    (tmp_path / "folder").mkdir()
    refuse(served, tmp_path / "folder", "no OME-Zarr")  # what a process makes once is made here
    before = open_files()
    tifffile.imwrite(tmp_path / "compressed.tif", stack, compression="zlib")
    tifffile.imwrite(tmp_path / "mask.tif", stack > 7)
    (tmp_path / "text.tif").write_text("a text")
    refuse(served, tmp_path / "compressed.tif", "compressed")
    refuse(served, tmp_path / "text.tif", "no TIFF")
    refuse(served, tmp_path / "folder", "no OME-Zarr")
    refuse(served, tmp_path / "none.tif", "No such file")
    assert open_files() <= before + 2  # of the viewer's own sessions


def test_a_file_that_is_shorter_than_was_told_fails_alone(
    served: Served, tmp_path: Path, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it.tif"
    tifffile.imwrite(path, stack)
    from openhcs_stream.stream import _files

    opened = _files.open_image_file

    def cut(*arguments: Any) -> Any:
        file = opened(*arguments)
        os.truncate(path, stack.nbytes // 2)
        return file

    monkeypatch.setattr(_files, "open_image_file", cut)
    with openhcs_stream.connect(served.address) as stream:
        with pytest.raises(ItemFailed, match="ends at byte"):
            stream.image_file(path, axes="ZYX").wait()
        with pytest.raises(ItemFailed):
            stream.flush()
        stream.image(stack[0], name="next").wait()


def test_omezarr(served: Served, tmp_path: Path, stack: Any) -> None:
    zarr = pytest.importorskip("zarr")
    with openhcs_stream.connect(served.address) as stream:
        for version, name in ((2, "four"), (3, "five")):
            group = zarr.open_group(tmp_path / f"{name}.ome.zarr", mode="w", zarr_format=version)
            sizes = [stack, stack[:, ::2, ::2]]
            for level, each in enumerate(sizes):
                made = group.create_array(
                    f"s{level}", shape=each.shape, dtype=each.dtype, chunks=(1, 64, 64)
                )
                made[:] = each
            told = [
                {
                    "axes": [{"name": axis, "type": "space"} for axis in "zyx"],
                    "datasets": [{"path": f"s{level}"} for level in range(2)],
                }
            ]
            group.attrs.update(
                {"ome": {"version": "0.5", "multiscales": told}}
                if version == 3
                else {"multiscales": told}
            )
            stream.image_file(tmp_path / f"{name}.ome.zarr").wait()
            np.testing.assert_array_equal(np.asarray(shown(served, name)), stack)
            np.testing.assert_array_equal(shown(served, name).read_strided((2,), 2), sizes[1][2])
