"""Very large planes: their smaller levels, made while the window goes on."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream_napari import _pyramid
from openhcs_stream_napari._pyramid import Pyramid

if TYPE_CHECKING:
    import numpy.typing as npt

    from tests.viewers.napari.conftest import Stage

IMAGE = LayerSpec("image", "overview", "YX", ("well",), source="scan")
LABELS = LayerSpec("labels", "cells", "YX", ("well",), source="scan")


def wait_made(pyramid: Pyramid) -> None:
    deadline = time.monotonic() + 30
    while not pyramid.take_made():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def settle(stage: Stage, native: Any) -> None:
    """Tick until the levels are there and were drawn."""
    (shown,) = (each for each in stage.viewer._shown.values() if each.native is native)
    deadline = time.monotonic() + 30
    while shown._pyramid.is_busy:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        stage.viewer.settle()
        threading.Event().wait(0.005)


def gradient(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def mean_of_four(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The plain way: pad to even lengths with the edge, and take the mean of each four."""
    odd = [(0, length % 2) for length in plane.shape[:2]] + [(0, 0)] * (plane.ndim - 2)
    even = np.pad(plane, odd, mode="edge").astype(np.float64)
    mean = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    return (np.floor(mean) if plane.dtype.kind in "iu" else mean).astype(plane.dtype)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f4", "f8", "f2"])
@pytest.mark.parametrize("shape", [(64, 48), (61, 47), (7, 3, 3), (1, 9)])
def test_levels_are_means(dtype: str, shape: tuple[int, ...]) -> None:
    plane = gradient(shape, dtype)
    pyramid = Pyramid(4, exact=False)
    pyramid.want(plane)
    wait_made(pyramid)
    expected = plane
    for number in (1, 2, 3):
        expected = mean_of_four(expected)
        level = pyramid.level(plane, number)
        assert level is not None
        assert level.dtype == plane.dtype
        np.testing.assert_allclose(level, expected, rtol=1e-2 if dtype == "f2" else 1e-6)


def test_in_steps_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pyramid, "_STEP_PX", 300)
    plane = gradient((61, 47), "u2")
    pyramid = Pyramid(2, exact=False)
    pyramid.want(plane)
    wait_made(pyramid)
    np.testing.assert_array_equal(pyramid.level(plane, 1), mean_of_four(plane))


def test_labels_keep_their_numbers() -> None:
    plane = gradient((61, 47), "u4") * 10_000_019
    pyramid = Pyramid(3, exact=True)
    pyramid.want(plane)
    wait_made(pyramid)
    np.testing.assert_array_equal(pyramid.level(plane, 2), plane[::4, ::4])


def test_only_the_last_planes_are_kept() -> None:
    planes = [gradient((8, 8), "u2") for _ in range(4)]
    pyramid = Pyramid(2, exact=False)
    for plane in planes:
        pyramid.want(plane)
        wait_made(pyramid)
    made = [pyramid.level(plane, 1) is not None for plane in planes]
    assert made == [False, False, True, True]
    pyramid.keep_only(planes[3:])
    assert pyramid.level(planes[2], 1) is None
    assert pyramid.level(planes[3], 1) is not None
    pyramid.close()
    assert pyramid.level(planes[3], 1) is None


def test_what_is_wanted_last_comes_next_and_what_changed_is_begun_anew() -> None:
    first, second, third = (gradient((512, 512), "u2") for _ in range(3))
    pyramid = Pyramid(2, exact=False)
    for plane in (first, second, third):
        pyramid.want(plane)
    pyramid.keep_only([third])  # the first is dropped while it is made
    wait_made(pyramid)
    assert pyramid.level(first, 1) is None
    assert pyramid.level(second, 1) is None
    assert pyramid.level(third, 1) is not None
    assert not pyramid.is_busy


def test_an_image_is_shown_at_once_and_then_as_means(stage: Stage) -> None:
    pixels = gradient((8192, 300), "u2")
    asked: list[str] = []
    halve = _pyramid._mean_of_four

    def noted(piece: npt.NDArray[Any]) -> npt.NDArray[Any]:
        asked.append(threading.current_thread().name)
        gate.wait(30)
        return halve(piece)

    gate = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pyramid, "_mean_of_four", noted)
        native = stage.native((IMAGE, ("A01",), pixels))
        assert native.multiscale
        # Nothing is made yet, and it is in view.
        np.testing.assert_array_equal(np.asarray(native.data[1][0]), pixels[::2, ::2])
        gate.set()
        settle(stage, native)
    assert set(asked) == {"pyramid"}
    expected = pixels
    for number, shape in enumerate([(4096, 150), (2048, 75), (1024, 38)], 1):
        expected = mean_of_four(expected)
        assert native.data[number].shape[-2:] == shape
        np.testing.assert_array_equal(np.asarray(native.data[number][0:1])[0], expected)
    np.testing.assert_array_equal(native.data[1][0, 3:9, 5], mean_of_four(pixels)[3:9, 5])


def test_an_image_that_is_replaced_is_never_shown_as_the_one_before(model: Stage) -> None:
    pixels = gradient((8192, 300), "u2")
    native = model.native((IMAGE, ("A01",), pixels))
    settle(model, native)
    pixels += 100  # in the same memory, as what is sent again is kept
    model.show((IMAGE, ("A01",), pixels))
    np.testing.assert_array_equal(np.asarray(native.data[1][0]), pixels[::2, ::2])
    settle(model, native)
    np.testing.assert_array_equal(np.asarray(native.data[1][0]), mean_of_four(pixels))


def test_the_plane_that_the_slider_comes_to(model: Stage) -> None:
    first, second = gradient((8192, 300), "u2"), gradient((8192, 300), "u2") + 7
    native = model.native((IMAGE, ("A01",), first))
    model.show((IMAGE, ("A02",), second))
    settle(model, native)
    np.testing.assert_array_equal(np.asarray(native.data[1][1]), second[::2, ::2])
    model.viewer.go_to(well="A02")
    settle(model, native)
    np.testing.assert_array_equal(np.asarray(native.data[1][1]), mean_of_four(second))


def test_labels_are_shown_by_their_own_numbers_and_are_not_painted_in(model: Stage) -> None:
    pixels = gradient((8192, 300), "u4")
    native = model.native((LABELS, ("A01",), pixels))
    settle(model, native)
    np.testing.assert_array_equal(np.asarray(native.data[2][0]), pixels[::4, ::4])
    assert not native.editable


def test_a_layer_that_is_taken_away_lets_go_of_its_levels(model: Stage) -> None:
    native = model.native((IMAGE, ("A01",), gradient((8192, 300), "u2")))
    (shown,) = model.viewer._shown.values()
    settle(model, native)
    for layer in model.scene.clear():
        model.viewer.remove_layer(layer)
    assert not shown._pyramid._made  # type: ignore[attr-defined]
