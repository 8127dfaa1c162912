"""The suite on ImageJ: in windows and without, read back from ImageJ's own objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream.testing import ViewerTests
from openhcs_stream_fiji import FijiViewer
from openhcs_stream_fiji._rois import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from openhcs_stream.messages import PlaceValue

_java: Any = None
#: Java's objects have no identity in Python, their IDs have.
_natives: dict[int, object] = {}


@pytest.fixture(scope="module", autouse=True)
def _one_java(java: Any) -> None:
    global _java
    _java = java


class _FijiTests(ViewerTests):
    has_layer_order = False
    has_alpha = False
    is_headless: ClassVar[bool]

    viewer: FijiViewer

    @pytest.fixture(autouse=True)
    def _begin_nowhere(self) -> None:
        self._here: dict[str, PlaceValue] = {}

    def make_viewer(self) -> FijiViewer:
        return FijiViewer(_java, headless=self.is_headless)

    def close_viewer(self, viewer: FijiViewer) -> None:
        viewer.close()

    def shown_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        native = ("|u1", "<u2", "<f4", "|b1")
        return dtype if dtype.str in native else np.dtype(np.float32)

    def holds(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """What survives a 32-bit float, told without floats: as Python's own numbers."""
        if values.dtype.itemsize < 4 or values.dtype == np.float32:
            return np.ones(values.shape, np.bool_)
        with np.errstate(over="ignore"):
            floats = values.astype(np.float32)
        pairs = zip(values.ravel().tolist(), floats.ravel().tolist(), strict=True)
        same = [a == b or a != a for a, b in pairs]  # the latter: not a number
        return np.array(same, np.bool_).reshape(values.shape)

    def layer_titles(self) -> list[str]:
        return [str(imp.getTitle()) for imp in self._images()] + list(
            dict.fromkeys(str(roi.getProperty(MARK)) for roi in self._all_rois())
        )

    def native_layer(self, title: str) -> object:
        return _natives.setdefault(self._image(title).getID(), object())

    def go_to(self, place: Mapping[str, PlaceValue]) -> None:
        self._here.update(place)
        self.viewer.go_to(**place)

    def pixels_on_screen(self, title: str) -> npt.NDArray[Any]:
        imp = self._image(title)
        array = np.asarray(imp.getStack().getPixels(imp.getCurrentSlice()))
        shape = (imp.getHeight(), imp.getWidth())
        match array.dtype.name:
            case "int8":
                found = array.view(np.uint8).reshape(shape)
            case "int16":
                found = array.view(np.uint16).reshape(shape)
            case "int32":  # 0xffRRGGBB
                parts = np.ascontiguousarray(array).view(np.uint8).reshape(*shape, 4)
                found = parts[..., 2::-1]
            case _:
                found = array.reshape(shape)
        layers = self.receiver.scene.layers.values()
        if any(layer.title == title and layer.stack.dtype == np.bool_ for layer in layers):
            assert set(np.unique(found)) <= {0, 255}  # ImageJ's masks
            found = np.equal(found, 255)
        return found

    def scale_of(self, title: str) -> tuple[float, ...]:
        calibration = self._image(title).getCalibration()
        return float(calibration.pixelHeight), float(calibration.pixelWidth)

    def unit_of(self, title: str) -> str:
        return str(self._image(title).getCalibration().getUnit())

    def outlines_of(self, title: str) -> list[npt.NDArray[Any]]:
        found = []
        for roi in self._rois_in_view(title):
            vertices = roi.getFloatPolygon()
            yx = np.stack([np.asarray(vertices.ypoints), np.asarray(vertices.xpoints)], axis=1)
            found.append(yx[: vertices.npoints].astype(np.float64) - 0.5)
        return found

    def points_of(self, title: str) -> npt.NDArray[Any]:
        found = [np.zeros((0, 2))]
        for roi in self._rois_in_view(title):
            points = roi.getContainedFloatPoints()
            yx = np.stack([np.asarray(points.ypoints), np.asarray(points.xpoints)], axis=1)
            found.append(yx[: points.npoints])
        return np.concatenate(found)

    def tracks_of(self, title: str) -> npt.NDArray[Any]:
        rows = []
        for roi in self._rois_in_view(title):
            line = roi.getFloatPolygon()
            times = str(roi.getProperty("times")).split()
            for time, y, x in zip(times, line.ypoints, line.xpoints, strict=False):
                rows.append((float(str(roi.getProperty("track"))), float(time), y, x))
        return np.array(rows)

    # --- what ImageJ itself has ---------------------------------------------------------------

    def _images(self) -> list[Any]:
        raise NotImplementedError

    def _all_rois(self) -> list[Any]:
        raise NotImplementedError

    def _image(self, title: str) -> Any:
        [imp] = [each for each in self._images() if str(each.getTitle()) == title]
        return imp

    def _rois_in_view(self, title: str) -> list[Any]:
        """Those of a layer that ImageJ draws at the current place of their image."""
        rois = [roi for roi in self._all_rois() if str(roi.getProperty(MARK)) == title]
        images = {str(imp.getTitle()): imp for imp in self._images()}
        seen = []
        for roi in rois:
            imp = images.get(str(roi.getProperty("image")))
            if imp is None:
                # Without an image there are no sliders: its place is in its properties.
                if all(str(roi.getProperty(c)) == str(v) for c, v in self._here.items()):
                    seen.append(roi)
            elif _is_in_view(roi, imp):
                seen.append(roi)
        return seen


class TestFijiWindows(_FijiTests):
    is_headless = False
    has_screen = True

    def _images(self) -> list[Any]:
        manager = self.viewer.java.jpype.JClass("ij.WindowManager")
        return [manager.getImage(number) for number in manager.getIDList() or ()]

    def _all_rois(self) -> list[Any]:
        manager = self.viewer.java.RoiManager.getInstance()
        return [] if manager is None else list(manager.getRoisAsArray())


class TestFijiHeadless(_FijiTests):
    is_headless = True

    def _images(self) -> list[Any]:
        found = [self.viewer.image(layer) for layer in self.receiver.scene.layers.values()]
        return [imp for imp in found if imp is not None]

    def _all_rois(self) -> list[Any]:
        found = []
        for layer in self.receiver.scene.layers.values():
            found += self.viewer.rois(layer)
        overlays = [imp.getOverlay() for imp in self._images()]
        drawn = [roi for overlay in overlays if overlay for roi in overlay]
        # What has an image is an overlay of it; what has none is kept.
        return [r for r in found if not r.getProperty("image")] + drawn


def _is_in_view(roi: Any, imp: Any) -> bool:
    """ImageJ's own rule: `ij.gui.ImageCanvas.drawOverlay`."""
    c, z, t = roi.getCPosition(), roi.getZPosition(), roi.getTPosition()
    if imp.isHyperStack() or imp.getNChannels() > 1:
        return c in (0, imp.getChannel()) and z in (0, imp.getSlice()) and t in (0, imp.getFrame())
    if imp.getStackSize() == 1:
        return True
    position = roi.getPosition()
    if position == 0 and c == 1:
        position = t if z == 1 else z
    return position in (0, imp.getCurrentSlice())
