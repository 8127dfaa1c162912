"""What a viewer keeps has a limit, and a behaviour at it that is said beforehand."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import pixels
from openhcs_stream.errors import InvalidItem, ItemFailed
from openhcs_stream.rois import Roi, encode, estimated_nbytes
from openhcs_stream.stream import connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer
from openhcs_stream.viewer._budget import (
    PLACE_NBYTES,
    Budget,
    default_memory_nbytes,
    owner_of,
    parse_memory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
LIMIT = 32 * MIB


class TestBudget:
    def test_counts_what_is_alive_and_nothing_else(self) -> None:
        budget = Budget(100)
        assert budget.reserve(60)
        assert not budget.reserve(41)
        assert (budget.used_nbytes, budget.left_nbytes) == (60, 40)
        owner = np.zeros(3)
        budget.hold(owner, 60)
        view = owner[1:]
        del owner
        assert budget.used_nbytes == 60, "a view keeps it"
        del view
        assert budget.used_nbytes == 0
        assert budget.reserve(100)
        budget.release(100)
        assert budget.used_nbytes == 0

    def test_is_told_of_an_end_on_any_thread(self) -> None:
        budget = Budget(1000)
        owners = [np.zeros(1) for _ in range(100)]
        for each in owners:
            assert budget.reserve(10)
            budget.hold(each, 10)
        del each
        threads = [threading.Thread(target=owners.pop) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert budget.used_nbytes == 0

    def test_an_owner_is_what_a_view_keeps_alive(self) -> None:
        array = np.zeros((4, 4))
        assert owner_of(array) is array
        assert owner_of(array[1:].T[::2]) is array
        assert owner_of(np.frombuffer(b"abc", np.uint8)[1:]).nbytes == 3
        assert owner_of("other") == "other"

    def test_by_default_is_half_of_what_there_is(self) -> None:
        assert default_memory_nbytes() == pixels.memory_limit_nbytes() // 2


class TestAmounts:
    @pytest.mark.parametrize(
        ("text", "nbytes"),
        [
            ("16777216", 16 * MIB),
            ("64M", 64 * MIB),
            ("64 MiB", 64 * MIB),
            ("64mb", 64 * MIB),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("16777216B", 16 * MIB),
            (" 32768K ", 32 * MIB),
        ],
    )
    def test_are_read(self, text: str, nbytes: int) -> None:
        assert parse_memory(text) == nbytes

    def test_of_the_machine(self) -> None:
        assert parse_memory("50%") == pixels.memory_limit_nbytes() // 2

    @pytest.mark.parametrize("text", ["", "G", "4X", "-1G", "1e9", "4 G G", "1M", "0%", "0", "٤G"])
    def test_that_are_none_or_too_little(self, text: str) -> None:
        with pytest.raises(InvalidItem) as caught:
            parse_memory(text)
        assert caught.value.cure


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Run receivers with a small memory; gives what runs."""
    running = []

    def start(viewer: MemoryViewer | None = None, **options: Any) -> Any:
        options.setdefault("memory_nbytes", LIMIT)
        context = run_receiver(viewer or MemoryViewer(), **options)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


def kept(running: Any) -> dict[str, Any]:
    told: dict[str, Any] = running.receiver.status()["kept"]
    return told


def used(running: Any) -> int:
    """What is counted now; the receiver's thread rests."""
    gc.collect()
    nbytes: int = running.receiver._keeper.budget.used_nbytes
    return nbytes


def plane(value: int, nbytes: int = 4 * MIB) -> np.ndarray[Any, Any]:
    return np.full((nbytes >> 11, 1 << 11), value, np.uint8)


class TestRefusing:
    def test_what_finds_no_room_fails_with_the_reason_and_the_cure(
        self, serve: Callable[..., Any]
    ) -> None:
        running = serve()
        with connect(running.address) as stream:
            for z in range(7):
                stream.image(plane(z), name="raw", place={"z": z}).wait()
            failed = stream.image(plane(7), name="raw", place={"z": 7})
            with pytest.raises(ItemFailed, match=f"may keep {LIMIT}: there is no room for"):
                failed.wait()
            assert "--memory" in failed.reason
            assert "--when-full oldest" in failed.reason
            # Smaller ones still fit in, the rest stands, and places can be written again.
            stream.image(plane(1, 1 << 20), name="small").wait()
            stream.image(plane(9), name="raw", place={"z": 3}).wait()
            (layer,) = [each for each in running.viewer.layers.values() if each.key.name == "raw"]
            assert [int(layer.stack.planes[(z,)][0, 0]) for z in range(7)] == [0, 1, 2, 9, 4, 5, 6]
            with pytest.raises(ItemFailed):
                stream.flush()
        assert kept(running)["refused"] == 1
        assert kept(running)["limit_nbytes"] == LIMIT

    def test_what_is_counted_is_what_is_kept(self, serve: Callable[..., Any]) -> None:
        running = serve()
        with connect(running.address) as stream:
            for z in range(3):
                stream.image(plane(z), name="raw", place={"z": z}).wait()
            assert used(running) == 3 * (4 * MIB + PLACE_NBYTES)
            for _ in range(50):  # the same places again and again
                stream.image(plane(5), name="raw", place={"z": 1}).wait()
            assert used(running) == 3 * (4 * MIB + PLACE_NBYTES)
            # Another size at the same place: the old memory goes when the new one is shown.
            for nbytes in (1 * MIB, 2 * MIB, 3 * MIB):
                stream.image(plane(5, nbytes), name="raw", place={"z": 1}).wait()
                assert used(running) == 2 * 4 * MIB + nbytes + 3 * PLACE_NBYTES
            stream.request("clear")
            assert used(running) == 0
            stream.image(plane(5), name="raw", place={"z": 1}).wait()
            assert used(running) == 4 * MIB + PLACE_NBYTES

    def test_what_a_viewer_keeps_otherwise_counts_too(self, serve: Callable[..., Any]) -> None:
        running = serve(Elsewhere())
        with connect(running.address) as stream:
            for size in (1, 2, 1, 1, 2):
                stream.image(plane(size, size * MIB), name="raw").wait()
                assert used(running) == size * MIB + PLACE_NBYTES
            stream.request("clear")
            assert used(running) == 0

    def test_a_stack_counts_each_plane(self, serve: Callable[..., Any]) -> None:
        running = serve()
        with connect(running.address) as stream:
            stream.image(np.zeros((10, 64, 64), np.uint8), name="stack").wait()
            assert used(running) == 10 * (64 * 64 + PLACE_NBYTES)

    def test_lists_count_too(self, serve: Callable[..., Any]) -> None:
        running = serve()
        with connect(running.address) as stream:
            rois = [Roi.polygon(np.arange(64.0).reshape(32, 2)) for _ in range(100)]
            stream.rois(rois, name="cells").wait()
            nbytes = used(running)
            assert nbytes == estimated_nbytes(encode(rois))
            stream.rois(rois, name="cells").wait()
            assert used(running) == nbytes
            stream.rois([], name="cells").wait()
            assert used(running) == 0
            stream.points(np.zeros((1000, 2)), name="spots").wait()
            assert used(running) == 16_000 + PLACE_NBYTES
            stream.points(np.array([[0.0, 1, 1], [1.0, 2, 2]]), name="3-D").wait()
            stream.tracks(np.array([[1.0, 0, 5, 5]]), name="moves").wait()
            assert used(running) < 21_000

    def test_what_comes_in_parts_is_refused_before_memory_is_made(
        self, serve: Callable[..., Any]
    ) -> None:
        running = serve()
        with connect(running.address, quota_nbytes=16 * MIB) as stream:
            with pytest.raises(ItemFailed, match="no room for"):
                stream.image(np.zeros((40, MIB), np.uint8), name="big").wait()
            with pytest.raises(ItemFailed):
                stream.flush()
            assert used(running) == 0
            stream.image(np.zeros((20, MIB), np.uint8), name="fits").wait()
            assert used(running) == 20 * MIB + PLACE_NBYTES

    def test_a_window_that_stands_still_does_not_fill_the_memory_with_what_waits(
        self, serve: Callable[..., Any]
    ) -> None:
        """Pixels are written over, but what is to be shown waits: that has the same limit."""
        viewer = StandingStill()
        running = serve(viewer, memory_nbytes=16 * MIB)
        with connect(running.address) as stream:
            small = np.zeros((8, 8), np.uint8)
            while not kept(running)["refused"]:
                with stream.batch():
                    receipts = [stream.image(small, name="live") for _ in range(200)]
            assert len(running.receiver._arrivals) <= 16 * 1024
            with pytest.raises(ItemFailed, match="items wait to be shown"):
                receipts[-1].wait("received")
            viewer.go_on()
            with pytest.raises(ItemFailed):
                stream.flush()
            assert stream.image(small, name="live").wait().state == "displayed"


class Pixels:
    """What a viewer made of an image; its end can't be watched."""

    __slots__ = ("array", "dtype", "nbytes", "shape")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array.copy()
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self.array


class Elsewhere(MemoryViewer):
    """A viewer that keeps pixels in its own way."""

    def keep(self, pixels: Any, recycled: Any, spec: Any) -> Any:
        if recycled is None:
            return Pixels(pixels)
        recycled.array[...] = pixels
        return recycled


class StandingStill(MemoryViewer):
    """A viewer whose window is busy until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self._may_go_on = threading.Event()

    def go_on(self) -> None:
        self._may_go_on.set()

    def stop(self) -> None:
        self._may_go_on.set()
        super().stop()

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        self._may_go_on.wait(40)
        super().run(tick, interval_s)


class TestOldest:
    def test_whole_time_points_go_the_oldest_first(
        self, serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        running = serve(when_memory_full="oldest")
        with connect(running.address) as stream:
            for time in range(20):
                for channel in ("DAPI", "GFP"):
                    stream.image(
                        plane(time, MIB), name="raw", place={"time": time, "channel": channel}
                    ).wait()
                stream.rois(
                    [np.array([[0, 0], [0, 9], [9, 9]])], name="cells", place={"time": time}
                ).wait()
            assert used(running) <= LIMIT
            times = {axis.component: axis.values for axis in running.viewer.axes}["time"]
            assert times[-1] == 19
            assert 8 <= len(times) < 20
            assert list(times) == list(range(20 - len(times), 20)), "the others stand"
            for layer in running.viewer.layers.values():
                assert sorted(coords[0] for coords in layer.places) == list(times), layer.title
                for coords, pixels in layer.stack.planes.items():
                    assert (np.asarray(pixels) == coords[0]).all()
            status = stream.request("status")["kept"]
            (link,) = stream._group.links
            stream._group.wait_until(lambda: link.gone == 2 * (20 - len(times)), 20)
            assert link.gone == 2 * (20 - len(times)), "its sender knows of each"
        assert any("let go of the oldest" in each.getMessage() for each in caplog.records)
        assert status["removed"] == 3 * (20 - len(times))
        assert status["refused"] == 0
        assert status["when_full"] == "oldest"
        assert any("oldest removed" in each.getMessage() for each in caplog.records)

    def test_what_has_no_time_goes_after_what_has(self, serve: Callable[..., Any]) -> None:
        running = serve(when_memory_full="oldest")
        with connect(running.address) as stream:
            stream.image(plane(77, MIB), name="background").wait()
            for time in range(60):
                stream.image(plane(time, MIB), name="raw", place={"time": time}).wait()
            titles = {layer.title for layer in running.viewer.layers.values()}
            assert titles == {"background", "raw"}

    def test_without_time_points_the_images_that_are_oldest_go(
        self, serve: Callable[..., Any]
    ) -> None:
        running = serve(when_memory_full="oldest")
        with connect(running.address) as stream:
            for number in range(60):
                stream.image(plane(number, MIB), name=f"image {number}").wait()
            stream.image(plane(0, MIB), name="image 50").wait()  # written again: not the oldest
            for number in range(60, 80):
                stream.image(plane(number, MIB), name=f"image {number}").wait()
            titles = [layer.title for layer in running.viewer.layers.values()]
            assert "image 79" in titles
            assert "image 50" in titles
            assert "image 51" not in titles
            assert len(titles) <= 31
        assert used(running) <= LIMIT

    def test_another_plate_s_time_points_stand(self, serve: Callable[..., Any]) -> None:
        running = serve(when_memory_full="oldest")
        with connect(running.address) as stream:
            for time in range(20):
                stream.image(plane(1, MIB), source="old", place={"time": time}).wait()
            for time in range(20):
                stream.image(plane(2, MIB), source="new", place={"time": time}).wait()
            by_source = {each.key.source: each for each in running.viewer.layers.values()}
            assert len(list(by_source["new"].places)) == 20
            assert len(list(by_source["old"].places)) < 20

    def test_what_is_larger_than_all_there_may_be_is_refused(
        self, serve: Callable[..., Any]
    ) -> None:
        running = serve(when_memory_full="oldest")
        with connect(running.address) as stream:
            with pytest.raises(ItemFailed, match="no room for"):
                stream.image(plane(0, 33 * MIB), name="huge").wait()
            with pytest.raises(ItemFailed):
                stream.flush()
            stream.image(plane(0), name="raw").wait()

    def test_a_window_that_stands_still_bounds_what_is_kept(
        self, serve: Callable[..., Any]
    ) -> None:
        viewer = StandingStill()
        running = serve(viewer, when_memory_full="oldest")
        with connect(running.address) as stream:
            receipts = [
                stream.image(plane(time, MIB), name="raw", place={"time": time})
                for time in range(40)
            ]
            stream._group.wait_until(lambda: all(each.state != "sent" for each in receipts), 20)
            assert running.receiver._keeper.budget.counted_nbytes <= LIMIT
            assert any(each.state == "failed" for each in receipts)
            viewer.go_on()
            stream.image(plane(99, MIB), name="raw", place={"time": 99}).wait()
            with pytest.raises(ItemFailed):
                stream.flush()


def test_a_policy_that_is_none() -> None:
    with pytest.raises(InvalidItem, match="is no policy"):
        with run_receiver(MemoryViewer(), when_memory_full="newest"):
            pass


def test_less_than_a_viewer_can_live_with() -> None:
    with pytest.raises(InvalidItem, match="too few for a viewer"):
        with run_receiver(MemoryViewer(), memory_nbytes=1 << 20):
            pass
