"""A stream and a real receiver: what is sent arrives, exactly, and what is told is true."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import (
    DeadlineExceeded,
    ForkedStream,
    InvalidItem,
    ItemFailed,
    OutOfSpace,
    Refused,
    StreamClosed,
    UnknownViewer,
    ViewerUnreachable,
)
from openhcs_stream.messages import DTYPES
from openhcs_stream.stream import _connect
from openhcs_stream.tracker import registry
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from openhcs_stream import Stream
    from openhcs_stream.viewer import Coords, SceneLayer
    from tests.stream.conftest import Served


@pytest.fixture(params=[True, False], ids=["shared-memory", "zeromq"])
def stream(request: pytest.FixtureRequest, served: Served) -> Iterator[Stream]:
    with openhcs_stream.connect(
        served.address, name="test", side_lane=request.param, timeout_s=20
    ) as stream:
        yield stream


def plane(served: Served, title: str, coords: Coords = ()) -> npt.NDArray[Any]:
    """A plane as the viewer holds it."""
    for layer in served.viewer.layers.values():
        if layer.title == title:
            return np.asarray(layer.stack.planes[coords])
    raise AssertionError(f"no layer {title!r} in {[*served.viewer.layers]}")


def random_array(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    rng = np.random.default_rng(len(shape))
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_arrives_exactly(stream: Stream, served: Served, dtype: str) -> None:
    array = random_array((33, 17), dtype)
    stream.image(array, name="it").wait()
    got = plane(served, "it")
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, array)


def as_is(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "change",
    [
        as_is,
        read_only,
        np.asfortranarray,
        np.flipud,
        lambda array: array[::2, ::-3],
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: np.broadcast_to(array[:1], array.shape),
    ],
    ids=["contiguous", "read-only", "fortran", "reversed", "strided", "big-endian", "broadcast"],
)
def test_every_memory_layout_arrives_exactly(
    stream: Stream, served: Served, change: Callable[[Any], Any]
) -> None:
    array = change(random_array((40, 30), "uint16"))
    stream.image(array, name="it").wait()
    np.testing.assert_array_equal(plane(served, "it"), array)


@pytest.mark.parametrize("ndim", range(9))
def test_every_number_of_dimensions_arrives_exactly(
    stream: Stream, served: Served, ndim: int
) -> None:
    shape = (2,) * max(0, ndim - 2) + (5, 4)[max(0, 2 - ndim) :]
    array = random_array(shape, "uint16")
    stream.image(array, name="it").wait()
    layers = [each for each in served.viewer.layers.values() if each.key.name == "it"]
    planes = [np.asarray(each) for layer in layers for each in layer.stack.planes.values()]
    assert sum(each.size for each in planes) == array.size
    np.testing.assert_array_equal(
        np.sort(np.concatenate([each.ravel() for each in planes])), np.sort(array.ravel())
    )


def test_rgb_arrives_as_one_plane(stream: Stream, served: Served) -> None:
    array = random_array((20, 30, 3), "uint8")
    stream.image(array, name="it").wait()
    np.testing.assert_array_equal(plane(served, "it"), array)


def test_own_axes_and_place_together(stream: Stream, served: Served) -> None:
    stack = random_array((2, 3, 8, 9), "uint16")
    stream.image(stack, name="it", axes="CZYX", place={"well": "B02"}).wait()
    np.testing.assert_array_equal(plane(served, "it [channel 1]", ("B02", 2)), stack[1, 2])


def test_larger_than_a_slot(served: Served) -> None:
    with openhcs_stream.connect(served.address, quota_nbytes=8 << 20) as stream:
        array = random_array((40, 512, 512), "uint16")
        assert array.nbytes > 2 * (8 << 20)
        stream.image(array, name="it", axes="ZYX").wait()
        for z in (0, 17, 39):
            np.testing.assert_array_equal(plane(served, "it", (z,)), array[z])
        strided = array[:, ::-1, ::2]
        stream.image(strided, name="strided", axes="ZYX").wait()
        np.testing.assert_array_equal(plane(served, "strided", (39,)), strided[39])


def test_larger_than_one_inline_part(served: Served) -> None:
    with openhcs_stream.connect(served.address, side_lane=False) as stream:
        array = random_array((3000, 3001), "uint16")
        stream.image(array, name="it").wait(timeout_s=30)
        np.testing.assert_array_equal(plane(served, "it"), array)


def test_vectors_arrive_exactly(stream: Stream, served: Served) -> None:
    triangle = np.array([[1, 2], [1, 9], [7, 2.5]])
    points = np.array([[1.5, 2.5], [3, 4]])
    tracks = np.array([[1, 0, 1.5, 2], [1, 1, 2.5, 3], [2, 0, 5, 6]])
    stream.rois([triangle], name="cells", place={"well": "A01"})
    stream.points(points, name="spots", place={"well": "A01"})
    stream.tracks(tracks, name="paths", place={"well": "A01"})
    stream.flush()
    found: dict[str, SceneLayer] = {each.title: each for each in served.viewer.layers.values()}
    assert len(found["cells"].items["A01",]) == 1
    np.testing.assert_array_equal(found["spots"].items["A01",], points)
    np.testing.assert_array_equal(found["paths"].items["A01",], tracks)
    stream.rois([], name="cells", place={"well": "A01"}).wait()
    assert not found["cells"].items["A01",]


def test_allocated_array_is_sent_without_a_copy(stream: Stream, served: Served) -> None:
    out = stream.allocate((64, 48), "uint16")
    out[:] = random_array((64, 48), "uint16")
    expected = out.copy()
    stream.image(out, name="it").wait()
    np.testing.assert_array_equal(plane(served, "it"), expected)
    assert not out.flags.writeable
    with pytest.raises(InvalidItem, match="sent already"):
        stream.image(out, name="it")
    stream.image(expected, name="it").wait()


def test_allocate_refuses_what_can_not_be_sent(stream: Stream) -> None:
    with pytest.raises(InvalidItem, match="complex64"):
        stream.allocate((4, 4), np.complex64)
    with pytest.raises(InvalidItem, match="no pixels"):
        stream.allocate((0, 4), np.uint8)
    with pytest.raises(OutOfSpace):
        stream.allocate((1 << 20, 1 << 20), np.uint8)


def test_allocated_arrays_that_are_kept_use_up_the_quota(served: Served) -> None:
    with openhcs_stream.connect(served.address, quota_nbytes=8 << 20, timeout_s=0.3) as stream:
        kept: list[Any] = []
        with pytest.raises(OutOfSpace, match="allocate"):
            kept.extend(stream.allocate((1 << 20,), np.uint8) for _ in range(64))
        kept.clear()
        stream.image(np.zeros((8, 8), np.uint8)).wait()


def test_batch_is_one_message_and_all_arrives(stream: Stream, served: Served) -> None:
    with stream.batch():
        receipts = [
            stream.image(np.full((8, 8), z, np.uint16), name="it", place={"z": z})
            for z in range(300)
        ]
        assert {receipt.state for receipt in receipts} == {"sent"}
        assert not served.viewer.layers
    stream.flush()
    assert {receipt.state for receipt in receipts} == {"displayed"}
    assert all(plane(served, "it", (z,))[0, 0] == z for z in range(300))


def test_nothing_of_a_batch_that_raised_is_sent(stream: Stream, served: Served) -> None:
    with pytest.raises(InvalidItem, match="complex"), stream.batch():
        receipt = stream.image(np.zeros((8, 8)), name="it")
        stream.image(np.zeros((8, 8), complex), name="it")
    assert receipt.state == "dropped"
    stream.image(np.ones((8, 8)), name="next").wait()
    assert [layer.title for layer in served.viewer.layers.values()] == ["next"]


BAD_IMAGES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("object", np.array([[object()]]), {}, "object"),
    ("complex", np.zeros((4, 4), complex), {}, "complex128"),
    ("text", np.array([["a"]]), {}, "<U1|str"),
    ("structured", np.zeros((4, 4), "u1,u2"), {}, "void|fields"),
    ("datetime", np.zeros((4, 4), "M8[s]"), {}, "datetime64"),
    ("no-array", None, {}, "NoneType"),
    ("empty", np.zeros((0, 4)), {}, r"shape \(0, 4\)"),
    ("axes", np.zeros((4, 4)), {"axes": "ZYX"}, "names 3 axes"),
    ("place", np.zeros((4, 4)), {"place": {"z": 1.5}}, "z=1.5"),
    ("name", np.zeros((4, 4)), {"name": ""}, "name=''"),
    ("limits", np.zeros((4, 4)), {"contrast_limits": (5, 1)}, r"\(5, 1\)"),
    ("pixel-size", np.zeros((4, 4)), {"pixel_size": -1}, "pixel_size=-1"),
    ("metadata", np.zeros((4, 4)), {"metadata": {"a": []}}, "metadata"),
    ("source", np.zeros((4, 4)), {"source": "x" * 5000}, "settings of image 'image'"),
    ("modes", np.zeros((4, 4)), {"modes": {"z": "heap"}}, "z='heap'"),
]


@pytest.mark.parametrize(
    ("image", "keywords", "words"),
    [case[1:] for case in BAD_IMAGES],
    ids=[case[0] for case in BAD_IMAGES],
)
def test_bad_input_is_refused_and_the_next_call_works(
    served: Served, image: Any, keywords: dict[str, Any], words: str
) -> None:
    with openhcs_stream.connect(served.address) as stream:
        with pytest.raises(InvalidItem, match=words):
            stream.image(image, **keywords)
        assert stream.status()[0].sent == 0
        stream.image(np.zeros((4, 4)), name="next").wait()


class Gloomy(MemoryViewer):
    """A viewer that can't show anything, and says why at length."""

    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        raise RuntimeError("\N{WORRIED FACE}" * 2000)


def test_many_failures_with_long_reasons_are_all_told(serve_here: Callable[..., Served]) -> None:
    served = serve_here(Gloomy())
    with openhcs_stream.connect(served.address) as stream:
        with stream.batch():
            receipts = [
                stream.image(np.zeros((4, 4)), name="it", place={"z": z}) for z in range(200)
            ]
        with pytest.raises(ItemFailed, match="200 of the items"):
            stream.flush()
        assert {receipt.state for receipt in receipts} == {"failed"}
        assert stream.request("status")["streams"][0]["failed"] == 200


def test_float_labels_are_refused(stream: Stream) -> None:
    with pytest.raises(InvalidItem, match="float64"):
        stream.labels(np.zeros((4, 4)))


def test_place_must_have_what_the_viewer_stacks_by(
    serve_here: Callable[..., Served],
) -> None:
    served = serve_here(required=("well", "z_index"))
    with openhcs_stream.connect(served.address) as stream:
        with pytest.raises(InvalidItem, match="lacks 'z', by which memory stacks"):
            stream.image(np.zeros((4, 4)), place={"well": "A01"})
        stream.image(np.zeros((4, 4)), place={"well": "A01", "z": 1}).wait()
        stream.image(np.zeros((3, 4, 4)), name="own", place={"well": "A01"}).wait()


def test_items_of_a_layer_have_the_same_components(stream: Stream) -> None:
    stream.image(np.zeros((4, 4)), place={"well": "A01", "z": 1})
    with pytest.raises(InvalidItem, match="lacks 'z'; this layer is stacked by well, z"):
        stream.image(np.zeros((4, 4)), place={"well": "A01"})
    with pytest.raises(InvalidItem, match="has 'time' too"):
        stream.image(np.zeros((4, 4)), place={"well": "A01", "z": 1, "time": 0})
    stream.image(np.zeros((4, 4)), name="projection", place={"well": "A01"}).wait()


class Picky(MemoryViewer):
    """A viewer that can't show layers called "bad"."""

    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        if layer.key.name == "bad":
            raise RuntimeError("no way to show this")
        super().show_layer(layer, arrived)


def test_what_fails_is_told_with_its_reason_and_the_rest_is_shown(
    serve_here: Callable[..., Served],
) -> None:
    served = serve_here(Picky())
    with openhcs_stream.connect(served.address) as stream:
        with stream.batch():
            good = stream.image(np.zeros((4, 4)), name="good")
            bad = stream.image(np.zeros((4, 4)), name="bad", place={"z": 1})
            also = stream.image(np.zeros((4, 4)), name="also")
        with pytest.raises(ItemFailed, match="no way to show this") as caught:
            stream.flush()
        assert [name for name, _ in caught.value.failures] == ["image 'bad' at z 1"]
        assert (good.state, bad.state, also.state) == ("displayed", "failed", "displayed")
        assert "no way to show this" in bad.reason
        with pytest.raises(ItemFailed):
            bad.wait()
        stream.flush()
        status = stream.status()[0]
        assert (status.sent, status.displayed, status.failed) == (3, 2, 1)


def test_two_viewers_get_the_same(serve_here: Callable[..., Served]) -> None:
    first, second = serve_here(), serve_here(Picky())
    with openhcs_stream.connect([first.address, second.address]) as stream:
        assert len(stream.viewers) == 2
        array = random_array((30, 20), "uint16")
        stream.image(array, name="it").wait()
        np.testing.assert_array_equal(plane(first, "it"), array)
        np.testing.assert_array_equal(plane(second, "it"), array)
        bad = stream.image(array, name="bad")
        with pytest.raises(ItemFailed, match=r"memory-2: RuntimeError"):
            bad.wait()
        with pytest.raises(ItemFailed):
            stream.flush()
        assert [status.failed for status in stream.status()] == [0, 1]


def test_many_threads_share_a_stream(stream: Stream, served: Served) -> None:
    def work(well: int) -> None:
        for z in range(40):
            stream.image(np.full((16, 16), well * 40 + z, np.uint16), name="it",
                         place={"well": well, "z": z})  # fmt: skip

    threads = [threading.Thread(target=work, args=(well,)) for well in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.flush()
    assert all(
        plane(served, "it", (well, z))[3, 3] == well * 40 + z
        for well in range(5)
        for z in range(40)
    )


def test_request_is_answered_and_refused_in_words(stream: Stream) -> None:
    stream.image(np.zeros((4, 4)), name="it").wait()
    assert stream.request("status")["streams"][0]["displayed"] == 1
    assert [layer["title"] for layer in stream.request("layers")] == ["it"]
    with pytest.raises(Refused, match="no screen"):
        stream.request("screenshot")
    with pytest.raises(Refused, match="'dance'"):
        stream.request("dance")
    assert stream.request("clear") == 1
    assert stream.request("layers") == []
    stream.image(np.zeros((4, 4)), name="it").wait()


def test_tracker_follows_each_item(served: Served) -> None:
    events: list[tuple[str, str]] = []
    undo = registry().subscribe(
        lambda event: events.extend((event.state, name) for name in event.names)
    )
    try:
        with openhcs_stream.connect(served.address, name="tracked") as stream:
            stream.image(np.zeros((4, 4)), name="it", place={"z": 1}).wait()
    finally:
        undo()
    name = "image 'it' at z 1"
    assert events == [("sent", name), ("received", name), ("displayed", name)]
    status = next(each for each in registry().status() if each.stream == "tracked")
    assert (status.sent, status.received, status.displayed) == (1, 1, 1)
    assert status.closed


def test_closed_stream_says_so(served: Served) -> None:
    stream = openhcs_stream.connect(served.address, name="over")
    stream.close()
    stream.close()
    with pytest.raises(StreamClosed, match="'over'"):
        stream.image(np.zeros((4, 4)))
    assert "closed" in repr(stream)


def test_forgotten_stream_warns_and_lets_go(served: Served) -> None:
    stream = openhcs_stream.connect(served.address, name="forgotten")
    thread = stream._thread
    assert thread is not None
    with pytest.warns(ResourceWarning, match="'forgotten'"):
        del stream
        thread.join(10)
        gc.collect()
    assert not thread.is_alive()


def test_error_in_the_block_is_what_the_caller_sees(served: Served) -> None:
    with pytest.raises(RuntimeError, match="mine"), openhcs_stream.connect(served.address) as s:
        s.image(np.zeros((4, 4)))
        raise RuntimeError("mine")


def test_forked_child_is_told_to_connect_anew(stream: Stream, served: Served) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            stream.image(np.zeros((4, 4)))
        except ForkedStream as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        assert b"Call connect() in the child" in pipe.read()
    stream.image(np.full((4, 4), 3), name="after").wait()
    assert plane(served, "after")[0, 0] == 3


def test_nobody_at_the_address() -> None:
    with pytest.raises(ViewerUnreachable, match=r"within 0\.3 s"):
        openhcs_stream.connect("tcp://127.0.0.1:9", timeout_s=0.3)


def test_unknown_viewer_names_the_known() -> None:
    with pytest.raises(UnknownViewer, match="napari"):
        openhcs_stream.connect("imagej2000")


def test_nothing_runs_and_nothing_may_be_started() -> None:
    with pytest.raises(ViewerUnreachable, match="no viewer 'memory' runs; running: none"):
        openhcs_stream.connect("memory", launch=False)


def test_bad_options_are_refused(served: Served) -> None:
    with pytest.raises(InvalidItem, match="when_full='never'"):
        openhcs_stream.connect(served.address, when_full="never")  # type: ignore[arg-type]
    with pytest.raises(InvalidItem, match="no viewer"):
        openhcs_stream.connect([])


def test_found_by_kind_and_by_name(serve_here: Callable[..., Served]) -> None:
    served = serve_here(name="mine")
    for wanted in ("memory", "mine"):
        with openhcs_stream.connect(wanted, launch=False) as stream:
            assert stream.viewers == ("mine",)
    assert openhcs_stream.ask("mine", "status")["name"] == "mine"
    assert openhcs_stream.ask(served.address, "layers") == []


def test_tcp_needs_the_token(serve_here: Callable[..., Served]) -> None:
    served = serve_here(port=0)
    endpoint = served.receiver.endpoint
    assert endpoint is not None
    tcp = next(each for each in endpoint.addresses if each.startswith("tcp"))
    with pytest.raises(Refused, match="token"):
        openhcs_stream.connect(tcp, token="a guess")
    for known in (endpoint.token, ""):  # this user's own viewers are known by their address
        with openhcs_stream.connect(tcp, token=known) as stream:
            stream.image(np.zeros((4, 4))).wait()


def test_receipt_can_not_be_waited_for_anything(stream: Stream) -> None:
    receipt = stream.image(np.zeros((4, 4)))
    with pytest.raises(InvalidItem, match="'eaten'"):
        receipt.wait("eaten")  # type: ignore[arg-type]
    assert receipt.wait() is receipt
    assert "displayed" in repr(receipt)


class Asleep(MemoryViewer):
    """A viewer whose window never comes round to showing anything."""

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        self._wake.clear()
        while not self._stopped:
            self._wake.wait()


def test_received_is_told_while_the_window_sleeps(serve_here: Callable[..., Served]) -> None:
    served = serve_here(Asleep())
    stream = openhcs_stream.connect(served.address)
    receipt = stream.image(np.zeros((4, 4))).wait("received")
    assert receipt.state == "received"
    with pytest.raises(DeadlineExceeded, match=r"not displayed within 0\.05 s; it is received"):
        receipt.wait(timeout_s=0.05)
    with pytest.raises(DeadlineExceeded, match="1 items were not displayed"):
        stream.flush(timeout_s=0.05)
    stream.close(timeout_s=0.05)


def test_view_is_one_line(
    serve_here: Callable[..., Served], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(_connect._forget_shared)
    served = serve_here()
    openhcs_stream.view(np.full((5, 5), 7, np.uint8), "memory", name="seen").wait()
    openhcs_stream.view(np.full((5, 5), 8, np.uint8), "memory", name="seen").wait()
    assert plane(served, "seen")[0, 0] == 8
