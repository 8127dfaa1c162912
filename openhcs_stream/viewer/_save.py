"""What stands in a viewer, written to files: nothing a person did is lost with its worker."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openhcs_stream.errors import UsageError
from openhcs_stream.rois import to_geojson, write_imagej
from openhcs_stream.viewer._edits import place_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from openhcs_stream.messages import Kind, PlaceValue
    from openhcs_stream.viewer._scene import Coords, SceneLayer

__all__ = ["Standing", "save_places", "save_standing"]

#: Bytes of a file's name before its ending; systems take 255 with it.
_LONGEST = 180


class Standing(NamedTuple):
    """What stands at one place of a layer: the pixels of labels, a list of Roi, or y and x."""

    kind: Kind
    source: str
    name: str
    place: Mapping[str, PlaceValue]
    data: Any


def save_places(
    folder: str | os.PathLike[str], places: Iterable[tuple[SceneLayer, Coords]]
) -> list[Path]:
    """Write what layers hold at some places; on the viewer's own thread. See `save_standing`.

    Parameters
    ----------
    folder : path
        Is made where it does not exist; files in it that have such a name are replaced.
    places : iterable of (SceneLayer, Coords)
        Images, tracks and places that hold nothing are left out.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    UsageError
        The folder can't be written to, or tifffile is missing.
    """
    found = (_standing(layer, coords) for layer, coords in places)
    return save_standing(folder, [each for each in found if each is not None])


def save_standing(folder: str | os.PathLike[str], items: Iterable[Standing]) -> list[Path]:
    """Write what stands at places to files.

    ROIs become a ``.zip`` for ImageJ's ROI Manager and a ``.geojson`` for QuPath, labels a
    ``.tif``, points a ``.csv`` of y and x in pixels. Each is named after its source, layer and
    place: ``plate 1_nuclei_well-A01_z-3.zip``.

    Parameters
    ----------
    folder : path
        Is made where it does not exist; files in it that have such a name are replaced.
    items : iterable of Standing
        Labels, ROIs and points.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    UsageError
        The folder can't be written to, or tifffile is missing.
    """
    folder = Path(folder)
    written: list[Path] = []
    taken: set[tuple[str, str]] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for item in items:
            stem = _unique(_stem(item), item.kind, taken)
            written += _write(folder / stem, item)
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder} can't be written: {error.strerror or error}.",
            cure="Choose another folder.",
        ) from error
    return written


def _standing(layer: SceneLayer, coords: Coords) -> Standing | None:
    key = layer.key
    if layer.kind == "labels" and coords in layer.stack.planes:
        data: Any = layer.stack.planes[coords]
    elif layer.kind in ("rois", "points") and coords in layer.items:
        data = layer.items[coords]
    else:
        return None
    return Standing(layer.kind, key.source, key.name, place_of(layer, coords), data)


def _write(stem: Path, item: Standing) -> list[Path]:
    def named(ending: str) -> Path:
        return stem.with_name(stem.name + ending)

    if item.kind == "labels":
        _write_tiff(named(".tif"), np.asarray(item.data))
        return [named(".tif")]
    if item.kind == "points":
        points = np.asarray(item.data)
        np.savetxt(named(".csv"), points, "%.17g", delimiter=",", header="y,x", comments="")
        return [named(".csv")]
    write_imagej(named(".zip"), item.data)
    named(".geojson").write_text(json.dumps(to_geojson(item.data, warn=False)), encoding="utf-8")
    return [named(".zip"), named(".geojson")]


def _write_tiff(path: Path, plane: Any) -> None:
    try:
        import tifffile
    except ImportError as error:
        raise UsageError(
            "labels are saved as TIFF, for which tifffile is not installed.",
            cure='Install it: pip install "openhcs-stream[images]".',
        ) from error
    tifffile.imwrite(path, plane)


def _stem(item: Standing) -> str:
    place = (f"{component}-{value}" for component, value in item.place.items())
    words = (item.source, item.name, *place)
    stem = "_".join(re.sub(r"[^\w -]+", "-", word).strip() for word in words if word)
    stem = stem.encode()[:_LONGEST].decode(errors="ignore")
    return stem or "unnamed"  # an empty name would be the folder's own


def _unique(stem: str, kind: str, taken: set[tuple[str, str]]) -> str:
    made, number = stem, 1
    while (made.casefold(), kind) in taken:  # some systems don't tell A from a
        number += 1
        made = f"{stem}-{number}"
    taken.add((made.casefold(), kind))
    return made
