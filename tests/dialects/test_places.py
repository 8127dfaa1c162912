"""Where items of OpenHCS's senders land, and what the layers are called there: as in its viewers.

Expected names were read from the released viewers: openhcs 0.3.15 and 0.8.6.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream.dialects import OpenHCS
from openhcs_stream.rois import Roi, to_imagej

if TYPE_CHECKING:
    from openhcs_stream.dialects import ForeignBatch, ForeignItem

FIJI = {
    "component_modes": {
        "source": "window", "well": "window", "site": "frame", "channel": "channel",
        "z_index": "slice", "timepoint": "frame",
    },
    "component_order": ["source", "z_index", "channel", "site", "well", "timepoint"],
    "lut": "Grays",
}  # fmt: skip
NAPARI = {
    "component_modes": {
        "source": "slice", "well": "stack", "site": "stack", "channel": "slice",
        "z_index": "stack", "timepoint": "stack",
    },
    "component_order": ["source", "z_index", "channel", "site", "well", "timepoint"],
    "colormap": "magma",
}  # fmt: skip
#: As generations 2 and 3 send it: source is gone, and a layer is a layer.
NAPARI_2 = {
    "component_modes": {
        "site": "stack", "channel": "layer", "z_index": "stack", "timepoint": "stack",
        "well": "stack",
    },
    "component_order": ["site", "channel", "z_index", "timepoint", "well"],
    "colormap": "gray",
}  # fmt: skip
FIJI_2 = {
    "component_modes": {
        "site": "frame", "channel": "channel", "z_index": "slice", "timepoint": "frame",
        "well": "window",
    },
    "component_order": ["site", "channel", "z_index", "timepoint", "well"],
    "lut": "Grays",
}  # fmt: skip
PLACE = {"well": "A01", "site": 1, "channel": 2, "z_index": 3, "timepoint": 1}
PRODUCER = {
    "origin": "pipeline", "output_kind": "main", "output_key": "image", "projection_key": "image",
    "step_name": "blur", "pipeline_position": 1, "step_scope_id": None, "invocation_key": None,
    "artifact_kind": None,
}  # fmt: skip


def image(array: Any = None, **fields: Any) -> dict[str, Any]:
    array = np.array([[1, 2], [3, 4]], np.uint8) if array is None else np.asarray(array)
    return {
        "data_type": "image", "path": "/plate/A01.tif", "image_id": "id", "metadata": PLACE,
        "shape": list(array.shape), "dtype": str(array.dtype), "data": array.tolist(), **fields,
    }  # fmt: skip


def made(array: Any = None, producer: dict[str, Any] | None = None, **fields: Any) -> Any:
    """An image of generation 2."""
    return image(array, producer_identity={**PRODUCER, **(producer or {})}, **fields)


def outlines(kind: str = "shapes", **fields: Any) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = [{"type": "polygon", "coordinates": [[1, 1], [1, 5], [4, 4]]}]
    if kind == "points":
        shapes = [{"type": "points", "coordinates": [[1.5, 2], [3, 4]]}]
    item: dict[str, Any] = {"shapes": shapes}
    if kind == "rois":
        file = to_imagej(Roi.polygon([[1, 1], [5, 1], [4, 4]]))
        item = {"rois": [base64.b64encode(file).decode()]}
    return {
        "data_type": kind, "path": "/plate/A01.roi.zip", "image_id": "id", "metadata": PLACE,
        **item, **fields,
    }  # fmt: skip


def read(*items: dict[str, Any], viewer: str = "memory", **envelope: Any) -> ForeignBatch:
    envelope.setdefault("display_config", NAPARI)
    frame = json.dumps({"type": "batch", "images": list(items), **envelope}).encode()
    return OpenHCS().read(frame, viewer=viewer, viewer_port=5555, local_ipc=True)


def only(*items: dict[str, Any], **envelope: Any) -> ForeignItem:
    batch = read(*items, **envelope)
    assert batch.failures == []
    (item,) = batch.items
    return item


def failure(*items: dict[str, Any], **envelope: Any) -> str:
    batch = read(*items, **envelope)
    assert batch.items == []
    (failed,) = batch.failures
    return failed.reason


def place_of(item: ForeignItem) -> dict[str, Any]:
    return dict(zip(item.spec.components, item.place, strict=True))


class TestFirstGeneration:
    metadata: ClassVar = {**PLACE, "source": "step_2"}

    def test_fiji_s_windows(self) -> None:
        item = only(image(metadata=self.metadata), display_config=FIJI)
        assert item.spec.title == "source_step_2_well_A01"
        # A window for each source; our word for it is the layer's source.
        assert (item.spec.source, place_of(item)["well"]) == ("step_2", "A01")
        assert item.spec.modes["well"] == "split"

    def test_fiji_s_only_window(self) -> None:
        modes = dict.fromkeys(PLACE, "slice")
        item = only(
            image(), display_config={**FIJI, "component_modes": modes, "component_order": [*PLACE]}
        )
        assert item.spec.title == "default_window"

    def test_fiji_s_outlines_beside_their_window(self) -> None:
        item = only(outlines("rois", metadata=self.metadata), display_config=FIJI)
        assert item.spec.title == "source_step_2_well_A01 ROIs"

    def test_outlines_of_a_results_folder_are_of_the_images_beside_it(self) -> None:
        for source, expected in [
            ("TimePoint_1_results", "TimePoint_1"),
            ("a/b", "TimePoint_1"),
            ("step_2", "step_2"),
        ]:
            item = only(
                outlines("rois", metadata={**PLACE, "source": source}),
                display_config=FIJI,
                images_dir="/plate/TimePoint_1",
            )
            assert item.spec.source == expected
            assert item.spec.title == f"source_{expected}_well_A01 ROIs"
        assert only(image(), display_config=FIJI, images_dir="/p").spec.images_dir == "/p"

    @pytest.mark.parametrize(
        ("item", "ending"),
        [(image(), ""), (outlines("shapes"), "_shapes"), (outlines("points"), "_points")],
    )
    def test_napari_s_layers(self, item: dict[str, Any], ending: str) -> None:
        read_ = only({**item, "metadata": self.metadata})
        assert read_.spec.title == f"source_step_2_channel_2{ending}"

    def test_napari_s_only_layer(self) -> None:
        modes = dict.fromkeys(PLACE, "stack")
        item = only(
            image(), display_config={**NAPARI, "component_modes": modes, "component_order": []}
        )
        assert item.spec.title == ""  # ours: nothing was said about how to name it
        item = only(image(), display_config={"component_modes": modes, "component_order": ["well"]})
        assert item.spec.title == "default_layer"

    @pytest.mark.parametrize(("channel", "colormap"), [(1, "green"), ("2", "red"), (3, "magma")])
    def test_napari_s_channels_have_colours(self, channel: Any, colormap: str) -> None:
        item = only(image(metadata={**PLACE, "channel": channel}))
        assert item.spec.colormap == colormap
        stacked = {**NAPARI["component_modes"], "channel": "stack"}  # type: ignore[dict-item]
        item = only(
            image(metadata={**PLACE, "channel": channel}),
            display_config={**NAPARI, "component_modes": stacked},
        )
        assert item.spec.colormap == "magma"

    def test_a_list_is_no_place(self) -> None:
        reason = failure(image(metadata={**PLACE, "channel": [1, 2]}))
        assert "channel" in reason
        assert "[1, 2]" in reason


class TestLaterGenerations:
    def title(self, item: dict[str, Any], display: Any = None, **envelope: Any) -> str:
        return only(item, display_config=display or NAPARI_2, **envelope).spec.title

    def test_fiji_s_windows(self) -> None:
        assert self.title(made(), FIJI_2) == (
            "origin_pipeline_kind_main_projection_image_step_1_name_blur_well_A01"
        )
        assert self.title(
            made(producer={
                "origin": "man ual", "projection_key": "a/b\\c", "pipeline_position": None,
                "step_name": None, "step_scope_id": "s 1",
            }),
            FIJI_2,
        ) == "origin_man_ual_kind_main_projection_a_b_c_scope_s_1_well_A01"  # fmt: skip

    def test_napari_s_layers(self) -> None:
        assert self.title(made()) == "2. blur channel 2"
        assert self.title(made(producer={"pipeline_position": None})) == "blur channel 2"
        assert self.title(made(producer={"step_name": None})) == "2. image channel 2"
        assert (
            self.title(made(producer={"output_kind": "artifact", "output_key": "cells"}))
            == "2. blur cells channel 2"
        )
        shapes = outlines("shapes", producer_identity=PRODUCER)
        assert self.title(shapes) == "2. blur channel 2 ROIs"
        points = outlines("points", producer_identity=PRODUCER)
        assert self.title(points) == "2. blur channel 2 points"

    def test_outputs_of_different_steps_do_not_meet(self) -> None:
        """Two steps may well give the same name to what they make of the same place."""
        different: list[dict[str, Any]] = [
            {},
            {"pipeline_position": 2},
            {"step_name": "sharpen"},
            {"step_scope_id": "scope"},
            {"output_kind": "artifact"},
            {"projection_key": "mask"},
            {"output_key": "other"},
            {"origin": "manual"},
        ]
        batch = read(*(made(producer=each) for each in different), display_config=NAPARI_2)
        assert batch.failures == []
        assert len({(item.spec.source, item.spec.name) for item in batch.items}) == len(different)
        same = read(made(), made(), display_config=NAPARI_2).items
        assert same[0].spec == same[1].spec

    def test_a_layer_for_each_well_where_sizes_differ(self) -> None:
        item = only(
            made(), display_config={**NAPARI_2, "variable_size_handling": "separate_layers"}
        )
        assert item.spec.modes["well"] == "split"
        assert item.spec.title == "2. blur channel 2 well A01"
        padded = only(made(), display_config={**NAPARI_2, "variable_size_handling": "pad_to_max"})
        assert padded.spec.modes["well"] == "stack"

    def test_numbers_that_are_written_as_text(self) -> None:
        metadata = {"well": "01", "site": "007", "channel": "2", "z_index": " 3", "timepoint": "t"}
        place = place_of(only(made(metadata=metadata), display_config=NAPARI_2))
        assert place == {"well": "01", "site": 7, "channel": 2, "z": 3, "time": "t"}

    def test_several_values_are_one(self) -> None:
        metadata = {**PLACE, "channel": [1, 2]}
        assert place_of(only(made(metadata=metadata), display_config=NAPARI_2))["channel"] == "1-2"

    def test_images_are_added_up_as_light(self) -> None:
        assert only(made(), display_config=NAPARI_2).spec.blending == "additive"
        assert only(image()).spec.blending == ""
        assert only(made(), display_config=FIJI_2).spec.blending == ""

    @pytest.mark.parametrize(
        ("domain", "lut", "colormap"),
        [([2], "Fire", "fire"), ([1, 2], "Fire", ""), ([2], "Grays", ""), ([1, 2], "Grays", "")],
    )
    def test_fiji_s_channels_have_colours_of_their_own(
        self, domain: list[int], lut: str, colormap: str
    ) -> None:
        item = only(
            made(),
            display_config={**FIJI_2, "lut": lut},
            component_value_domain={"channel": domain},
        )
        assert item.spec.colormap == colormap

    @pytest.mark.parametrize(
        "producer",
        [5, "x", [], {}, {**PRODUCER, "origin": ""}, {**PRODUCER, "projection_key": None}],
    )
    def test_who_made_it_must_be_told(self, producer: Any) -> None:
        reason = failure(image(producer_identity=producer), display_config=NAPARI_2)
        assert "producer_identity" in reason


class TestNamesOfValues:
    def test_are_told_with_the_item_and_to_the_viewer(self) -> None:
        names = {
            "channel": {"1": "DAPI", "2": "GFP", "3": None, "4": "none"},
            "well": {"A01": "control"},
            "site": None,
        }
        batch = read(made(), display_config=NAPARI_2, component_names_metadata=names)
        assert batch.names == {
            "channel": {"1": "DAPI", "2": "GFP"}, "well": {"A01": "control"},
        }  # fmt: skip
        (item,) = batch.items
        assert item.info["channel name"] == "GFP"
        assert item.info["well name"] == "control"
        assert "site name" not in item.info

    @pytest.mark.parametrize("names", [5, {"channel": 5}, [1], {"channel": ["a"]}])
    def test_that_are_none_fail_the_items(self, names: Any) -> None:
        assert "display_config" in failure(made(), component_names_metadata=names)


class TestPlanes:
    stack = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)

    def test_a_stack_is_taken_apart_where_its_planes_have_values(self) -> None:
        item = only(
            made(self.stack, plane_axis="z_index", plane_component_values={"z_index": [4, 6, "9"]}),
            display_config=NAPARI_2,
        )
        assert item.spec.axes == "YX"
        at = item.spec.components.index("z")
        assert [place[at] for place, _ in item.parts] == [4, 6, 9]
        for (_, plane), expected in zip(item.parts, self.stack, strict=True):
            np.testing.assert_array_equal(plane, expected)
        assert item.spec.title == "2. blur channel 2 image stack"

    def test_of_two_axes(self) -> None:
        pixels = np.arange(48, dtype=np.uint16).reshape(2, 3, 2, 4)
        item = only(
            made(pixels, plane_component_values={"timepoint": [1, 2], "z_index": [1, 2, 3]}),
            display_config=NAPARI_2,
        )
        places = [dict(zip(item.spec.components, place, strict=True)) for place, _ in item.parts]
        assert [(each["time"], each["z"]) for each in places] == [
            (t, z) for t in (1, 2) for z in (1, 2, 3)
        ]
        np.testing.assert_array_equal(np.stack([plane for _, plane in item.parts]),
                                      pixels.reshape(6, 2, 4))  # fmt: skip

    @pytest.mark.parametrize(
        "values",
        [
            {"z_index": [1, 2]},
            {"z_index": [1, 2, 2]},
            {"z_index": [1, 2, None]},
            {"z_index": [1, 2, {}]},
            {"z_index": [1, 2, 3], "timepoint": [1, 2, 3]},
        ],
    )
    def test_that_do_not_fit(self, values: Any) -> None:
        reason = failure(made(self.stack, plane_component_values=values))
        assert "planes" in reason or "component 'z" in reason

    def test_that_are_too_many(self) -> None:
        pixels = np.zeros((65, 64, 1, 1), np.uint8)
        values = {"timepoint": list(range(65)), "z_index": list(range(64))}
        assert "4160 planes" in failure(made(pixels, plane_component_values=values))

    def test_a_stack_without_values_has_a_layer_of_its_own(self) -> None:
        flat, stack = read(made(), made(self.stack), display_config=NAPARI_2).items
        assert stack.spec.axes == "QYX"  # its place has a time and a z already
        free = {name: value for name, value in PLACE.items() if name != "z_index"}
        (said,) = read(made(self.stack, metadata=free), display_config=NAPARI_2).items
        assert said.spec.axes == "ZYX"
        assert flat.spec.name != stack.spec.name

    def test_shapes_say_on_which_plane_they_are(self) -> None:
        shapes = [
            {"type": "polygon", "coordinates": [[0, 0], [0, 2], [n, 1]],
             "metadata": {"plane_indices": [n % 2], "label": n}}
            for n in (1, 2, 3)
        ]  # fmt: skip
        item = only(
            outlines(
                shapes=shapes,
                producer_identity=PRODUCER,
                plane_component_values={"z_index": [10, 20]},
            ),
            display_config=NAPARI_2,
        )
        at = item.spec.components.index("z")
        found = {place[at]: [roi.name for roi in rois] for place, rois in item.parts}
        assert found == {20: ["1", "3"], 10: ["2"]}

    @pytest.mark.parametrize("indices", [None, [2], [-1], [0, 0], "0", [0.5]])
    def test_shapes_that_are_on_no_plane(self, indices: Any) -> None:
        item = outlines(producer_identity=PRODUCER, plane_component_values={"z_index": [10, 20]})
        item["shapes"][0]["metadata"] = {"plane_indices": indices}
        assert "shape 0" in failure(item, display_config=NAPARI_2)


class TestColours:
    @pytest.mark.parametrize(("axis", "shape"), [(2, (4, 5, 3)), (-1, (4, 5, 4)), (0, (3, 4, 5))])
    def test_of_pixels(self, axis: int, shape: tuple[int, ...]) -> None:
        pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        for fields in (
            {"source_channel_axis": axis},
            {"image_metadata": {"source_channel_axis": axis}},
        ):
            item = only(made(pixels, **fields), display_config=NAPARI_2)
            assert item.spec.axes == "YXS"
            np.testing.assert_array_equal(item.payload, np.moveaxis(pixels, axis, -1))
            assert item.spec.title == "2. blur channel 2 RGB"
            assert item.spec.blending == ""

    def test_coloured_images_have_a_layer_of_their_own(self) -> None:
        pixels = np.zeros((4, 5, 3), np.uint8)
        plain, coloured = read(
            made(), made(pixels, source_channel_axis=2), display_config=NAPARI_2
        ).items
        assert plain.spec.name != coloured.spec.name

    def test_more_of_them_are_channels(self) -> None:
        pixels = np.arange(40, dtype=np.uint8).reshape(2, 5, 4)
        item = only(made(pixels, source_channel_axis=0), display_config=NAPARI_2)
        at = item.spec.components.index("channel")
        assert [place[at] for place, _ in item.parts] == [1, 2]
        np.testing.assert_array_equal(item.parts[1][1], pixels[1])

    @pytest.mark.parametrize("axis", [3, -4])
    def test_that_are_not_there(self, axis: int) -> None:
        pixels = np.zeros((4, 5, 3), np.uint8)
        assert "source_channel_axis" in failure(made(pixels, source_channel_axis=axis))

    @pytest.mark.parametrize("axis", ["two", 2.5, [1]])
    def test_that_are_no_number(self, axis: Any) -> None:
        failure(made(np.zeros((4, 5, 3), np.uint8), source_channel_axis=axis))
        failure(made(np.zeros((4, 5, 3), np.uint8), image_metadata={"source_channel_axis": axis}))


class TestCutOut:
    pixels = np.array([[1, 2, 3], [4, 5, 6]], np.uint16)

    def test_stands_where_it_was_cut_out(self) -> None:
        item = only(
            made(self.pixels, spatial_origin_yx=[3, 1], source_spatial_shape_yx=[6, 5]),
            display_config=NAPARI_2,
        )
        assert item.payload.shape == (6, 5)
        np.testing.assert_array_equal(item.payload[3:5, 1:4], self.pixels)
        assert item.payload.sum() == self.pixels.sum()

    def test_of_an_image_whose_size_nobody_says(self) -> None:
        item = only(made(self.pixels, spatial_origin_yx=[3, 1]), display_config=NAPARI_2)
        assert item.payload.shape == (5, 4)

    def test_each_plane_of_a_stack(self) -> None:
        stack = np.stack([self.pixels] * 3)
        item = only(
            made(stack, spatial_origin_yx=[1, 1], plane_component_values={"z_index": [1, 2, 3]}),
            display_config=NAPARI_2,
        )
        for _, plane in item.parts:
            np.testing.assert_array_equal(plane[1:, 1:], self.pixels)

    @pytest.mark.parametrize(
        "fields",
        [
            {"spatial_origin_yx": [-1, 0]},
            {"spatial_origin_yx": [5, 0], "source_spatial_shape_yx": [6, 5]},
            {"source_spatial_shape_yx": [1, 5]},
            {"spatial_origin_yx": [2**40, 2**40]},
            {"source_spatial_shape_yx": [2**20, 2**20]},
        ],
    )
    def test_that_does_not_fit(self, fields: Any) -> None:
        assert " 2 x 3 at " in (reason := failure(made(self.pixels, **fields))) or (
            "pixels, more than" in reason
        )

    @pytest.mark.parametrize("origin", [[1], [1, 2, 3], "12", 5, [1.5, 2], [2**80, 0]])
    def test_that_is_no_place(self, origin: Any) -> None:
        failure(made(self.pixels, spatial_origin_yx=origin))
