"""``.roi`` and ``RoiSet.zip`` files."""

from __future__ import annotations

import contextlib
import zipfile
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, read_imagej, to_imagej, write_imagej

if TYPE_CHECKING:
    from pathlib import Path

ROI = Roi.polygon([(0, 0), (0, 4), (3, 0)], name="nucleus")


def test_one(tmp_path: Path, any_roi: Roi) -> None:
    write_imagej(tmp_path / "a.roi", any_roi)
    [back] = read_imagej(str(tmp_path / "a.roi"))
    assert (back.kind, back.name, back.details) == (any_roi.kind, any_roi.name, any_roi.details)
    write_imagej(tmp_path / "a.roi", [ROI])
    assert read_imagej(tmp_path / "a.roi") == [ROI]


def test_a_list_keeps_its_order_and_names(tmp_path: Path) -> None:
    names = ["b", "a", "B", "b", "a/b:c", "../up", "con", "µ 𝄞", "x" * 300, "end. ", ".roi"]
    rois = [ROI.replace(name=name) for name in names]
    write_imagej(tmp_path / "RoiSet.zip", rois)
    assert read_imagej(tmp_path / "RoiSet.zip") == rois
    with zipfile.ZipFile(tmp_path / "RoiSet.zip") as archive:
        files = archive.namelist()
    assert len({name.casefold() for name in files}) == len(names)
    assert not any(set(name) & set('/\\:*?"<>|') for name in files)
    assert files[:4] == ["b.roi", "a.roi", "B-2.roi", "b-3.roi"]
    assert files[6] == "_con.roi"


def test_a_roi_without_a_name_has_that_of_its_file(tmp_path: Path) -> None:
    bare = ROI.replace(name="")
    write_imagej(tmp_path / "cell 7.roi", bare)
    assert read_imagej(tmp_path / "cell 7.roi") == [ROI.replace(name="cell 7")]
    write_imagej(tmp_path / "a.zip", [bare, bare])
    assert [roi.name for roi in read_imagej(tmp_path / "a.zip")] == ["0001", "0002"]


def test_an_empty_list(tmp_path: Path) -> None:
    write_imagej(tmp_path / "a.zip", [])
    assert read_imagej(tmp_path / "a.zip") == []


def test_other_files_in_a_zip_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("sub/Cell.ROI", to_imagej(ROI.replace(name="")))
    assert [roi.name for roi in read_imagej(tmp_path / "a.zip")] == ["Cell"]


def test_what_can_not_be_written(tmp_path: Path) -> None:
    for name, rois in (("a.roi", [ROI, ROI]), ("a.roi", []), ("a.tif", [ROI])):
        with pytest.raises(InvalidItem, match="can't be written"):
            write_imagej(tmp_path / name, rois)
    with pytest.raises(InvalidItem, match="can't be kept"):
        write_imagej(tmp_path / "a.zip", [ROI, ROI.replace(properties={"a": "b\nc"})])
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    for data in (b"", b"PK\3\4", b"Iou", b"Iout", b"Iout" + bytes(70)):
        file.write_bytes(data)
        with pytest.raises(InvalidItem):
            read_imagej(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InvalidItem, match="no ROI in it"):
        read_imagej(file)
    with pytest.raises(FileNotFoundError):
        read_imagej(tmp_path / "none.zip")


def test_a_damaged_member(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    write_imagej(file, [ROI] * 3)
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        file.write_bytes(changed)
        try:
            read_imagej(file)
        except InvalidItem:
            pass


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_imagej_itself_cannot_unpack_is_refused(tmp_path: Path, method: int) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.roi", to_imagej(ROI))
    with pytest.raises(InvalidItem, match="ImageJ doesn't read"):
        read_imagej(file)


def test_damage_anywhere_is_refused_or_of_no_matter(tmp_path: Path) -> None:
    """Also one that makes it seem packed in another way."""
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", to_imagej(ROI))
    whole = file.read_bytes()
    for at in range(len(whole)):
        for value in (0, 12, 14, whole[at] ^ 0xFF):
            file.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            with contextlib.suppress(InvalidItem):
                read_imagej(file)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.roi", "w", force_zip64=True) as member:
            for _ in range(257):
                member.write(bytes(1 << 20))
    with pytest.raises(InvalidItem, match="unpacks to more"):
        read_imagej(file)
