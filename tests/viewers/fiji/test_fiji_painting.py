"""Labels that a person paints in ImageJ come back, as the region that was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from tests.viewers.fiji.conftest import pixels

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.messages import EditRecord
    from openhcs_stream.viewer import SceneLayer
    from tests.viewers.fiji.conftest import Stage


def labels(*components: str, **changes: Any) -> LayerSpec:
    fields: dict[str, Any] = {"kind": "labels", "name": "nuclei", "axes": "YX", "source": "plate"}
    return LayerSpec(**{**fields, "components": components, **changes})


def plane(dtype: str = "uint8", shape: tuple[int, int] = (40, 60)) -> npt.NDArray[Any]:
    made = np.zeros(shape, dtype)
    made[5:10, 5:15] = 3
    return made


def fill(stage: Stage, layer: SceneLayer, value: float, *box: int) -> None:
    """Fill a rectangle (x, y, width, height) with a value, as a macro does."""
    java = stage.viewer.java

    def work() -> None:
        imp = stage.viewer.image(layer)
        processor = imp.getProcessor()
        processor.setValue(float(value))
        processor.setRoi(*box)
        processor.fill()
        processor.resetRoi()
        imp.updateAndDraw()

    java.on_event_thread(work)


def painted(edit: EditRecord) -> tuple[Any, Any]:
    """Before and after of a record."""
    shape = edit.region[2:]
    return tuple(  # type: ignore[return-value]
        np.frombuffer(data, edit.dtype).reshape(shape) for data in (edit.before, edit.after)
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "int64"])
def test_the_changed_region_comes_back_in_the_labels_own_type(window: Stage, dtype: str) -> None:
    (layer,) = window.show((labels(), (), plane(dtype)))
    assert window.edits() == []
    fill(window, layer, 7, 12, 8, 4, 5)
    (edit,) = window.edits()
    assert (edit.action, edit.kind, edit.name, dict(edit.place)) == (
        "painted",
        "labels",
        "nuclei",
        {},
    )
    assert edit.region == (8, 12, 5, 4)
    assert np.dtype(edit.dtype) == np.dtype(dtype)
    before, after = painted(edit)
    expected = plane(dtype)
    np.testing.assert_array_equal(before, expected[8:13, 12:16])
    expected[8:13, 12:16] = 7
    np.testing.assert_array_equal(after, 7)
    np.testing.assert_array_equal(np.asarray(layer.stack.planes[()]), expected)
    assert window.edits() == []


def test_large_labels_are_exact(window: Stage) -> None:
    sent = plane("uint32")
    sent[0, 0] = 2**24
    (layer,) = window.show((labels(), (), sent))
    fill(window, layer, 2**24 - 1, 1, 0, 1, 1)
    (edit,) = window.edits()
    assert painted(edit)[1].tolist() == [[2**24 - 1]]
    assert np.asarray(layer.stack.planes[()])[0, :2].tolist() == [2**24, 2**24 - 1]


def test_fractions_become_whole_numbers_on_the_screen_too(window: Stage) -> None:
    (layer,) = window.show((labels(), (), plane("int32")))
    fill(window, layer, 6.7, 0, 0, 2, 1)
    (edit,) = window.edits()
    assert painted(edit)[1].tolist() == [[7, 7]]
    assert pixels(window.viewer.image(layer))[0, :3].tolist() == [7.0, 7.0, 0.0]
    fill(window, layer, 0.3, 20, 20, 2, 1)
    assert window.edits() == []
    assert pixels(window.viewer.image(layer))[20, 20] == 0


def test_beyond_the_labels_type(window: Stage) -> None:
    (layer,) = window.show((labels(), (), plane("uint32")))
    fill(window, layer, -5, 0, 0, 2, 1)
    assert window.edits() == []
    fill(window, layer, float("nan"), 5, 5, 1, 1)
    (edit,) = window.edits()
    assert painted(edit)[1].tolist() == [[0]]
    fill(window, layer, 1e20, 0, 0, 1, 1)
    (edit,) = window.edits()
    assert painted(edit)[1].tolist() == [[2**32 - 1]]


def test_commands_and_undo(window: Stage) -> None:
    java = window.viewer.java
    (layer,) = window.show((labels(), (), plane()))
    imp = window.viewer.image(layer)

    def work() -> None:
        java.WindowManager.setCurrentWindow(imp.getWindow())
        imp.setRoi(java.Roi(5, 5, 4, 5))
        java.IJ.run(imp, "Set...", "value=9")

    window.act(work)
    (edit,) = window.edits()
    assert edit.region == (5, 5, 5, 4)
    np.testing.assert_array_equal(painted(edit)[1], 9)
    window.act(lambda: java.jpype.JClass("ij.Undo").undo())
    (edit,) = window.edits()
    assert edit.region == (5, 5, 5, 4)
    np.testing.assert_array_equal(painted(edit)[0], 9)
    np.testing.assert_array_equal(np.asarray(layer.stack.planes[()]), plane())


def test_a_stroke_comes_by_itself_as_one_edit(window: Stage) -> None:
    (layer,) = window.show((labels(), (), plane()))
    steps = iter(range(6))

    def paint_or_wait() -> bool:
        step = next(steps, None)
        if step is not None:
            fill(window, layer, 5, 20 + step, 20, 1, 1)
            return False
        return bool(len(window.book))

    window.tick_until(paint_or_wait)
    (edit,) = window.taken()
    assert edit.region == (20, 20, 1, 6)


def test_new_data_contrast_and_sliders_are_no_edits(window: Stage) -> None:
    java = window.viewer.java
    (layer,) = window.show(*((labels("z"), (z,), plane()) for z in (1, 2)))
    window.show((labels("z"), (1,), plane() * 2), (labels("z"), (0,), plane() + 1))
    window.viewer.go_to(z=2)
    window.act(lambda: window.viewer.image(layer).setDisplayRange(0, 10))
    window.act(lambda: java.IJ.run(window.viewer.image(layer), "Fire", ""))
    window.act(window.viewer.image(layer).updateAndDraw)
    assert window.edits() == []


def test_the_plane_in_view_of_a_stack(window: Stage) -> None:
    (layer,) = window.show(*((labels("z"), (z,), plane()) for z in (1, 2, 3)))
    window.viewer.go_to(z=2)
    fill(window, layer, 8, 0, 0, 2, 2)
    window.viewer.go_to(z=3)
    (edit,) = window.edits()
    assert dict(edit.place) == {"z": 2}
    assert np.asarray(layer.stack.planes[(2,)])[0, 0] == 8
    assert np.asarray(layer.stack.planes[(3,)])[0, 0] == 0
    window.show((labels("z"), (0,), plane()))  # everything moves
    fill(window, layer, 9, 0, 0, 1, 1)
    (edit,) = window.edits()
    assert dict(edit.place) == {"z": 3}


def test_a_command_on_the_whole_stack(window: Stage) -> None:
    java = window.viewer.java
    (layer,) = window.show(*((labels("z"), (z,), plane()) for z in (1, 2, 3)))

    def work() -> None:
        imp = window.viewer.image(layer)
        java.WindowManager.setCurrentWindow(imp.getWindow())
        imp.setRoi(java.Roi(5, 5, 4, 5))
        java.IJ.run(imp, "Set...", "value=9 stack")

    window.act(work)
    window.tick_until(lambda: len(window.book) == 3)
    assert sorted(edit.place["z"] for edit in window.taken()) == [1, 2, 3]


def test_painted_where_nothing_had_arrived(window: Stage) -> None:
    (layer,) = window.show(
        (labels("well", "z"), ("A1", 1), plane()), (labels("well", "z"), ("A2", 2), plane())
    )
    window.viewer.go_to(well="A2", z=1)
    fill(window, layer, 4, 3, 2, 1, 1)
    (edit,) = window.edits()
    assert dict(edit.place) == {"well": "A2", "z": 1}
    assert (edit.region, painted(edit)[0].tolist(), painted(edit)[1].tolist()) == (
        (2, 3, 1, 1), [[0]], [[4]],
    )  # fmt: skip
    assert np.asarray(layer.stack.planes[("A2", 1)])[2, 3] == 4
    window.viewer.go_to(well="A1", z=2)
    assert not pixels(window.viewer.image(layer)).any()


def test_pending_paint_comes_before_new_data(window: Stage) -> None:
    (layer,) = window.show((labels(), (), plane()))
    fill(window, layer, 5, 0, 0, 1, 1)
    window.show((labels(), (), plane() * 2))
    (edit,) = window.taken()
    assert edit.region == (0, 0, 1, 1)
    np.testing.assert_array_equal(np.asarray(layer.stack.planes[()]), plane() * 2)
    assert window.edits() == []


def test_planes_of_unequal_size(window: Stage) -> None:
    small = plane(shape=(20, 20))
    (layer,) = window.show((labels("z"), (1,), plane()), (labels("z"), (2,), small))
    window.viewer.go_to(z=2)
    fill(window, layer, 6, 1, 1, 1, 1)
    (edit,) = window.edits()
    assert edit.region == (1, 1, 1, 1)
    assert layer.stack.planes[(2,)].shape == (20, 20)
    assert np.asarray(layer.stack.planes[(2,)])[1, 1] == 6
    fill(window, layer, 6, 30, 30, 1, 1)
    (edit,) = window.edits()
    assert edit.region == (30, 30, 1, 1)
    assert np.asarray(layer.stack.planes[(2,)])[30, 30] == 6


def test_a_cropped_or_converted_image_is_left_alone(window: Stage) -> None:
    java = window.viewer.java
    (layer,) = window.show((labels(), (), plane()))
    window.act(lambda: java.IJ.run(window.viewer.image(layer), "32-bit", ""))
    assert window.edits() == []


def test_images_are_not_watched(window: Stage) -> None:
    (layer,) = window.show((labels(kind="image", name="raw"), (), plane()))
    fill(window, layer, 5, 0, 0, 1, 1)
    assert window.edits() == []


def test_labels_are_never_copied_over_what_a_person_paints_on(window: Stage) -> None:
    viewer = window.viewer
    for kind, is_same in (("labels", False), ("image", True)):
        spec = labels(kind=kind)
        kept = viewer.keep(plane(), None, spec)
        assert (viewer.keep(plane(), kept, spec) is kept) == is_same
