"""Our items as OpenHCS's viewers take them: cut into planes, placed in their words, encoded.

Bytes out and nothing else: no socket and no shared memory. What such a viewer has no way to show
is refused here by name; where the original loses something without a word, it is gone round:

- Its Fiji shows only the middle plane of a 3-D image, so planes are sent one by one, each with its
  own place.
- Its Fiji turns what is not uint8, uint16 or float32 into 16 bits; such types are widened where
  that is exact, and refused where not.
- Its Fiji loses every item whose place lacks a component that a later batch names, so all places
  name the same ones; and it counts the planes of outlines in the window that is named as they are,
  so outlines are sent under the name of their source's last image.
- Its napari of generation 1 stacks along a single component in the order of arrival, so there are
  always two.
- Its napari of generation 2 shows nothing of a layer while a batch does not declare all values
  that the layer has, so each batch declares all that were ever sent.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import COMPONENT_ORDER
from openhcs_stream.rois import Roi, to_imagej, to_napari

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.dialects._openhcs_answers import OpenHCSViewer
    from openhcs_stream.messages import LayerSpec, PlaceValue

__all__ = ["AckRoute", "OpenHCSOut", "Piece", "Settings"]

#: Pieces that one item may be cut into: a place for each would be more than any slider shows.
MAX_PIECES: Final = 65_536

#: Their names of our components.
_THEIR_NAMES: Final = {"z": "z_index", "time": "timepoint"}
#: What generations 2 and 3 know, and every one of them must be named; and what a place without
#: one of them says there.
_THEIR_COMPONENTS: Final[dict[str, PlaceValue]] = {
    "site": 1, "channel": 1, "z": 1, "time": 1, "well": "-",
}  # fmt: skip

_NAPARI_STACK: Final = frozenset({"stack", "slice", "frame"})
#: Fiji's word for a component that is to be one more slider.
_FIJI_SLIDERS: Final = {"channel": "channel", "z": "slice"}

_AXIS_COMPONENTS: Final = {"T": "time", "C": "channel", "Z": "z"}
#: What lies over images.
_OVERLAYS: Final = frozenset({"rois", "points"})
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")

#: ImageJ's 32-bit floats hold whole numbers up to this exactly.
_EXACT: Final = 1 << 24
_LUTS: Final = {"": "Grays", "gray": "Grays", "grey": "Grays", "hilo": "HiLo"}
_OUTLINE_VERTICES: Final = 64


@dataclass(frozen=True, slots=True)
class AckRoute:
    """Where generation 3 sends acknowledgements; each item carries it."""

    url: str
    incarnation: str
    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What all pieces of one batch have in common."""

    modes: tuple[tuple[str, str], ...]
    order: tuple[str, ...]
    look: tuple[tuple[str, str | bool], ...]
    images_dir: str = ""


@dataclass(slots=True)
class Piece:
    """One item of theirs; an item of ours is one or several.

    Attributes
    ----------
    data_type : str
        "image", "rois", "shapes" or "points".
    settings : Settings
    metadata : dict
        Their components, and what else they read there.
    path : str
    pixels : ndarray or None
        Of an image, to be copied into shared memory in C order.
    content : dict
        Of anything else.
    """

    data_type: str
    settings: Settings
    metadata: dict[str, PlaceValue]
    path: str
    label: str
    pixels: npt.NDArray[Any] | None = None
    content: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Where:
    """Which layer or window a piece belongs to, and where in it."""

    title: str
    metadata: dict[str, PlaceValue]


class _Layer:
    """An image layer or window, as far as overlays have to know it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.last: dict[str, PlaceValue] = {}
        self._seen: dict[str, set[PlaceValue]] = {}

    def add(self, values: dict[str, PlaceValue]) -> None:
        """An image of it was sent at this place."""
        self.last = values
        for component, value in values.items():
            self._seen.setdefault(component, set()).add(value)

    def has(self, given: Mapping[str, PlaceValue]) -> bool:
        """Whether each of these values is one of its own, so that it need not grow."""
        return all(value in self._seen.get(name, ()) for name, value in given.items())


class OpenHCSOut:
    """Makes the messages of one stream to one viewer.

    Parameters
    ----------
    viewer : OpenHCSViewer
    scope : str
        Names this stream, apart from others that send to the same viewer.
    route : AckRoute or None
    """

    def __init__(self, viewer: OpenHCSViewer, *, scope: str, route: AckRoute | None = None) -> None:
        self.viewer = viewer
        self._scope = scope
        self._route = route
        #: Every value that was sent, by component.
        self._domain: dict[str, dict[PlaceValue, None]] = {}
        #: The images of each source by their names, the last one last.
        self._layers: dict[str, dict[str, _Layer]] = {}

    # --- from an item to pieces -----------------------------------------------------------------

    def check(self, spec: LayerSpec) -> None:
        """Whether this viewer has a way to show such a layer at all.

        Raises
        ------
        InvalidItem
            It has none: axes, colours or components that it does not know.
        """
        self._order(spec, spec.components)
        if spec.kind == "points" and spec.axes != "YX":
            raise self._refusal(
                f"points with coordinates {spec.axes}",
                'Send one table of y, x for each plane, with place={"z": ...}.',
            )
        if spec.kind not in ("image", "labels"):
            return
        plane_axes = "YXS" if spec.axes.endswith("S") else "YX"
        if not spec.axes.endswith(plane_axes):
            raise self._refusal(
                f"an image with axes {spec.axes!r}", "Send an image with axes Y and X."
            )
        if plane_axes == "YXS" and self.viewer.kind == "fiji":
            raise self._refusal(
                "an RGB image", 'Send its colours as channels: axes="CYX", or place={"channel": n}.'
            )
        for letter in spec.axes.removesuffix(plane_axes):
            if letter not in _AXIS_COMPONENTS:
                raise self._refusal(
                    f"an image with the axis {letter}",
                    "Send one image for each index of that axis, with another name or source.",
                )

    def image(
        self,
        spec: LayerSpec,
        place: Sequence[PlaceValue],
        pixels: npt.NDArray[Any],
        info: Mapping[str, Any],
    ) -> list[Piece]:
        """Cut an image or a label image into planes.

        Parameters
        ----------
        spec : LayerSpec
            Of the image's layer.
        place : sequence of values
            One for each of `spec.components`.
        pixels : ndarray
            Axes `spec.axes`. Pieces may be views of it.
        info : mapping
            "path" is passed on.

        Raises
        ------
        InvalidItem
            This viewer can't show it, with the reason.
        """
        self.check(spec)
        plane_axes = "YXS" if spec.axes.endswith("S") else "YX"
        leading = spec.axes.removesuffix(plane_axes)
        shape = pixels.shape[: len(leading)]
        if math.prod(shape) > MAX_PIECES:
            raise self._refusal(
                f"an image of {math.prod(shape)} planes", f"Send up to {MAX_PIECES} at once."
            )
        components = (*spec.components, *(_AXIS_COMPONENTS[letter] for letter in leading))
        settings = self._settings(spec, components)
        ready = self._showable(pixels, spec)
        pieces = []
        for index in np.ndindex(shape):
            where = self._where(spec, components, (*place, *index))
            content = {"source_channel_axis": 2} if plane_axes == "YXS" else {}
            pieces.append(self._piece("image", spec, settings, where, info, ready[index], content))
        return pieces

    def rois(
        self,
        spec: LayerSpec,
        place: Sequence[PlaceValue],
        rois: Sequence[Roi],
        info: Mapping[str, Any],
    ) -> list[Piece]:
        """Put regions into this viewer's words.

        Raises
        ------
        InvalidItem
            This viewer can't show one of them, or can't be told that there are none.
        """
        settings = self._settings(spec, spec.components)
        where = self._where(spec, spec.components, place)
        if not rois and (self.viewer.kind == "fiji" or self.viewer.generation == 1):
            raise self._refusal(
                "an empty list of regions, which should clear a place",
                "Clear the viewer, or send the list under another name.",
            )
        if self.viewer.kind == "fiji":
            encoded = [base64.b64encode(to_imagej(roi)).decode("ascii") for roi in rois]
            return [self._piece("rois", spec, settings, where, info, None, {"rois": encoded})]
        shapes = [self._shape(number, roi) for number, roi in enumerate(rois, 1)]
        points = [shape for shape in shapes if shape["type"] == "points"]
        others = [shape for shape in shapes if shape["type"] != "points"]
        pieces = []
        # A layer is of shapes or of points; a mixed list is one item in each.
        if others or not points:
            content = {"shapes": others}
            pieces.append(self._piece("shapes", spec, settings, where, info, None, content))
        if points:
            content = {"shapes": points}
            pieces.append(self._piece("points", spec, settings, where, info, None, content))
        return pieces

    def points(
        self,
        spec: LayerSpec,
        place: Sequence[PlaceValue],
        table: npt.NDArray[np.float64],
        info: Mapping[str, Any],
    ) -> list[Piece]:
        """Put a table of points, (N, 2) y, x, into this viewer's words.

        Raises
        ------
        InvalidItem
            The points have other coordinates than y, x, or there are none.
        """
        self.check(spec)
        settings = self._settings(spec, spec.components)
        where = self._where(spec, spec.components, place)
        if self.viewer.kind == "fiji":
            if not len(table):
                raise self._refusal("an empty table of points", "Send at least one point.")
            encoded = [base64.b64encode(to_imagej(Roi.points(table))).decode("ascii")]
            return [self._piece("rois", spec, settings, where, info, None, {"rois": encoded})]
        content = {
            "shapes": [
                {"type": "points", "coordinates": table.tolist(), "metadata": {"label": spec.name}}
            ]
        }
        return [self._piece("points", spec, settings, where, info, None, content)]

    # --- from pieces to a message ---------------------------------------------------------------

    def encode(self, pieces: Sequence[tuple[Piece, str, str]]) -> bytes:
        """One message of pieces with the same settings.

        Parameters
        ----------
        pieces : sequence of (piece, id, name of the shared memory)
            The name is empty where the piece has no pixels.
        """
        settings = pieces[0][0].settings
        order = list(settings.order)
        message: dict[str, Any] = {
            "type": "batch",
            "images": [self._item(piece, id_, block) for piece, id_, block in pieces],
            "display_config": {
                **dict(settings.look),
                "component_modes": dict(settings.modes),
                "component_order": order,
            },
            "timestamp": time.time(),
        }
        if self.viewer.kind == "fiji":
            message["images_dir"] = settings.images_dir or None
        if self.viewer.generation > 1:
            for piece, _, _ in pieces:
                for component in order:
                    self._domain.setdefault(component, {})[piece.metadata[component]] = None
            message["component_names_metadata"] = {}
            message["component_value_domain"] = {
                component: list(self._domain[component]) for component in order
            }
        return json.dumps(message).encode()

    def _item(self, piece: Piece, id_: str, block: str) -> dict[str, Any]:
        item: dict[str, Any] = {
            "path": piece.path,
            **piece.content,
            "data_type": piece.data_type,
            "metadata": piece.metadata,
            "image_id": id_,
        }
        if piece.pixels is not None:
            item["shape"] = list(piece.pixels.shape)
            item["dtype"] = str(piece.pixels.dtype)
            item["shm_name"] = block
        if self.viewer.generation > 1:
            item["producer_identity"] = {
                "origin": "direct",
                "output_kind": "direct",
                "output_key": piece.label,
                "projection_key": piece.label,
                "step_name": piece.label,
                "pipeline_position": None,
                # Two streams in one layer would each leave out the other's values of a component,
                # and then the layer shows nothing.
                "step_scope_id": self._scope,
                "invocation_key": None,
                "artifact_kind": None,
            }
        if self._route is not None:
            owner = {"pid": self._route.pid, "create_time": self._route.started}
            item["return_route"] = {
                "url": self._route.url, "incarnation": self._route.incarnation, "owner": owner,
            }  # fmt: skip
            item["producer"] = owner
        return item

    # --- where, and how it looks ----------------------------------------------------------------

    def _settings(self, spec: LayerSpec, components: Sequence[str]) -> Settings:
        fiji = self.viewer.kind == "fiji"
        order = self._order(spec, components)
        word = self._fiji_mode if fiji else self._napari_mode
        modes = {_their(component): word(spec, component) for component in order}
        if self.viewer.generation == 1:
            modes["source"] = "window" if fiji else "slice"
            if not fiji:
                _stack_by_two(modes)
        look: dict[str, str | bool] = {}
        if fiji:
            look["lut"] = _LUTS.get(spec.colormap, spec.colormap.title())
            look["auto_contrast"] = spec.contrast_limits is None
        else:
            look["colormap"] = spec.colormap or "gray"
            look["variable_size_handling"] = "pad_to_max"
        return Settings(
            tuple(modes.items()), tuple(modes), tuple(look.items()), spec.images_dir if fiji else ""
        )

    def _order(self, spec: LayerSpec, components: Sequence[str]) -> list[str]:
        """Our names of all components that a message has, slowest first."""
        alien = [name for name in components if name not in _THEIR_COMPONENTS]
        if alien and self.viewer.generation > 1:
            raise self._refusal(
                f"a place with the component {alien[0]!r}",
                f"It knows {', '.join(_their(name) for name in _THEIR_COMPONENTS)}; give others as "
                "the source or the name.",
            )
        if self.viewer.generation > 1:
            return list(_THEIR_COMPONENTS)  # in this order, or its napari shows nothing
        wanted = {*components, *(_THEIR_COMPONENTS if self._names_all else ())}
        ranked = dict.fromkeys([*spec.order, *COMPONENT_ORDER, *components])
        return [name for name in ranked if name in wanted]

    @property
    def _names_all(self) -> bool:
        """Whether a place must name every component."""
        return self.viewer.kind == "fiji" or self.viewer.generation > 1

    def _napari_mode(self, spec: LayerSpec, component: str) -> str:
        usual = "channel" if component == "channel" else "stack"
        if spec.modes.get(component, usual) in _NAPARI_STACK:
            return "stack"
        return "slice" if self.viewer.generation == 1 else "layer"

    def _fiji_mode(self, spec: LayerSpec, component: str) -> str:
        usual = "channel" if component == "channel" else "stack"
        mode = spec.modes.get(component, usual)
        if mode == "split":
            return "window"
        return _FIJI_SLIDERS.get(component, "frame") if mode == "stack" else mode

    def _where(
        self, spec: LayerSpec, components: Sequence[str], place: Sequence[PlaceValue]
    ) -> _Where:
        """Which layer or window, and where in it.

        What an overlay's place leaves out is as in the image that it lies over.
        """
        given = dict(zip(components, place, strict=True))
        below = self._below(spec, given)
        usual = _THEIR_COMPONENTS if self._names_all else {}
        values = {**usual, **(below.last if below is not None else {}), **given}
        metadata = {_their(component): value for component, value in values.items()}
        title = _label(spec)
        if spec.kind not in _OVERLAYS:
            layers = self._layers.setdefault(spec.source, {})
            layer = layers.pop(title) if title in layers else _Layer(title)
            layers[title] = layer
            layer.add(values)
        elif below is not None and self.viewer.kind == "fiji":
            title = below.title
        if self.viewer.generation == 1:
            metadata["source"] = title
            if self.viewer.kind == "napari":
                metadata.setdefault("timepoint", 1)
                metadata.setdefault("z_index", 1)
        return _Where(title, metadata)

    def _below(self, spec: LayerSpec, given: Mapping[str, PlaceValue]) -> _Layer | None:
        """The image that outlines or points lie over: the source's last one at such a place."""
        if spec.kind not in _OVERLAYS or not self._names_all:
            return None
        layers = reversed(self._layers.get(spec.source, {}).values())
        return next((layer for layer in layers if layer.has(given)), None)

    def _piece(
        self,
        data_type: str,
        spec: LayerSpec,
        settings: Settings,
        where: _Where,
        info: Mapping[str, Any],
        pixels: npt.NDArray[Any] | None,
        content: dict[str, Any],
    ) -> Piece:
        path = info.get("path")
        if not isinstance(path, str) or not path:
            values = (
                f"{name}{value}" for name, value in where.metadata.items() if name != "source"
            )
            path = _UNSAFE.sub("_", "_".join([_label(spec), *values])) + ".tif"
        return Piece(data_type, settings, where.metadata, path, where.title, pixels, content)

    # --- what it can't take ---------------------------------------------------------------------

    def _showable(self, pixels: npt.NDArray[Any], spec: LayerSpec) -> npt.NDArray[Any]:
        """The same values in a type that its Fiji does not change; napari takes every type."""
        if self.viewer.kind != "fiji" or pixels.dtype.name in ("uint8", "uint16", "float32"):
            return pixels
        if pixels.dtype.name == "bool":
            return pixels.view(np.uint8)
        if pixels.dtype.name not in ("int8", "int16", "float16"):
            for plane in _planes(pixels):
                self._check_exact(plane, spec)
        return pixels.astype(np.float32)

    def _check_exact(self, plane: npt.NDArray[Any], spec: LayerSpec) -> None:
        if plane.dtype.kind in "iu":
            same = (plane <= _EXACT) & (plane >= -_EXACT if plane.dtype.kind == "i" else True)
        else:
            with np.errstate(over="ignore"):
                same = (plane.astype(np.float32) == plane) | np.isnan(plane)
        if np.all(same):
            return
        value = plane[tuple(np.argwhere(~np.asarray(same))[0])]
        raise self._refusal(
            f"{spec.kind} {spec.name!r} of {plane.dtype} with the value {value}, which 32-bit "
            "floats can't hold,",
            "Send astype('float32') to round it yourself"
            + (", or number the labels anew." if spec.kind == "labels" else "."),
        )

    def _shape(self, number: int, roi: Roi) -> dict[str, Any]:
        """One region as their napari has it."""
        kind, yx = to_napari(roi, warn=False)  # the stream has told
        metadata = {"label": roi.name or number}
        if kind == "rectangle":
            kind = "polygon"
        elif kind == "line":
            kind = "path"
        if self.viewer.generation == 1:
            # It draws polygons into a label image, and passes over everything else.
            if kind == "ellipse":
                kind, yx = "polygon", _outline_of(yx)
            if kind != "polygon":
                raise self._refusal(
                    f"a region of kind {roi.kind}", "It draws areas only: send its outline."
                )
        return {"type": kind, "coordinates": yx.tolist(), "metadata": metadata}

    def _refusal(self, what: str, cure: str) -> InvalidItem:
        return InvalidItem(f"{self.viewer.title} can't show {what}.".replace(",.", "."), cure=cure)


def _their(component: str) -> str:
    return _THEIR_NAMES.get(component, component)


def _label(spec: LayerSpec) -> str:
    """The name of the layer or window: a source's one image is called as the source is."""
    if spec.source and spec.name in ("image", ""):
        return spec.source
    return f"{spec.source} {spec.name}".strip()


def _stack_by_two(modes: dict[str, str]) -> None:
    """With one stacked component it would stack in the order of arrival."""
    stacked = [name for name, mode in modes.items() if mode == "stack"]
    if len(stacked) == 1:
        modes["timepoint" if stacked[0] != "timepoint" else "z_index"] = "stack"


def _planes(pixels: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Pieces small enough that looking through them needs little memory."""
    if pixels.ndim <= 2:
        yield pixels
        return
    for part in pixels:
        yield from _planes(part)


def _outline_of(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Vertices of an ellipse that is given by the four corners of its box, in order."""
    centre = corners.mean(axis=0)
    first, second = (corners[1] - corners[0]) / 2, (corners[2] - corners[1]) / 2
    angles = np.linspace(0.0, 2 * np.pi, _OUTLINE_VERTICES, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(angles) * first + np.sin(angles) * second)
