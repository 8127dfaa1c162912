"""The Fiji backend with OpenHCS's vocabulary, and a real Fiji without a window."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.backends import FijiStreamingBackend
from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, from_imagej

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openhcs_stream.discovery import Endpoint

SQUARE = [(1.0, 1.0), (1.0, 9.0), (9.0, 9.0), (9.0, 1.0)]


class Config:
    """As OpenHCS's Fiji configuration has it: modes that are enums, the name of a LUT."""

    COMPONENT_ORDER: ClassVar[list[str]] = ["well", "site", "channel", "z_index", "timepoint"]
    well_mode = SimpleNamespace(value="window")
    site_mode = SimpleNamespace(value="window")
    channel_mode = SimpleNamespace(value="channel")
    z_index_mode = SimpleNamespace(value="slice")
    timepoint_mode = SimpleNamespace(value="frame")
    auto_contrast = False

    def get_lut_name(self) -> str:
        return "Grays"


class Parser:
    def parse_filename(self, name: str) -> dict[str, Any]:
        well, channel, z = name.removesuffix(".tif").split("_")
        return {"well": well, "site": 1, "channel": int(channel), "z_index": int(z)}


@pytest.fixture
def fiji() -> Iterator[Endpoint]:
    endpoint = discovery.launch("fiji", timeout_s=50, options=("--headless", "--port", "0"))
    yield endpoint
    openhcs_stream.ask(endpoint, "stop")


def settings(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    return {
        "port": endpoint.port,
        "display_config": Config(),
        "microscope_handler": SimpleNamespace(parser=Parser()),
        "source": "segmentation",
        "images_dir": "/plate/images",
        "timeout_s": 30.0,
        **changes,
    }


def test_rois_are_prepared_in_imagejs_bytes() -> None:
    backend = FijiStreamingBackend()
    prepared = backend._prepare_rois_data([np.array(SQUARE)], "A01_1_1.tif")
    assert len(prepared) == 1
    assert prepared[0].startswith(b"Iout")
    assert from_imagej(prepared[0]).kind == Roi.polygon(SQUARE).kind


@pytest.mark.timeout(120)
def test_a_plate_stands_in_imagej(fiji: Endpoint) -> None:
    rng = np.random.default_rng(0)
    images: dict[tuple[str, int, int], Any] = {
        (well, channel, z): rng.integers(0, 2**16, (20, 30), np.uint16)
        for well in ("A01", "B02")
        for channel in (1, 2)
        for z in (1, 2, 3)
    }
    paths = [f"/plate/images/{well}_{channel}_{z}.tif" for well, channel, z in images]
    with FijiStreamingBackend() as backend:
        with pytest.raises(InvalidItem, match="same length"):
            backend.save_batch(list(images.values()), paths[:-1], **settings(fiji))
        backend.save_batch(
            [*images.values(), [np.array(SQUARE)]],
            [*paths, "/plate/images/A01_1_2.tif"],
            **settings(fiji),
        )
        for connection in backend._connections.values():
            assert connection.stream is not None
            connection.stream.flush(30.0)
            (queue,) = connection.stream.status()
            assert (queue.sent, queue.displayed, queue.failed) == (13, 13, 0)
    layers = {
        (layer["kind"], layer["split"]["well"]): layer
        for layer in openhcs_stream.ask(fiji, "layers")
    }
    assert set(layers) == {("image", "A01"), ("image", "B02"), ("rois", "A01")}
    for (well, channel, z), image in images.items():
        layer = layers["image", well]
        assert layer["source"] == "segmentation"
        assert set(layer["components"]) == {"channel", "z"}  # inside of the window
        found = openhcs_stream.ask(
            fiji, "read", layer=layer["title"], place={"channel": channel, "z": z}
        )
        got = np.frombuffer(found["data"], found["dtype"]).reshape(found["shape"])
        np.testing.assert_array_equal(got, image)
