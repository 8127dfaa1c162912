"""Our items in the words of OpenHCS's viewers: what is sent, and what is refused by name."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.dialects import AckRoute, OpenHCS, OpenHCSOut, OpenHCSViewer
from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi, from_imagej
from tests.dialects.recordings import message

if TYPE_CHECKING:
    from openhcs_stream.dialects import Piece
    from openhcs_stream.messages import Kind
    from tests.dialects.conftest import Blocks

VIEWERS = [
    OpenHCSViewer(kind, generation) for generation in (1, 2, 3) for kind in ("napari", "fiji")
]
NAPARI_1, FIJI_1, NAPARI_2, FIJI_2, NAPARI_3, FIJI_3 = VIEWERS
AREA = Roi.polygon([(1, 1), (1, 5), (4, 5)], name="cell")
each_viewer = pytest.mark.parametrize(
    "viewer", VIEWERS, ids=lambda viewer: f"{viewer.kind}{viewer.generation}"
)


def out(viewer: OpenHCSViewer, **more: Any) -> OpenHCSOut:
    return OpenHCSOut(viewer, scope="scope", **more)


def spec(kind: Kind = "image", axes: str = "YX", *components: str, **more: Any) -> LayerSpec:
    more = {"name": "image" if kind == "image" else kind, "source": "raw", **more}
    return LayerSpec(kind, axes=axes, components=components, **more)


def plane(value: int = 0, dtype: str = "uint16") -> np.ndarray[Any, Any]:
    return np.full((4, 6), value, dtype)


def told(sender: OpenHCSOut, pieces: list[Piece]) -> dict[str, Any]:
    """The message of these pieces, as JSON."""
    named = [(piece, f"id{n}", f"block{n}") for n, piece in enumerate(pieces)]
    read: dict[str, Any] = json.loads(sender.encode(named))
    return read


@each_viewer
def test_a_message_has_every_field_that_their_own_sender_writes(viewer: OpenHCSViewer) -> None:
    route = AckRoute("ipc:///acks", "incarnation", 12, 3.5) if viewer.generation == 3 else None
    sender = out(viewer, route=route)
    ours = told(sender, sender.image(spec(), (), plane(), {}))
    theirs = json.loads(message(f"gen{viewer.generation}/{viewer.kind}_image_2d").frame)
    assert set(theirs) <= set(ours)
    assert set(theirs["images"][0]) <= set(ours["images"][0])
    assert set(theirs["display_config"]) <= set(ours["display_config"])
    if viewer.generation > 1:
        assert (
            theirs["display_config"]["component_order"]
            == (ours["display_config"]["component_order"])
        )
        identity = "producer_identity"
        assert set(theirs["images"][0][identity]) == set(ours["images"][0][identity])
    if viewer.generation == 3:
        route = ours["images"][0]["return_route"]
        assert set(route) == set(theirs["images"][0]["return_route"])
        assert route["url"] == "ipc:///acks"
        assert ours["images"][0]["producer"] == route["owner"] == {"pid": 12, "create_time": 3.5}


@each_viewer
def test_our_own_receiver_reads_it_back(viewer: OpenHCSViewer, blocks: Blocks) -> None:
    sender = out(viewer)
    volume = np.arange(3 * 4 * 6, dtype=np.uint16).reshape(3, 4, 6)
    pieces = sender.image(spec("image", "ZYX", "well"), ("B02",), volume, {})
    named = [
        (piece, f"id{n}", blocks.fill(np.ascontiguousarray(piece.pixels)))
        for n, piece in enumerate(pieces)
    ]
    batch = OpenHCS().read(
        sender.encode(named), viewer=viewer.kind, viewer_port=5555, local_ipc=True
    )
    assert batch.failures == []
    for n, item in enumerate(batch.items):
        place = dict(zip(item.spec.components, item.place, strict=True))
        assert (place["well"], place["z"]) == ("B02", n)
        np.testing.assert_array_equal(item.payload, volume[n])
        item.finish()


class TestImages:
    @each_viewer
    def test_each_plane_is_an_item_of_its_own(self, viewer: OpenHCSViewer) -> None:
        sender = out(viewer)
        stack = np.arange(2 * 3 * 4 * 6, dtype=np.uint16).reshape(2, 3, 4, 6)
        pieces = sender.image(spec("image", "CZYX", "site"), (7,), stack, {})
        places = [
            (p.metadata["channel"], p.metadata["z_index"], p.metadata["site"]) for p in pieces
        ]
        assert places == [(c, z, 7) for c in range(2) for z in range(3)]
        planes = stack.reshape(-1, 4, 6)
        for piece, expected in zip(pieces, planes, strict=True):
            np.testing.assert_array_equal(np.asarray(piece.pixels), expected)

    def test_the_path_that_came_with_an_item_is_passed_on(self) -> None:
        (piece,) = out(NAPARI_2).image(spec(), (), plane(), {"path": "/plate/A01.tif"})
        assert piece.path == "/plate/A01.tif"

    def test_else_the_path_names_the_place(self) -> None:
        (piece,) = out(NAPARI_2).image(spec("image", "YX", "well"), ("A 1/b",), plane(), {})
        assert piece.path == "raw_site1_channel1_z_index1_timepoint1_wellA_1_b.tif"

    def test_colours_of_napari_stay_together(self) -> None:
        sender = out(NAPARI_2)
        pieces = sender.image(spec("image", "ZYXS"), (), np.zeros((2, 4, 6, 3), np.uint8), {})
        (first, _) = told(sender, pieces)["images"]
        assert first["shape"] == [4, 6, 3]
        assert first["source_channel_axis"] == 2

    @pytest.mark.parametrize("axes", ["XY", "YXZ", "Y", "QYX"])
    def test_other_axes_are_refused(self, axes: str) -> None:
        with pytest.raises(InvalidItem, match=axes[0]):
            out(NAPARI_2).check(spec("image", axes))

    @pytest.mark.parametrize("viewer", [FIJI_1, FIJI_2, FIJI_3])
    def test_fiji_has_no_colours(self, viewer: OpenHCSViewer) -> None:
        with pytest.raises(InvalidItem, match="an RGB image") as caught:
            out(viewer).check(spec("image", "YXS"))
        assert 'axes="CYX"' in caught.value.cure

    def test_too_many_planes_are_refused(self) -> None:
        many = np.zeros((1 << 16, 2, 1, 1), np.uint8)
        with pytest.raises(InvalidItem, match="131072 planes"):
            out(NAPARI_2).image(spec("image", "TZYX"), (), many, {})


class TestTypes:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_what_fiji_leaves_alone_is_sent_as_it_is(self, dtype: str) -> None:
        pixels = plane(3, dtype)
        (piece,) = out(FIJI_1).image(spec(), (), pixels, {})
        assert piece.pixels is not None
        assert np.shares_memory(piece.pixels, pixels)

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [("int8", -5), ("int16", -300), ("int32", -(1 << 24)), ("uint32", 1 << 24),
         ("int64", 77), ("uint64", 5), ("float16", 0.5), ("float64", 0.25)],
    )  # fmt: skip
    def test_others_are_widened_where_that_is_exact(self, dtype: str, value: float) -> None:
        pixels = np.full((4, 6), value, dtype)
        (piece,) = out(FIJI_2).image(spec(), (), pixels, {})
        assert piece.pixels is not None
        assert piece.pixels.dtype == np.float32
        np.testing.assert_array_equal(piece.pixels.astype(np.float64), pixels.astype(np.float64))

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [("int32", (1 << 24) + 1), ("int32", -(1 << 24) - 1), ("uint32", (1 << 24) + 1),
         ("int64", -(1 << 40) - 1), ("uint64", (1 << 63) + 1), ("float64", 0.1),
         ("float64", 1e300)],
    )  # fmt: skip
    def test_and_refused_with_the_value_where_not(self, dtype: str, value: float) -> None:
        pixels = np.zeros((2, 4, 6), dtype)
        pixels[1, 2, 3] = value
        with pytest.raises(InvalidItem, match=f"of {dtype} with the value") as caught:
            out(FIJI_2).image(spec("image", "ZYX"), (), pixels, {})
        assert str(pixels[1, 2, 3]) in caught.value.what
        assert "astype('float32')" in caught.value.cure

    def test_a_label_image_can_be_numbered_anew(self) -> None:
        with pytest.raises(InvalidItem) as caught:
            out(FIJI_2).image(spec("labels"), (), np.full((4, 6), 1 << 30 | 1, np.int32), {})
        assert "number the labels anew" in caught.value.cure

    def test_not_a_number_stays_one(self) -> None:
        (piece,) = out(FIJI_2).image(spec(), (), np.full((4, 6), np.nan), {})
        assert piece.pixels is not None
        assert np.isnan(piece.pixels).all()

    def test_truth_values_are_bytes_there(self) -> None:
        (piece,) = out(FIJI_2).image(spec(), (), plane(1, "bool"), {})
        assert piece.pixels is not None
        assert piece.pixels.dtype == np.uint8

    @pytest.mark.parametrize("dtype", ["int64", "float64", "bool", "uint32"])
    def test_napari_takes_every_type(self, dtype: str) -> None:
        pixels = plane(1, dtype)
        (piece,) = out(NAPARI_1).image(spec(), (), pixels, {})
        assert piece.pixels is not None
        assert piece.pixels.dtype == pixels.dtype


class TestPlaces:
    @pytest.mark.parametrize("viewer", [NAPARI_2, FIJI_2, NAPARI_3, FIJI_3])
    def test_later_generations_get_every_component(self, viewer: OpenHCSViewer) -> None:
        (piece,) = out(viewer).image(spec("image", "YX", "z"), (5,), plane(), {})
        assert piece.metadata == {
            "site": 1, "channel": 1, "z_index": 5, "timepoint": 1, "well": "-",
        }  # fmt: skip

    @pytest.mark.parametrize("viewer", [NAPARI_2, FIJI_3])
    def test_components_that_they_do_not_know_are_refused(self, viewer: OpenHCSViewer) -> None:
        with pytest.raises(InvalidItem, match="'drug'") as caught:
            out(viewer).check(spec("image", "YX", "drug"))
        assert "z_index" in caught.value.cure

    @pytest.mark.parametrize("viewer", [NAPARI_1, FIJI_1])
    def test_generation_1_knows_any(self, viewer: OpenHCSViewer) -> None:
        (piece,) = out(viewer).image(spec("image", "YX", "drug"), ("DMSO",), plane(), {})
        assert piece.metadata["drug"] == "DMSO"
        assert piece.metadata["source"] == "raw"

    def test_every_value_that_was_sent_is_declared_again(self) -> None:
        sender = out(NAPARI_2)
        seen = []
        for z in (3, 1, 3):
            pieces = sender.image(spec("image", "YX", "z"), (z,), plane(), {})
            seen.append(told(sender, pieces)["component_value_domain"]["z_index"])
        assert seen == [[3], [3, 1], [3, 1]]

    @pytest.mark.parametrize(
        ("viewer", "modes", "expected"),
        [
            (NAPARI_1, {}, {"channel": "slice", "z_index": "stack"}),
            (NAPARI_2, {}, {"channel": "layer", "z_index": "stack"}),
            (
                NAPARI_2,
                {"z": "split", "channel": "stack"},
                {"channel": "stack", "z_index": "layer"},
            ),
            (FIJI_1, {}, {"channel": "channel", "z_index": "slice", "well": "frame"}),
            (FIJI_2, {"well": "split"}, {"well": "window", "timepoint": "frame"}),
            (FIJI_2, {"z": "frame", "time": "slice"}, {"z_index": "frame", "timepoint": "slice"}),
        ],
    )
    def test_modes_are_in_their_words(
        self, viewer: OpenHCSViewer, modes: dict[str, Any], expected: dict[str, str]
    ) -> None:
        sender = out(viewer)
        given = spec("image", "YX", "channel", "z", modes=modes)
        read = told(sender, sender.image(given, (1, 1), plane(), {}))["display_config"]
        assert expected.items() <= read["component_modes"].items()

    def test_napari_1_never_stacks_along_a_single_component(self) -> None:
        sender = out(NAPARI_1)
        for components in (("z",), ("time",), ("well",), ("z", "well")):
            given = spec("image", "YX", *components)
            pieces = sender.image(given, tuple(range(len(components))), plane(), {})
            modes = told(sender, pieces)["display_config"]["component_modes"]
            stacked = [name for name, mode in modes.items() if mode == "stack"]
            assert len(stacked) >= 2
            assert all(name in pieces[0].metadata for name in stacked)

    def test_two_streams_never_share_a_layer_of_generation_2(self) -> None:
        scopes = set()
        for scope in ("a", "b"):
            sender = OpenHCSOut(NAPARI_2, scope=scope)
            (item,) = told(sender, sender.image(spec(), (), plane(), {}))["images"]
            scopes.add(item["producer_identity"]["step_scope_id"])
        assert scopes == {"a", "b"}

    def test_pieces_of_different_settings_are_told_apart(self) -> None:
        sender = out(FIJI_1)
        (first,) = sender.image(spec(), (), plane(), {})
        (other,) = sender.image(spec(colormap="fire"), (), plane(), {})
        (third,) = sender.image(spec(), (), plane(), {})
        assert first.settings == third.settings != other.settings

    @pytest.mark.parametrize(
        ("colormap", "lut"),
        [("", "Grays"), ("gray", "Grays"), ("fire", "Fire"), ("red", "Red"), ("hilo", "HiLo")],
    )
    def test_colour_maps_are_fijis_tables(self, colormap: str, lut: str) -> None:
        sender = out(FIJI_2)
        pieces = sender.image(spec(colormap=colormap, contrast_limits=(0.0, 9.0)), (), plane(), {})
        display = told(sender, pieces)["display_config"]
        assert display["lut"] == lut
        assert display["auto_contrast"] is False


class TestOutlines:
    @pytest.mark.parametrize("viewer", [FIJI_1, FIJI_2, FIJI_3])
    def test_fiji_gets_imagejs_files(self, viewer: OpenHCSViewer) -> None:
        sender = out(viewer)
        rois = [AREA, Roi.oval(0, 0, 4, 6), Roi.line((0, 0), (3, 3)), Roi.points([(1, 2), (3, 4)])]
        pieces = sender.rois(spec("rois"), (), rois, {})
        (item,) = told(sender, pieces)["images"]
        assert item["data_type"] == "rois"
        read = [from_imagej(base64.b64decode(text)) for text in item["rois"]]
        assert [roi.kind for roi in read] == [roi.kind for roi in rois]
        for got, sent in zip(read, rois, strict=True):
            np.testing.assert_allclose(got.coordinates, sent.coordinates, atol=1e-5)
        assert read[0].name == "cell"

    def test_napari_gets_shapes_and_points_apart(self) -> None:
        sender = out(NAPARI_2)
        rois = [AREA, Roi.points([(1, 2)]), Roi.oval(0, 0, 4, 6), Roi.line((0, 0), (3, 3))]
        shapes, points = told(sender, sender.rois(spec("rois"), (), rois, {}))["images"]
        assert shapes["data_type"] == "shapes"
        assert [each["type"] for each in shapes["shapes"]] == ["polygon", "ellipse", "path"]
        assert points["data_type"] == "points"
        assert [each["type"] for each in points["shapes"]] == ["points"]
        np.testing.assert_allclose(shapes["shapes"][0]["coordinates"], [(1, 1), (1, 5), (4, 5)])
        assert shapes["shapes"][0]["metadata"] == {"label": "cell"}
        assert shapes["shapes"][1]["metadata"] == {"label": 3}

    def test_napari_1_gets_ellipses_as_polygons(self) -> None:
        sender = out(NAPARI_1)
        (item,) = told(sender, sender.rois(spec("rois"), (), [Roi.oval(0, 0, 4, 6)], {}))["images"]
        (shape,) = item["shapes"]
        assert shape["type"] == "polygon"
        yx = np.array(shape["coordinates"])
        on_ellipse = ((yx[:, 0] - 1.5) / 2) ** 2 + ((yx[:, 1] - 2.5) / 3) ** 2
        np.testing.assert_allclose(on_ellipse, 1.0)

    @pytest.mark.parametrize(
        "roi", [Roi.line((0, 0), (3, 3)), Roi.points([(1, 2)]), Roi.polyline([(0, 0), (1, 2)])]
    )
    def test_napari_1_draws_areas_only(self, roi: Roi) -> None:
        with pytest.raises(InvalidItem, match=roi.kind):
            out(NAPARI_1).rois(spec("rois"), (), [roi], {})

    @pytest.mark.parametrize("viewer", [NAPARI_1, FIJI_1, FIJI_2, FIJI_3])
    def test_an_empty_list_is_refused_where_it_clears_nothing(self, viewer: OpenHCSViewer) -> None:
        with pytest.raises(InvalidItem, match="an empty list"):
            out(viewer).rois(spec("rois"), (), [], {})

    def test_and_sent_where_it_does(self) -> None:
        sender = out(NAPARI_2)
        (item,) = told(sender, sender.rois(spec("rois"), (), [], {}))["images"]
        assert (item["data_type"], item["shapes"]) == ("shapes", [])

    @pytest.mark.parametrize("viewer", [FIJI_1, FIJI_2])
    def test_fijis_outlines_lie_over_the_image_of_their_place(self, viewer: OpenHCSViewer) -> None:
        sender = out(viewer)
        image = spec("image", "YX", "well", "z")
        for z in (1, 2, 3):
            sender.image(image, ("B02", z), plane(), {})
        sender.image(spec("labels", "YX", "well"), ("C03",), plane(), {})
        (piece,) = sender.rois(spec("rois", "YX", "well"), ("B02",), [AREA], {})
        assert piece.label == "raw"  # the window of the images, not of the labels
        assert (piece.metadata["well"], piece.metadata["z_index"]) == ("B02", 3)
        (elsewhere,) = sender.rois(spec("rois", "YX", "well"), ("D04",), [AREA], {})
        assert elsewhere.label == "raw rois"


class TestPoints:
    def test_napari_gets_a_table(self) -> None:
        sender = out(NAPARI_3)
        table = np.array([(1.0, 2.0), (3.5, 4.0)])
        (item,) = told(sender, sender.points(spec("points"), (), table, {}))["images"]
        (shape,) = item["shapes"]
        assert (item["data_type"], shape["type"]) == ("points", "points")
        assert shape["coordinates"] == table.tolist()

    def test_fiji_gets_one_region_of_points(self) -> None:
        sender = out(FIJI_2)
        table = np.array([(1.0, 2.0), (3.5, 4.0)])
        (item,) = told(sender, sender.points(spec("points"), (), table, {}))["images"]
        (roi,) = (from_imagej(base64.b64decode(text)) for text in item["rois"])
        assert roi.kind == "point"
        np.testing.assert_allclose(roi.coordinates[:, ::-1], table)

    def test_fiji_has_no_empty_region(self) -> None:
        with pytest.raises(InvalidItem, match="empty table"):
            out(FIJI_2).points(spec("points"), (), np.empty((0, 2)), {})

    def test_other_coordinates_are_refused(self) -> None:
        with pytest.raises(InvalidItem, match="coordinates ZYX"):
            out(NAPARI_2).check(spec("points", "ZYX"))
