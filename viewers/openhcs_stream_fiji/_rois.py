"""ROIs, points and tracks as ImageJ's own objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.rois import to_imagej
from openhcs_stream_fiji._looks import parse_color

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.rois import Roi, RoiKind
    from openhcs_stream.viewer import SceneLayer
    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._java import Java

__all__ = ["MARK", "PLAIN", "Maker"]

#: The property by which a ROI of ours is told from a person's own: the title of its layer.
MARK: Final = "layer"

#: ImageJ's numbers of what is made of vertices and nothing else.
PLAIN: Final[dict[RoiKind, int]] = {
    "polygon": 2, "freehand": 3, "traced": 4, "polyline": 6, "freeline": 7, "angle": 8,
}  # fmt: skip
_POLYLINE: Final = 6
_CIRCLE: Final = 3
_LARGE: Final = 3


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes ImageJ's ROIs of what one layer has at one place.

    Attributes
    ----------
    java : Java
    bulk : Bulk
    layer : SceneLayer
        Of ROIs, points or tracks.
    facts : mapping
        What each ROI's properties tell of its origin.
    """

    java: Java
    bulk: Bulk
    layer: SceneLayer
    facts: Mapping[str, object]

    def make(self, item: Any, auto_names: Sequence[str] = ()) -> Any:
        """A Java array of ROIs; `item` is as in `SceneLayer.items`.

        For rois, `auto_names` are for those without a name of their own.
        """
        match self.layer.kind:
            case "rois":
                return self._of_rois(item, auto_names)
            case "points":
                return self.bulk.array(self._of_points(item))
            case _:
                return self.bulk.array(self._of_tracks(item))

    def auto_names(self, count: int) -> list[str]:
        """Names for a list's ROIs that have none: ImageJ's list shows something for each."""
        return [f"{self.layer.key.name}-{number:04d}" for number in range(1, count + 1)]

    def origin(self) -> dict[str, str]:
        """The properties that each ROI is given besides its own."""
        facts = {MARK: self.layer.title, **self.facts}
        return {key: str(value).replace("\n", " ") for key, value in facts.items() if value != ""}

    # --- to ImageJ ------------------------------------------------------------------------------

    def _of_rois(self, rois: Sequence[Roi], auto_names: Sequence[str]) -> Any:
        bulk, origin = self.bulk, self.origin()
        natives = self._shapes(rois)
        bulk.name(
            natives,
            [roi.name or auto for roi, auto in zip(rois, auto_names, strict=True)],
        )
        for key, value in origin.items():
            # Not all in one text, which ImageJ takes apart at a tenth of the speed.
            bulk.each(natives, "setProperty", key, value)
        for index, roi in enumerate(rois):
            if (
                roi.group or roi.stroke_width or roi.fill_color or roi.stroke_color
                or roi.properties
            ):  # fmt: skip
                self._dress(natives[index], roi)
        return natives

    def _dress(self, native: Any, roi: Roi) -> None:
        java = self.java
        if roi.group:
            native.setGroup(roi.group)  # and gives it the group's colour
        if roi.stroke_width:
            native.setStrokeWidth(float(roi.stroke_width))
        if roi.fill_color:  # before the stroke, whose colour it takes away
            native.setFillColor(parse_color(java, roi.fill_color))
        if roi.stroke_color:
            native.setStrokeColor(parse_color(java, roi.stroke_color))
        self._tell(native, roi.properties)

    def _shapes(self, rois: Sequence[Roi]) -> Any:
        """Outlines and lines of vertices in bulk; the others one by one, through .roi files."""
        plain = [
            index
            for index, roi in enumerate(rois)
            if roi.details is None and not roi.imagej_options and roi.kind in PLAIN
        ]
        runs: list[tuple[list[int], Any]] = []
        if plain:
            counts = np.array([len(rois[index].coordinates) for index in plain])
            kinds = np.array([PLAIN[rois[index].kind] for index in plain], np.int32)
            xy = np.concatenate([rois[index].coordinates for index in plain])
            starts = np.cumsum(counts) - counts
            # As ImageJ does it: areas of whole numbers are kept in whole numbers.
            whole = np.logical_and.reduceat((np.rint(xy) == xy).all(axis=1), starts)
            whole &= np.array([rois[index].is_area for index in plain])
            of_vertex = np.repeat(whole, counts)
            for is_whole in (False, True):
                chosen = whole == is_whole
                if chosen.any():
                    made = self.bulk.outlines(
                        xy[of_vertex == is_whole], counts[chosen], kinds[chosen], whole=is_whole
                    )
                    runs.append(([plain[i] for i in np.flatnonzero(chosen)], made))
            if len(runs) == 1 and len(plain) == len(rois):
                return runs[0][1]
        natives = self.bulk.array(len(rois))
        for indices, made in runs:
            for index, native in zip(indices, made, strict=True):
                natives[index] = native
        done = set(plain)
        for index, roi in enumerate(rois):
            if index not in done:
                natives[index] = self._shape(roi)
        return natives

    def _shape(self, roi: Roi) -> Any:
        java = self.java
        if roi.kind == "point" and roi.details is None and not roi.imagej_options:
            return java.PointRoi(*self._floats(roi.coordinates))
        return java.RoiDecoder.openFromByteArray(java.bytes(to_imagej(roi)))

    def _of_points(self, points: Any) -> list[Any]:
        """One multi-point: whole numbers are the centres of pixels, as everywhere."""
        yx: npt.NDArray[np.float64] = np.asarray(points, np.float64)
        if not len(yx):
            return []
        native = self.java.PointRoi(*self._floats(yx[:, ::-1]))
        native.setPointType(_CIRCLE)
        native.setSize(_LARGE)
        native.setName(self.layer.key.name)
        native.setStrokeColor(self.java.Color(255, 165, 0))
        self._tell(native, self.origin())
        return [native]

    def _of_tracks(self, rows: Any) -> list[Any]:
        """A polyline for each track; its times are in its properties."""
        java = self.java
        table: npt.NDArray[np.float64] = np.asarray(rows, np.float64)
        made = []
        for number in dict.fromkeys(table[:, 0].tolist()):
            track = table[table[:, 0] == number]
            native = java.PolygonRoi(*self._floats(track[:, [-1, -2]]), _POLYLINE)
            native.setName(f"{self.layer.key.name} {number:g}")
            native.setStrokeColor(java.Color.getHSBColor(number * 0.618034 % 1.0, 0.8, 1.0))
            times = " ".join(f"{time:g}" for time in track[:, 1])
            self._tell(native, {**self.origin(), "track": f"{number:g}", "times": times})
            made.append(native)
        return made

    @staticmethod
    def _tell(native: Any, facts: Mapping[str, str]) -> None:
        for key, value in facts.items():
            native.setProperty(key, value)

    def _floats(self, xy: npt.NDArray[np.float64]) -> tuple[Any, Any]:
        x, y = (self.java.floats(np.ascontiguousarray(column, np.float32)) for column in xy.T)
        return x, y

    def own_properties(self, properties: Mapping[str, str]) -> dict[str, str]:
        """Without those that tell of the origin: of a ROI that is a copy of one of ours."""
        given = self.origin() if MARK in properties else {}
        return {key: value for key, value in properties.items() if key not in given}
