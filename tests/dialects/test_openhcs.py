"""OpenHCS's wire, offline: frames as bytes, real shared memory, hostile senders.

What is said here of items without more is said of generation 1.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhcs_stream.dialects import DIALECTS, OpenHCS, SenderRoute, dialect_for, ipc_address
from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.messages import Bye, encode
from openhcs_stream.rois import Roi, to_imagej

if TYPE_CHECKING:
    from openhcs_stream.dialects import ForeignBatch, ForeignItem
    from tests.dialects.conftest import Blocks

pytestmark = pytest.mark.filterwarnings("error")

SHM = Path("/dev/shm")
METADATA = {"well": "A01", "site": 1, "channel": 2, "z_index": 3, "timepoint": 0, "source": "raw"}


def read(message: Any, *, viewer: str = "napari", local_ipc: bool = True) -> ForeignBatch:
    frame = message if isinstance(message, bytes) else json.dumps(message).encode()
    return OpenHCS().read(frame, viewer=viewer, viewer_port=5555, local_ipc=local_ipc)


def batch(*items: dict[str, Any], **envelope: Any) -> dict[str, Any]:
    return {
        "type": "batch",
        "images": list(items),
        "display_config": {},
        "timestamp": 1.5,
        **envelope,
    }


def image(shm_name: str, array: np.ndarray[Any, Any], **fields: Any) -> dict[str, Any]:
    return {
        "path": "/plate/A01_s1.tif",
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "shm_name": shm_name,
        "data_type": "image",
        "metadata": METADATA,
        "image_id": "id-1",
        **fields,
    }


def only(read_batch: ForeignBatch) -> ForeignItem:
    assert read_batch.failures == []
    (item,) = read_batch.items
    return item


def place_of(item: ForeignItem) -> dict[str, int | str]:
    return dict(zip(item.spec.components, item.place, strict=True))


def mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/fiji_" in line]


class TestImages:
    def test_pixels_and_place_of_a_batch(self, blocks: Blocks) -> None:
        array = np.arange(48, dtype=np.uint16).reshape(6, 8)
        name = blocks.fill(array)
        item = only(read(batch(image(name, array))))
        assert item.id == "id-1"
        assert item.spec.kind == "image"
        assert (item.spec.source, item.spec.name, item.spec.axes) == ("raw", "image", "YX")
        assert place_of(item) == {"well": "A01", "site": 1, "channel": 2, "time": 0, "z": 3}
        assert item.info == {"id": "id-1", "path": "/plate/A01_s1.tif"}
        np.testing.assert_array_equal(item.payload, array)
        assert item.payload.dtype == array.dtype
        assert not item.payload.flags.writeable
        item.finish()

    def test_finish_unmaps_and_removes_and_may_be_repeated(self, blocks: Blocks) -> None:
        array = np.ones((512, 512), np.float32)
        name = blocks.fill(array)
        item = only(read(batch(image(name, array))))
        assert blocks.exists(name)
        assert mappings()
        item.finish()
        assert not blocks.exists(name)
        assert not mappings()
        item.finish()

    def test_a_view_outlives_finish_without_harm(self, blocks: Blocks) -> None:
        array = np.full((64, 64), 7, np.uint8)
        item = only(read(batch(image(blocks.fill(array), array))))
        kept = item.payload[3]
        item.finish()
        assert (kept == 7).all()
        del kept
        assert not mappings()

    def test_finish_leaves_a_block_that_took_the_name_since(self, blocks: Blocks) -> None:
        array = np.ones((4, 4), np.uint8)
        name = blocks.fill(array)
        item = only(read(batch(image(name, array))))
        os.unlink(SHM / name)
        blocks.fill(b"somebody else's", name)
        item.finish()
        assert blocks.exists(name)

    def test_no_descriptor_stays_open_for_a_large_batch(self, blocks: Blocks) -> None:
        array = np.arange(16, dtype=np.uint8).reshape(4, 4)
        before = set(os.listdir("/proc/self/fd"))
        read_batch = read(
            batch(*(image(blocks.fill(array), array, image_id=f"id-{n}") for n in range(300)))
        )
        # The one ledger in which all of them stand, at most.
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 1
        assert [item.id for item in read_batch.items] == [f"id-{n}" for n in range(300)]
        for item in read_batch.items:
            item.finish()
        assert set(os.listdir("/proc/self/fd")) <= before
        assert not any(map(blocks.exists, blocks.names))
        assert not mappings()

    @pytest.mark.parametrize(
        "dtype",
        ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
         "float16", "float32", "float64", ">u2", ">f8", "<i4", "|u1"],
    )  # fmt: skip
    def test_every_dtype_that_can_be_shown(self, blocks: Blocks, dtype: str) -> None:
        array = np.arange(12).reshape(3, 4).astype(dtype)
        item = only(read(batch(image(blocks.fill(array), array, dtype=dtype))))
        np.testing.assert_array_equal(item.payload, array)
        assert item.payload.dtype.isnative
        item.finish()

    def test_bytes_that_are_no_bool_become_true(self, blocks: Blocks) -> None:
        array = np.array([[0, 1], [2, 255]], np.uint8)
        item = only(read(batch(image(blocks.fill(array), array, dtype="bool"))))
        assert item.payload.tolist() == [[False, True], [True, True]]
        item.finish()

    @pytest.mark.parametrize(
        ("shape", "metadata", "axes"),
        [
            ((), {}, ""),
            ((7,), {}, "X"),
            ((5, 6), {}, "YX"),
            ((4, 5, 6), {}, "ZYX"),
            ((4, 5, 6), {"z_index": 1}, "TYX"),
            ((4, 5, 6), {"z_index": 1, "timepoint": 1}, "QYX"),
            ((2, 4, 5, 6), {}, "TZYX"),
            ((40, 40, 3), {}, "YXS"),
            ((2, 40, 40, 4), {}, "ZYXS"),
            ((40, 20, 3), {}, "ZYX"),
        ],
    )
    def test_axes_do_not_repeat_the_place(
        self, blocks: Blocks, shape: tuple[int, ...], metadata: dict[str, int], axes: str
    ) -> None:
        array = np.ones(shape, np.uint8)
        item = only(read(batch(image(blocks.fill(array), array, metadata=metadata))))
        assert item.spec.axes == axes
        assert item.payload.shape == shape
        item.finish()

    def test_inline_data(self) -> None:
        array = np.array([[1, 2], [3, 4]], np.uint16)
        message = image("", array, data=array.tolist())
        del message["shm_name"]
        item = only(read(batch(message)))
        np.testing.assert_array_equal(item.payload, array)
        assert item.payload.dtype == np.uint16
        item.finish()

    @pytest.mark.parametrize(
        "data", [[[1, 2], [3]], [[1, 2], [3, 999]], [1], [["a", "b"], ["c", "d"]], [[[1] * 4000]]]
    )
    def test_inline_data_that_is_none(self, data: Any) -> None:
        message = image("", np.ones((2, 2), np.uint8), data=data)
        del message["shm_name"]
        assert "inline data" in read(batch(message)).failures[0].reason

    def test_a_bare_item_without_envelope(self, blocks: Blocks) -> None:
        array = np.ones((3, 3), np.uint8)
        item = only(read({**image(blocks.fill(array), array), "display_config": {"lut": "Fire"}}))
        assert item.spec.colormap == "fire"
        item.finish()

    def test_a_block_of_a_later_generation_stays_its_senders(self, blocks: Blocks) -> None:
        array = np.ones((3, 3), np.uint8)
        name = blocks.fill(array)
        producer = dict.fromkeys(("origin", "output_kind", "output_key", "projection_key"), "main")
        only(read(batch(image(name, array, producer_identity=producer)))).finish()
        assert blocks.exists(name)

    @pytest.mark.parametrize(
        "name", ["psm_0123abcd", "fiji_0123abcde", "fiji_0123ABCD", "fiji_0123abc", "wnsm_01234567"]
    )
    def test_a_block_of_another_form_of_name_stays(self, blocks: Blocks, name: str) -> None:
        array = np.ones((3, 3), np.uint8)
        blocks.names.append(name)
        only(read(batch(image(blocks.fill(array, name), array)))).finish()
        assert blocks.exists(name)


class TestDisplay:
    def spec(self, metadata: dict[str, Any] | None = None, **display: Any) -> Any:
        message = image("", np.ones((2, 2), np.uint8), data=[[1, 2], [3, 4]])
        message["shm_name"] = None
        message["metadata"] = METADATA if metadata is None else metadata
        return only(read(batch(message, display_config=display, images_dir="/plate/img"))).spec

    def test_fiji_modes(self) -> None:
        spec = self.spec(
            component_modes={
                "well": "window", "channel": "channel", "z_index": "slice", "timepoint": "frame",
            },
            component_order=["well", "timepoint", "z_index", "channel"],
            lut="Grays",
            auto_contrast=False,
        )  # fmt: skip
        assert spec.modes == {"well": "split", "channel": "channel", "z": "slice", "time": "frame"}
        assert spec.order == ("well", "time", "z", "channel")
        assert spec.components == ("well", "time", "z", "channel", "site")
        assert spec.colormap == ""  # channels are blended, each in a colour of its own
        assert spec.contrast_limits == (0, 255)
        assert spec.images_dir == "/plate/img"

    def test_napari_modes(self) -> None:
        spec = self.spec(
            component_modes={"well": "slice", "site": "layer", "z_index": "stack"},
            colormap="viridis",
        )
        assert spec.modes == {"well": "split", "site": "split", "z": "stack"}
        assert spec.colormap == "viridis"
        assert spec.contrast_limits is None

    def test_slice_alone_is_told_by_the_lut(self) -> None:
        modes = {"z_index": "slice"}
        assert self.spec(component_modes=modes, lut="Grays").modes == {"z": "slice"}
        assert self.spec(component_modes=modes, colormap="gray").modes == {"z": "split"}

    def test_source_and_step_name_the_layer(self) -> None:
        metadata = {"well": "A01", "source": "plate 1", "step_name": "blur"}
        spec = self.spec(metadata, component_modes={"step_name": "slice", "well": "stack"})
        assert (spec.source, spec.name, spec.components) == ("plate 1", "blur", ("well",))

    def test_source_that_is_stacked_is_a_component(self) -> None:
        spec = self.spec({"well": "A01", "source": "s"}, component_modes={"source": "stack"})
        assert spec.components == ("well", "source")

    def test_other_metadata_places_nothing(self, blocks: Blocks) -> None:
        metadata = {"well": "A01", "extension": ".tif", "site": None, "nested": {"a": [1]}}
        array = np.ones((2, 2), np.uint8)
        item = only(read(batch(image(blocks.fill(array), array, metadata=metadata))))
        assert place_of(item) == {"well": "A01"}
        assert item.info["extension"] == ".tif"
        assert item.info["nested"] == "{'a': [1]}"
        item.finish()

    @pytest.mark.parametrize(
        "display",
        [
            {"component_modes": {"well": "sideways"}},
            {"component_modes": {"well": "window", "z_index": "stack"}},
            {"component_modes": "window"},
            {"lut": 5},
            {"component_order": ["well", 5]},
            [1, 2],
        ],
    )
    def test_settings_that_are_wrong_fail_the_items_and_leave_nothing(
        self, blocks: Blocks, display: Any
    ) -> None:
        array = np.ones((2, 2), np.uint8)
        name = blocks.fill(array)
        result = read(batch(image(name, array), display_config=display))
        assert result.items == []
        assert "display_config" in result.failures[0].reason
        assert not blocks.exists(name)


class TestAnswers:
    def test_success_and_acknowledgement(self, blocks: Blocks) -> None:
        array = np.ones((2, 2), np.uint8)
        result = read(batch(image(blocks.fill(array), array)), viewer="fiji")
        only(result).finish()
        assert json.loads(result.reply([]))["status"] == "success"
        ack = json.loads(result.ack("id-1", SenderRoute("ipc:///a")))
        assert isinstance(ack.pop("timestamp"), float)
        assert ack == {
            "type": "image_ack",
            "image_id": "id-1",
            "viewer_port": 5555,
            "viewer_type": "fiji",
            "status": "success",
        }
        failed = json.loads(result.ack("id-1", SenderRoute("ipc:///a"), reason="no room"))
        assert (failed["status"], failed["error"]) == ("error", "no room")

    def test_one_failure_makes_the_reply_an_error_that_names_it(self, blocks: Blocks) -> None:
        array = np.ones((2, 2), np.uint8)
        result = read(
            batch(
                image(blocks.fill(array), array, image_id="good"),
                image("fiji_absent", array, image_id="bad"),
            )
        )
        assert [item.id for item in result.items] == ["good"]
        answer = json.loads(result.reply([]))
        assert answer["status"] == "error"
        assert "1 of 2" in answer["message"]
        assert "bad" in answer["message"]
        assert "fiji_absent" in answer["message"]
        answer = json.loads(result.reply([("good", "copy failed")]))
        assert "copy failed" in answer["message"]
        assert "2 of 2" in answer["message"]
        result.items[0].finish()

    def test_a_reply_stays_short(self) -> None:
        result = read(batch(*({"image_id": f"id-{n}", "data_type": "x" * 200} for n in range(500))))
        assert len(result.failures) == 500
        assert len(result.reply([])) < 20_000
        assert "and 480 more" in json.loads(result.reply([]))["message"]

    def test_where_acknowledgements_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        where = "ipc:///home/somebody/.openhcs/ipc/openhcs-zmq-7555.sock"
        assert ipc_address(7555) == where
        message = batch({"image_id": "id-1"})
        assert read(message).failures[0].route == SenderRoute(where, is_shared=True)
        over_tcp = read(message, local_ipc=False).failures[0].route
        assert over_tcp == SenderRoute("tcp://127.0.0.1:7555", is_shared=True)
        assert read(batch({"path": "no id"})).failures[0].route is None

    def test_the_folder_of_sockets_is_this_users(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        for _ in range(2):
            folder = Path(ipc_address(5555, make_folder=True).removeprefix("ipc://")).parent
            assert folder.stat().st_mode & 0o777 == 0o700

    def test_error_reply(self) -> None:
        assert json.loads(OpenHCS().error_reply("no")) == {"status": "error", "message": "no"}


class TestHostileNames:
    """A name that is not in order is refused, and what it names is left alone."""

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "../etc/passwd", "/etc/passwd", "a/b", "a\x00b", "a" * 65, "ä", "a b",
         "fiji_1\n"],
    )  # fmt: skip
    def test_no_name(self, name: str) -> None:
        reason = read(batch(image(name, np.ones((2, 2), np.uint8)))).failures[0].reason
        assert "no name of shared memory" in reason

    def refused(self, name: str, array: np.ndarray[Any, Any] | None = None) -> str:
        array = np.ones((2, 2), np.uint8) if array is None else array
        result = read(batch(image(name, array)))
        assert result.items == []
        return result.failures[0].reason

    def test_absent(self, blocks: Blocks) -> None:
        assert "does not exist" in self.refused(blocks.new_name())

    def test_a_link_is_not_followed(self, blocks: Blocks, tmp_path: Path) -> None:
        target = tmp_path / "precious"
        target.write_bytes(b"1234")
        name = blocks.new_name()
        (SHM / name).symlink_to(target)
        self.refused(name)
        assert target.exists()
        assert blocks.exists(name)

    def test_a_folder(self, blocks: Blocks) -> None:
        name = blocks.new_name()
        (SHM / name).mkdir()
        try:
            assert "no regular file" in self.refused(name)
        finally:
            (SHM / name).rmdir()

    def test_a_fifo_does_not_hang(self, blocks: Blocks) -> None:
        name = blocks.new_name()
        os.mkfifo(SHM / name)
        assert "no regular file" in self.refused(name)
        assert blocks.exists(name)

    def test_a_socket(self, blocks: Blocks) -> None:
        name = blocks.new_name()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(SHM / name))
            self.refused(name)
        assert blocks.exists(name)

    def test_another_users(self, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
        name = blocks.fill(b"1234")
        other = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: other)
        assert "belongs to the user" in self.refused(name)
        assert blocks.exists(name)

    def test_too_small(self, blocks: Blocks) -> None:
        name = blocks.fill(b"1234")
        assert "holds 4 bytes, fewer than the 80" in self.refused(name, np.ones(10))
        assert not blocks.exists(name)  # nobody else would remove it

    def test_beyond_the_address_space(self, blocks: Blocks) -> None:
        name = blocks.fill(b"1234")
        message = image(name, np.ones(1), shape=[2**40] * 8)
        assert "fewer than" in read(batch(message)).failures[0].reason


class TestWrongItems:
    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"dtype": "object"}, "numeric"),
            ({"dtype": "O"}, "numeric"),
            ({"dtype": "S4"}, "numeric"),
            ({"dtype": "u1,u1"}, "numeric"),
            ({"dtype": "datetime64"}, "numeric"),
            ({"dtype": "(2,2)u1"}, "numeric"),
            ({"dtype": "nonsense"}, "numeric"),
            ({"dtype": "f" * 17}, "length <= 16"),
            ({"dtype": 5}, "Expected `str`"),
            ({"shape": [0, 5]}, "empty"),
            ({"shape": [-1, 5]}, ">= 0"),
            ({"shape": [2.5]}, "Expected `int`"),
            ({"shape": "22"}, "Expected `array`"),
            ({"shape": [1] * 9}, "length <= 8"),
            ({"shape": [2**41]}, "<= 1099511627776"),
            ({"shape": None}, "Expected `array`"),
            ({"shm_name": 5}, "Expected `str"),
            ({"shm_name": None}, "no pixels"),
            ({"data_type": "film"}, "film"),
            ({"metadata": [1]}, "Expected `object"),
            ({"metadata": {"a" * 300: 1}}, "length <= 256"),
            ({"image_id": 5}, "Expected `str"),
            ({"data_type": "shapes"}, "shapes"),
            ({"data_type": "rois"}, "rois"),
        ],
    )
    def test_is_a_failure_and_its_block_is_not_left_behind(
        self, blocks: Blocks, fields: dict[str, Any], text: str
    ) -> None:
        array = np.ones((2, 2), np.uint8)
        name = blocks.fill(array)
        result = read(batch({**image(name, array), **fields}))
        assert result.items == []
        assert text in result.failures[0].reason
        assert blocks.exists(name) == ("shm_name" in fields)  # it can't be known then

    def test_the_block_of_a_later_generation_is_left(self, blocks: Blocks) -> None:
        array = np.ones((2, 2), np.uint8)
        name = blocks.fill(array)
        result = read(batch(image(name, array, producer_identity={}, dtype="object")))
        assert len(result.failures) == 1
        assert blocks.exists(name)

    @pytest.mark.parametrize(
        "fields",
        [
            {"dtype": "complex64", "shape": [1]},
            {"metadata": {"well": ["A01"]}},
            {"metadata": {"well": "A" * 257}},
            {"metadata": {"site": 2**60}},
        ],
    )
    def test_a_block_in_order_is_removed_though_it_can_not_be_shown(
        self, blocks: Blocks, fields: dict[str, Any]
    ) -> None:
        array = np.ones((2, 4), np.uint8)
        name = blocks.fill(array)
        result = read(batch({**image(name, array), **fields}))
        assert len(result.failures) == 1
        assert not blocks.exists(name)
        assert not mappings()

    def test_the_others_are_read(self, blocks: Blocks) -> None:
        array = np.ones((2, 2), np.uint8)
        result = read(
            batch(
                {"image_id": "a"},
                image(blocks.fill(array), array, image_id="b"),
                5,  # type: ignore[arg-type]
                image(blocks.fill(array), array, image_id="c"),
            )
        )
        assert [item.id for item in result.items] == ["b", "c"]
        assert [failure.id for failure in result.failures] == ["a", "item 2"]
        for item in result.items:
            item.finish()


class TestWrongFrames:
    @pytest.mark.parametrize(
        "frame",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b"\x80\x04\x95pickle",
            b'{"type": "batch"}',
            b'{"type": "batch", "images": {}}',
            b'{"type": "batch", "images": [}',
            b'{"type": "ping"}',
            b'{"type": "\xff\xfe", "images": []}',
            b'{"a":' * 100_000,
            b'{"images":' + b"[" * 100_000,
            b'{"images": [' + b'{"metadata":' * 100_000,
        ],
        ids=lambda frame: f"{len(frame)} bytes {frame[:40]!r}",
    )
    def test_a_violation_with_text(self, frame: bytes) -> None:
        with pytest.raises(ProtocolViolation) as caught:
            read(frame)
        assert len(str(caught.value)) < 1000

    def test_nesting_in_an_item(self) -> None:
        depth = 100_000
        frame = b'{"images": [{"metadata": {"a": ' + b"[" * depth + b"]" * depth + b"}}]}"
        with pytest.raises(ProtocolViolation):
            read(frame)

    def test_too_many_items(self) -> None:
        with pytest.raises(ProtocolViolation, match="4097 items"):
            read(batch(*({} for _ in range(4097))))

    def test_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openhcs_stream.dialects._openhcs_wire.MAX_FRAME_NBYTES", 10)
        with pytest.raises(ProtocolViolation, match="beyond 10"):
            read(batch())

    @pytest.mark.parametrize("item", [b"0", b"{}", b"[]", b'""'])
    def test_too_many_small_items_are_never_built(self, item: bytes) -> None:
        frame = b'{"images":[' + item + (b"," + item) * 700_000 + b"]}"
        tracemalloc.start()
        with pytest.raises(ProtocolViolation):
            read(frame)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20  # as raw items they would have 100
        tracemalloc.stop()

    def test_what_a_refused_batch_hands_over_is_not_left_behind(self, blocks: Blocks) -> None:
        array = np.ones((2, 2), np.uint8)
        names = [blocks.fill(array) for _ in range(3)]
        frame = json.dumps(batch(*(image(name, array) for name in names))).encode()
        with pytest.raises(ProtocolViolation):
            read(frame[:-1])
        assert not any(map(blocks.exists, names))

    def test_an_empty_batch_is_none(self) -> None:
        result = read(batch())
        assert (result.items, result.failures) == ([], [])
        assert json.loads(result.reply([]))["status"] == "success"


class TestRegistry:
    def test_json_is_openhcs(self) -> None:
        assert dialect_for(b'{"type": "batch"}') is DIALECTS[0]
        assert dialect_for(memoryview(b"{}")) is DIALECTS[0]

    @pytest.mark.parametrize("frame", [b"", b"\x80\x04", encode(Bye())])
    def test_the_rest_is_not(self, frame: bytes) -> None:
        assert dialect_for(frame) is None

    def test_names_are_unique(self) -> None:
        assert len({dialect.name for dialect in DIALECTS}) == len(DIALECTS)


class TestOutlines:
    """ROIs as Fiji senders (base64 of ImageJ files) and napari senders (dicts) write them."""

    def rois(self, **fields: Any) -> Any:
        item = only(read(batch({"image_id": "r", "metadata": METADATA, **fields})))
        assert item.spec.kind == "rois"
        assert (item.spec.name, item.spec.axes) == ("rois", "YX")
        assert place_of(item)["z"] == 3
        payload = item.payload
        item.finish()
        return payload

    def shape(self, kind: str, **fields: Any) -> Roi:
        (roi,) = self.rois(data_type="shapes", shapes=[{"type": kind, **fields}])
        assert isinstance(roi, Roi)
        return roi

    def test_imagej_bytes(self) -> None:
        sent = [Roi.polygon([(1, 1), (1, 4), (4, 4)], name="a"), Roi.points([(2, 3)])]
        encoded = [base64.b64encode(to_imagej(roi)).decode() for roi in sent]
        read_back = self.rois(data_type="rois", rois=encoded, path="/plate/A01_rois.zip")
        assert [roi.name for roi in read_back] == ["A01_rois_0000", "A01_rois_0001"]
        assert [roi.replace(name="") for roi in read_back] == [roi.replace(name="") for roi in sent]
        assert self.rois(data_type="rois", rois=[]) == []

    @pytest.mark.parametrize("text", ["!", "", base64.b64encode(b"Iout").decode(), "ä"])
    def test_imagej_bytes_that_are_none(self, text: str) -> None:
        good = base64.b64encode(to_imagej(Roi.points([(2, 3)]))).decode()
        item = {"data_type": "rois", "image_id": "r", "rois": [good, text]}
        assert "outline 1" in read(batch(item)).failures[0].reason

    def test_polygon_and_path(self) -> None:
        corners = [[1, 2], [1, 5], [4, 5]]
        polygon = self.shape("polygon", coordinates=corners, metadata={"label": 7, "area": 2.5})
        assert polygon == Roi.polygon(corners, name="7")
        assert self.shape("path", coordinates=corners) == Roi.polyline(corners)

    def test_ellipse(self) -> None:
        roi = self.shape("ellipse", center=[10, 20], radii=[2, 3.5])
        # The centre of pixel (10, 20) lies half a pixel from the corner that an oval counts from.
        assert roi.coordinates.tolist() == [[17.0, 8.5], [24.0, 12.5]]

    def test_measurements_that_are_nan(self) -> None:
        corners = [[1, 2], [1, 5], [4, 5]]
        measured = {"label": 7, "area": float("nan"), "ratio": float("-inf")}
        assert self.shape("polygon", coordinates=corners, metadata=measured).name == "7"

    def test_points_of_both_generations(self) -> None:
        assert self.shape("point", coordinates=[3, 4.5]) == Roi.points([(3, 4.5)])
        item = only(
            read(
                batch(
                    {
                        "image_id": "p",
                        "metadata": METADATA,
                        "data_type": "points",
                        "shapes": [
                            {"type": "points", "coordinates": [[3, 4], [5, 6]]},
                            {"type": "point", "coordinates": [7, 8.5]},
                        ],
                    }
                )
            )
        )
        assert (item.spec.kind, item.spec.name, item.spec.axes) == ("points", "points", "YX")
        assert item.payload.tolist() == [[3, 4], [5, 6], [7, 8.5]]

    def test_a_polygon_is_no_point(self) -> None:
        shapes = [{"type": "polygon", "coordinates": [[1, 2], [1, 5], [4, 5]]}]
        result = read(batch({"image_id": "p", "data_type": "points", "shapes": shapes}))
        assert "shape 0" in result.failures[0].reason

    def test_ellipse_as_the_corners_of_its_box(self) -> None:
        box = [[8, 16.5], [8, 23.5], [12, 23.5], [12, 16.5]]
        whole = self.shape("ellipse", center=[10, 20], radii=[2, 3.5])
        assert self.shape("ellipse", coordinates=box) == whole

    @pytest.mark.parametrize(
        "shape",
        [
            {"type": "star", "coordinates": [[1, 2]]},
            {"type": "polygon"},
            {"type": "polygon", "coordinates": [[1, 2]]},
            {"type": "polygon", "coordinates": [[1], [2], [3]]},
            {"type": "polygon", "coordinates": ["a"]},
            {"type": "point", "coordinates": [1]},
            {"type": "ellipse", "center": [1, 2]},
            {"type": "ellipse", "center": [1, 2], "radii": [-1, 2]},
            {"coordinates": [[1, 2]]},
            5,
        ],
        ids=str,
    )
    def test_shapes_that_are_none(self, shape: Any) -> None:
        item = {"image_id": "r", "data_type": "shapes", "shapes": [shape]}
        result = read(batch(item))
        assert result.items == []
        assert "shape" in result.failures[0].reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = {
    "producer_identity": JSON,
    "return_route": JSON | st.fixed_dictionaries({"url": JSON}),
    "producer": JSON,
    "plane_component_values": JSON
    | st.dictionaries(st.sampled_from(["z_index", "channel"]), st.lists(JSON, max_size=4)),
    "plane_axis": JSON,
    "source_channel_axis": JSON | st.integers(-4, 4),
    "image_metadata": JSON,
    "spatial_origin_yx": JSON | st.lists(st.integers(-3, 2**40), max_size=3),
    "source_spatial_shape_yx": JSON | st.lists(st.integers(-3, 2**40), max_size=3),
    "path": JSON,
    "shape": JSON | st.lists(st.integers(), max_size=9),
    "dtype": JSON | st.sampled_from(["uint8", "<f8", "O", "V8", "bool", "complex128", "?", "m8"]),
    # Never by chance a name that is there: it would be taken over.
    "shm_name": JSON.map(lambda name: f"fiji_absent_{name}" if isinstance(name, str) else name),
    "data": JSON,
    "data_type": JSON | st.sampled_from(["image", "rois", "shapes", "points"]),
    "metadata": JSON | st.dictionaries(st.sampled_from(["well", "z_index", "source"]), JSON),
    "image_id": JSON,
    "rois": JSON,
    "shapes": JSON
    | st.lists(st.fixed_dictionaries({"type": st.just("polygon"), "coordinates": JSON})),
}


ENVELOPE = {
    "display_config": JSON
    | st.fixed_dictionaries(
        {},
        optional={
            "component_modes": st.dictionaries(
                st.sampled_from(["well", "z_index", "source"]), st.sampled_from(["stack", "slice"])
            ),
            "component_order": st.lists(st.sampled_from(["well", "z_index", "source"])),
            "lut": JSON,
            "colormap": JSON,
            "auto_contrast": JSON,
            "variable_size_handling": JSON,
        },
    ),
    "images_dir": JSON,
    "component_names_metadata": JSON | st.dictionaries(st.text(), JSON, max_size=3),
    "component_value_domain": JSON | st.dictionaries(st.text(), JSON, max_size=3),
}


class TestAnything:
    """Whatever comes, the receiver's thread gets a batch or a violation, and never dies of it."""

    @given(
        st.lists(st.fixed_dictionaries({}, optional=FIELDS) | JSON, max_size=3),
        st.fixed_dictionaries({}, optional=ENVELOPE),
    )
    def test_items(self, items: list[Any], envelope: dict[str, Any]) -> None:
        result = read(batch(*items, **envelope))
        assert len(result.items) + len(result.failures) == len(items)
        assert len(result.reply([])) < 20_000
        for item in result.items:
            item.finish()

    @given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
    def test_frames(self, frame: bytes) -> None:
        with pytest.raises(ProtocolViolation) as caught:
            read(frame)
        assert len(str(caught.value)) < 1000
