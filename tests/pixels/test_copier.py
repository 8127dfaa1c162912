"""Copies with a helper's help: the same bytes, whoever does how much of it."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.pixels import HELPED_NBYTES, Copier
from openhcs_stream.pixels import _copier as copies
from openhcs_stream.pixels._copier import HELPED_FRESH_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> Iterator[Copier]:
    """One whose thread runs, on whatever machine."""
    monkeypatch.setattr(copies, "_processors", lambda: 8)
    copier = Copier()
    started(copier)
    yield copier
    copier.end()


def started(copier: Copier) -> threading.Thread:
    large = np.zeros(HELPED_NBYTES, np.uint8)
    copier.copy(np.empty_like(large), large)
    copier.start_if_wanted()
    assert copier._helper is not None
    return copier._helper.thread


def noise(*shape: int, dtype: str = "u2") -> Any:
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


SOURCES: dict[str, Callable[[], Any]] = {
    "image": lambda: noise(2048, 2048),
    "few planes": lambda: noise(3, 1500, 1001),
    "one volume": lambda: noise(1, 1, 5, 1024, 1024),
    "no axis but the last is long enough": lambda: noise(2, 3, 3, 1 << 18),
    "transposed": lambda: noise(2048, 2048).T,
    "every other pixel": lambda: noise(4096, 4096)[::2, ::2],
    "big-endian": lambda: noise(2048, 2048, dtype=">u2"),
    "float64": lambda: noise(1700, 1700, dtype="f8"),
    "bool": lambda: noise(2100, 2000, dtype="?"),
    "row": lambda: noise((HELPED_FRESH_NBYTES // 2) + 7),
    "small": lambda: noise(5, 7),
    "a value": lambda: np.array(7, "u2"),
    "empty": lambda: np.empty((0, 4), "u2"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_bytes(copier: Copier, name: str) -> None:
    source = SOURCES[name]()
    out = np.full(source.shape, 99, source.dtype.newbyteorder("<"))
    copier.copy(out, source, is_fresh=True)
    assert np.array_equal(out, source)


class Parts:
    """Tells by which threads parts are copied, and can hold the helper up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by: list[threading.Thread] = []
        self.helper_waits = threading.Event()
        self.goes_on = threading.Event()
        self.fails = False
        self._copyto = np.copyto
        monkeypatch.setattr("openhcs_stream.pixels._copier.np.copyto", self)

    def __call__(self, out: Any, source: Any) -> None:
        thread = threading.current_thread()
        self.by.append(thread)
        if thread.name == "openhcs-stream-copies":
            self.helper_waits.set()
            assert self.goes_on.wait(20)
            if self.fails:
                raise MemoryError("none left")
        elif len(self.by) == 1:
            self.helper_waits.wait(20)  # so that it has its part
        self._copyto(out, source)


def test_both_take_part_and_the_caller_waits_for_the_helper(
    copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(monkeypatch)
    source, out = noise(2048, 2048), np.zeros((2048, 2048), np.uint16)
    seen: list[bool] = []

    def let_it_go_on() -> None:
        deadline = time.monotonic() + 20
        while len(parts.by) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(np.array_equal(out, source))
        parts.goes_on.set()

    other = threading.Thread(target=let_it_go_on)
    other.start()
    copier.copy(out, source, is_fresh=True)
    assert np.array_equal(out, source)
    other.join()
    assert seen == [False]
    assert len(parts.by) == 4
    assert len(set(parts.by)) == 2


def test_what_fails_in_the_helper_is_raised(
    copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(monkeypatch)
    parts.fails = True
    parts.goes_on.set()
    source, out = noise(2048, 2048), np.zeros((2048, 2048), np.uint16)
    with pytest.raises(MemoryError, match="none left"):
        copier.copy(out, source, is_fresh=True)
    parts.fails = False
    copier.copy(out, source, is_fresh=True)  # and the next call works
    assert np.array_equal(out, source)


def test_many_threads_at_once(copier: Copier) -> None:
    sources = [noise(1100, 2000) + n for n in range(6)]
    outs = [np.zeros_like(source) for source in sources]

    def work(number: int) -> None:
        for _ in range(20):
            copier.copy(outs[number], sources[number], is_fresh=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert all(map(np.array_equal, outs, sources))


def test_a_helper_that_is_busy_is_not_waited_for(
    copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(monkeypatch)
    source = noise(2048, 2048)
    first, second = np.zeros_like(source), np.zeros_like(source)
    busy = threading.Thread(target=lambda: copier.copy(first, source, is_fresh=True))
    busy.start()
    assert parts.helper_waits.wait(20)
    copier.copy(second, source, is_fresh=True)
    assert np.array_equal(second, source)
    parts.goes_on.set()
    busy.join(20)
    assert np.array_equal(first, source)


def test_its_thread_ends_with_it(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setattr(copies, "_processors", lambda: 8)
    for _ in range(2):
        copier = Copier()
        thread = started(copier)
        copier.end()
        copier.end()
        assert not thread.is_alive()
        copier.copy(np.zeros((2048, 2048)), np.ones((2048, 2048)), is_fresh=True)  # alone
        copier.start_if_wanted()
        assert copier._helper is None
    copier = Copier()
    thread = started(copier)
    del copier
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_without_processors_to_spare_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_processors", lambda: 2)
    copier = Copier()
    source = noise(2048, 2048)
    out = np.zeros_like(source)
    copier.copy(out, source, is_fresh=True)
    copier.start_if_wanted()
    assert copier._helper is None
    assert np.array_equal(out, source)


def test_help_comes_sooner_where_memory_is_fresh(
    copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(monkeypatch)
    parts.goes_on.set()
    for nbytes, is_fresh, count in (
        (HELPED_FRESH_NBYTES - 4096, True, 1), (HELPED_FRESH_NBYTES, True, 4),
        (HELPED_NBYTES - 4096, False, 1), (HELPED_NBYTES, False, 4),
    ):  # fmt: skip
        parts.by.clear()
        parts.helper_waits.set()
        out = np.zeros((nbytes // 4096, 4096), np.uint8)
        copier.copy(out, np.ones_like(out), is_fresh=is_fresh)
        assert out.all()
        assert len(parts.by) == count
