"""What can be asked about a scene: its layers, their places, and what is there now."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from openhcs_stream import rois as roi_codecs
from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import Kind
from openhcs_stream.viewer._edits import place_of
from openhcs_stream.viewer._placement import RASTER_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.viewer._scene import Coords, Scene, SceneLayer

__all__ = ["describe_layers", "places", "read"]

_NONE: Mapping[str, Any] = MappingProxyType({})


def describe_layers(scene: Scene) -> list[dict[str, Any]]:
    """Every layer, JSON-able: its title, kind, name, source, components, and what is where."""
    return [_describe(layer) for layer in scene.layers.values()]


def places(scene: Scene, args: Mapping[str, Any]) -> list[dict[str, PlaceValue]]:
    """Where layers of a name have something: a place for each.

    Parameters
    ----------
    scene : Scene
        Of the viewer that is asked.
    args : mapping
        "name" of the layer; "kind" and "source" where they must be told apart; "place": only
        places that have these values.

    Raises
    ------
    InvalidItem
        There is no such layer; the text names those that there are.
    """
    return [place_of(layer, coords) for layer, coords in _find(scene, args)]


def read(
    scene: Scene,
    args: Mapping[str, Any],
    own_tracks: Mapping[str, npt.NDArray[Any]] = _NONE,
) -> dict[str, Any]:
    """What is at one place now, with what a person changed.

    Parameters
    ----------
    scene : Scene
        Of the viewer that is asked.
    args : mapping
        As in `places`; or "layer", a layer's title, instead of its name.
    own_tracks : mapping of name to (N, 4) or (N, 5) array
        Tracks of the person's own, which are no layers of the scene and have no place. They are
        found where "kind" is "tracks" and no worker sent any of that name.

    Returns
    -------
    dict
        "kind", "name", "source" and "place"; and for images and labels "shape", "dtype" and the
        plane's bytes as "data"; for rois a block as "data"; for points and tracks "shape" and
        float64 rows as "data".

    Raises
    ------
    InvalidItem
        There is no such layer or place, or several: the text names them.
    """
    name = str(args.get("name"))
    answer: dict[str, Any]
    if args.get("kind") == "tracks" and not (args.get("source") or args.get("place")):
        sent = any((x.kind, x.key.name) == ("tracks", name) for x in scene.layers.values())
        if name in own_tracks and not sent:
            answer = {"kind": "tracks", "name": name, "source": "", "place": {}}
            return answer | _table(np.asarray(own_tracks[name], "<f8"))
    found = _find(scene, args, own_tracks)
    if len(found) > 1:
        some = ", ".join(str(place_of(layer, coords)) for layer, coords in found[:5])
        kinds = {layer.kind for layer, _ in found}
        sources = {layer.key.source for layer, _ in found}
        also = " kind=" if len(kinds) > 1 else " source=" if len(sources) > 1 else " place="
        raise InvalidItem(
            f"{_wanted(args)} is at {len(found)} places: {some}{' ...' if len(found) > 5 else ''}.",
            cure=f"Name one of them, with{also}...",
        )
    layer, coords = found[0]
    answer = {
        "kind": layer.kind,
        "name": layer.key.name,
        "source": layer.key.source,
        "place": place_of(layer, coords),
    }
    if layer.kind == "rois":
        return {**answer, "data": roi_codecs.encode(layer.items[coords])}
    raster = layer.kind in RASTER_KINDS
    return answer | _table(layer.stack.planes[coords] if raster else layer.items[coords])


def _table(array: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    return {"shape": list(array.shape), "dtype": array.dtype.str, "data": array.tobytes()}


def _find(
    scene: Scene, args: Mapping[str, Any], own_tracks: Iterable[str] = ()
) -> list[tuple[SceneLayer, Coords]]:
    title, name, kind, source = (args.get(key) for key in ("layer", "name", "kind", "source"))
    if kind is not None and kind not in get_args(Kind):
        raise InvalidItem(f"there is no kind {kind!r}.", cure=f"Use one of {get_args(Kind)}.")
    wanted = dict(args.get("place") or {})
    layers = [
        layer
        for layer in scene.layers.values()
        if (title is None or layer.title == title)
        and (name is None or layer.key.name == name)
        and kind in (None, layer.kind)
        and source in (None, layer.key.source)
    ]
    if not layers:
        known = ", ".join(
            [f"{each.kind} {each.title!r}" for each in scene.layers.values()]
            + [f"tracks {each!r} of the person's own, without place" for each in own_tracks]
        )
        raise InvalidItem(
            f"the viewer has no {_wanted(args)}.", cure=f"It has {known or 'no layer at all'}."
        )
    found = [
        (layer, coords)
        for layer in layers
        for coords in _places(layer)
        if _is_part(wanted, place_of(layer, coords))
    ]
    if not found:
        some = [str(place_of(layer, at)) for layer in layers for at in _places(layer)][:5]
        raise InvalidItem(
            f"{_wanted(args)} has nothing at {wanted}.", cure=f"It has {', '.join(some)}..."
        )
    return found


def _is_part(wanted: Mapping[str, Any], place: Mapping[str, PlaceValue]) -> bool:
    return all(place.get(component) == value for component, value in wanted.items())


def _places(layer: SceneLayer) -> Iterable[Coords]:
    return list(layer.stack.planes if layer.kind in RASTER_KINDS else layer.items)


def _wanted(args: Mapping[str, Any]) -> str:
    what = args.get("kind") or "layer"
    name = args.get("layer") if args.get("name") is None else args.get("name")
    source = f" of {args['source']!r}" if args.get("source") else ""
    return f"{what} {name!r}{source}" if name is not None else f"{what}{source}"


def _describe(layer: SceneLayer) -> dict[str, Any]:
    described: dict[str, Any] = {
        "title": layer.title,
        "kind": layer.kind,
        "name": layer.key.name,
        "source": layer.key.source,
        "split": dict(layer.key.split),
        "components": list(layer.components),
    }
    if layer.kind in RASTER_KINDS:
        described |= {
            "shape": list(layer.stack.shape),
            "dtype": layer.stack.dtype.str,
            "planes": [list(coords) for coords in layer.stack.planes],
        }
    else:
        described["items"] = [[list(coords), len(item)] for coords, item in layer.items.items()]
    return described
