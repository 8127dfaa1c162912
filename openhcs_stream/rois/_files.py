"""ImageJ's files: one ROI (``.roi``), or the ROI Manager's list of them (``RoiSet.zip``)."""

from __future__ import annotations

import errno
import re
import zipfile
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._imagej import from_imagej, to_imagej

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


def read_imagej(path: str | os.PathLike[str]) -> list[Roi]:
    """Read the ROIs of a ``.roi`` or ``.zip`` file, in their order.

    Parameters
    ----------
    path : path
        A ROI without a name gets that of its file, as ImageJ gives it. What else lies in a zip is
        left out.

    Raises
    ------
    InvalidItem
        The file is neither, or damaged, or unpacks to more than any list of ROIs.
    OSError
        It can't be read.
    """
    path = FilePath(path)
    with path.open("rb") as file:
        if file.read(4) == b"Iout":
            if path.stat().st_size > MAX_ROI_NBYTES:
                raise _too_large(path)
            file.seek(0)
            return [_named(from_imagej(file.read()), path.name)]
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpacked(archive, path)
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


def write_imagej(path: str | os.PathLike[str], rois: Roi | Iterable[Roi]) -> None:
    """Write one ROI to a ``.roi`` file, or a list of them to a ``.zip`` file.

    Parameters
    ----------
    path : path
        It is replaced where it exists.
    rois : Roi or iterable of Roi
        In a zip each file is named after its ROI, and made unique and safe for every system; the
        ROI itself keeps its name.

    Raises
    ------
    InvalidItem
        The path ends otherwise, several ROIs go to ``.roi``, or a property can't be written.
    """
    from openhcs_stream.rois._model import Roi

    path = FilePath(path)
    listed = [rois] if isinstance(rois, Roi) else list(rois)
    ending = path.suffix.lower()
    if ending == ".roi" and len(listed) == 1:
        path.write_bytes(to_imagej(listed[0]))
        return
    if ending != ".zip":
        raise InvalidItem(
            f"{len(listed)} ROIs can't be written to {path.name!r}.",
            cure="Write one to a file that ends in .roi, or any number to one that ends in .zip.",
        )
    packed = [to_imagej(roi) for roi in listed]  # before the file: all or nothing
    taken: set[str] = set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (roi, data) in enumerate(zip(listed, packed, strict=True), 1):
            archive.writestr(_file_name(roi.name, number, taken), data)


def _unpacked(archive: zipfile.ZipFile, path: FilePath) -> list[Roi]:
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
    return [_named(from_imagej(archive.read(each)), each.filename) for each in members]


def _named(roi: Roi, file_name: str) -> Roi:
    if roi.name:
        return roi
    stem = file_name.rpartition("/")[2]
    return roi.replace(name=stem[:-4] if stem.lower().endswith(".roi") else stem)


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
