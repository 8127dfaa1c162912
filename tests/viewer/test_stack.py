"""PlaneStack behaves as the dense array that it stands for, and copies nothing it need not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, basic_indices

from openhcs_stream.viewer._stack import PlaneStack, World

if TYPE_CHECKING:
    import numpy.typing as npt

HEIGHT, WIDTH = 3, 4
Array = np.ndarray[Any, Any]


def dense_and_stack(samples: int = 0, *, missing: bool = True) -> tuple[Array, PlaneStack]:
    """A stack by (well, z) in a world that also has channel and time, and the same, dense."""
    world = World()
    world.add(("channel",), ("DAPI",))
    world.add(("channel",), ("GFP",))
    stack = PlaneStack(world, ("well", "z"))
    tail = (HEIGHT, WIDTH, samples) if samples else (HEIGHT, WIDTH)
    dense = np.zeros((2, 2, 3, *tail), np.int32)  # well, channel, z
    rng = np.random.default_rng(7)
    for z in (5, 1, 3):
        for well in ("B1", "A1"):
            if missing and (well, z) == ("B1", 3):
                continue
            plane = rng.integers(1, 100, tail).astype(np.int32)
            world.add(("well", "z"), (well, z))
            stack.put((well, z), plane)
            dense["AB".index(well[0]), :, (z - 1) // 2] = plane
    return dense, stack


def index_entries(length: int) -> st.SearchStrategy[Any]:
    ints = st.integers(-length, length - 1)
    return st.one_of(
        ints,
        ints.map(np.int64),
        st.slices(length),
        st.lists(ints, max_size=4),
        arrays(np.int64, array_shapes(max_dims=2, max_side=3), elements=ints),
        arrays(np.bool_, (length,)),
        st.none(),
    )


@given(st.data())
@settings(max_examples=150)
def test_any_index_gives_what_the_dense_array_gives(data: st.DataObject) -> None:
    dense, stack = dense_and_stack(data.draw(st.sampled_from([0, 3])))
    entries: list[Any] = []
    dropped = data.draw(st.integers(0, dense.ndim))
    for length in dense.shape[: dense.ndim - dropped]:
        entry = data.draw(index_entries(length))
        entries.append(entry)
        if entry is None:
            entries.append(data.draw(index_entries(length).filter(lambda e: e is not None)))
    if data.draw(st.booleans()):
        entries.insert(data.draw(st.integers(0, len(entries))), Ellipsis)
    key = tuple(entries)
    try:
        expected = dense[key]
    except IndexError:
        with pytest.raises(IndexError):
            stack[key]
        return
    try:
        found = stack[key]
    except IndexError:
        assert expected.size == 0  # numpy overlooks an index too large where nothing is chosen
        return
    np.testing.assert_array_equal(found, expected, strict=True)


@given(basic_indices((2, 2, 3, HEIGHT, WIDTH), allow_ellipsis=True, allow_newaxis=True))
@settings(max_examples=150)
def test_basic_indices(key: Any) -> None:
    dense, stack = dense_and_stack()
    np.testing.assert_array_equal(stack[key], dense[key], strict=True)


@given(st.data())
@settings(max_examples=150)
def test_writing_gives_what_the_dense_array_gives(data: st.DataObject) -> None:
    dense, stack = dense_and_stack()
    # Axis 1 (channel) repeats the layer: it is written as a whole.
    key = (
        data.draw(index_entries(2).filter(lambda e: e is not None)),
        slice(None),
        *(data.draw(index_entries(n).filter(lambda e: e is not None)) for n in dense.shape[2:]),
    )
    try:
        dense[key] = 1000
    except IndexError:
        with pytest.raises(IndexError):
            stack[key] = 1000
        return
    stack[key] = 1000
    np.testing.assert_array_equal(np.asarray(stack), dense)


@pytest.mark.parametrize(
    "mask_at",
    [(slice(None),), (Ellipsis,), (0, 1, slice(None))],
    ids=["after-slice", "after-ellipsis", "plane"],
)
def test_masks_of_two_dimensions(mask_at: tuple[Any, ...]) -> None:
    dense, stack = dense_and_stack()
    shape = dense.shape[1:3] if mask_at == (slice(None),) else (HEIGHT, WIDTH)
    mask = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    np.testing.assert_array_equal(stack[(*mask_at, mask)], dense[(*mask_at, mask)])


@pytest.mark.parametrize(
    "key",
    [
        7,
        -3,
        (0, 0, 0, 0, 0, 0),
        (Ellipsis, Ellipsis),
        "x",
        1.5,
        True,
        np.bool_(False),
        ([0, 9],),
        ([0.5],),
        (np.ones((2, 3), bool),),
        (0, 0, 0, 9),
        (slice(None), 0, 0, 9),
    ],
    ids=repr,
)
def test_bad_indices_are_refused(key: Any) -> None:
    _, stack = dense_and_stack()
    with pytest.raises(IndexError):
        stack[key]


@pytest.mark.parametrize(
    "key",
    [(0, 0, 1), (slice(0, 1), slice(1, 2), slice(1, 2)), (0, slice(1, 2), 1, slice(None, None, 2))],
    ids=["ints", "slices-of-length-1", "both"],
)
def test_one_plane_is_a_view(key: Any) -> None:
    _, stack = dense_and_stack()
    assert np.shares_memory(stack[key], stack.planes["A1", 3])


def test_length_one_slices_keep_their_axes() -> None:
    _, stack = dense_and_stack()
    assert stack[0:1, 1:2, 2:3].shape == (1, 1, 1, HEIGHT, WIDTH)


def test_a_missing_plane_is_one_shared_blank() -> None:
    _, stack = dense_and_stack()
    blank = stack[1, 0, 1]
    assert not blank.any()
    assert not blank.flags.writeable
    assert np.shares_memory(blank, stack[1, 1, 1])


def test_full_slices_gather_into_a_new_array() -> None:
    dense, stack = dense_and_stack()
    volume = stack[0, 0]
    np.testing.assert_array_equal(volume, dense[0, 0])
    volume[:] = 0
    np.testing.assert_array_equal(np.asarray(stack), dense)


def test_what_it_tells() -> None:
    dense, stack = dense_and_stack(3)
    assert stack.shape == dense.shape
    assert stack.plane_shape == (HEIGHT, WIDTH, 3)
    assert stack.ndim == dense.ndim
    assert stack.size == dense.size
    assert len(stack) == len(dense)
    assert stack.dtype == dense.dtype
    assert stack.rgb
    assert stack.nbytes == 5 * HEIGHT * WIDTH * 3 * 4
    assert repr(stack) == "<PlaneStack (2, 2, 3, 3, 4, 3) int32, 5 planes>"
    assert not dense_and_stack()[1].rgb


def test_iterating_ends() -> None:
    dense, stack = dense_and_stack()
    np.testing.assert_array_equal(np.stack(list(stack)), dense)


def test_as_an_array() -> None:
    dense, stack = dense_and_stack()
    np.testing.assert_array_equal(np.asarray(stack), dense)
    assert np.asarray(stack, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.array(stack, copy=False)


def flat_stack(*planes: npt.NDArray[Any]) -> PlaneStack:
    world = World()
    stack = PlaneStack(world, ("z",))
    for z, plane in enumerate(planes):
        world.add(("z",), (z,))
        stack.put((z,), plane)
    return stack


def test_unequal_planes_are_padded_and_promoted() -> None:
    stack = flat_stack(np.ones((2, 5), np.uint8), np.full((4, 3), 300, np.uint16))
    assert stack.shape == (2, 4, 5)
    assert stack.dtype == np.uint16
    expected = np.zeros((2, 4, 5), np.uint16)
    expected[0, :2, :5] = 1
    expected[1, :4, :3] = 300
    np.testing.assert_array_equal(np.asarray(stack), expected)
    np.testing.assert_array_equal(stack[0], expected[0])


def test_a_replacement_may_shrink_the_stack() -> None:
    stack = flat_stack(np.ones((2, 2), np.uint8), np.ones((8, 8), np.float32))
    stack.put((1,), np.ones((3, 2), np.uint8))
    assert stack.shape == (2, 3, 2)
    assert stack.dtype == np.uint8
    assert stack.nbytes == 4 + 6


def test_a_replacement_of_the_same_form() -> None:
    stack = flat_stack(np.zeros((2, 2), np.uint8))
    stack.put((0,), np.ones((2, 2), np.uint8))
    assert stack[0].all()
    assert stack.nbytes == 4


def test_version_increases_with_each_change() -> None:
    stack = flat_stack(np.zeros((2, 2), np.uint8))
    seen = [stack.version]
    stack.put((0,), np.ones((2, 2), np.uint8))
    seen.append(stack.version)
    stack._world.add(("time",), (0,))
    seen.append(stack.version)
    stack._world.add(("time",), (0,))
    assert stack.version == seen[-1]
    stack[0, 0, 0, 0] = 9
    seen.append(stack.version)
    assert seen == sorted(set(seen))


def test_the_blank_follows_the_stack_as_it_grows() -> None:
    stack = flat_stack(np.ones((2, 2), np.uint8))
    stack._world.add(("z",), (9,))
    assert stack[1].shape == (2, 2)
    stack.put((0,), np.ones((2, 3), np.uint16))
    assert stack[1].shape == (2, 3)
    assert stack[1].dtype == np.uint16


def test_an_empty_stack_is_an_array_too() -> None:
    stack = PlaneStack(World(), ())
    assert stack.shape == (1, 1)
    assert not np.asarray(stack).any()


def test_grey_and_rgb_do_not_mix() -> None:
    stack = flat_stack(np.zeros((2, 2), np.uint8))
    assert stack.refusal(np.zeros((5, 5), np.float32)) == ""
    assert "does not go with" in stack.refusal(np.zeros((2, 2, 3), np.uint8))
    rgb = flat_stack(np.zeros((2, 2, 3), np.uint8))
    assert "does not go with" in rgb.refusal(np.zeros((2, 2, 4), np.uint8))
    assert PlaneStack(World(), ()).refusal(np.zeros((2, 2, 3), np.uint8)) == ""


def test_painting_leaves_what_arrived_alone() -> None:
    """Its memory may be written to by the next image of that place, at any moment."""
    arrived = np.zeros((2, 2), np.int32)
    stack = flat_stack(arrived, np.zeros((2, 2), np.int32))
    stack[np.array([0, 0]), np.array([0, 1]), np.array([1, 1])] = 5
    assert not arrived.any()
    painted = stack.planes[(0,)]
    assert painted.tolist() == [[0, 5], [0, 5]]
    stack[0, 0, 0] = 6
    assert stack.planes[(0,)] is painted
    assert painted.tolist() == [[6, 5], [0, 5]]
    stack.put((0,), arrived)
    stack[0, 0, 0] = 7
    assert painted[0, 0] == 6
    assert not arrived.any()
    assert stack.nbytes == 32


def test_writing_tells_what_was_there_before() -> None:
    stack = flat_stack(np.full((2, 3), 1, np.int32), np.full((2, 3), 2, np.int32))
    patches = stack.write((slice(0, 2), slice(0, 1), slice(1, 3)), 9)
    assert [patch.coords for patch in patches] == [(0,), (1,)]
    assert [patch.before.tolist() for patch in patches] == [[[1, 1]], [[2, 2]]]
    for patch in patches:
        assert patch.plane is stack.planes[patch.coords]
        assert patch.plane[patch.region].tolist() == [[9, 9]]
        patch.plane[patch.region] = patch.before
    assert np.asarray(stack).tolist() == [[[1] * 3] * 2, [[2] * 3] * 2]
    assert stack.write((0, slice(0, 0)), 9) == []


def test_a_repeated_layer_takes_what_is_painted_in_any_repetition() -> None:
    dense, stack = dense_and_stack(missing=False)
    was = stack.planes[("A1", 1)].copy()
    block = np.array(stack[0:1, :, 0:1])
    block[0, 1, 0, 2, 3] = 1000  # a brush of three dimensions that touches one channel only
    patches = stack.write((slice(0, 1), slice(0, 2), slice(0, 1)), block)
    assert len(patches) == 1
    was[2, 3] = 1000
    np.testing.assert_array_equal(stack.planes[("A1", 1)], was)
    assert dense.shape == stack.shape


def test_a_small_plane_stays_small_until_something_is_painted_beside_it() -> None:
    stack = flat_stack(np.ones((2, 2), np.uint8), np.ones((3, 4), np.uint16))
    (patch,) = stack.write((slice(0, 1), slice(1, 3), slice(1, 4)), [[[7, 0, 0], [0, 0, 0]]])
    assert patch.before.tolist() == [[1]]
    assert stack.planes[(0,)].tolist() == [[1, 1], [1, 7]]
    assert stack.planes[(0,)].dtype == np.uint8
    stack[0, 2, 3] = 5
    assert stack.planes[(0,)].tolist() == [[1, 1, 0, 0], [1, 7, 0, 0], [0, 0, 0, 5]]
    assert stack.planes[(0,)].dtype == np.uint8
    stack[0, 0, 0] = 300
    assert stack.planes[(0,)].dtype == np.uint16
    assert stack.planes[(0,)][0, 0] == 300
    assert stack.nbytes == 2 * 24


def test_painting_where_nothing_is_makes_a_plane() -> None:
    stack = flat_stack(np.zeros((2, 2), np.int32))
    stack._world.add(("z",), (5,))
    stack[1, 0, 0] = 3
    assert stack.planes[(5,)].tolist() == [[3, 0], [0, 0]]
    assert stack.nbytes == 32


def test_painting_on_a_read_only_plane_replaces_it() -> None:
    plane = np.zeros((2, 2), np.int32)
    plane.setflags(write=False)
    stack = flat_stack(plane)
    stack[0, 0, 0] = 3
    assert stack[0].tolist() == [[3, 0], [0, 0]]
    assert stack.nbytes == 16
    assert not plane.any()


def test_world_order_is_the_first_that_was_given() -> None:
    world = World()

    def names() -> tuple[str, ...]:
        return world.components

    world.prefer(())
    world.prefer(("z", "well"))
    world.prefer(("well", "z"))
    world.add(("well", "z", "dose"), ("A1", 1, "low"))
    assert names() == ("z", "well", "dose")
    world.rebuild([(("well", "z"), [("A1", 1)])])
    assert names() == ("z", "well")
    world.rebuild(())
    assert names() == ()
    world.add(("well", "z"), ("A1", 1))
    assert names() == ("well", "z")


def test_world_axes_are_made_once_a_version() -> None:
    world = World()
    world.add(("z",), (1,))
    assert world.axes is world.axes
    assert world.axes[0].values == (1,)
