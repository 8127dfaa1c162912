"""What a person paints into labels in napari comes back: the changed region, one edit a stroke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.stream import Edit
    from tests.viewers.napari.conftest import Stage

SPEC = LayerSpec(kind="labels", name="nuclei", axes="YX", components=("well",), source="plate")
DEEP = LayerSpec(kind="labels", name="nuclei", axes="ZYX", components=("well",), source="plate")


def plane(dtype: str = "u2", shape: tuple[int, int] = (40, 60)) -> npt.NDArray[Any]:
    made = np.zeros(shape, dtype)
    made[5:15, 5:15] = 1
    made[20:30, 30:50] = 2
    return made


class Canvas:
    """A labels layer at two wells, and a brush."""

    def __init__(self, stage: Stage, *items: Any, brush: int = 5) -> None:
        self.stage = stage
        (self.layer,) = stage.show(*(items or self.two_wells()))
        self.native = stage.viewer.native_layer(self.layer)
        stage.viewer.model.layers.selection.active = self.native
        self.native.mode = "paint"
        self.native.brush_size = brush
        self.native.selected_label = 7
        self.mouse = stage.mouse

    @staticmethod
    def two_wells() -> Any:
        return [(SPEC, ("A01",), plane()), (SPEC, ("A02",), plane()[::-1].copy())]

    def kept(self, *coords: Any) -> npt.NDArray[Any]:
        return np.asarray(self.layer.stack.planes[coords or ("A01",)])

    def shown(self) -> npt.NDArray[Any]:
        return np.asarray(self.native._slice.image.raw)


@pytest.fixture
def canvas(stage: Stage) -> Canvas:
    return Canvas(stage)


def check(edit: Edit, was: npt.NDArray[Any], now: npt.NDArray[Any]) -> None:
    """An edit is exactly what differs between two planes."""
    assert edit.action == "painted"
    differ = np.argwhere(was != now)
    (top, left), (bottom, right) = differ.min(axis=0), differ.max(axis=0) + 1
    assert edit.region == (slice(top, bottom), slice(left, right))
    np.testing.assert_array_equal(edit.before, was[edit.region], strict=True)
    np.testing.assert_array_equal(edit.after, now[edit.region], strict=True)


def test_a_stroke_is_one_edit_when_the_button_is_let_go_of(canvas: Canvas) -> None:
    was = plane()
    canvas.mouse.press(10, 10)
    for x in range(12, 30, 3):
        canvas.mouse.move(12, x)
        canvas.stage.viewer.settle()
        assert not canvas.stage.edits()
    canvas.mouse.release(12, 28)
    canvas.stage.viewer.settle()
    (edit,) = canvas.stage.edits(finish=False)
    assert (edit.place, edit.source, edit.kind) == ({"well": "A01"}, "plate", "labels")
    check(edit, was, canvas.kept())
    assert set(np.unique(edit.after)) >= {7}
    assert canvas.kept().dtype == np.uint16
    np.testing.assert_array_equal(canvas.shown(), canvas.kept())
    np.testing.assert_array_equal(edit.apply(was), canvas.kept())
    assert not canvas.stage.edits()


def test_two_strokes_are_two_edits(canvas: Canvas) -> None:
    canvas.mouse.drag((10, 10), (10, 20))
    canvas.mouse.drag((30, 10), (30, 20))
    first, second = canvas.stage.edits()
    check(first, plane(), first.apply(plane()))
    np.testing.assert_array_equal(second.apply(first.apply(plane())), canvas.kept())


def test_what_is_painted_stays_when_the_slider_comes_back(canvas: Canvas) -> None:
    canvas.mouse.click(10, 10)
    canvas.stage.viewer.go_to(well="A02")
    (edit,) = canvas.stage.edits(finish=False) or canvas.stage.edits()
    assert edit.place == {"well": "A01"}
    canvas.mouse.click(30, 40)
    (edit,) = canvas.stage.edits()
    assert edit.place == {"well": "A02"}
    canvas.stage.viewer.go_to(well="A01")
    assert canvas.shown()[10, 10] == 7
    assert not canvas.stage.edits()


@pytest.mark.parametrize("contiguous", [True, False])
def test_filling(canvas: Canvas, contiguous: bool) -> None:
    canvas.native.mode = "fill"
    canvas.native.contiguous = contiguous
    canvas.mouse.click(7, 7)
    (edit,) = canvas.stage.edits()
    assert edit.region == (slice(5, 15), slice(5, 15))
    assert set(np.unique(edit.before)) == {1}
    assert set(np.unique(edit.after)) == {7}


def test_filling_the_whole_plane(canvas: Canvas) -> None:
    """napari changes what it has read before it writes that back: it must not be the plane."""
    empty = np.zeros((40, 60), "u2")
    canvas.stage.show((SPEC, ("A01",), empty))
    canvas.native.mode = "fill"
    canvas.mouse.click(7, 7)
    (edit,) = canvas.stage.edits()
    check(edit, np.zeros((40, 60), "u2"), canvas.kept())
    assert (canvas.kept() == 7).all()
    assert not empty.any()


def test_erasing_and_painting_over_nothing(canvas: Canvas) -> None:
    canvas.native.mode = "erase"
    canvas.mouse.drag((35, 5), (35, 15))
    assert not canvas.stage.edits()
    canvas.mouse.drag((10, 3), (10, 20))
    (edit,) = canvas.stage.edits()
    assert set(np.unique(edit.after)) == {0, 1} or set(np.unique(edit.after)) == {0}
    check(edit, plane(), canvas.kept())


def test_the_polygon_tool(canvas: Canvas) -> None:
    canvas.native.mode = "polygon"
    overlay = canvas.native._overlays["polygon"]
    zero = [0]
    overlay.points = [[*zero, 18, 8], [*zero, 18, 20], [*zero, 35, 20], [*zero, 35, 8]]
    overlay.add_polygon_to_labels(canvas.native)
    canvas.stage.viewer.settle()
    (edit,) = canvas.stage.edits(finish=False)
    assert edit.region == (slice(18, 36), slice(8, 21))
    check(edit, plane(), canvas.kept())


def test_picking_a_label_is_no_edit(canvas: Canvas) -> None:
    canvas.native.mode = "pick"
    canvas.mouse.click(25, 40)
    assert canvas.native.selected_label == 2
    assert not canvas.stage.edits()


def test_undo_and_redo_are_edits(canvas: Canvas) -> None:
    canvas.mouse.drag((10, 10), (20, 35))
    (stroke,) = canvas.stage.edits()
    canvas.native.undo()
    canvas.stage.viewer.settle()
    (undone,) = canvas.stage.edits(finish=False)
    assert undone.region == stroke.region
    np.testing.assert_array_equal(undone.before, stroke.after)
    np.testing.assert_array_equal(undone.after, stroke.before)
    np.testing.assert_array_equal(canvas.kept(), plane())
    canvas.native.redo()
    (redone,) = canvas.stage.edits()
    np.testing.assert_array_equal(redone.after, stroke.after)
    assert canvas.shown()[10, 10] == 7


def test_a_stroke_that_lasts_over_several_presses_is_one_edit(canvas: Canvas) -> None:
    """napari's "encircle and fill" paints while no button is down."""
    canvas.native._begin_stroke()
    for x in range(10, 30, 2):
        canvas.native.paint((0, 10, x), 7)
        canvas.stage.viewer.settle()
        assert not canvas.stage.edits()
    canvas.native._commit_stroke()
    canvas.stage.viewer.settle()
    assert len(canvas.stage.edits(finish=False)) == 1
    canvas.native._begin_stroke()
    canvas.native.paint((0, 30, 10), 7)
    canvas.native._abort_stroke()
    canvas.stage.viewer.settle()
    assert not canvas.stage.edits()


@pytest.mark.parametrize("recycled", [True, False])
def test_new_labels_replace_what_was_painted_and_are_no_edit(
    canvas: Canvas, recycled: bool
) -> None:
    arrived = plane()
    canvas.stage.show((SPEC, ("A01",), arrived))
    canvas.mouse.drag((10, 10), (20, 35))
    assert len(canvas.stage.edits()) == 1
    np.testing.assert_array_equal(arrived, plane())  # the receiver may write the next one there
    fresh = arrived if recycled else np.zeros_like(arrived)
    fresh[:] = 9
    canvas.stage.show((SPEC, ("A01",), fresh))
    assert (canvas.shown() == 9).all()
    assert not canvas.stage.edits()
    canvas.native.undo()
    canvas.native.redo()
    canvas.stage.viewer.settle()
    assert not canvas.stage.edits()
    assert (canvas.kept() == 9).all()


def test_new_labels_under_the_brush(canvas: Canvas) -> None:
    canvas.mouse.press(10, 10)
    canvas.mouse.move(10, 20)
    canvas.stage.show((SPEC, ("A01",), np.full((40, 60), 9, "u2")))
    (edit,) = canvas.stage.edits(finish=False)
    check(edit, plane(), edit.apply(plane()))
    canvas.mouse.move(10, 40)
    canvas.mouse.release(10, 40)
    assert not canvas.stage.edits()
    assert (canvas.kept() == 9).all()
    canvas.mouse.drag((30, 10), (30, 20))
    assert len(canvas.stage.edits()) == 1
    canvas.native.undo()
    assert (canvas.kept() == 9).all()


def test_new_labels_elsewhere_leave_undo_alone(canvas: Canvas) -> None:
    canvas.mouse.drag((10, 10), (10, 20))
    canvas.stage.edits()
    canvas.stage.show((SPEC, ("A02",), plane()), (SPEC, ("A03",), plane()))
    canvas.native.undo()
    assert len(canvas.stage.edits()) == 1
    np.testing.assert_array_equal(canvas.kept(), plane())


def test_a_place_in_front_takes_undo_away_and_no_pixels(canvas: Canvas) -> None:
    canvas.mouse.drag((10, 10), (10, 20))
    canvas.stage.edits()
    painted = canvas.kept().copy()
    canvas.stage.show((SPEC, ("A00",), plane()))
    canvas.native.undo()  # it counts planes: it would put A01's pixels into A00
    assert not canvas.stage.edits()
    np.testing.assert_array_equal(canvas.kept("A00"), plane())
    np.testing.assert_array_equal(canvas.kept(), painted)
    canvas.mouse.drag((30, 10), (30, 20))
    (edit,) = canvas.stage.edits()
    assert edit.place == {"well": "A01"}


def test_painting_where_nothing_had_arrived(canvas: Canvas) -> None:
    image = LayerSpec(kind="image", name="raw", axes="YX", components=("well",))
    canvas.stage.show((image, ("A09",), plane()))
    canvas.stage.viewer.go_to(well="A09")
    canvas.mouse.drag((10, 10), (10, 20))
    (edit,) = canvas.stage.edits()
    assert edit.place == {"well": "A09"}
    check(edit, np.zeros((40, 60), "u2"), canvas.kept("A09"))


def test_labels_that_are_repeated_along_a_slider_have_one_plane(model: Stage) -> None:
    image = LayerSpec(kind="image", name="raw", axes="ZYX", components=("well",))
    model.show((image, ("A01",), np.zeros((3, 40, 60), "u1")))
    canvas = Canvas(model, (SPEC, ("A01",), plane()))
    model.viewer.go_to(z=2)
    canvas.mouse.drag((10, 10), (10, 20))
    (edit,) = model.edits()
    assert edit.place == {"well": "A01"}
    model.viewer.go_to(z=0)
    np.testing.assert_array_equal(canvas.shown(), canvas.kept())
    assert canvas.shown()[10, 10] == 7


def test_a_brush_of_three_dimensions_paints_several_planes(model: Stage) -> None:
    stack = np.stack([plane() for _ in range(6)])
    canvas = Canvas(model, (DEEP, ("A01",), stack.copy()), brush=3)
    canvas.native.n_edit_dimensions = 3
    model.viewer.go_to(z=3)
    canvas.mouse.drag((10, 40), (10, 44))
    edits = model.edits()
    assert [edit.place["z"] for edit in edits] == [2, 3, 4]
    for edit in edits:
        z = int(edit.place["z"])
        check(edit, stack[z], canvas.kept("A01", z))
    middle = edits[1].after
    assert (middle == 7).sum() > (edits[0].after == 7).sum()
    canvas.native.undo()
    assert len(model.edits()) == 3
    np.testing.assert_array_equal(canvas.kept("A01", 3), plane())


def test_painting_in_the_volume_view(model: Stage) -> None:
    stack = np.stack([plane() for _ in range(4)])
    canvas = Canvas(model, (DEEP, ("A01",), stack))
    model.viewer.model.dims.ndisplay = 3
    canvas.native.n_edit_dimensions = 3
    canvas.native.paint((0, 1, 10, 10), 7)
    assert {edit.place["z"] for edit in model.edits()} == {0, 1, 2, 3}
    model.viewer.model.dims.ndisplay = 2


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "i8", "?"])
def test_every_dtype_keeps_its_dtype(stage: Stage, dtype: str) -> None:
    given = plane("u1").astype(bool) if dtype == "?" else plane(dtype)
    canvas = Canvas(stage, (SPEC, ("A01",), given))
    assert canvas.native.editable
    canvas.mouse.drag((10, 3), (10, 30))
    (edit,) = stage.edits()
    stored = np.dtype("u1") if dtype == "?" else np.dtype(dtype)
    assert edit.after.dtype == stored  # bits were made numbers when they were placed
    assert edit.after.max() == 7


def test_a_number_that_the_dtype_does_not_hold(model: Stage) -> None:
    from napari.layers.labels.labels import WrongSelectedLabelError

    canvas = Canvas(model, (SPEC, ("A01",), plane("u1")))
    with pytest.raises(WrongSelectedLabelError):
        canvas.native.selected_label = 300
    model.show((SPEC, ("A02",), plane("u2")))
    canvas.native.selected_label = 300
    canvas.mouse.drag((10, 3), (10, 30))
    (edit,) = model.edits()
    assert (edit.after.dtype, edit.after.max()) == (np.uint16, 300)


def test_painting_with_contours(stage: Stage) -> None:
    canvas = Canvas(stage)
    canvas.native.contour = 2
    canvas.mouse.drag((10, 3), (10, 30))
    assert len(stage.edits()) == 1
    canvas.native.undo()
    assert len(stage.edits()) == 1


def test_preserved_labels_stay(canvas: Canvas) -> None:
    canvas.native.preserve_labels = True
    canvas.mouse.drag((10, 3), (10, 30))
    (edit,) = canvas.stage.edits()
    assert (edit.before[edit.before != edit.after] == 0).all()


def test_very_large_labels_are_shown_and_say_that_they_are_not_painted_in(model: Stage) -> None:
    pixels = np.zeros((8192, 300), "u1")
    (layer,) = model.show((SPEC, ("A01",), pixels))
    native = model.viewer.native_layer(layer)
    assert native.multiscale
    assert not native.editable
    assert "can't be painted in" in model.viewer.model.canvas.overlays.text.text


def test_a_new_label_by_its_key(canvas: Canvas) -> None:
    (press,) = (act for key, act in canvas.native.keymap.items() if str(key) == "M")
    press(canvas.native)
    assert canvas.native.selected_label == 3
    canvas.mouse.click(35, 5)
    press(canvas.native)
    assert canvas.native.selected_label == 4


def test_scripts_may_write_pixels(canvas: Canvas) -> None:
    rows, columns = np.array([1, 2]), np.array([3, 4])
    canvas.native.data_setitem((np.zeros(2, int), rows, columns), 7)
    (edit,) = canvas.stage.edits()
    assert edit.region == (slice(1, 3), slice(3, 5))
    canvas.native.undo()
    assert len(canvas.stage.edits()) == 1
    np.testing.assert_array_equal(canvas.kept(), plane())


def test_what_is_taken_away_while_it_is_painted(canvas: Canvas) -> None:
    canvas.mouse.press(10, 10)
    canvas.mouse.move(10, 20)
    for layer in canvas.stage.scene.clear():
        canvas.stage.viewer.remove_layer(layer)
    canvas.stage.viewer.set_axes(canvas.stage.scene.axes)
    canvas.mouse.release(10, 20)
    canvas.stage.viewer.settle()
    canvas.stage.edits()
