"""Images, labels and sliders in napari, in both viewers: structure, values, growth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import UsageError
from openhcs_stream.messages import DTYPES, LayerSpec

if TYPE_CHECKING:
    from tests.viewers.napari.conftest import Stage


def image(**changes: Any) -> LayerSpec:
    fields: dict[str, Any] = {
        "kind": "image",
        "name": "raw",
        "axes": "YX",
        "components": ("well", "channel"),
        "source": "plate",
    }
    return LayerSpec(**{**fields, **changes})


def labels(**changes: Any) -> LayerSpec:
    return image(**{"kind": "labels", "name": "nuclei", "components": ("well",), **changes})


def ramp(start: int = 0, dtype: str = "u2", shape: tuple[int, int] = (24, 32)) -> Any:
    return (np.arange(shape[0] * shape[1]).reshape(shape) % 100 + start).astype(dtype)


def seen(native: Any) -> Any:
    """The plane that napari has sliced for the screen, as it came out of the stack."""
    return native._slice.image.raw


def test_a_channel_is_a_layer_with_its_own_colours(stage: Stage) -> None:
    stage.show((image(), ("A01", "DAPI"), ramp()), (image(), ("A01", "GFP"), ramp(9)))
    names = [(native.name, native.colormap.name) for native in stage.viewer.model.layers]
    assert names == [("plate / raw [DAPI]", "bop blue"), ("plate / raw [GFP]", "green")]
    assert {str(native.blending) for native in stage.viewer.model.layers} == {"additive"}


def test_layers_are_ordered_by_kind_whatever_comes_first(stage: Stage) -> None:
    flat = {"components": ("well",)}
    points = np.array([[3.0, 4.0]])
    stage.show((image(kind="points", name="spots", **flat), ("A01",), points))
    stage.show((labels(), ("A01",), ramp()))
    stage.show((image(name="filtered", **flat), ("A01",), ramp()))
    stage.show((image(kind="rois", name="cells", **flat), ("A01",), []))
    stage.show((image(**flat), ("A01",), ramp()))
    found = [native.name.split(" / ")[1] for native in stage.viewer.model.layers]
    assert found == ["filtered", "raw", "nuclei", "cells", "spots"]


def test_a_late_value_is_inserted_and_the_slider_follows_the_value(stage: Stage) -> None:
    native = stage.native((image(), ("A02", "DAPI"), ramp(2)))
    limits = tuple(native.contrast_limits)
    assert stage.viewer.place == {"well": "A02"}
    assert stage.native((image(), ("A10", "DAPI"), ramp(10))) is native
    assert stage.native((image(), ("A01", "DAPI"), ramp(1))) is native
    assert stage.viewer.place == {"well": "A02"}
    assert stage.viewer.model.dims.current_step[0] == 1
    np.testing.assert_array_equal(seen(native), ramp(2))
    np.testing.assert_array_equal(np.asarray(native.data[2]), ramp(10))
    assert tuple(native.contrast_limits) == limits
    assert native.data.shape == (3, 24, 32)


def test_a_new_axis_in_the_middle_keeps_what_is_in_view(stage: Stage) -> None:
    stacked = {"components": ("well", "z"), "pixel_size": (2.0, 0.5, 0.5), "unit": "um"}
    native = stage.native((image(**stacked), ("A02", 3), ramp(2)))
    stage.show((image(**stacked), ("A01", 4), ramp(1)))
    sited = {**stacked, "components": ("well", "site", "z")}
    other = stage.native((image(name="sited", **sited), ("A02", 7, 3), ramp(5)))
    assert stage.viewer.place == {"well": "A02", "site": 7, "z": 3}
    for each in (native, other):
        assert each.data.shape == (2, 1, 2, 24, 32)
        assert tuple(each.scale) == (1.0, 1.0, 2.0, 0.5, 0.5)
        assert tuple(each.axis_labels) == ("well", "site", "z", "y", "x")
    np.testing.assert_array_equal(seen(native), ramp(2))
    np.testing.assert_array_equal(seen(other), ramp(5))
    labels_shown = stage.viewer.model.dims.axis_labels
    assert labels_shown == ("well: A02", "site: 7", "z: 3", "y", "x")


def test_the_sliders_say_values_and_not_numbers(stage: Stage) -> None:
    for well in ("A01", "A02"):
        stage.show((image(), (well, "DAPI"), ramp()))
    dims = stage.viewer.model.dims
    assert dims.axis_labels == ("well: A01", "y", "x")
    dims.set_current_step(0, 1)
    assert dims.axis_labels == ("well: A02", "y", "x")
    assert stage.viewer.model.canvas.overlays.text.text == "well A02"
    assert stage.viewer.place == {"well": "A02"}


def test_go_to_takes_values(stage: Stage) -> None:
    for well in ("A01", "A02"):
        stage.show((image(), (well, "DAPI"), ramp()))
    stage.viewer.go_to(well="A02")
    assert stage.viewer.model.dims.current_step[0] == 1
    with pytest.raises(UsageError, match="A99"):
        stage.viewer.go_to(well="A99")


def test_a_repeated_plane_is_drawn_again_and_only_where_it_is_in_view(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), ramp()))
    stage.show((image(), ("A02", "DAPI"), ramp()))
    drawn: list[object] = []
    native.events.set_data.connect(drawn.append)
    stage.show((image(), ("A02", "DAPI"), ramp(50)))
    assert not drawn
    stage.show((image(), ("A01", "DAPI"), ramp(40)), (image(), ("A01", "DAPI"), ramp(60)))
    assert len(drawn) == 1  # two arrivals in one tick, one draw
    np.testing.assert_array_equal(seen(native), ramp(60))


def test_a_plane_that_never_came_is_dark(stage: Stage) -> None:
    stacked = {"components": ("well", "z")}
    native = stage.native(
        (image(**stacked), ("A01", 0), ramp(1)), (image(**stacked), ("A02", 1), ramp(2))
    )
    stage.viewer.go_to(well="A01", z=1)
    assert not seen(native).any()
    stage.show((image(**stacked), ("A01", 1), ramp(7)))
    np.testing.assert_array_equal(seen(native), ramp(7))


def test_scale_and_units(stage: Stage) -> None:
    spec = image(components=("z", "channel"), pixel_size=(2.0, 0.65, 0.65), unit="um")
    native = stage.native((spec, (3, "DAPI"), ramp()))
    assert tuple(native.scale) == (2.0, 0.65, 0.65)
    assert [str(unit) for unit in native.units] == ["micrometer"] * 3
    plain = stage.native((image(name="plain", components=("z",)), (3,), ramp()))
    assert tuple(plain.scale) == (2.0, 1.0, 1.0)  # steps along z are the world's, Y and X its own
    assert [str(unit) for unit in plain.units] == ["micrometer", "pixel", "pixel"]


def test_an_unknown_unit_is_shown_as_pixels(stage: Stage) -> None:
    spec = image(components=(), pixel_size=(2.0, 2.0), unit="parsnips")
    native = stage.native((spec, (), ramp()))
    assert tuple(native.scale) == (2.0, 2.0)
    assert [str(unit) for unit in native.units] == ["pixel", "pixel"]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_is_shown_with_its_values(stage: Stage, dtype: str) -> None:
    pixels = ramp(0, dtype)
    native = stage.native((image(components=()), (), pixels))
    shown = seen(native)
    np.testing.assert_array_equal(shown, pixels.astype(shown.dtype))
    assert np.all(np.diff(native.contrast_limits) > 0)


def test_whole_stacks_come_in_one_item(stage: Stage) -> None:
    stack = np.stack([ramp(z) for z in range(4)])
    native = stage.native((image(axes="ZYX", components=("well",)), ("A01",), stack))
    np.testing.assert_array_equal(np.asarray(native.data), stack[None])
    stage.viewer.go_to(z=2)
    np.testing.assert_array_equal(seen(native), stack[2])


@pytest.mark.parametrize("samples", [3, 4])
def test_colour_images(stage: Stage, samples: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, samples)).astype("u1")
    native = stage.native((image(axes="YXS", components=("well",)), ("A01",), pixels))
    assert native.rgb
    stage.show((image(axes="YXS", components=("well",)), ("A00",), pixels[::-1]))
    np.testing.assert_array_equal(seen(native), pixels)
    assert native.ndim == 3


def test_planes_of_another_size_and_dtype_widen_the_stack(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), ramp(0, "u1")))
    stage.show((image(), ("A02", "DAPI"), ramp(300, "u2", (40, 50))))
    assert native.data.shape == (2, 40, 50)
    assert native.dtype == np.uint16
    np.testing.assert_array_equal(seen(native)[:24, :32], ramp(0))
    stage.viewer.go_to(well="A02")
    np.testing.assert_array_equal(seen(native), ramp(300, "u2", (40, 50)))


def test_bits_that_become_numbers(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), ramp() > 50))
    stage.show((image(), ("A02", "DAPI"), ramp(300)))
    assert native.dtype == np.uint16
    stage.viewer.go_to(well="A02")
    np.testing.assert_array_equal(seen(native), ramp(300))


def test_contrast_comes_from_the_first_data_that_says_anything(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), np.zeros((24, 32), "u2")))
    stage.show((image(), ("A02", "DAPI"), ramp(100)))
    assert native.contrast_limits == [100, 199]
    stage.show((image(), ("A03", "DAPI"), ramp(5000)))
    assert native.contrast_limits == [100, 199]
    assert native.contrast_limits_range == [0, 255]


def test_a_persons_contrast_stays(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), np.zeros((24, 32), "u2")))
    native.contrast_limits = (0, 77)
    stage.show((image(), ("A02", "DAPI"), ramp(100)))
    assert native.contrast_limits == [0, 77]


def test_declared_looks_are_taken_and_redeclared_ones_too(stage: Stage) -> None:
    spec = image(colormap="magma", contrast_limits=(10.0, 90.0), opacity=0.5, visible=False)
    native = stage.native((spec, ("A01", "DAPI"), ramp()))
    assert native.colormap.name == "magma"
    assert native.contrast_limits == [10, 90]
    assert (native.opacity, native.visible) == (0.5, False)
    native.colormap = "red"  # a person's choice outlives data, not a new declaration
    stage.show((spec, ("A02", "DAPI"), ramp()))
    assert native.colormap.name == "red"
    stage.show((image(colormap="green", visible=True), ("A02", "DAPI"), ramp()))
    assert native.colormap.name == "green"
    assert native.visible


def test_an_unknown_colormap_does_not_hide_the_image(stage: Stage) -> None:
    native = stage.native((image(colormap="no such map"), ("A01", "GFP"), ramp()))
    assert native.colormap.name == "green"


def test_an_invisible_layer_grows_too(stage: Stage) -> None:
    native = stage.native((image(visible=False), ("A01", "DAPI"), ramp(1)))
    stage.show((image(visible=False), ("A02", "DAPI"), ramp(2)))
    assert stage.viewer.model.dims.nsteps[0] == 2
    native.visible = True
    stage.viewer.go_to(well="A02")
    np.testing.assert_array_equal(seen(native), ramp(2))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "i8", "?"])
def test_labels(stage: Stage, dtype: str) -> None:
    pixels = (ramp() % 2 if dtype == "?" else ramp()).astype(dtype)
    native = stage.native((labels(), ("A01",), pixels))
    np.testing.assert_array_equal(seen(native), pixels.astype(seen(native).dtype))
    assert native.editable
    stage.show((labels(), ("A02",), pixels))
    assert native.editable


def test_labels_that_become_something_else_fail_alone(stage: Stage) -> None:
    stage.show((labels(), ("A01",), ramp()))
    native = stage.native((image(), ("A01", "DAPI"), ramp()))
    layer = next(each for key, each in stage.scene.layers.items() if key.kind == "labels")
    layer.stack.put(("A01",), ramp(dtype="f4"))
    with pytest.raises(UsageError, match=r"float32.*uint32"):
        stage.viewer.show_layer(layer, [("A01",)])
    stage.show((image(), ("A02", "DAPI"), ramp(2)))
    assert native.data.shape == (2, 24, 32)


def test_a_layer_that_a_person_deleted_comes_back_with_new_data(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), ramp()))
    stage.show((image(), ("A01", "GFP"), ramp()))
    stage.viewer.model.layers.remove(native)
    stage.show((image(), ("A00", "GFP"), ramp()))  # the axes change while it is away
    again = stage.native((image(), ("A01", "DAPI"), ramp(3)))
    assert again is not native
    assert again in stage.viewer.model.layers
    stage.viewer.go_to(well="A01")
    np.testing.assert_array_equal(seen(again), ramp(3))


def test_a_person_who_clears_everything_finds_it_empty(stage: Stage) -> None:
    spots = image(kind="points", name="spots", components=("well",))
    everything = [
        (image(), ("A01", "DAPI"), ramp()),
        (image(), ("A02", "DAPI"), ramp(2)),
        (spots, ("A01",), np.array([[3.0, 4.0]])),
    ]
    stage.show(*everything)
    stage.viewer.model.layers.clear()
    assert not stage.viewer.model.layers
    stage.show(everything[2])  # a list alone, whose sliders no image spans
    assert stage.viewer.place == {"well": "A01"}
    stage.viewer.model.layers.clear()
    assert not stage.viewer.model.layers
    stage.show(*everything)
    stage.viewer.go_to(well="A02")
    np.testing.assert_array_equal(seen(stage.viewer.model.layers[0]), ramp(2))


def test_a_persons_name_and_hiding_stay(stage: Stage) -> None:
    native = stage.native((image(), ("A01", "DAPI"), ramp()))
    native.name, native.visible = "mine", False
    assert stage.native((image(), ("A02", "DAPI"), ramp())) is native
    assert (native.name, native.visible) == ("mine", False)


def test_removing_layers_shrinks_the_sliders(stage: Stage) -> None:
    stage.show((image(), ("A01", "DAPI"), ramp(1)), (image(), ("A02", "DAPI"), ramp(2)))
    kept = stage.native((labels(), ("A02",), ramp(3)))
    key = next(key for key in stage.scene.layers if key.kind == "image")
    stage.viewer.go_to(well="A02")
    gone = stage.scene.remove(key)
    assert gone is not None
    stage.viewer.remove_layer(gone)
    stage.viewer.set_axes(stage.scene.axes)
    stage.viewer.remove_layer(gone)  # a second time is nothing
    assert [native.name for native in stage.viewer.model.layers] == ["plate / nuclei"]
    assert stage.viewer.place == {"well": "A02"}
    np.testing.assert_array_equal(seen(kept), ramp(3))


def test_clearing_leaves_a_viewer_that_works(stage: Stage) -> None:
    stage.show((image(), ("A01", "DAPI"), ramp(1)), (labels(), ("A01",), ramp(3)))
    for layer in stage.scene.clear():
        stage.viewer.remove_layer(layer)
    stage.viewer.set_axes(stage.scene.axes)
    assert not stage.viewer.model.layers
    native = stage.native((image(components=("z", "channel")), (4, "DAPI"), ramp(4)))
    assert stage.viewer.place == {"z": 4}
    np.testing.assert_array_equal(seen(native), ramp(4))


def test_a_persons_own_layers_and_choice_are_left_alone(stage: Stage) -> None:
    model = stage.viewer.model
    own = model.add_image(np.zeros((5, 24, 32)), name="own")
    model.layers.selection.active = own
    model.dims.set_current_step(0, 3)
    native = stage.native((image(), ("A01", "DAPI"), ramp()))
    assert model.layers.selection.active is own
    assert own.data.shape == (5, 24, 32)
    stage.show((image(), ("A02", "DAPI"), ramp()))
    model.layers.remove(own)
    stage.viewer.go_to(well="A02")
    np.testing.assert_array_equal(seen(native), ramp())


def test_the_view_is_fitted_once(stage: Stage) -> None:
    stage.show((image(), ("A01", "DAPI"), ramp()))
    camera = stage.viewer.model.scene.camera
    camera.zoom, camera.center = 3.25, (0.0, 5.0, 6.0)
    stage.show((image(), ("A02", "DAPI"), ramp(0, "u2", (90, 90))))
    stage.show((image(), ("A00", "GFP"), ramp()), (labels(), ("A00",), ramp()))
    assert camera.zoom == 3.25
    assert tuple(camera.center)[1:] == (5.0, 6.0)


def test_very_large_planes_are_pyramids(model: Stage) -> None:
    pixels = np.zeros((8192, 300), "u1")
    pixels[::4, ::4] = 200
    native = model.native((image(), ("A01", "DAPI"), pixels))
    assert native.multiscale
    assert [level.shape[-2:] for level in native.data] == [
        (8192, 300), (4096, 150), (2048, 75), (1024, 38),
    ]  # fmt: skip
    np.testing.assert_array_equal(np.asarray(native.data[1][0]), pixels[::2, ::2])
    np.testing.assert_array_equal(native.data[2][0:1, 3:9, 5], pixels[None, ::4, ::4][:, 3:9, 5])
    model.show((image(), ("A02", "DAPI"), pixels[::-1]))
    assert native.data.shape == (2, 8192, 300)


def test_switching_to_three_dimensions_shows_the_volume(stage: Stage) -> None:
    stack = np.stack([ramp(z) for z in range(4)])
    native = stage.native((image(axes="ZYX", components=("well",)), ("A01",), stack))
    stage.viewer.model.dims.ndisplay = 3
    np.testing.assert_array_equal(seen(native), stack)
    stage.show((image(components=("well", "z")), ("A01", 2), ramp(50)))
    np.testing.assert_array_equal(seen(native)[2], ramp(50))
    stage.viewer.model.dims.ndisplay = 2
