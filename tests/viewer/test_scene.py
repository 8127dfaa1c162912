"""The scene: arrivals in any order stand at their places; what does not fit is left out."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec, PlaceValue
from openhcs_stream.viewer._placement import place
from openhcs_stream.viewer._scene import Arrival, Axis, LayerKey, Scene, SceneLayer


def spec(name: str = "raw", axes: str = "YX", **fields: Any) -> LayerSpec:
    return LayerSpec("image", name, axes, **fields)


def image(
    value: float, name: str = "raw", *, shape: tuple[int, ...] = (2, 3), **at: PlaceValue
) -> Arrival:
    """One image of one value, at a place."""
    axes = "YX" if len(shape) == 2 else "YXS"
    made = spec(name, axes, components=tuple(at))
    return Arrival(f"ticket {value}", place(made, tuple(at.values()), np.full(shape, value)))


def only(scene: Scene) -> Any:
    (layer,) = scene.layers.values()
    return layer


def test_arrivals_in_any_order_make_the_same_scene() -> None:
    arrivals = [image(w * 10 + z, well=f"A{w}", z=z) for w in (1, 2, 10) for z in range(4)]
    expected = Scene()
    expected.commit(arrivals)
    assert expected.axes == (Axis("well", ("A1", "A2", "A10")), Axis("z", (0, 1, 2, 3)))
    for seed in range(5):
        random.Random(seed).shuffle(arrivals)
        scene = Scene()
        for arrival in arrivals:
            scene.commit([arrival])
        assert scene.axes == expected.axes
        np.testing.assert_array_equal(
            np.asarray(only(scene).stack), np.asarray(only(expected).stack)
        )


def test_what_changed_is_told() -> None:
    scene = Scene()
    key = LayerKey("", "raw", "image")
    changes = scene.commit([image(1, z=3), image(2, z=1)])
    assert changes.axes_changed
    assert changes.layers == {key: [(3,), (1,)]}
    assert changes.failures == []
    changes = scene.commit([image(5, z=3)])
    assert not changes.axes_changed
    assert changes.layers == {key: [(3,)]}
    assert only(scene).stack[1, 0, 0] == 5
    assert scene.commit([]).layers == {}


def test_a_late_value_moves_no_plane() -> None:
    scene = Scene()
    arrival = image(1, z=3)
    scene.commit([arrival])
    scene.commit([image(2, z=1), image(3, t=0, z=5, name="other")])
    assert np.shares_memory(only_named(scene, "raw").stack[0, 1], arrival.placed[0].payload)


def only_named(scene: Scene, name: str) -> Any:
    return next(layer for key, layer in scene.layers.items() if key.name == name)


def test_layers_share_the_world() -> None:
    scene = Scene()
    scene.commit([image(1, "a", well="A1"), image(2, "b", z=4), image(3, "b", z=2)])
    assert [axis.component for axis in scene.axes] == ["well", "z"]
    a, b = only_named(scene, "a"), only_named(scene, "b")
    assert a.stack.shape == b.stack.shape == (1, 2, 2, 3)
    assert a.stack[0, 0, 0, 0] == a.stack[0, 1, 0, 0] == 1
    assert b.stack[0, :, 0, 0].tolist() == [3, 2]


def test_positions_there_and_back() -> None:
    scene = Scene()
    scene.commit([image(1, "a", well="A1"), image(2, "b", z=4), image(3, "b", z=2)])
    b = only_named(scene, "b")
    assert scene.step_of(b, (4,)) == (0, 1)
    assert scene.step_of(b, (4,), (7, 0)) == (7, 1)
    assert scene.coords_at(b, (0, 1)) == (4,)
    assert scene.coords_at(b, (0, 0, 55, 66)) == (2,)


def test_a_layer_per_channel() -> None:
    scene = Scene()
    arrival = Arrival("t", place(spec(axes="CYX"), (), np.arange(8).reshape(2, 2, 2)))
    scene.commit([arrival])
    assert [layer.title for layer in scene.layers.values()] == [
        "raw [channel 0]",
        "raw [channel 1]",
    ]
    assert scene.axes == ()
    assert [layer.stack[0, 0] for layer in scene.layers.values()] == [0, 4]
    assert [layer.kind for layer in scene.layers.values()] == ["image", "image"]


def test_lists_are_kept_by_place() -> None:
    scene = Scene()
    points = LayerSpec("points", "spots", "ZYX")
    changes = scene.commit([Arrival("t", place(points, (), [(0, 1, 2), (3, 4, 5)]))])
    (layer,) = scene.layers.values()
    assert changes.layers == {layer.key: [(0,), (3,)]}
    assert {at: item.tolist() for at, item in layer.items.items()} == {
        (0,): [[1, 2]],
        (3,): [[4, 5]],
    }
    assert scene.axes == (Axis("z", (0, 3)),)
    assert set(layer.places) == {(0,), (3,)}
    scene.commit([Arrival("t", place(points, (), [(3, 7, 8)]))])
    assert layer.items[(3,)].tolist() == [[7, 8]]


def test_components_in_another_order_are_the_same_layer() -> None:
    scene = Scene()
    first, second = spec(components=("well", "z")), spec(components=("z", "well"), order=("z",))
    scene.commit([Arrival(1, place(first, ("A1", 5), np.ones((2, 2))))])
    changes = scene.commit([Arrival(2, place(second, (6, "A1"), np.ones((2, 2))))])
    layer = only(scene)
    assert changes.layers == {layer.key: [("A1", 6)]}
    assert set(layer.stack.planes) == {("A1", 5), ("A1", 6)}
    assert layer.spec is second
    assert layer.components == ("well", "z")


def test_the_first_order_that_is_given_is_the_worlds() -> None:
    scene = Scene()
    made = spec(components=("well", "z"), order=("z", "well"))
    scene.commit([Arrival(1, place(made, ("A1", 5), np.ones((2, 2))))])
    assert [axis.component for axis in scene.axes] == ["z", "well"]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (image(9, well="A1"), "lacks 'z'"),
        (image(9, well="A1", z=1, time=0), "has 'time' besides"),
        (image(9, well="A1", time=1), "lacks 'z' and has 'time' besides"),
        (image(9, well="A1", z=2, shape=(2, 2, 3)), "different names"),
    ],
    ids=["lacks", "besides", "both", "rgb"],
)
def test_what_does_not_fit_fails_alone(odd: Arrival, told: str) -> None:
    scene = Scene()
    changes = scene.commit([image(1, well="A1", z=1), odd, image(2, well="A1", z=2)])
    ((arrival, reason),) = changes.failures
    assert arrival is odd
    assert told in reason
    assert "stacked by well, z" in reason or "goes with" in reason or "go with" in reason
    layer = only(scene)
    assert changes.layers == {layer.key: [("A1", 1), ("A1", 2)]}
    assert scene.axes == (Axis("well", ("A1",)), Axis("z", (1, 2)))


def test_an_arrival_of_several_layers_fails_whole() -> None:
    scene = Scene()
    scene.commit([image(1, channel=1, shape=(2, 2, 3))])
    changes = scene.commit([Arrival("t", place(spec(axes="CYX"), (), np.zeros((2, 2, 2))))])
    assert len(changes.failures) == 1
    assert changes.layers == {}
    assert len(scene.layers) == 1


def test_a_layer_without_components_says_so() -> None:
    scene = Scene()
    changes = scene.commit([image(1), image(2, z=1)])
    assert "stacked by nothing; this item has 'z' besides" in changes.failures[0][1]


def test_removing_a_layer_shrinks_the_axes() -> None:
    scene = Scene()
    scene.commit([image(1, "a", well="A1", z=1), image(2, "b", z=2)])
    b = only_named(scene, "b")
    before = b.stack.version
    assert scene.remove(LayerKey("", "a", "image")) is not None
    assert scene.remove(LayerKey("", "a", "image")) is None
    assert scene.axes == (Axis("z", (2,)),)
    assert b.stack.shape == (1, 2, 3)
    assert b.stack.version > before


def test_clear() -> None:
    scene = Scene()
    scene.commit([image(1, "a", well="A1"), image(2, "b", z=2)])
    assert [layer.title for layer in scene.clear()] == ["a", "b"]
    assert scene.axes == ()
    assert scene.layers == {}
    assert scene.commit([image(1, z=1)]).axes_changed


def test_a_layer_that_a_person_began() -> None:
    scene = Scene()
    scene.commit([image(1, z=1)])
    drawn = SceneLayer.apart(LayerSpec("rois", "drawn", "", components=("z",)))
    drawn.items[(2,)] = []
    assert drawn.title == "drawn"
    scene.add(drawn)
    assert scene.layers[drawn.key] is drawn
    assert scene.axes == (Axis("z", (1, 2)),)
    scene.add(SceneLayer.apart(drawn.spec))  # there is one of its name
    assert scene.layers[drawn.key] is drawn
    scene.remove(drawn.key)
    assert scene.axes == (Axis("z", (1,)),)


def test_a_thousand_arrivals_take_milliseconds() -> None:
    """The bound is ten times what it takes, so that a busy machine does not fail it."""
    plane = np.zeros((64, 64), np.uint8)
    made = spec(components=("well", "z"))
    arrivals = [
        Arrival(n, place(made, (f"A{n % 50}", n // 50), plane)) for n in reversed(range(1000))
    ]
    best = 1.0
    for _ in range(3):
        scene = Scene()
        start = time.perf_counter()
        scene.commit(arrivals)
        best = min(best, time.perf_counter() - start)
    assert best < 0.1
    assert only(scene).stack.shape == (50, 20, 64, 64)
