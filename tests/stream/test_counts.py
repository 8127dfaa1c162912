"""What an image costs, in numbers that noise can't reach: messages, copies, memory, sockets."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.messages import Items, Report
from tests.stream.counting import calls_of, count_sent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from openhcs_stream import Stream
    from tests.stream.conftest import Served

IMAGE = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


@pytest.fixture
def stream(served: Served) -> Iterator[Stream]:
    with openhcs_stream.connect(served.address) as stream:
        for z in range(8):
            stream.image(IMAGE, name="it", place={"z": z}).wait()
        with stream.batch():
            stream.image(IMAGE, name="it", place={"z": 0})
        stream.flush()
        yield stream


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Messages by type that go over unix lanes from now on, either way."""
    return count_sent(monkeypatch, lambda message: type(message).__name__)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each copy that numpy makes from now on, as far as it is asked by name."""
    sizes: list[int] = []
    copyto = np.copyto

    def counting(out: np.ndarray[Any, Any], array: Any, **rest: Any) -> None:
        sizes.append(out.nbytes)
        copyto(out, array, **rest)

    monkeypatch.setattr(np, "copyto", counting)
    return sizes


def test_an_image_is_one_message_and_is_reported_in_at_most_two(
    stream: Stream, frames: Counter[str]
) -> None:
    for z in range(8):
        stream.image(IMAGE, name="it", place={"z": z}).wait()
    assert frames.pop(Items.__name__) == 8
    assert 8 <= frames.pop(Report.__name__) <= 16
    assert not frames


def test_a_batch_is_one_message(stream: Stream, frames: Counter[str]) -> None:
    with stream.batch():
        receipts = [stream.image(IMAGE, name="it", place={"z": z}) for z in range(8)]
    for receipt in receipts:
        receipt.wait()
    assert frames.pop(Items.__name__) == 1
    assert frames.pop(Report.__name__) <= 2
    assert not frames


def test_an_image_is_copied_once_on_either_side(stream: Stream, copies: list[int]) -> None:
    """From the caller's array to shared memory, and from there to where it is shown."""
    for z in range(8):
        stream.image(IMAGE, name="it", place={"z": z}).wait()
    assert copies == [IMAGE.nbytes] * 16


def test_an_allocated_image_is_copied_by_the_viewer_only(stream: Stream, copies: list[int]) -> None:
    for z in range(8):
        array = stream.allocate(IMAGE.shape, IMAGE.dtype)
        array[:] = z
        stream.image(array, name="it", place={"z": z}).wait()
    assert copies == [IMAGE.nbytes] * 8


def test_two_viewers_are_served_by_one_copy(
    serve_here: Callable[..., Served], copies: list[int]
) -> None:
    addresses = [serve_here(name=name).address for name in ("one", "two")]
    with openhcs_stream.connect(addresses) as stream:
        for _ in range(2):
            stream.image(IMAGE, name="it", place={"z": 1}).wait()
            del copies[:-3]
    # In shared memory once, and once in each viewer that writes it over what stood there.
    assert copies == [IMAGE.nbytes] * 3


def test_an_image_like_those_before_keeps_no_memory(stream: Stream) -> None:
    """Of each class of ours there are as many objects after two thousand images as before."""

    def send(count: int) -> None:
        for z in range(count):
            stream.image(IMAGE, name="it", place={"z": z % 8})
        stream.flush()

    def objects() -> Counter[str]:
        gc.collect()
        ours = (type(each) for each in gc.get_objects())
        return Counter(
            each.__qualname__ for each in ours if str(each.__module__).startswith("openhcs_stream")
        )

    send(1000)
    before = objects()
    send(2000)
    grown = objects() - before
    del grown["Slot"]  # as many as were under way at the worst
    assert grown.total() < 50, grown
    assert stream._pool.stats().leases == 0


def test_a_stream_keeps_its_descriptors(stream: Stream) -> None:
    def descriptors() -> list[str]:
        """All but shared memory, of which the stream makes what the moment needs."""
        links = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # that of the folder
                links.append(os.readlink(f"/proc/self/fd/{name}"))
        return [link for link in links if "memfd" not in link]

    before = descriptors()
    for z in range(200):
        stream.image(IMAGE, name="it", place={"z": z % 8})
    stream.flush()
    assert len(descriptors()) == len(before)


def test_a_call_like_the_one_before_takes_few_steps(stream: Stream) -> None:
    """Each Python call costs a fifth of a microsecond and more: nothing is checked twice."""
    places: Sequence[dict[str, Any]] = [{"z": z} for z in range(8)]
    singly = [
        calls_of(lambda place=place: stream.image(IMAGE, name="it", place=place))  # type: ignore[misc]
        for place in places
    ]
    assert min(singly) <= 55

    def batch() -> None:
        with stream.batch():
            for _ in range(4):
                for place in places:
                    stream.image(IMAGE, name="it", place=place)

    assert calls_of(batch) / 32 <= 12
    stream.flush()
