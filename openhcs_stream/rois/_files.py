"""ImageJ's files: one ROI (``.roi``), or the ROI Manager's list of them (``RoiSet.zip``)."""

from __future__ import annotations

import errno
import re
import struct
import warnings
import zipfile
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois._imagej import from_imagej, to_imagej
from openhcs_stream.rois._listed import first_few, listed_rois

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from openhcs_stream.rois._model import Roi

__all__ = ["read_imagej", "write_imagej"]

#: What one ROI, and all of a file, may take when unpacked.
MAX_ROI_NBYTES: Final = 1 << 28
MAX_FILE_NBYTES: Final = 1 << 32
#: What Java's zip files may be packed by; others know errors, and needs of memory, of their own.
_PACKED: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
#: What a file name must not have on one system or another, so that any can unpack the list.
_UNSAFE: Final = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST: Final = 120
#: Where a ``.roi`` file says where its second header is, and there, where and how long its name is.
_HEADER2_AT: Final = 60
_NAME_AT: Final = 16
_NAME_LENGTH_AT: Final = 20
#: The name's place where a ROI was written without one. Its length is 0, at which ImageJ, and every
#: other reader known, gives it the file's name and looks at no place; they write 0 there.
_NAMELESS: Final = 1


def read_imagej(path: str | os.PathLike[str]) -> list[Roi]:
    """Read the ROIs of a ``.roi`` or ``.zip`` file, in their order.

    Parameters
    ----------
    path : path
        A ROI without a name gets that of its file, as ImageJ gives it, unless `write_imagej` wrote
        it without. What else lies in a zip is left out.

    Warns
    -----
    LossyConversion
        Once, of all ROIs in a zip that are left out because they can't be read, with their files'
        names and the reasons.

    Raises
    ------
    InvalidItem
        The file is neither, or damaged, or unpacks to more than any list of ROIs; or not one of its
        ROIs can be read.
    OSError
        It can't be read.
    """
    path = FilePath(path)
    with path.open("rb") as file:
        if file.read(4) == b"Iout":
            if path.stat().st_size > MAX_ROI_NBYTES:
                raise _too_large(path)
            file.seek(0)
            return [_read(file.read(), path.name)]
    try:
        with zipfile.ZipFile(path) as archive:
            made, left_out = _unpacked(archive, path)
    except InvalidItem:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        # RuntimeError: it is encrypted. zlib's error is no other's child, see below.
        raise _damaged(path, error) from error
    except OSError as error:
        # Its table may name a place before the file's beginning, and nothing else does.
        if error.errno == errno.EINVAL:
            raise _damaged(path, error) from error
        raise
    except Exception as error:
        if type(error).__module__ in ("zlib", "struct"):
            raise _damaged(path, error) from error
        raise
    if left_out:
        told = first_few(left_out)
        if not made:
            raise InvalidItem(
                f"no ROI in {path.name!r} can be read: {told}.", cure="Save it anew in ImageJ."
            )
        warnings.warn(
            f"of {path.name!r}, {len(left_out)} of {len(made) + len(left_out)} ROIs are left out, "
            f"which can't be read: {told}.",
            LossyConversion,
            stacklevel=2,
        )
    return made


def write_imagej(path: str | os.PathLike[str], rois: Roi | Iterable[Roi]) -> None:
    """Write one ROI to a ``.roi`` file, or a list of them to a ``.zip`` file.

    Parameters
    ----------
    path : path
        It is replaced where it exists.
    rois : Roi or iterable of Roi
        In a zip each file is named after its ROI, and made unique and safe for every system; the
        ROI itself keeps its name. One without is numbered, and ImageJ names it by that; here it is
        read without a name again.

    Raises
    ------
    InvalidItem
        The path ends otherwise, several ROIs go to ``.roi``, something is no `Roi` (`coerce` makes
        them of much else), or a property can't be written.
    """
    path = FilePath(path)
    listed = listed_rois(rois)
    ending = path.suffix.lower()
    if ending == ".roi" and len(listed) == 1:
        path.write_bytes(_written(listed[0]))
        return
    if ending != ".zip":
        raise InvalidItem(
            f"{len(listed)} ROIs can't be written to {path.name!r}.",
            cure="Write one to a file that ends in .roi, or any number to one that ends in .zip.",
        )
    packed = [_written(roi) for roi in listed]  # before the file: all or nothing
    taken: set[str] = set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (roi, data) in enumerate(zip(listed, packed, strict=True), 1):
            archive.writestr(_file_name(roi.name, number, taken), data)


def _unpacked(archive: zipfile.ZipFile, path: FilePath) -> tuple[list[Roi], list[str]]:
    """Read all ROIs, and tell of those that can't be."""
    members = [each for each in archive.infolist() if each.filename.lower().endswith(".roi")]
    total = sum(each.file_size for each in members)
    if total > MAX_FILE_NBYTES or any(each.file_size > MAX_ROI_NBYTES for each in members):
        raise _too_large(path)
    if any(each.compress_type not in _PACKED for each in members):
        raise InvalidItem(
            f"{path.name!r} is packed in a way that ImageJ doesn't read.",
            cure="Pack it anew without a choice of method: as ordinary zip files are.",
        )
    if not members and archive.namelist():
        raise InvalidItem(
            f"{path.name!r} has no ROI in it.", cure="Pass a file that the ROI Manager saved."
        )
    made: list[Roi] = []
    left_out: list[str] = []
    for each in members:
        # What the zip file itself says is wrong is no matter of one ROI.
        data = archive.read(each)
        try:
            made.append(_read(data, each.filename))
        except InvalidItem as error:
            left_out.append(f"{each.filename!r}: {error.what.rstrip('.')}")
    return made, left_out


def _read(data: bytes, file_name: str) -> Roi:
    roi = from_imagej(data)
    if roi.name or _name_place(data) == (_NAMELESS, 0):
        return roi
    stem = file_name.rpartition("/")[2]
    return roi.replace(name=stem[:-4] if stem.lower().endswith(".roi") else stem)


def _written(roi: Roi) -> bytes:
    data = to_imagej(roi)
    if roi.name:
        return data
    (header2,) = struct.unpack_from(">i", data, _HEADER2_AT)
    changed = bytearray(data)
    struct.pack_into(">i", changed, header2 + _NAME_AT, _NAMELESS)
    return bytes(changed)


def _name_place(data: bytes) -> tuple[int, int] | None:
    """Where a file's name is, and how long; None where that isn't said."""
    if len(data) < _HEADER2_AT + 4:
        return None
    (header2,) = struct.unpack_from(">i", data, _HEADER2_AT)
    if header2 <= 0 or header2 + _NAME_LENGTH_AT + 4 > len(data):
        return None
    place, length = struct.unpack_from(">ii", data, header2 + _NAME_AT)
    return place, length


def _file_name(name: str, number: int, taken: set[str]) -> str:
    stem = _UNSAFE.sub("_", name.removesuffix(".roi")).strip(" .")[:_LONGEST].strip(" .")
    if not stem:
        stem = f"{number:04d}"
    if _RESERVED.match(stem):
        stem = f"_{stem}"
    made, again = stem, 1
    while made.casefold() in taken:  # some systems don't tell A from a
        again += 1
        made = f"{stem}-{again}"
    taken.add(made.casefold())
    return f"{made}.roi"


def _too_large(path: FilePath) -> InvalidItem:
    return InvalidItem(
        f"{path.name!r} unpacks to more than any list of ROIs.", cure="Split it into several files."
    )


def _damaged(path: FilePath, error: Any) -> InvalidItem:
    return InvalidItem(
        f"{path.name!r} is no file of ImageJ ROIs: {error}.", cure="Pass a .roi or .zip file."
    )
