"""Small items of a batch lie side by side in one piece of memory, which goes with the last."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import ItemFailed
from openhcs_stream.messages import Items
from openhcs_stream.stream._batch import FULL_ITEMS, SHARED_NBYTES, SMALL_NBYTES
from openhcs_stream.viewer import MemoryViewer
from tests.stream.counting import calls_of, count_sent
from tests.stream.processes import stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from openhcs_stream import Stream
    from tests.stream.conftest import Served

    ViewerProcess = Callable[..., tuple[subprocess.Popen[str], str]]

TINY = np.zeros((8, 8), np.uint8)


@pytest.fixture
def stream(served: Served) -> Iterator[Stream]:
    with openhcs_stream.connect(served.address) as stream:
        yield stream


def shown(served: Served, name: str = "it") -> dict[tuple[Any, ...], np.ndarray[Any, Any]]:
    (layer,) = [each for each in served.viewer.layers.values() if each.title == name]
    return {coords: np.asarray(plane) for coords, plane in layer.stack.planes.items()}


def leases_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The leases that items are told with, by number; 0: with a later item of the message."""
    leases: list[int] = []

    def note(message: Any) -> None:
        if isinstance(message, Items):
            leases.extend(part.lease for item in message.items for part in item.parts)

    count_sent(monkeypatch, note)
    return leases


def nothing_in_use(stream: Stream) -> bool:
    stats = stream._pool.stats()
    return stats.leases == 0 and stats.free_slots == stats.slots


@pytest.mark.parametrize("side_lane", [True, False], ids=["shared memory", "sockets"])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_in_a_batch_arrives_as_it_was(
    served: Served, side_lane: bool, seed: int
) -> None:
    dice, rng = random.Random(seed), np.random.default_rng(seed)
    dtypes = ["?", "u1", "i2", ">u2", "f4", ">f8", "u8"]
    with openhcs_stream.connect(served.address, side_lane=side_lane) as stream:
        sent: dict[str, np.ndarray[Any, Any]] = {}
        for _ in range(3):
            with stream.batch():
                for _ in range(dice.randrange(1, 200)):
                    side = dice.choice([1, 3, 17, 40, 64, 65, 180, 300])
                    array = rng.integers(0, 200, (side, dice.randrange(1, 2 * side)))
                    array = array.astype(dice.choice(dtypes))
                    match dice.randrange(4):
                        case 0:
                            array = array[::-1, ::2]
                        case 1:
                            lent = stream.allocate(array.shape, array.dtype)
                            lent[...] = array
                            array = lent
                            del lent
                    name = f"n{len(sent)}"
                    sent[name] = array.copy()
                    stream.image(array, name=name)
                    del array
        stream.flush()
        assert nothing_in_use(stream)
        for name, array in sent.items():
            ((_, plane),) = shown(served, name).items()
            assert np.array_equal(plane, array)
            assert plane.dtype == array.dtype.newbyteorder("=")


def test_a_lent_array_is_kept_until_the_batch_goes(stream: Stream, served: Served) -> None:
    """Its caller may let go of it at once, and others may ask for memory meanwhile."""
    with stream.batch():
        for z in range(50):
            lent = stream.allocate((100, 100), np.uint8)
            lent[...] = z
            stream.image(lent, name="it", place={"z": z})
            with pytest.raises(ValueError, match="read-only"):
                lent[...] = 0
            del lent
    stream.flush()
    assert {z: plane[0, 0] for (z,), plane in shown(served).items()} == {z: z for z in range(50)}
    assert nothing_in_use(stream)


def test_a_slot_for_many(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = leases_of(monkeypatch)
    large = np.zeros((300, 300), np.uint8)
    with stream.batch():
        for number, image in enumerate([TINY, large, TINY, TINY, large]):
            stream.image(image, name=f"{image.nbytes}", place={"z": number})
    stream.flush()
    assert [bool(lease) for lease in leases] == [False, True, False, True, True]
    leases.clear()
    each = SHARED_NBYTES // SMALL_NBYTES
    with stream.batch():
        for z in range(3 * each + 1):
            stream.image(np.zeros(SMALL_NBYTES, np.uint8), axes="X", name="row", place={"z": z})
    stream.flush()
    assert [z for z, lease in enumerate(leases) if lease] == [
        each - 1, 2 * each - 1, 3 * each - 1, 3 * each,
    ]  # fmt: skip
    assert nothing_in_use(stream)


def test_a_long_batch_goes_in_several_messages(
    stream: Stream, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = count_sent(monkeypatch, lambda message: isinstance(message, Items) or None)
    with stream.batch():
        for z in range(FULL_ITEMS):
            stream.image(TINY, name="it", place={"z": z})
        assert messages.total() > 0  # before its end
        stream.image(TINY, name="it", place={"z": FULL_ITEMS})
    stream.flush()
    assert len(shown(served)) == FULL_ITEMS + 1


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("quota_nbytes", [16 * SHARED_NBYTES, SHARED_NBYTES])
def test_more_than_the_memory(served: Served, quota_nbytes: int) -> None:
    with openhcs_stream.connect(served.address, quota_nbytes=quota_nbytes) as stream:
        with stream.batch():
            for z in range(600):
                stream.image(np.full(SMALL_NBYTES, z % 251, np.uint8), axes="X", place={"z": z})
        stream.flush()
        planes = shown(served, "image")
        assert all(planes[z,][0, 0] == z % 251 for z in range(600))
        assert nothing_in_use(stream)


def test_nothing_is_in_use_after_a_batch_that_raised(stream: Stream) -> None:
    for count in (0, 1, 100):
        with pytest.raises(ZeroDivisionError), stream.batch():
            receipts = [stream.image(TINY, place={"z": z}) for z in range(count)]
            raise ZeroDivisionError
        assert {receipt.state for receipt in receipts} <= {"dropped"}
        assert nothing_in_use(stream)
    stream.image(TINY, place={"z": 0}).wait()


def test_a_forked_child_leaves_the_batch_to_its_parent(stream: Stream, served: Served) -> None:
    with stream.batch():
        stream.image(TINY, name="it", place={"z": 0})
        child = os.fork()
        if child == 0:
            code = 1
            try:
                stream.image(TINY, name="it", place={"z": 7})
            except openhcs_stream.errors.ForkedStream:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stream.image(TINY + 1, name="it", place={"z": 1})
    stream.flush()
    assert {z: plane[0, 0] for (z,), plane in shown(served).items()} == {0: 0, 1: 1}
    assert nothing_in_use(stream)


class Picky(MemoryViewer):
    """Keeps no image whose first pixel is odd."""

    def keep(self, pixels: Any, recycled: Any, spec: Any) -> Any:
        if pixels.reshape(-1)[0] % 2:
            raise ValueError("odd")
        return super().keep(pixels, recycled, spec)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("count", [20, 21])
def test_one_that_fails_takes_no_other_with_it(
    serve_here: Callable[..., Served], count: int
) -> None:
    """Also where it is the one with the lease."""
    served = serve_here(Picky())
    with openhcs_stream.connect(served.address) as stream:
        with stream.batch():
            receipts = [stream.image(TINY + z, name="it", place={"z": z}) for z in range(count)]
        with pytest.raises(ItemFailed, match="odd"):
            stream.flush()
        assert [receipt.state for receipt in receipts] == [
            "failed" if z % 2 else "displayed" for z in range(count)
        ]
        assert {z: plane[0, 0] for (z,), plane in shown(served).items()} == {
            z: z for z in range(0, count, 2)
        }
        assert nothing_in_use(stream)


@pytest.mark.usefixtures("no_leaks")
def test_two_viewers_one_of_which_is_behind(
    served: Served, viewer_process: ViewerProcess, serve_here: Callable[..., Served]
) -> None:
    """What the one has taken stays as it is until the other, or whoever comes for it, has too."""
    process, address = viewer_process()
    with openhcs_stream.connect([served.address, address], reconnect_s=30) as stream:
        stream.image(TINY, name="it", place={"z": 0}).wait()
        stop(process.pid)
        receipts = []
        for first in range(1, 200, 20):
            with stream.batch():
                receipts += [
                    stream.image(TINY + z, name="it", place={"z": z})
                    for z in range(first, first + 20)
                ]
        assert all(receipt.state == "sent" for receipt in receipts)
        stream.status()  # what waits for others goes
        assert stream._pool.stats().leases == 10
        process.kill()
        process.wait()
        other = serve_here(addresses=[address])
        stream.flush(timeout_s=30)
        for each in (served, other):
            planes = shown(each)
            assert all(planes[z,][0, 0] == z for z in range(1, 201))
        assert nothing_in_use(stream)


def test_what_a_small_item_of_a_batch_costs(stream: Stream) -> None:
    """Calls of our functions, which noise can't reach."""

    def send(count: int) -> None:
        with stream.batch():
            for z in range(count):
                stream.image(TINY, name="it", place={"z": z})

    for _ in range(2):
        send(300)
        stream.flush()
    calls = calls_of(lambda: send(100)), calls_of(lambda: send(200))
    stream.flush()
    assert calls[1] - calls[0] <= 100 * 10
