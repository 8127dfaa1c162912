"""What the storage backends make of a pipeline's call, with a stream that only takes notes."""

from __future__ import annotations

import contextlib
import enum
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream.backends import NapariStreamingBackend, StreamingBackend
from openhcs_stream.backends import _base as base
from openhcs_stream.errors import DeadlineExceeded, InvalidItem, ItemFailed
from openhcs_stream.rois import Roi, to_imagej

if TYPE_CHECKING:
    from collections.abc import Iterator

SQUARE = [(1.0, 1.0), (1.0, 4.0), (4.0, 4.0), (4.0, 1.0)]


class Mode(enum.Enum):
    """As OpenHCS has them: enums whose values are texts."""

    SLICE = "slice"
    STACK = "stack"


class Transport(enum.Enum):
    IPC = "ipc"
    TCP = "tcp"


class Config:
    """Display settings as OpenHCS's napari configuration has them."""

    COMPONENT_ORDER: ClassVar[list[str]] = ["step_name", "well", "site", "channel", "z_index"]
    well_mode = Mode.SLICE
    site_mode = Mode.STACK
    channel_mode = Mode.SLICE
    z_index_mode = Mode.STACK
    step_name_mode = Mode.SLICE

    def get_colormap_name(self) -> str:
        return "viridis"


class Parser:
    def parse_filename(self, name: str) -> dict[str, Any] | None:
        if not name.startswith("A01"):
            return None
        _, channel, z = Path(name).stem.split("_")
        return {
            "well": "A01",
            "site": np.int64(1),
            "channel": int(channel[1:]),
            "z_index": int(z[1:]),
            "timepoint": None,
            "extension": ".tif",
        }


HANDLER = SimpleNamespace(parser=Parser())


class NoteReceipt:
    def __init__(self, outcome: str = "received") -> None:
        self.outcome = outcome
        self.reason = "no room"
        self.remarks = ("napari: 1 arrow: it becomes a path",) if outcome == "remarked" else ()

    def wait(self, state: str, *, timeout_s: float) -> None:
        assert state == "received"
        assert timeout_s <= 30
        if self.outcome == "failed":
            raise ItemFailed("it failed")
        if self.outcome == "late":
            raise DeadlineExceeded("it is late")


class NoteStream:
    """Takes notes of what a backend does with a stream."""

    def __init__(self, address: str, **settings: Any) -> None:
        self.address = address
        self.settings = settings
        self.sent: list[tuple[str, Any, dict[str, Any]]] = []
        self.batches = 0
        self.closed = False
        self.viewers: tuple[str, ...] = ("napari",)
        self.awaited: tuple[str, ...] = ()
        self.outcomes: list[str] = []

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        self.batches += 1
        yield

    def image(self, data: Any, **look: Any) -> NoteReceipt:
        return self._note("image", data, look)

    def rois(self, data: Any, **look: Any) -> NoteReceipt:
        return self._note("rois", data, look)

    def close(self) -> None:
        self.closed = True

    def _note(self, kind: str, data: Any, look: dict[str, Any]) -> NoteReceipt:
        self.sent.append((kind, data, look))
        return NoteReceipt(self.outcomes.pop(0) if self.outcomes else "received")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[NoteStream]:
    made: list[NoteStream] = []

    def connect(address: str, **settings: Any) -> NoteStream:
        made.append(NoteStream(address, **settings))
        return made[-1]

    monkeypatch.setattr(base, "connect", connect)
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return made


@pytest.fixture
def backend() -> Iterator[NapariStreamingBackend]:
    with NapariStreamingBackend() as made:
        yield made


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "host": "localhost",
        "port": 5555,
        "transport_mode": Transport.TCP,
        "display_config": Config(),
        "microscope_handler": HANDLER,
        "source": "plate 7",
        "images_dir": "/plate/images",
        "some_other_backends_keyword": 1,
        **changes,
    }


IMAGE = np.arange(12, dtype=np.uint16).reshape(3, 4)
PATH = "/plate/out/A01_c2_z3.tif"


class TestCall:
    def test_an_image_with_everything(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, Path(PATH), **settings())
        (stream,) = streams
        assert stream.address == "tcp://127.0.0.1:5555"
        assert stream.settings["launch"] is False
        ((kind, data, look),) = stream.sent
        assert kind == "image"
        assert data is IMAGE
        info = look.pop("metadata")
        assert look == {
            "name": "image",
            "axes": "YX",
            "place": {"well": "A01", "site": 1, "channel": 2, "z": 3},
            "colormap": "viridis",
            "contrast_limits": None,
            "source": "plate 7",
            "modes": {
                "step_name": "split", "well": "split", "site": "stack", "channel": "split",
                "z": "stack",
            },
            "order": ("step_name", "well", "site", "channel", "z"),
            "images_dir": "/plate/images",
        }  # fmt: skip
        assert uuid.UUID(info.pop("id")).version == 4
        assert info == {"path": PATH, "extension": ".tif"}

    def test_images_and_rois_in_one_batch(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        foreign = SimpleNamespace(
            shapes=[SimpleNamespace(coordinates=np.array(SQUARE))], metadata={"label": 3}
        )
        roi_file = to_imagej(Roi.polygon(SQUARE))
        backend.save_batch(
            [IMAGE, [Roi.polygon(SQUARE)], [foreign], [roi_file], []],
            [f"A01_c1_z{z}.tif" for z in range(5)],
            **settings(),
        )
        (stream,) = streams
        assert stream.batches == 1
        assert [kind for kind, _, _ in stream.sent] == ["image", *["rois"] * 4]
        assert [len(data) for _, data, _ in stream.sent[1:]] == [1, 1, 1, 0]
        assert stream.sent[2][1][0].name == "3"
        look = stream.sent[1][2]
        assert look["images_dir"] == "/plate/images"
        assert look["name"] == "rois"
        assert len({look["metadata"]["id"] for _, _, look in stream.sent}) == 5

    def test_components_are_taken_instead_of_what_the_names_tell(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        given = [{"well": "B02", "z_index": z} for z in (5, 6)]
        backend.save_batch([IMAGE, IMAGE], [PATH, "x.tif"], components=given, **settings())
        places = [look["place"] for _, _, look in streams[0].sent]
        assert places == [{"well": "B02", "z": 5}, {"well": "B02", "z": 6}]

    def test_without_any_settings_the_viewer_is_found_or_started(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, "anything.tif")
        assert streams[0].address == "napari"
        assert streams[0].settings["launch"] is True
        assert streams[0].sent[0][2]["source"] == "unknown_source"
        assert streams[0].sent[0][2]["place"] == {}

    def test_nothing_to_save_connects_to_nobody(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save_batch([], [], **settings())
        assert streams == []

    @pytest.mark.parametrize("mode", ["tcp", "ipc", Transport.IPC, None])
    def test_another_host_is_reached_by_tcp(
        self, backend: NapariStreamingBackend, streams: list[NoteStream], mode: Any
    ) -> None:
        backend.save(IMAGE, PATH, **settings(host="microscope", transport_mode=mode))
        assert streams[0].address == "tcp://microscope:5555"

    def test_ipc_where_its_socket_is(
        self, backend: NapariStreamingBackend, streams: list[NoteStream], tmp_path: Path
    ) -> None:
        folder = tmp_path / ".openhcs" / "ipc"
        folder.mkdir(parents=True)
        (folder / "openhcs-zmq-5555.sock").touch()
        backend.save(IMAGE, PATH, **settings(transport_mode=Transport.IPC))
        assert streams[0].address == f"ipc://{folder}/openhcs-zmq-5555.sock"

    def test_contrast_without_auto_contrast_is_the_types_own(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        config = SimpleNamespace(
            auto_contrast=False, colormap=None, lut=SimpleNamespace(value="Fire")
        )
        arrays = [np.zeros((2, 2), dtype) for dtype in ("uint8", "int16", "bool", "float32")]
        backend.save_batch(arrays, list("abcd"), port=5555, display_config=config)
        looks = [look for _, _, look in streams[0].sent]
        assert [look["contrast_limits"] for look in looks] == [
            (0, 255), (-32768, 32767), (0, 1), None,
        ]  # fmt: skip
        assert looks[0]["colormap"] == "fire"


class TestBadInput:
    """Each error names the value, nothing is sent, and the next call works."""

    def refused(
        self, streams: list[NoteStream], data: list[Any], paths: list[Any], **changes: Any
    ) -> str:
        with NapariStreamingBackend() as backend:
            with pytest.raises(InvalidItem) as caught:
                backend.save_batch(data, paths, **settings(**changes))
            assert isinstance(caught.value, ValueError)
            assert caught.value.cure
            assert all(stream.sent == [] for stream in streams)
            backend.save(IMAGE, PATH, **settings())
        return str(caught.value)

    def test_unequal_lengths(self, streams: list[NoteStream]) -> None:
        text = self.refused(streams, [IMAGE, IMAGE], [PATH])
        assert "must have same length" in text
        assert "2" in text
        assert "1" in text

    @pytest.mark.parametrize(
        "data",
        ["a,b", b"bytes", None, {"a": 1}, {1}, SimpleNamespace(a=1), [[1, 2], [3]], ["a"], [{}]],
        ids=repr,
    )
    def test_neither_image_nor_rois(self, streams: list[NoteStream], data: Any) -> None:
        assert PATH in self.refused(streams, [IMAGE, data], [PATH, PATH])

    def test_a_name_that_the_microscope_does_not_know(self, streams: list[NoteStream]) -> None:
        assert "B02.tif" in self.refused(streams, [IMAGE], ["/plate/B02.tif"])

    @pytest.mark.parametrize(
        "changes",
        [
            {"port": 0},
            {"port": 70000},
            {"port": "5555"},
            {"port": None, "host": "microscope"},
            {"transport_mode": "carrier pigeon"},
            {"display_config": SimpleNamespace(well_mode="sideways")},
            {"display_config": SimpleNamespace(COMPONENT_ORDER="well")},
        ],
    )
    def test_settings(self, streams: list[NoteStream], changes: dict[str, Any]) -> None:
        self.refused(streams, [IMAGE], [PATH], **changes)


class TestOutcome:
    def test_failures_are_named_by_id_and_path(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, PATH, **settings())
        streams[0].outcomes = ["received", "failed", "late"]
        paths = [f"A01_c1_z{z}.tif" for z in range(3)]
        with pytest.raises(ItemFailed, match="1 of 3") as caught:
            backend.save_batch([IMAGE] * 3, paths, **settings())
        ((title, reason),) = caught.value.failures
        assert title == f"A01_c1_z1.tif (id {streams[0].sent[2][2]['metadata']['id']})"
        assert reason == "no room"

    def test_what_the_viewer_cannot_hold_is_logged(
        self,
        backend: NapariStreamingBackend,
        streams: list[NoteStream],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        backend.save(IMAGE, PATH, **settings())
        streams[0].outcomes = ["received", "remarked"]
        backend.save_batch([[Roi.polygon(SQUARE)]] * 2, ["A01_c1_z1.tif"] * 2, **settings())
        assert [look["warn"] for _, _, look in streams[0].sent[1:]] == [False, False]
        (line,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert line.startswith("A01_c1_z1.tif (id ")
        assert line.endswith("in napari: 1 arrow: it becomes a path.")

    def test_late_items_are_named(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, PATH, **settings())
        streams[0].outcomes = ["late"] * 12
        with pytest.raises(DeadlineExceeded, match=r"12 of 12 .* and 2 more") as caught:
            backend.save_batch([IMAGE] * 12, [PATH] * 12, **settings(timeout_s=0.5))
        assert streams[0].sent[1][2]["metadata"]["id"] in str(caught.value)


class TestStreams:
    def test_one_is_used_again(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        for _ in range(3):
            backend.save(IMAGE, PATH, **settings())
        backend.save(IMAGE, PATH, **settings(port=5556))
        assert [len(stream.sent) for stream in streams] == [3, 1]

    def test_another_viewer_is_started_for_one_that_was_given_up(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, PATH, **settings(port=None))
        streams[0].viewers, streams[0].awaited = (), ("napari",)
        backend.save(IMAGE, PATH, **settings(port=None))  # it may be back
        assert len(streams) == 1
        streams[0].awaited = ()
        backend.save(IMAGE, PATH, **settings(port=None))
        assert streams[0].closed
        assert len(streams[1].sent) == 1

    def test_the_stream_looks_for_a_lost_viewer_at_its_port(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, PATH, **settings(port=7777))
        streams[0].viewers = ()
        backend.save(IMAGE, PATH, **settings(port=7777))
        assert len(streams) == 1
        assert not streams[0].closed

    def test_cleanup_closes_and_may_be_repeated(self, streams: list[NoteStream]) -> None:
        backend = NapariStreamingBackend()
        backend.save(IMAGE, PATH, **settings())
        backend.cleanup()
        backend.cleanup()
        assert streams[0].closed
        backend.save(IMAGE, PATH, **settings())
        assert len(streams) == 2
        backend.cleanup()

    def test_sources_share_one_stream(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        for number in range(12):
            backend.save(IMAGE, PATH, **settings(source=f"source {number}"))
        (stream,) = streams
        assert [look["source"] for _, _, look in stream.sent] == [f"source {n}" for n in range(12)]

    def test_threads_share_one_stream(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        threads = [
            threading.Thread(target=backend.save, args=(IMAGE, PATH), kwargs=settings())
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(streams) == 1
        assert len(streams[0].sent) == 8

    def test_a_forked_child_starts_with_none(
        self, backend: NapariStreamingBackend, streams: list[NoteStream]
    ) -> None:
        backend.save(IMAGE, PATH, **settings())
        backend._lock.acquire()  # as another thread may, at the moment of the fork
        base._forget_parents_streams()  # what the fork runs in the child
        backend.save(IMAGE, PATH, **settings())
        assert len(streams) == 2
        assert not streams[0].closed


def test_a_backend_says_how_it_prepares_rois() -> None:
    with pytest.raises(TypeError, match="abstract"):
        StreamingBackend()  # type: ignore[abstract]


def test_another_viewer_is_a_few_lines(streams: list[NoteStream]) -> None:
    class FijiBackend(StreamingBackend):
        VIEWER_TYPE = "fiji"

        def _prepare_rois_data(self, data: Any, file_path: Any) -> list[Roi]:
            stem = Path(file_path).stem
            return [
                roi.replace(name=f"{stem}_{index:04d}")
                for index, roi in enumerate(super()._prepare_rois_data(data, file_path))
            ]

    config = SimpleNamespace(
        COMPONENT_ORDER=["well", "z_index"], well_mode="slice", z_index_mode="slice",
        get_lut_name=lambda: "Grays",
    )  # fmt: skip
    with FijiBackend() as backend:
        backend.save([np.array(SQUARE)], PATH, **settings(display_config=config))
    assert streams[0].sent[0][2]["modes"] == {"well": "slice", "z": "slice"}
    assert streams[0].sent[0][1][0].name == "A01_c2_z3_0000"
