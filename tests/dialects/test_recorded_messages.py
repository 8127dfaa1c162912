"""Every message that the released packages sent is read as it was meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.dialects import dialect_for
from openhcs_stream.errors import ProtocolViolation
from tests.dialects.recordings import MESSAGES, message

if TYPE_CHECKING:
    from openhcs_stream.dialects import ForeignBatch, ForeignItem
    from openhcs_stream.rois import Roi
    from tests.dialects.recordings import Recorded

SHM = Path("/dev/shm")
TO_OURS = {"z_index": "z", "timepoint": "time"}
#: What each sender's shapes are here: ImageJ's files know polygons as freehand outlines.
KINDS = {
    "napari": {"polygon": "polygon", "ellipse": "oval", "point": "point"},
    "fiji": {"polygon": "freehand", "ellipse": "oval"},
}


def read(recorded: Recorded) -> ForeignBatch:
    dialect = dialect_for(recorded.frame)
    assert dialect is not None
    assert dialect.name == "openhcs"
    return dialect.read(
        recorded.frame, viewer=recorded.viewer, viewer_port=recorded.port, local_ipc=True
    )


def place_of(item: ForeignItem) -> dict[str, Any]:
    return dict(zip(item.spec.components, item.place, strict=True))


def sent_place(item: dict[str, Any]) -> dict[str, Any]:
    return {TO_OURS.get(name, name): value for name, value in item["components"].items()}


def test_there_is_a_recording_of_each_generation_and_viewer() -> None:
    kinds = {"image_2d", "image_3d", "dtypes", "plate", "rois", "image_and_rois"}
    for generation in ("gen1", "gen2", "gen3"):
        assert {f"{generation}/napari_{kind}" for kind in (*kinds, "points")} <= {*MESSAGES}
        assert {f"{generation}/fiji_{kind}" for kind in kinds} <= {*MESSAGES}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_item_is_read_with_its_place_its_content_and_its_id(name: str) -> None:
    recorded = message(name).renamed()
    with recorded.in_memory():
        batch = read(recorded)
        assert batch.failures == []
        assert [item.id for item in batch.items] == [each["image_id"] for each in recorded.images]
        for item, wire, sent in zip(batch.items, recorded.images, recorded.items, strict=True):
            assert place_of(item) == sent_place(sent)
            assert item.info["path"] == wire["path"]
            assert "segmentation" in item.spec.source
            if sent["kind"] == "image":
                check_image(item, recorded.pixels(wire), sent)
            else:
                check_outlines(item, sent["shapes"], recorded.viewer)
        for item in batch.items:
            item.finish()
        # Generation 1 leaves it to whoever reads; later ones remove their blocks themselves.
        left = {block for block in recorded.blocks if (SHM / block).exists()}
        assert left == (set() if recorded.generation == "gen1" else set(recorded.blocks))


def check_image(item: ForeignItem, pixels: np.ndarray[Any, Any], sent: dict[str, Any]) -> None:
    assert item.spec.kind == "image"
    assert pixels.shape == tuple(sent["shape"])
    assert item.payload.dtype == pixels.dtype.newbyteorder("=")
    np.testing.assert_array_equal(item.payload, pixels)


def check_outlines(item: ForeignItem, shapes: list[dict[str, Any]], viewer: str) -> None:
    if item.spec.kind == "points":
        np.testing.assert_allclose(item.payload, [shape["yx"] for shape in shapes])
        return
    assert item.spec.kind == "rois"
    assert [roi.kind for roi in item.payload] == [KINDS[viewer][each["shape"]] for each in shapes]
    for roi, shape in zip(item.payload, shapes, strict=True):
        check_outline(roi, shape, viewer)


def check_outline(roi: Roi, shape: dict[str, Any], viewer: str) -> None:
    if viewer == "napari":
        assert roi.name == str(shape["label"])
    yx = roi.coordinates[:, ::-1]
    if shape["shape"] == "ellipse":
        # Theirs counts from pixel centres and ours from corners. Its file holds whole numbers only,
        # unless its sender writes the exact ones as well, as generation 3 does.
        np.testing.assert_allclose(yx.mean(axis=0) - 0.5, shape["center"], atol=0.5)
        np.testing.assert_allclose((yx[1] - yx[0]) / 2, shape["radii"], atol=0.5)
        return
    # napari's polygons count from pixel centres as well; ImageJ's files are as their senders wrote
    # them.
    corner = 0.5 if roi.kind == "polygon" else 0.0
    np.testing.assert_allclose(yx - corner, np.reshape(shape["yx"], (-1, 2)), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MESSAGES if name.startswith("gen3/")])
def test_generation_3_is_answered_where_each_item_says(name: str) -> None:
    recorded = message(name).renamed()
    with recorded.in_memory():
        for item, wire in zip(read(recorded).items, recorded.images, strict=True):
            assert item.route is not None
            assert not item.route.is_shared
            assert item.route.address == wire["return_route"]["url"]
            assert item.route.echo == {key: wire[key] for key in ("return_route", "producer")}
            item.finish()


@pytest.mark.parametrize("name", [name for name in MESSAGES if not name.startswith("gen3/")])
def test_earlier_generations_are_answered_at_the_one_port(name: str) -> None:
    recorded = message(name).renamed()
    with recorded.in_memory():
        for item in read(recorded).items:
            assert item.route is not None
            assert item.route.is_shared
            assert item.route.address.endswith("-7555.sock")
            item.finish()


@pytest.mark.parametrize("generation", ["gen1", "gen2", "gen3"])
def test_a_batch_without_its_blocks_names_every_item_that_is_lost(generation: str) -> None:
    recorded = message(f"{generation}/napari_plate").renamed()
    batch = read(recorded)  # nothing of it stands in memory
    assert batch.items == []
    assert [each.id for each in batch.failures] == [each["image_id"] for each in recorded.images]
    for failure, wire in zip(batch.failures, recorded.images, strict=True):
        assert wire["shm_name"] in failure.reason


@pytest.mark.parametrize("name", ["gen1/napari_image_2d", "gen2/fiji_rois", "gen3/napari_points"])
def test_a_message_that_was_cut_off_is_refused_as_a_whole(name: str) -> None:
    recorded = message(name).renamed()
    for end in range(1, len(recorded.frame), 97):
        with pytest.raises(ProtocolViolation):
            read(replace(recorded, frame=recorded.frame[:end]))
