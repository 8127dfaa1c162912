"""The half of a stream that takes arrays and lists from the caller, and checks them."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Unpack

import numpy as np

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.stream._layers import PLAIN, Common, Look
from openhcs_stream.stream._payload import (
    MAX_INT,
    MAX_TEXT,
    Place,
    as_array,
    as_limits,
    as_place,
    as_table,
    with_axes,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import Kind, PlaceValue
    from openhcs_stream.rois import Roi
    from openhcs_stream.stream._files import ImageFile
    from openhcs_stream.stream._receipt import Receipt

__all__ = ["MAX_PLANS", "Plan", "Sending"]


#: Plans that are remembered; a pipeline has a few.
MAX_PLANS = 1024

#: What ROIs become in a viewer of a kind; other kinds keep them as they are.
_CONVERTS_TO: Final[Mapping[str, Literal["imagej", "napari"]]] = {
    "fiji": "imagej",
    "napari": "napari",
}


class Plan(NamedTuple):
    """What came of checking an array and its settings, for the next ones of the same form."""

    kind: Kind
    name: str
    layer: int
    components: tuple[str, ...]
    dtype: str


class Sending:
    """What a `Stream` can be given."""

    def __init__(self) -> None:
        self._plans: dict[tuple[Any, ...], Plan] = {}

    @abstractmethod
    def _send(
        self,
        kind: Kind,
        array: npt.NDArray[Any],
        name: str,
        axes: str,
        place: dict[str, PlaceValue],
        look: Look,
        common: Common,
        form: tuple[Any, ...] | None = None,
    ) -> Receipt:
        """Copy it to where the viewers can read it, and tell them.

        Where it has a form, it is remembered what came of checking it.
        """

    @abstractmethod
    def _send_planned(
        self,
        plan: Plan,
        array: npt.NDArray[Any],
        values: tuple[PlaceValue, ...],
        info: dict[str, Any] | None = None,
    ) -> Receipt:
        """As `_send`, of what was checked."""

    def _send_like_before(
        self, form: tuple[Any, ...], array: npt.NDArray[Any], place: Mapping[str, Any]
    ) -> Receipt | None:
        """Send an array of a form that was sent before; None: it has to be checked."""
        try:
            plan = self._plans.get(form)
        except TypeError:  # some setting is a list, say
            return None
        if plan is None:
            return None
        values = tuple(place.values())
        for value in values:
            kind = type(value)
            if kind is int:
                if not -MAX_INT <= value <= MAX_INT:
                    return None
            elif kind is not str or not 0 < len(value) <= MAX_TEXT:
                return None
        return self._send_planned(plan, array, values)

    @abstractmethod
    def _viewer_kinds(self) -> Iterable[str]:
        """What kinds of viewers it has, "napari" or "fiji", say, as their welcomes tell."""

    @abstractmethod
    def _send_file(
        self, file: ImageFile, name: str, place: dict[str, PlaceValue], look: Look, common: Common
    ) -> Receipt:
        """Tell the viewers of an image that stays in its file, and hand that over."""

    def image(
        self,
        image: Any,
        *,
        name: str = "image",
        axes: str | None = None,
        place: Place | None = None,
        colormap: str = "",
        contrast_limits: tuple[float, float] | None = None,
        blending: str = "",
        **common: Unpack[Common],
    ) -> Receipt:
        """Send an image.

        Parameters
        ----------
        image : array-like, 0 to 8 dimensions, any numeric dtype but complex, or bool
            Also torch, cupy and jax arrays. An array from `allocate` is sent without a copy.
        name : str
            Name of its layer (napari) or window (Fiji).
        axes : str
            One letter per dimension: T, C, Z, Y, X, S (RGB). None: YX, ZYX, CZYX, TCZYX by their
            number; uint8 (Y, X, 3 or 4) is RGB.
        place : mapping
            ``{"well": "A01", "site": 1, "channel": "DAPI", "z": 3, "time": 0}``, or part of it.
        colormap : str
            Name of a colormap (napari) or LUT (Fiji); empty: by the channel's name.
        contrast_limits : (low, high)
            None: from the layer's first data, then left alone.
        blending : str
            "additive", "translucent", "opaque", ...; empty: the viewer chooses.
        **common
            What every kind of item takes: see `Common`.

        Returns
        -------
        Receipt

        Raises
        ------
        InvalidItem
            The image can't be shown as given; nothing was sent.
        DeadlineExceeded
            The viewers took nothing within the stream's `timeout_s`.
        ViewerLost
            No viewer is left.
        """
        form = None
        if type(image) is np.ndarray and not common and (type(place) is dict or not place):
            # Its shape, dtype and all that is said of it; of the place the components.
            form = (
                "image", name, axes, colormap, contrast_limits, blending,
                image.shape, image.dtype, *(place or ()),
            )  # fmt: skip
            receipt = self._send_like_before(form, image, place or {})
            if receipt is not None:
                return receipt
        array, axes = with_axes(as_array(image), axes)
        if array is not image:
            form = None  # it has to be transposed each time
        look = Look(colormap, as_limits(contrast_limits), blending)
        return self._send("image", array, name, axes, as_place(place, axes), look, common, form)

    def image_file(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        axes: str | None = None,
        place: Place | None = None,
        colormap: str = "",
        contrast_limits: tuple[float, float] | None = None,
        blending: str = "",
        **common: Unpack[Common],
    ) -> Receipt:
        """Show an image that stays in its file: the viewers read of it what they show.

        A few bytes are sent, and the open file itself; what a viewer can't be handed in that way
        it never opens by its name. The file must stay as it is while it is shown: where it is cut
        short, zeros are shown.

        Parameters
        ----------
        path : path
            An uncompressed TIFF whose pixels lie together, as ImageJ and `tifffile` write them
            (one that can be memory-mapped; its first series), or the folder of an OME-Zarr image.
        name : str
            Of its layer; None: the file's name without its ending.
        axes : str
            A letter for each dimension, Y and X last (then S); None: as the file says.
        place, colormap, contrast_limits, blending, **common
            As in `image`.

        Raises
        ------
        InvalidItem
            The file is none of these, or a viewer can't read it itself: it runs on another
            machine, has no way to show files, or lacks zarr. Nothing was sent; send the pixels.
        ViewerLost
            No viewer is left.
        """
        from openhcs_stream.stream._files import open_image_file

        file = open_image_file(path, axes)
        look = Look(colormap, as_limits(contrast_limits), blending)
        return self._send_file(file, name or file.stem, as_place(place, file.axes), look, common)

    def labels(
        self,
        labels: Any,
        *,
        name: str = "labels",
        axes: str | None = None,
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send a label image: whole numbers, 0 is background; bool is a mask.

        Parameters, returns and errors are those of `image`.
        """
        form = None
        if type(labels) is np.ndarray and not common and (type(place) is dict or not place):
            form = ("labels", name, axes, labels.shape, labels.dtype, *(place or ()))
            receipt = self._send_like_before(form, labels, place or {})
            if receipt is not None:
                return receipt
        array, axes = with_axes(as_array(labels, what="a label image"), axes)
        if array is not labels:
            form = None
        if array.dtype.kind not in "biu":
            raise InvalidItem(
                f"a label image of dtype {array.dtype} has no labels.",
                cure="Use whole numbers, for instance labels.astype('uint32').",
            )
        return self._send("labels", array, name, axes, as_place(place, axes), PLAIN, common, form)

    def rois(
        self,
        rois: Any,
        *,
        name: str = "rois",
        place: Place | None = None,
        warn: bool = True,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send regions of interest; they replace those of the same name at the same place.

        Where a viewer has nothing for what one says (the words of a text or the head of an arrow
        in napari, say), it shows what comes nearest, and a `LossyConversion` warning tells.

        Coordinates arrive exactly, up to 8 MiB of float64 that float32 does not hold; those of a
        larger list are off by at most 2**-24 of their outline's size.

        Parameters
        ----------
        rois : list of Roi, or of (N, 2) arrays of polygon vertices (y, x) in pixels
            Whatever `openhcs_stream.rois.coerce` takes. An empty list clears the place.
        warn : bool
            False: of what a viewer can't hold only the receipt's `remarks` tell.
        name, place, **common
            As in `image`.
        """
        from openhcs_stream import rois as roi_codecs

        sent = roi_codecs.coerce(rois)
        lost = _remarks(sent, self._viewer_kinds())
        if lost and warn:
            # Before it is sent: where warnings are errors, nothing is.
            warnings.warn(f"{name!r} in {'; '.join(lost)}.", LossyConversion, stacklevel=2)
        block = np.frombuffer(roi_codecs.encode(sent), np.uint8)
        receipt = self._send("rois", block, name, "YX", as_place(place, "YX"), PLAIN, common)
        receipt.remarks = lost
        return receipt

    def points(
        self,
        points: Any,
        *,
        name: str = "points",
        axes: str | None = None,
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send points; they replace those of the same name at the same place.

        Parameters
        ----------
        points : (N, D) array-like of float
            Coordinates in pixels, whole numbers are pixel centres.
        axes : str
            Letters of the D columns; None: YX or ZYX.
        name, place, **common
            As in `image`.
        """
        table, axes = as_table(points, kind="points", axes=axes)
        return self._send("points", table, name, axes, as_place(place, axes), PLAIN, common)

    def tracks(
        self,
        tracks: Any,
        *,
        name: str = "tracks",
        axes: str | None = None,
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send tracks; they replace those of the same name at the same place.

        Parameters
        ----------
        tracks : (N, D + 1) array-like of float
            The track's number, then time and coordinates: one row per track and time.
        axes : str
            Letters of the D columns behind the number; None: TYX or TZYX.
        name, place, **common
            As in `image`.
        """
        table, axes = as_table(tracks, kind="tracks", axes=axes)
        return self._send("tracks", table, name, axes, as_place(place, axes), PLAIN, common)


def _remarks(rois: Sequence[Roi], kinds: Iterable[str]) -> tuple[str, ...]:
    """What viewers of these kinds can't hold of some ROIs: "napari: 2 arrows: each becomes ..."."""
    from openhcs_stream.rois import remarks

    return tuple(
        f"{kind}: {remark}"
        for kind in sorted(set(kinds) & _CONVERTS_TO.keys())
        for remark in remarks(rois, _CONVERTS_TO[kind])
    )
