"""What stands in a viewer, written to files: nothing a person did is lost with its worker."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import UsageError
from openhcs_stream.rois import to_geojson, write_imagej
from openhcs_stream.viewer._edits import place_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from openhcs_stream.viewer._scene import Coords, SceneLayer

__all__ = ["save_places"]

#: Letters of a file's name before its ending.
_LONGEST = 180


def save_places(
    folder: str | os.PathLike[str], places: Iterable[tuple[SceneLayer, Coords]]
) -> list[Path]:
    """Write what layers hold at some places, one file each; on the viewer's own thread.

    ROIs become a ``.zip`` for ImageJ's ROI Manager and a ``.geojson`` for QuPath, labels a
    ``.tif``, points a ``.csv`` of y and x in pixels. Each is named after its source, layer and
    place: ``plate 1_nuclei_well-A01_z-3.zip``.

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
    folder = Path(folder)
    written: list[Path] = []
    taken: set[tuple[str, str]] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for layer, coords in places:
            stem = _unique(_stem(layer, coords), layer.kind, taken)
            written += _save(folder / stem, layer, coords)
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder} can't be written: {error.strerror or error}.",
            cure="Choose another folder.",
        ) from error
    return written


def _save(stem: Path, layer: SceneLayer, coords: Coords) -> list[Path]:
    def named(ending: str) -> Path:
        return stem.with_name(stem.name + ending)

    if layer.kind == "labels" and coords in layer.stack.planes:
        _write_tiff(named(".tif"), np.asarray(layer.stack.planes[coords]))
        return [named(".tif")]
    if layer.kind == "points" and coords in layer.items:
        points = np.asarray(layer.items[coords])
        np.savetxt(named(".csv"), points, "%.17g", delimiter=",", header="y,x", comments="")
        return [named(".csv")]
    if layer.kind == "rois" and coords in layer.items:
        rois = layer.items[coords]
        write_imagej(named(".zip"), rois)
        named(".geojson").write_text(json.dumps(to_geojson(rois)), encoding="utf-8")
        return [named(".zip"), named(".geojson")]
    return []


def _write_tiff(path: Path, plane: Any) -> None:
    try:
        import tifffile
    except ImportError as error:
        raise UsageError(
            "labels are saved as TIFF, for which tifffile is not installed.",
            cure='Install it: pip install "openhcs-stream[images]".',
        ) from error
    tifffile.imwrite(path, plane)


def _stem(layer: SceneLayer, coords: Coords) -> str:
    place = (f"{component}-{value}" for component, value in place_of(layer, coords).items())
    words = (layer.key.source, layer.key.name, *place)
    stem = "_".join(re.sub(r"[^\w -]+", "-", word).strip() for word in words if word)[:_LONGEST]
    return stem or "unnamed"  # an empty name would be the folder's own


def _unique(stem: str, kind: str, taken: set[tuple[str, str]]) -> str:
    made, number = stem, 1
    while (made.casefold(), kind) in taken:  # some systems don't tell A from a
        number += 1
        made = f"{stem}-{number}"
    taken.add((made.casefold(), kind))
    return made
