"""What one layer of ROIs, points or tracks has at one place, as ImageJ's objects."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.viewer import Coords, SceneLayer
    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._rois import Maker

__all__ = ["SPECIAL", "Entry"]

#: Kinds with more than a digest tells: what is written, how an arrow looks, single points.
SPECIAL: Final = frozenset({"text", "arrow", "point"})

#: From so many on, ROIs are drawn without smooth edges: twelve times as fast.
_MANY: Final = 2000
_ALL: Final = slice(None)


class Entry:
    """What one layer has at one place, its ROIs and where they are drawn.

    Parameters
    ----------
    bulk : Bulk
    maker : Maker
    coords : Coords

    Attributes
    ----------
    items : list of Roi, or array
        As in `SceneLayer.items` when it was shown, with what a person changed since.
    names : list of str
        Of each of `natives`: its own, or what ImageJ shows in place of one.
    natives : Java array
        One for each ROI or track; one for all points.
    positions : list of (c, z, t)
        Where on its image it is: several where the image tells places apart that this does not.
    shown : Java array
        What is drawn: `natives`, then copies of all of them for each further position. Empty where
        its image has no such place yet.
    digests : (N,) int32
        Of what is `listed`, as it was when nobody had changed it.
    """

    def __init__(self, bulk: Bulk, maker: Maker, coords: Coords) -> None:
        self._bulk = bulk
        self.maker = maker
        self.coords = coords
        self.positions: list[Position] = []
        self.shown: Any = bulk.array(0)
        self.renew(maker.layer.items[coords])

    @property
    def layer(self) -> SceneLayer:
        return self.maker.layer

    @property
    def listed(self) -> Any:
        """What the ROI Manager shows of it: what is drawn, or what waits for its image."""
        return self.shown if len(self.shown) else self.natives

    @property
    def labels(self) -> list[str]:
        """Names of what is `listed`."""
        copies = len(self.listed) // max(1, len(self.natives))
        return self.names * copies

    def label(self, index: int) -> str:
        """Name of one of what is `listed`."""
        return self.names[index % len(self.names)]

    def renew(self, items: Any) -> None:
        """Make all of it anew from these items."""
        self.items = items
        names = None
        if self.layer.kind == "rois":
            automatic = self.maker.auto_names(len(items))
            names = [roi.name or auto for roi, auto in zip(items, automatic, strict=True)]
        self.natives = self.maker.make(items, names or ())
        if len(self.natives) >= _MANY:
            self._bulk.each(self.natives, "setAntiAlias", False)
        self.names = names if names is not None else self._names()
        self.positions = []
        self.shown = self._bulk.array(0)
        self.keep()

    def replace(self, items: Any, natives: Any, names: list[str]) -> None:
        """Take over what a person made of it: it is shown once, and as ImageJ has it already."""
        self.items = items
        self.natives = natives
        self.names = names
        if len(self.shown):
            self.shown = self.natives
        self.keep()

    def _names(self) -> list[str]:
        return [str(native.getName() or "") for native in self.natives]

    # --- whether it was changed -----------------------------------------------------------------

    def keep(self) -> None:
        """Take it as it is for unchanged."""
        listed = self.listed
        self._special = self._find_special()
        self._identities = self._bulk.identities(listed)
        self.digests = self.digest()

    def _find_special(self) -> npt.NDArray[np.intp]:
        count, every = len(self.natives), len(self.listed)
        if self.layer.kind == "points":
            return np.arange(every)
        if self.layer.kind != "rois":
            return np.arange(0)
        found = [i for i, roi in enumerate(self.items) if roi.kind in SPECIAL]
        copies = every // max(1, count)
        return np.array([i + copy * count for copy in range(copies) for i in found], np.intp)

    def digest(self, indices: slice | list[int] = _ALL) -> npt.NDArray[Any]:
        """A number for each of what is listed, or of these, as it is now."""
        listed = self.listed
        if isinstance(indices, slice):
            numbers = self._bulk.digests(listed, indices.start or 0, indices.stop)
            chosen = np.arange(len(listed))[indices]
        else:
            chosen = np.array(indices, np.intp)
            numbers = self._bulk.digests(self._bulk.array([listed[each] for each in indices]))
        for at in np.flatnonzero(np.isin(chosen, self._special)):
            numbers[at] ^= _checksum(self.maker, listed[int(chosen[at])])
        return numbers

    def index(self, native: Any) -> int:
        """Where in what is listed an object is, -1 where it is none of them."""
        identity = int(self.maker.java.System.identityHashCode(native))
        found = np.flatnonzero(self._identities == identity).tolist()
        if found:
            same = self.maker.java.IdentityHashMap()
            same.put(native, native)
            for index in found:
                if same.containsKey(self.listed[index]):
                    return int(index)
        return -1


def _checksum(maker: Maker, native: Any) -> np.int32:
    data = bytes(maker.java.RoiEncoder.saveAsByteArray(native))
    return np.uint32(zlib.crc32(data)).astype(np.int32)
