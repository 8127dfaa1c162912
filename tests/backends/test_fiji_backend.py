"""The Fiji backend: what it makes of ROIs, and of a pipeline's settings in Fiji's words."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream import rois
from openhcs_stream.backends import FijiStreamingBackend, ImageJRois
from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi
from openhcs_stream.viewer import MemoryViewer, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openhcs_stream.messages import Mode

SQUARE = np.array([(1.0, 1.0), (1.0, 4.0), (4.0, 4.0), (4.0, 1.0)])


# --- ROIs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        [SQUARE, SQUARE + 10],
        [Roi.polygon(SQUARE), Roi.polygon(SQUARE + 10)],
        [rois.to_imagej(Roi.polygon(SQUARE)), SQUARE + 10],
    ],
    ids=["arrays", "Roi", "files"],
)
def test_rois_are_prepared_in_imagejs_bytes(data: Any) -> None:
    prepared = FijiStreamingBackend()._prepare_rois_data(data, "A01_cells.tif")
    assert len(prepared) == 2
    assert all(each.startswith(b"Iout") for each in prepared)
    assert [rois.from_imagej(each) for each in prepared] == [
        Roi.polygon(SQUARE), Roi.polygon(SQUARE + 10),
    ]  # fmt: skip
    assert isinstance(prepared[1:], ImageJRois)
    assert list(prepared[1:]) == [prepared[1]]


def test_what_is_no_roi_is_refused() -> None:
    with pytest.raises(InvalidItem, match="item 0"):
        FijiStreamingBackend()._prepare_rois_data([{"no": "roi"}], "A01.tif")


# --- the whole contract, with a viewer that keeps everything and whose channels stay together -----


class FijiLike(MemoryViewer):
    name: ClassVar[str] = "fiji"
    splits: ClassVar[frozenset[Mode]] = frozenset({"split"})


class Config:
    """As OpenHCS's FijiStreamingConfig has it."""

    COMPONENT_ORDER: ClassVar[list[str]] = ["well", "site", "channel", "z_index", "timepoint"]
    well_mode = SimpleNamespace(value="window")
    site_mode = SimpleNamespace(value="frame")
    channel_mode = SimpleNamespace(value="channel")
    z_index_mode = SimpleNamespace(value="slice")
    timepoint_mode = SimpleNamespace(value="frame")
    auto_contrast = False

    def get_lut_name(self) -> str:
        return "Fire"


class Parser:
    def parse_filename(self, name: str) -> dict[str, Any]:
        well, site, channel, z, t = name.removesuffix(".tif").split("_")
        return {"well": well, "site": int(site), "channel": channel, "z_index": int(z),
                "timepoint": int(t), "extension": ".tif"}  # fmt: skip


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[FijiLike, int]]:
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(tmp_path))
    viewer = FijiLike()
    with Receiver(viewer, port=0) as receiver:
        assert receiver.endpoint is not None
        assert receiver.endpoint.port is not None
        thread = threading.Thread(target=viewer.run, args=(receiver.tick, 0.01))
        thread.start()
        yield viewer, receiver.endpoint.port
        viewer.stop()
        thread.join(20)


def test_images_and_rois_in_one_batch(viewer: tuple[FijiLike, int]) -> None:
    shown, port = viewer
    names = [f"{w}_{s}_{c}_{z}_0.tif" for w in ("A01", "A02") for s in (1, 2)
             for c in ("1", "2") for z in (1, 2)]  # fmt: skip
    images: list[Any] = [np.full((8, 9), i, np.uint16) for i in range(len(names))]
    with FijiStreamingBackend() as backend:
        backend.save_batch(
            [*images, [SQUARE]],
            [*names, "A01_1_1_1_0.tif"],
            host="localhost",
            port=port,
            transport_mode=SimpleNamespace(value="ipc"),
            display_config=Config(),
            microscope_handler=SimpleNamespace(parser=Parser()),
            source="segmentation",
            images_dir="/plate/images",
            timeout_s=20.0,
        )
        for connection in backend._connections.values():
            assert connection.stream is not None
            connection.stream.flush(20.0)
    layers = list(shown.layers.values())
    windows = [layer for layer in layers if layer.kind == "image"]
    assert [dict(layer.key.split)["well"] for layer in windows] == ["A01", "A02"]
    for layer in windows:
        assert layer.components == ("site", "channel", "z", "time")  # its COMPONENT_ORDER
        assert layer.spec.modes["channel"] == "channel"
        assert layer.spec.modes["z"] == "slice"
        assert layer.spec.modes["site"] == "frame"
        assert layer.spec.colormap == "fire"
        assert layer.spec.contrast_limits == (0, 65535)
        assert len(layer.stack.planes) == 8
        assert all(info["path"].endswith(".tif") for info in layer.infos.values())
        assert all(info["id"] for info in layer.infos.values())
    (cells,) = (layer for layer in layers if layer.kind == "rois")
    assert cells.spec.images_dir == "/plate/images"
    assert cells.key.source == "segmentation"
    (items,) = cells.items.values()
    assert items == [Roi.polygon(SQUARE)]
