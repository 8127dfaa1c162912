"""``.roi`` and ``RoiSet.zip`` files."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
import zipfile
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import roifile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois import Roi, RoiKind, from_imagej, read_imagej, to_imagej, write_imagej

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


def test_another_s_roi_without_a_name_has_that_of_its_file(tmp_path: Path) -> None:
    bare = to_imagej(ROI.replace(name=""))
    (tmp_path / "cell 7.roi").write_bytes(bare)
    assert read_imagej(tmp_path / "cell 7.roi") == [ROI.replace(name="cell 7")]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0001.roi", bare)
        archive.writestr("0002.roi", bare)
    assert [roi.name for roi in read_imagej(tmp_path / "a.zip")] == ["0001", "0002"]


def test_a_roi_written_without_a_name_has_none(tmp_path: Path, any_roi: Roi) -> None:
    bare = from_imagej(to_imagej(any_roi)).replace(name="")
    write_imagej(tmp_path / "cell 7.roi", bare)
    assert read_imagej(tmp_path / "cell 7.roi") == [bare]
    write_imagej(tmp_path / "a.zip", [bare, ROI, bare])
    assert read_imagej(tmp_path / "a.zip") == [bare, ROI, bare]
    theirs = roifile.roiread(tmp_path / "a.zip")
    assert isinstance(theirs, list)
    assert theirs[0].name == roifile.ImagejRoi.frombytes(to_imagej(bare)).name


def test_odd_members_are_left_out_and_told(tmp_path: Path) -> None:
    file = tmp_path / "mix.zip"
    odd = bytearray(to_imagej(ROI))
    odd[16:18] = b"\0\2"  # the number of its vertices
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("bad one.roi", bytes(odd))
        archive.writestr("good.roi", to_imagej(ROI))
        archive.writestr("noise.roi", b"Iout")
    with pytest.warns(LossyConversion, match=r"2 of 3.*bad one\.roi.*2 coord.*noise\.roi") as told:
        assert read_imagej(file) == [ROI]
    assert len(told) == 1
    assert told[0].filename == __file__


def test_where_no_member_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "mix.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for n in range(9):
            archive.writestr(f"{n}.roi", b"Iout")
    with pytest.raises(InvalidItem, match=r"no ROI in 'mix\.zip'.*'0\.roi'.*; 4 more"):
        read_imagej(file)


@pytest.mark.parametrize("what", ["abc", b"abc", 5, None, [np.zeros((3, 2))]], ids=str)
def test_what_is_no_roi_is_not_written(tmp_path: Path, what: Any) -> None:
    with pytest.raises(InvalidItem, match="coerce"):
        write_imagej(tmp_path / "a.zip", what)
    assert not list(tmp_path.iterdir())


#: What a float32 holds exactly, and a list of them.
FLOATS = st.floats(-1e6, 1e6, width=32)
TEXTS = st.text(max_size=9)
COLORS = st.just("") | st.binary(min_size=4, max_size=4).filter(any).map(lambda b: f"#{b.hex()}")


@st.composite
def any_rois(draw: st.DrawFn) -> Roi:
    kinds: list[RoiKind] = ["polygon", "freehand", "traced", "polyline", "freeline", "point"]
    xy = draw(arrays(np.float32, st.tuples(st.integers(3, 9), st.just(2)), elements=FLOATS))
    keys = st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters=":\n"), min_size=1, max_size=5
    )
    values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=9)
    return Roi(
        draw(st.sampled_from(kinds)),
        xy.astype(np.float64) + 0.0,
        name=draw(TEXTS),
        stroke_color=draw(COLORS),
        group=draw(st.integers(0, 65535)),
        position=draw(st.tuples(*[st.integers(0, 2**31 - 1)] * 3)),
        properties=draw(st.dictionaries(keys, values, max_size=3)),
    )


@given(st.lists(any_rois(), max_size=4))
def test_any_list_there_and_back(rois: list[Roi]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder) / "a.zip"
        write_imagej(file, rois)
        assert read_imagej(file) == rois
        for number, roi in enumerate(rois):
            one = FilePath(folder) / f"{number}.roi"
            write_imagej(one, roi)
            assert read_imagej(one) == [roi]


@given(st.binary(max_size=200), st.sampled_from([b"", b"Iout", b"PK\3\4"]), st.data())
def test_any_bytes_are_rois_or_a_clear_error(
    noise: bytes, head: bytes, data: st.DataObject
) -> None:
    whole = bytearray(to_imagej(ROI))
    at = data.draw(st.integers(0, len(whole)))
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder) / "a.zip"
        for content in (head + noise, bytes(whole[:at]) + noise + bytes(whole[at + len(noise) :])):
            file.write_bytes(content)
            with contextlib.suppress(InvalidItem):
                read_imagej(file)
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("noise.roi", content)
                archive.writestr("good.roi", to_imagej(ROI))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LossyConversion)
                assert ROI in read_imagej(file)


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


@pytest.mark.filterwarnings("ignore::openhcs_stream.errors.LossyConversion")
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


@pytest.mark.filterwarnings("ignore::openhcs_stream.errors.LossyConversion")
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
