"""What is sent in every check: both sides make the same pixels from the same description.

Imported by our own environment and by those of the real packages: numpy and the standard library
only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: How a batch is told to the drivers: a list of items, each a JSON object.
Item = dict[str, Any]

DTYPES = ("uint8", "uint16", "int16", "float32", "float64", "bool", ">u2")


def pixels(shape: tuple[int, ...] | list[int], dtype: str, number: int) -> np.ndarray[Any, Any]:
    """The same array wherever it is made: every pixel tells its position and the item's number."""
    count = int(np.prod(shape))
    ramp = (np.arange(count, dtype=np.int64) * 7 + number * 1013) % 251
    kind = np.dtype(dtype)
    if kind.kind == "f":
        ramp = ramp / 8 - 3.5
    elif kind.kind == "b":
        ramp = ramp % 2
    elif kind.itemsize > 1:
        ramp = ramp * 129 - (3000 if kind.kind == "i" else 0)
    return ramp.astype(kind).reshape(tuple(shape))


def place(well: str = "A01", site: int = 1, channel: int = 1, z: int = 1, time: int = 1) -> Item:
    """Components by OpenHCS's names."""
    return {"well": well, "site": site, "channel": channel, "z_index": z, "timepoint": time}


def file_name(components: Item) -> str:
    """As an ImageXpress names its files, so that their own parsers read it."""
    return (
        f"{components['well']}_s{components['site']:03d}_w{components['channel']}"
        f"_z{components['z_index']:03d}_t{components['timepoint']:03d}.tif"
    )


def image(number: int, shape: tuple[int, ...], dtype: str, **where: Any) -> Item:
    """One image of a batch."""
    return {
        "kind": "image",
        "number": number,
        "shape": list(shape),
        "dtype": dtype,
        "components": place(**where),
    }


#: Every shape that their ROI models have in common: vertices are y, x.
SHAPES: list[Item] = [
    {"shape": "polygon", "yx": [[1.0, 1.0], [1.0, 6.0], [5.0, 6.0], [5.0, 1.0]], "label": 1},
    {"shape": "polygon", "yx": [[2.5, 2.0], [6.0, 3.0], [4.0, 7.0]], "label": 2},
    {"shape": "ellipse", "center": [4.0, 3.0], "radii": [2.0, 1.5], "label": 3},
]
POINTS: list[Item] = [
    {"shape": "point", "yx": [2.0, 3.0], "label": 4},
    {"shape": "point", "yx": [5.5, 1.5], "label": 5},
]


def rois(shapes: list[Item], **where: Any) -> Item:
    """A list of regions."""
    return {"kind": "rois", "shapes": shapes, "components": place(**where)}


def shapes_of(generation: str, viewer: str) -> list[Item]:
    """Generation 1 sends no ellipse to Fiji: it asks roifile for a name that no release has."""
    if (generation, viewer) == ("gen1", "fiji"):
        return [shape for shape in SHAPES if shape["shape"] != "ellipse"]
    return SHAPES


def small_batches(generation: str, viewer: str) -> dict[str, list[Item]]:
    """The batches that are recorded: one for each thing that a message can hold."""
    shapes = shapes_of(generation, viewer)
    batches = {
        "image_2d": [image(1, (8, 8), "uint16")],
        "image_3d": [image(2, (3, 8, 8), "uint16")],
        "dtypes": [image(10 + n, (8, 8), dtype, channel=n + 1) for n, dtype in enumerate(DTYPES)],
        "plate": [
            image(20 + n, (8, 8), "uint16", well=well, channel=channel, z=z)
            for n, (well, channel, z) in enumerate(
                (well, channel, z) for well in ("A01", "B02") for channel in (1, 2) for z in (1, 2)
            )
        ],
        "rois": [rois(shapes)],
        "image_and_rois": [image(30, (8, 8), "uint8", z=2), rois(shapes, z=2)],
    }
    if viewer == "napari":
        batches["points"] = [rois(POINTS)]
    return batches


def large_batches() -> list[list[Item]]:
    """What is streamed in the checks: several batches, of a size at which copying matters."""
    planes = [
        image(100 + n, (96, 128), "uint16", well=well, site=site, channel=channel, z=z)
        for n, (well, site, channel, z) in enumerate(
            (well, site, channel, z)
            for well in ("A01", "B02")
            for site in (1, 2)
            for channel in (1, 2)
            for z in (1, 2, 3)
        )
    ]
    return [planes[start : start + 6] for start in range(0, len(planes), 6)]
