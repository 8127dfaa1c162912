"""Images that stay in their file: what is read of them, how much, and what is never read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import InvalidItem, OutOfSpace, ProtocolViolation
from openhcs_stream.messages import FileShown, Item
from openhcs_stream.viewer import _files
from openhcs_stream.viewer._beneath import read_beneath
from openhcs_stream.viewer._files import FileImage, FilePlane, open_image
from openhcs_stream.viewer._stack import PlaneStack, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt


def pixels(*shape: int, dtype: str = "<u2") -> npt.NDArray[Any]:
    return np.random.default_rng(5).integers(0, 60_000, shape).astype(dtype)


def raw(path: Path, array: npt.NDArray[Any], offset: int = 10) -> FileImage:
    """An image behind some other bytes, as in a TIFF."""
    path.write_bytes(bytes(offset) + array.tobytes())
    return shown(path, array, FileShown(item(array), "raw", offset, array.dtype.str[0] == ">"))


def shown(path: Path, array: npt.NDArray[Any], message: FileShown) -> FileImage:
    samples = array.shape[-1] in (3, 4) and array.ndim > 2
    return open_image(message, os.open(path, os.O_RDONLY), array.ndim - 2 - samples)


def item(array: npt.NDArray[Any], nbytes: int | None = None) -> Item:
    dtype = array.dtype.newbyteorder("<").str
    return Item(0, 0, (), array.shape, dtype, array.nbytes if nbytes is None else nbytes, ())


def planes_of(image: FileImage, array: npt.NDArray[Any]) -> Iterator[tuple[Any, Any]]:
    for index in np.ndindex(image.shape[: len(image.shape) - len(image.plane_shape)]):
        yield image[index], array[index]


PARTS: list[tuple[Any, ...]] = [
    (),
    (slice(None), slice(None)),
    (slice(5, 20), slice(3, 7)),
    (slice(20, 5, -2), slice(None, None, 3)),
    (7, slice(2, 9)),
    (-1, -1),
    (slice(4, 4), slice(None)),
]


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<f4", ">i4"])
@pytest.mark.parametrize("shape", [(41, 30), (3, 41, 30), (2, 3, 41, 30), (2, 41, 30, 3)])
def test_planes_are_read_exactly(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = pixels(*shape, dtype=dtype)
    image = raw(tmp_path / "it", array)
    for plane, expected in planes_of(image, array):
        assert (plane.shape, plane.nbytes) == (expected.shape, 0)
        np.testing.assert_array_equal(np.asarray(plane), expected)
        assert plane.dtype == np.asarray(plane).dtype == array.dtype.newbyteorder("=")
        for stride in (1, 2, 5, 64):
            for parts in PARTS:
                wanted = expected[::stride, ::stride]
                if any(isinstance(part, int) and part >= min(wanted.shape[:2]) for part in parts):
                    continue
                got = plane.read(parts, stride)
                np.testing.assert_array_equal(got, wanted[parts], err_msg=f"{parts} {stride}")


def test_no_more_is_read_than_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = pixels(4, 1000, 500)
    image = raw(tmp_path / "it", array)
    preadv, read = os.preadv, []

    def noted(fd: int, buffers: Any, offset: int) -> int:
        read.append(preadv(fd, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", noted)
    assert not read
    image[2,].read((slice(10, 20), slice(None)))
    assert sum(read) == 10 * 1000
    read.clear()
    image[2,].read(stride=100)
    assert sum(read) == 10 * 1000


def test_a_stack_reads_only_the_part_that_it_is_asked_for(tmp_path: Path) -> None:
    array = pixels(3, 60, 50)
    image = raw(tmp_path / "it", array)
    world = World()
    stack = PlaneStack(world, ("z",))
    for z in range(3):
        world.add(("z",), (z,))
        stack.put((z,), image[z,])
    assert stack.nbytes == 0
    np.testing.assert_array_equal(np.asarray(stack), array)
    for key in (
        (1,),
        (slice(1, 2), slice(5, 9), slice(None, None, 2)),
        (2, 7),
        (slice(0, 1), 3, slice(4)),
        (slice(None), 3),
        ([0, 2],),
        (..., -1),
    ):
        np.testing.assert_array_equal(stack[key], array[key])
    for leading in ((1,), (slice(1, 2),), (-1,)):
        got = stack.read_strided(leading, 4)
        np.testing.assert_array_equal(got, array[leading][..., ::4, ::4])
    assert stack.read_strided((slice(0, 2),), 4) is None
    assert stack.glance((0,), 20).shape == (15, 13)
    # Painted, or beside a larger one, it is read as a whole.
    stack.write((0, 0, 0), 7)
    assert not isinstance(stack.planes[(0,)], FilePlane)
    assert stack[0, 0, 0] == 7
    stack.put((1,), pixels(70, 50))
    np.testing.assert_array_equal(stack[2, :60], array[2])
    assert not stack[2, 60:].any()


def test_a_file_that_is_cut_short_shows_zeros_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    array = pixels(3, 60, 50)
    image = raw(tmp_path / "it", array)
    os.truncate(tmp_path / "it", 10 + array[0].nbytes)
    np.testing.assert_array_equal(np.asarray(image[0,]), array[0])
    for _ in range(3):
        assert not np.asarray(image[2,]).any()
        assert image[2,].read((slice(5), slice(7)), 2).shape == (5, 7)
    assert len(caplog.records) == 1


def test_what_is_not_as_it_was_told_is_refused_and_closed(tmp_path: Path) -> None:
    array = pixels(3, 60, 50)
    path = tmp_path / "it"
    path.write_bytes(array.tobytes())
    before = len(os.listdir("/proc/self/fd"))
    for message in (
        FileShown(item(array), "raw", 1),
        FileShown(item(array), "raw", 2**53),
        FileShown(item(array, 7), "raw"),
    ):
        with pytest.raises(InvalidItem):
            shown(path, array, message)
    reader, writer = os.pipe()
    with pytest.raises(InvalidItem):
        open_image(FileShown(item(array), "raw"), reader, 1)
    os.close(writer)
    with pytest.raises(InvalidItem):
        shown(tmp_path, array, FileShown(item(array), "raw"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "spare_descriptors", lambda: 3)
    with pytest.raises(OutOfSpace, match="ulimit"):
        raw(tmp_path / "it", pixels(5, 5))


# --- below a folder ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """A descriptor of ``inside``, beside which there is something that nobody may read."""
    inside = tmp_path / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "chunk").write_bytes(b"0123456789")
    (tmp_path / "precious").write_bytes(b"precious")
    (inside / "link").symlink_to(tmp_path / "precious")
    (inside / "near").symlink_to("a")
    (inside / "up").symlink_to("..")
    os.mkfifo(inside / "pipe")
    fd = os.open(inside, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_files_below_a_folder(folder: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert read_beneath(folder, "a/b/chunk") == b"0123456789"
    assert read_beneath(folder, "a/b/chunk", 2, 5) == b"234"
    assert read_beneath(folder, "a/b/chunk", -3) == b"789"
    assert read_beneath(folder, "a/b/chunk", 8, 100) == b"89"
    assert read_beneath(folder, "a/none") is None
    assert read_beneath(folder, "none/none") is None
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "path",
    ["../precious", "a/../../precious", "/etc/passwd", "link", "up/precious", "near/b/chunk",
     "pipe", "a", "", ".", "a//b/chunk", "a/b/chunk\0"],
)  # fmt: skip
def test_nothing_else_is_read(folder: int, path: str) -> None:
    with pytest.raises(ProtocolViolation):
        read_beneath(folder, path)


# --- OME-Zarr, where zarr is installed --------------------------------------------------------


@pytest.fixture
def zarr() -> Any:
    return pytest.importorskip("zarr")


def write_levels(zarr: Any, path: Path, array: npt.NDArray[Any], version: int, **how: Any) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for level in range(3):
        small = array[..., :: 2**level, :: 2**level]
        chunks = (1,) * (array.ndim - 2) + (16, 16)
        made = group.create_array(
            str(level), shape=small.shape, dtype=small.dtype, chunks=chunks, **how
        )
        made[:] = small


def levels(path: Path, array: npt.NDArray[Any], *names: str) -> FileImage:
    message = FileShown(item(array), "zarr", levels=names or ("0", "1", "2"))
    return shown(path, array, message)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "|u1", "<f4"])
def test_levels_are_read_exactly(tmp_path: Path, zarr: Any, version: int, dtype: str) -> None:
    array = pixels(2, 61, 50, dtype=dtype)
    write_levels(zarr, tmp_path / "it", array, version)
    image = levels(tmp_path / "it", array)
    for plane, expected in planes_of(image, array):
        np.testing.assert_array_equal(np.asarray(plane), expected)
        for stride in (1, 2, 3, 4, 8):
            for parts in PARTS:
                wanted = expected[::stride, ::stride]
                if any(isinstance(part, int) and part >= min(wanted.shape) for part in parts):
                    continue
                got = plane.read(parts, stride)
                np.testing.assert_array_equal(got, wanted[parts], err_msg=f"{parts} {stride}")


def test_a_level_that_was_rounded_down(tmp_path: Path, zarr: Any) -> None:
    array = pixels(61, 51)
    group = zarr.open_group(tmp_path / "it", mode="w", zarr_format=2)
    for name, each in (("0", array), ("1", array[:60:2, :50:2])):
        group.create_array(name, shape=each.shape, dtype=each.dtype, chunks=(16, 16))[:] = each
    plane = levels(tmp_path / "it", array, "0", "1").plane()
    got = plane.read(stride=2)
    assert got.shape == (31, 26)
    np.testing.assert_array_equal(got[:30, :25], array[:60:2, :50:2])
    assert plane.read((slice(30, 31), slice(25, 26)), 2).shape == (1, 1)


def test_a_large_stride_reads_a_small_level(tmp_path: Path, zarr: Any) -> None:
    array = pixels(61, 50)
    write_levels(zarr, tmp_path / "it", array, 2)
    plane = levels(tmp_path / "it", array).plane()
    for name in ("0", "1"):
        for chunk in (tmp_path / "it" / name).glob("[0-9]*"):
            chunk.unlink()
    np.testing.assert_array_equal(plane.read(stride=8), array[::8, ::8])
    assert not plane.read().any()  # a chunk that is missing is zeros, as zarr has it


def test_no_code_of_the_senders_choice_is_run(tmp_path: Path, zarr: Any) -> None:
    array = pixels(61, 50)
    write_levels(zarr, tmp_path / "it", array, 2)
    about = tmp_path / "it" / "0" / ".zarray"
    told = json.loads(about.read_text())
    for codecs in (
        {"filters": [{"id": "pickle", "protocol": 5}]},
        {"compressor": {"id": "my own"}},
        {"filters": "pickle"},
        {"filters": [7]},
    ):
        about.write_text(json.dumps({**told, **codecs}))
        with pytest.raises(InvalidItem):
            levels(tmp_path / "it", array)


def test_a_chunk_that_is_a_link_is_not_followed(tmp_path: Path, zarr: Any) -> None:
    array = pixels(61, 50)
    write_levels(zarr, tmp_path / "it", array, 2, compressors=None)
    (tmp_path / "precious").write_bytes(np.full((16, 16), 7, "<u2").tobytes())
    chunk = tmp_path / "it" / "0" / "0.0"
    chunk.unlink()
    chunk.symlink_to(tmp_path / "precious")
    assert not levels(tmp_path / "it", array).plane().read().any()


def test_levels_that_are_not_as_told(tmp_path: Path, zarr: Any) -> None:
    array = pixels(61, 50)
    write_levels(zarr, tmp_path / "it", array, 3)
    for names in (("1", "0"), ("0", "none"), ("none",)):
        with pytest.raises(InvalidItem):
            levels(tmp_path / "it", array, *names)
    for names in (("0", "../it/1"), ("/etc",)):
        with pytest.raises(ProtocolViolation):
            levels(tmp_path / "it", array, *names)
    with pytest.raises(InvalidItem):
        levels(tmp_path / "it", array.astype("<u4"))
