"""OpenHCS's wire, as the released packages of all its generations send it, and expect back.

A REQ socket, or in generation 1 for napari a PUB socket, sends one JSON object. Image pixels lie in
named shared memory, one block an image. Generations are told apart by what an item carries:

- 1 (openhcs 0.3.8 to 0.5.0, polystore 0.1.9): nothing. Whoever receives it removes its block.
- 2 (polystore 0.1.20 to 0.2.19): a ``producer_identity``. Its sender removes its block.
- 3 (polystore from 0.3.4): a ``return_route`` beside. Acknowledgements go there, and not to the
  one port for all.

What is told here differs from the original in two points, on purpose: the answer is "success"
only if every item was read, and an acknowledgement means that the item is on the screen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from openhcs_stream.dialects._base import (
    Dialect,
    ForeignBatch,
    ForeignFailure,
    ForeignItem,
    SenderRoute,
)
from openhcs_stream.dialects._families import family_of
from openhcs_stream.dialects._openhcs_pixels import (
    channel_axis,
    discard_refused,
    lay_out,
    on_canvas,
    open_pixels,
)
from openhcs_stream.dialects._openhcs_places import (
    locate,
    plane_values,
    read_settings,
)
from openhcs_stream.dialects._openhcs_shapes import (
    by_plane,
    read_imagej_rois,
    read_points,
    read_shapes,
    to_rois,
)
from openhcs_stream.dialects._openhcs_wire import (
    UNREADABLE,
    Common,
    Image,
    Tracking,
    decode_envelope,
    decode_part,
    is_absent,
    reason_of,
)
from openhcs_stream.dialects._vocabulary import contrast_limits
from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.messages import LayerSpec

if TYPE_CHECKING:
    from msgspec import Raw

    from openhcs_stream.dialects._openhcs_places import Settings, Whereabouts
    from openhcs_stream.messages import Kind, PlaceValue

__all__ = ["OpenHCS"]

#: Bytes of a return route and of a producer, each; they are sent back as they came.
MAX_ECHO_NBYTES = 4096


class _Route(Struct):
    url: Annotated[str, Meta(min_length=1, max_length=1024)]


class OpenHCS(Dialect):
    """All generations: one JSON object, pixels in named shared-memory blocks."""

    name = "openhcs"

    def recognises(self, frame: bytes | memoryview) -> bool:
        """Whether the frame is a JSON object."""
        return bytes(frame[:1]) == b"{"

    def read(
        self,
        frame: bytes | memoryview,
        *,
        viewer: str,
        viewer_port: int,
        local_ipc: bool,
        family: str = "",
    ) -> ForeignBatch:
        """Decode a batch, or a single item without envelope, and map its images.

        See `Dialect.read`. Names of shared memory whose owner, kind or size is wrong are left
        alone. One of this user, of the form that generation 1 gives its blocks, and in an item of
        that generation, is removed by `ForeignItem.finish`, or at once where the item can't be
        shown.
        """
        try:
            envelope = decode_envelope(frame)
        except ProtocolViolation:
            discard_refused(frame)
            raise
        settings = read_settings(envelope, viewer)
        meant = "fiji" if settings.fiji else "napari"
        batch = ForeignBatch([], [], meant, viewer_port, settings.names)
        shared = SenderRoute(family_of(family).ack_address(local_ipc=local_ipc), is_shared=True)
        for number, raw in enumerate(envelope.images or ()):
            tracking, problem = _read_tracking(raw)
            item_id = tracking.image_id or tracking.path or f"item {number}"
            route = None
            if tracking.image_id is not None:
                route = _own_route(tracking) or shared
            try:
                if problem is not None:
                    raise problem
                batch.items.append(_read_item(raw, item_id, tracking, route, settings))
            except UNREADABLE as error:
                batch.failures.append(ForeignFailure(item_id, reason_of(error), route))
                discard_refused(memoryview(raw))
        return batch


def _read_tracking(raw: Raw) -> tuple[Tracking, Exception | None]:
    try:
        return decode_part(raw, Tracking), None
    except UNREADABLE as error:
        return Tracking(), error


def _own_route(tracking: Tracking) -> SenderRoute | None:
    """Where generation 3 wants to hear of an item; None: it does not say."""
    parts = {"return_route": tracking.return_route, "producer": tracking.producer}
    try:
        if is_absent(tracking.return_route):
            return None
        echo = {
            name: decode_part(raw, dict[str, Any])
            for name, raw in parts.items()
            if not is_absent(raw) and len(memoryview(raw)) <= MAX_ECHO_NBYTES
        }
        return SenderRoute(decode_part(tracking.return_route, _Route).url, echo=echo)
    except UNREADABLE:
        return None


def _read_item(
    raw: Raw, item_id: str, tracking: Tracking, route: SenderRoute | None, settings: Settings
) -> ForeignItem:
    common: Common = decode_part(raw, Common)
    info: dict[str, str | int | float | bool | None] = {"id": item_id}
    if common.path is not None:
        info["path"] = common.path
    is_first = is_absent(common.producer_identity) and is_absent(tracking.return_route)
    match common.data_type:
        case "image":
            item = _read_image(raw, item_id, common, settings, info, takes_over=is_first)
        case "rois" | "shapes" | "points":
            item = _read_outlines(raw, item_id, common, settings, info)
        case other:
            raise InvalidItem(
                f"items of data_type {other!r} are unknown.",
                cure="Send image, rois, shapes or points.",
            )
    item.route = route
    return item


def _read_image(
    raw: Raw,
    item_id: str,
    common: Common,
    settings: Settings,
    info: dict[str, str | int | float | bool | None],
    *,
    takes_over: bool,
) -> ForeignItem:
    image: Image = decode_part(raw, Image)
    pixels, release = open_pixels(image, takes_over=takes_over)
    try:
        colours = channel_axis(common, pixels.ndim)
        coloured = colours is not None and pixels.shape[colours] in (3, 4)
        where = locate(common, settings, "image", coloured=coloured)
        pixels = on_canvas(
            pixels,
            origin_yx=common.spatial_origin_yx,
            shape_yx=common.source_spatial_shape_yx,
            colours=colours,
        )
        layout = lay_out(
            pixels, where.components, where.place, colours=colours, planes=plane_values(common)
        )
        if len(layout.axes.rstrip("S")) > 2 and "z" in layout.components:
            # A stack that says itself where in z it is: its planes get a slider of their own,
            # which plain images of the same step, in one layer with it, would not have.
            where.name += " stack"
            where.title += "" if where.title.endswith("stack") or not where.title else " stack"
        limits = contrast_limits(pixels.dtype, auto_contrast=settings.auto_contrast)
        spec = _spec("image", layout.axes, layout.components, where, settings, limits)
    except UNREADABLE:
        if release is not None:
            release()
        raise
    return ForeignItem(
        item_id, spec, list(layout.parts), _told(info, where, settings), release=release
    )


def _read_outlines(
    raw: Raw,
    item_id: str,
    common: Common,
    settings: Settings,
    info: dict[str, str | int | float | bool | None],
) -> ForeignItem:
    kind: Kind = "points" if common.data_type == "points" else "rois"
    where = locate(common, settings, kind)
    components = where.components
    parts: list[tuple[tuple[PlaceValue, ...], Any]]
    if common.data_type == "rois":
        parts = [(where.place, read_imagej_rois(raw, common.path))]
    else:
        shapes = read_shapes(raw)
        planes = plane_values(common)
        make = read_points if kind == "points" else to_rois
        if planes and shapes:
            at = {
                name: value
                for name, value in zip(components, where.place, strict=True)
                if name not in planes
            }
            components = (*at, *planes)
            parts = [
                ((*at.values(), *values), make(numbered))
                for values, numbered in by_plane(shapes, planes).items()
            ]
        else:
            parts = [(where.place, make(list(enumerate(shapes))))]
    spec = _spec(kind, "YX", components, where, settings, None)
    return ForeignItem(item_id, spec, parts, _told(info, where, settings))


def _told(
    info: dict[str, str | int | float | bool | None], where: Whereabouts, settings: Settings
) -> dict[str, str | int | float | bool | None]:
    """What is known of an item beside its place."""
    told = {**where.rest, **info}
    for component, value in zip(where.components, where.place, strict=True):
        name = settings.names.get(component, {}).get(str(value))
        if name is not None:
            told[f"{component} name"] = name
    return told


def _spec(
    kind: Kind,
    axes: str,
    components: tuple[str, ...],
    where: Whereabouts,
    settings: Settings,
    limits: tuple[float, float] | None,
) -> LayerSpec:
    if limits is not None and not all(map(math.isfinite, limits)):
        limits = None
    return LayerSpec(
        kind=kind,
        name=where.name,
        axes=axes,
        components=components,
        source=where.source,
        modes=where.modes,
        order=settings.order,
        colormap=where.colormap if kind == "image" else "",
        contrast_limits=limits if kind == "image" else None,
        blending=where.blending,
        images_dir=settings.images_dir,
        title=where.title,
    )
