"""What a person does in the ROI Manager and on images comes back, each as one edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Arrow, Roi, read_imagej, write_imagej
from tests.viewers.fiji.conftest import after, before

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from openhcs_stream.viewer import SceneLayer
    from tests.viewers.fiji.conftest import Stage

SQUARE = np.array([[5.0, 5.0], [5.0, 12.0], [12.0, 12.0], [12.0, 5.0]])
#: Not exact in float32.
THIRDS = SQUARE + 1 / 3


def image(*components: str, **changes: Any) -> LayerSpec:
    fields: dict[str, Any] = {"kind": "image", "name": "raw", "axes": "YX", "source": "plate"}
    return LayerSpec(**{**fields, "components": components, **changes})


def rois(*components: str, **changes: Any) -> LayerSpec:
    return image(*components, **{"kind": "rois", "name": "cells", "axes": "", **changes})


def points(*components: str, **changes: Any) -> LayerSpec:
    return image(*components, **{"kind": "points", "name": "spots", **changes})


def plane(value: int = 1) -> Any:
    return np.full((60, 150), value, np.uint8)


def three() -> list[Roi]:
    return [Roi.polygon(THIRDS + 15 * n, name=f"cell {n}") for n in range(3)]


def moved(roi: Roi, x: float, y: float = 0) -> npt.NDArray[np.float64]:
    return np.asarray(roi.coordinates + np.array([x, y]))


def manager(stage: Stage) -> Any:
    return stage.viewer.java.RoiManager.getInstance()


def listed(stage: Stage) -> list[str]:
    found = manager(stage)
    return [str(found.getName(index)) for index in range(found.getCount())]


def drawn(stage: Stage, layer: SceneLayer) -> list[Any]:
    overlay = stage.viewer.image(layer).getCanvas().getShowAllList()
    return [] if overlay is None else list(overlay.toArray())


def shown(window: Stage, *more: Any) -> tuple[SceneLayer, SceneLayer]:
    """An image with three ROIs on it."""
    raw, cells = window.show((image(), (), plane()), (rois(), (), three()), *more)[:2]
    return raw, cells


def run(stage: Stage, command: str, *selected: int) -> None:
    """A command of the ROI Manager, with ROIs selected in its list."""

    def work() -> None:
        found = manager(stage)
        found.deselect()
        if len(selected) == 1:
            found.select(selected[0])
        elif selected:
            found.setSelectedIndexes(stage.viewer.java.ints(selected))
        if command:
            assert found.runCommand(command)

    stage.act(work)


# --- the list -------------------------------------------------------------------------------------


def test_what_workers_send_is_no_edit(window: Stage) -> None:
    _, cells = shown(window)
    assert window.edits() == []
    window.show((rois(), (), three()[:2]))
    window.show((rois(name="others"), (), three()))
    well = {"name": "by well"}
    window.show((image("well", **well), ("A2",), plane()), (rois("well", **well), ("A2",), three()))
    window.show((image("well", **well), ("A1",), plane()))
    window.viewer.go_to(well="A1")
    window.viewer.remove_layer(cells)
    assert window.edits() == []


def test_deleting(window: Stage) -> None:
    raw, cells = shown(window)
    sent = cells.items[()]
    run(window, "delete", 1)
    (edit,) = window.edits()
    assert (edit.action, edit.kind, edit.name, edit.source) == ("removed", "rois", "cells", "plate")
    assert edit.indices == (1,)
    assert before(edit) == [sent[1]]
    assert [a is b for a, b in zip(cells.items[()], (sent[0], sent[2]), strict=True)] == [True] * 2
    assert listed(window) == ["cell 0", "cell 2"]
    assert [str(each.getName()) for each in drawn(window, raw)] == ["cell 0", "cell 2"]
    run(window, "delete", 1)
    (edit,) = window.edits()
    assert before(edit) == [sent[2]]
    run(window, "reset")
    (edit,) = window.edits()
    assert before(edit) == [sent[0]]
    assert cells.items[()] == []


def test_several_deleted_at_once_are_one_edit(window: Stage) -> None:
    _, cells = shown(window)
    run(window, "delete", 0, 2)
    (edit,) = window.edits()
    assert edit.indices == (0, 2)
    assert [roi.name for roi in cells.items[()]] == ["cell 1"]


def test_renaming(window: Stage) -> None:
    _, cells = shown(window)
    sent = cells.items[()]
    window.act(lambda: manager(window).rename(2, "Zelle \N{GREEK SMALL LETTER ALPHA}"))
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("renamed", (2,))
    assert after(edit) == [sent[2].replace(name="Zelle \N{GREEK SMALL LETTER ALPHA}")]
    assert cells.items[()][0] is sent[0]


def test_a_roi_without_a_name_keeps_having_none(window: Stage) -> None:
    nameless = Roi.polygon(THIRDS)
    window.show((image(), (), plane()), (rois(), (), [nameless, nameless]))
    assert listed(window) == ["cells-0001", "cells-0002"]
    run(window, "delete", 0)
    window.edits()
    window.act(lambda: manager(window).getRoi(0).setGroup(4))
    (edit,) = window.edits()
    (now,) = after(edit)
    assert (now.name, now.group) == ("", 4)
    np.testing.assert_array_equal(now.coordinates, nameless.coordinates)


def test_group_colour_and_width(window: Stage) -> None:
    _, cells = shown(window)
    sent = cells.items[()]
    java = window.viewer.java

    def change() -> None:
        native = manager(window).getRoi(1)
        native.setStrokeColor(java.Color(1, 2, 3, 4))
        native.setStrokeWidth(2.75)
        manager(window).getRoi(0).setFillColor(java.Color(9, 8, 7))

    window.act(change)
    (edit,) = window.edits()
    assert edit.indices == (0, 1)
    assert after(edit) == [
        sent[0].replace(fill_color="#090807"),
        sent[1].replace(stroke_color="#01020304", stroke_width=2.75),
    ]
    run(window, "", 0, 2)
    window.act(lambda: manager(window).setGroup(2))
    (edit,) = window.edits()
    assert [(roi.name, roi.group) for roi in after(edit)] == [("cell 0", 2), ("cell 2", 2)]


def test_properties_come_back_without_ours(window: Stage) -> None:
    sent = Roi.polygon(THIRDS, name="a", properties={"score": "0.9 \N{MICRO SIGN}", "z": "own"})
    window.show((image("z"), (3,), plane()), (rois("z"), (3,), [sent]))

    def change() -> None:
        native = manager(window).getRoi(0)
        native.setProperty("class", "mitosis")

    window.act(change)
    (edit,) = window.edits()
    assert after(edit) == [sent.replace(properties={**sent.properties, "class": "mitosis"})]
    assert dict(edit.place) == {"z": 3}


def test_looking_at_properties_is_no_edit(window: Stage) -> None:
    """The dialog gives a ROI without a colour the one that it is drawn in, before it opens."""
    shown(window)
    java = window.viewer.java
    window.act(lambda: manager(window).getRoi(0).setStrokeColor(java.Roi.getColor()))
    assert window.edits() == []


def test_sorting_is_no_edit_and_stays(window: Stage) -> None:
    sent = [roi.replace(name=name) for roi, name in zip(three(), "cab", strict=True)]
    window.show((image(), (), plane()), (rois(), (), sent))
    run(window, "sort")
    assert window.edits() == []
    assert listed(window) == ["a", "b", "c"]
    run(window, "delete", 0)
    (edit,) = window.edits()
    assert (edit.indices, before(edit)) == ((1,), [sent[1]])
    window.show((rois(name="others"), (), [Roi.polygon(SQUARE, name="z")]))
    window.show((rois(name="others"), (), [Roi.polygon(SQUARE, name="y")]))
    assert listed(window) == ["b", "c", "y"]


def test_labels_and_show_all_are_the_persons_choice(window: Stage) -> None:
    raw, _ = shown(window)
    (other,) = window.show((image(name="b", source="b"), (), plane()))
    canvas = window.viewer.image(raw).getCanvas()
    run(window, "show none")
    window.act(lambda: window.viewer.turn(lambda: None))
    window.act(lambda: window.viewer.turn(lambda: None))

    def choose() -> None:
        # In one go: a window that is shown late would become the current one in between.
        shown_on = window.viewer.image(raw).getWindow()
        window.viewer.java.WindowManager.setCurrentWindow(shown_on)
        assert manager(window).runCommand("show all with labels")

    window.act(choose)
    window.act(lambda: window.viewer.turn(lambda: None))
    assert canvas.getShowAllList().getDrawLabels()
    assert len(drawn(window, raw)) == 3
    assert drawn(window, other) == []
    run(window, "delete", 0)
    assert [edit.action for edit in window.edits()] == ["removed"]
    assert canvas.getShowAllList().getDrawLabels()
    assert len(drawn(window, raw)) == 2


# --- on the image ---------------------------------------------------------------------------------


def test_dragged_while_all_are_shown(window: Stage) -> None:
    """ImageJ moves the listed ROI itself: nobody has to press Update."""
    raw, cells = shown(window)
    sent = cells.items[()]
    imp = window.viewer.image(raw)
    run(window, "", 1)
    window.act(lambda: imp.getRoi().translate(3.0, -2.0))
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("changed", (1,))
    (now,) = after(edit)
    np.testing.assert_allclose(now.coordinates, moved(sent[1], 3, -2), rtol=1e-6)
    assert now.replace(coordinates=sent[1].coordinates) == sent[1]
    # The person goes on with the same ROI.
    window.act(lambda: imp.getRoi().translate(1.0, 0.0))
    (edit,) = window.edits()
    (again,) = after(edit)
    assert before(edit) == [now]
    np.testing.assert_allclose(again.coordinates, moved(now, 1), rtol=1e-6)


def test_update_after_a_drag_while_none_are_shown(window: Stage) -> None:
    raw, cells = shown(window)
    sent = cells.items[()]
    imp = window.viewer.image(raw)
    run(window, "show none")
    run(window, "", 2)
    window.act(lambda: imp.getRoi().translate(5.0, 0.0))
    assert window.edits() == []  # it is a copy
    window.act(lambda: manager(window).runCommand("update"))
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("changed", (2,))
    np.testing.assert_allclose(after(edit)[0].coordinates, moved(sent[2], 5), rtol=1e-6)
    window.act(lambda: manager(window).runCommand("update"))
    assert window.edits() == []
    assert listed(window) == ["cell 0", "cell 1", "cell 2"]


def test_update_with_another_kind(window: Stage) -> None:
    raw, _ = shown(window)
    java = window.viewer.java
    run(window, "", 0)

    def redraw() -> None:
        window.viewer.image(raw).setRoi(java.jpype.JClass("ij.gui.OvalRoi")(3, 4, 20, 10))
        manager(window).runCommand("update")

    window.act(redraw)
    (edit,) = window.edits()
    (now,) = after(edit)
    assert (now.kind, now.name) == ("oval", "cell 0")
    np.testing.assert_array_equal(now.coordinates, [(3, 4), (23, 14)])


def test_a_moved_vertex(window: Stage) -> None:
    """Within the bounds: only the length tells."""
    roi = Roi.polygon([(5, 5), (5, 25), (25, 25), (14, 14), (25, 5)], name="a")
    window.show((image(), (), plane()), (rois(), (), [roi]))
    java = window.viewer.java

    def change() -> None:
        native = manager(window).getRoi(0)
        field = java.PolygonRoi.class_.getDeclaredField("xpf")
        field.setAccessible(True)
        field.get(native)[3] += 3

    window.act(change)
    (edit,) = window.edits()
    changed = roi.coordinates.copy()
    changed[3, 0] += 3
    (now,) = after(edit)
    assert (now.coordinates != roi.coordinates).sum() == 1


def test_a_burst_is_one_edit_and_comes_by_itself(window: Stage) -> None:
    raw, cells = shown(window)
    imp = window.viewer.image(raw)
    run(window, "", 0)
    steps = iter(range(8))

    def nudge_or_wait() -> bool:
        if next(steps, None) is not None:
            window.act(lambda: imp.getRoi().translate(1.0, 0.0))
            return False
        return bool(len(window.book))

    sent = cells.items[()]
    window.tick_until(nudge_or_wait)
    (edit,) = window.taken()
    np.testing.assert_allclose(after(edit)[0].coordinates, moved(sent[0], 8), rtol=1e-6)


def test_what_is_moved_back_is_no_edit(window: Stage) -> None:
    raw, _ = shown(window)
    imp = window.viewer.image(raw)
    run(window, "", 0)
    window.act(lambda: imp.getRoi().translate(1.0, 0.0))
    window.act(lambda: window.viewer.turn(lambda: None))
    window.act(lambda: imp.getRoi().translate(-1.0, 0.0))
    assert window.edits() == []


def test_a_pending_edit_comes_before_new_data(window: Stage) -> None:
    raw, cells = shown(window)
    sent = cells.items[()]
    run(window, "", 1)
    window.act(lambda: window.viewer.image(raw).getRoi().translate(4.0, 0.0))
    window.show((rois(), (), three()[:1]))
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("changed", (1,))
    assert before(edit) == [sent[1]]
    assert [roi.name for roi in cells.items[()]] == ["cell 0"]
    assert listed(window) == ["cell 0"]


def test_deleted_and_then_new_data(window: Stage) -> None:
    _, cells = shown(window)
    run(window, "delete", 1)
    window.show((rois(name="others"), (), three()))
    (edit,) = window.taken()
    assert edit.action == "removed"
    assert len(cells.items[()]) == 2
    assert len(listed(window)) == 5


def test_every_kind_is_left_exactly_alone(window: Stage) -> None:
    sent = [
        Roi.rectangle(3, 4, 10, 24, name="r"),
        Roi.oval(3, 4, 10, 24, name="o", fill_color="#01020304"),
        Roi.line((2, 3), (12, 13), name="l", stroke_width=3),
        Roi.arrow((2, 3), (12, 13), Arrow(style="open", head_size=7), name="arrow"),
        Roi.text(5, 5, 20, 60, "hello", name="t"),
        Roi.points([(2, 3), (12, 13)], name="p"),
        Roi("ellipse", np.array([(2, 10), (22, 10), (12, 14)], float), name="e"),
        Roi.composite([SQUARE, SQUARE / 4 + 6], name="c"),
        Roi.rounded_rectangle(3, 4, 20, 30, 6, name="rr"),
        Roi("angle", np.array([(1, 2), (9, 2), (9, 8)], float), name="a"),
        Roi.polygon(THIRDS, name="g", group=3, position=(1, 0, 0), properties={"k": "v"}),
    ]
    _, cells = window.show((image(), (), plane()), (rois(), (), sent))
    for index in range(len(sent)):
        run(window, "", index)  # selected, and so active on the image
    assert window.edits() == []
    window.act(lambda: manager(window).rename(0, "renamed"))
    (edit,) = window.edits()
    assert after(edit) == [sent[0].replace(name="renamed")]
    assert all(a is b for a, b in zip(cells.items[()][1:], sent[1:], strict=True))


def test_text_and_arrows_are_looked_at_closely(window: Stage) -> None:
    sent = [
        Roi.arrow((2, 3), (12, 13), Arrow(style="open", head_size=7), name="arrow"),
        Roi.text(5, 5, 30, 100, "abc", name="t"),
    ]
    window.show((image(), (), plane()), (rois(), (), sent))

    def change() -> None:
        manager(window).getRoi(0).setHeadSize(9.0)
        manager(window).getRoi(1).setText("abd")

    window.act(change)
    (edit,) = window.edits()
    arrow, text = after(edit)
    assert isinstance(arrow.details, Arrow)
    assert arrow.details.head_size == 9
    assert arrow.replace(details=sent[0].details) == sent[0]
    assert getattr(text.details, "text", "").strip() == "abd"


STRANGE = {
    "self-intersecting": Roi.polygon([(5, 5), (25, 25), (5, 25), (25, 5)]),
    "empty rectangle": Roi.rectangle(7, 7, 7, 7),
    "empty oval": Roi.oval(7, 7, 7, 7),
    "empty polygon": Roi("polygon", np.full((4, 2), 5.5)),
    "flat polygon": Roi.polygon([(5, 5), (5, 25), (5, 15)]),
    "one pixel": Roi.rectangle(9, 9, 10, 10),
    "one traced pixel": Roi("traced", np.array([(9, 9), (10, 9), (10, 10), (9, 10)], float)),
    "line of no length": Roi.line((8, 8), (8, 8)),
    "many vertices": Roi.polygon(
        30 + 25 * np.stack([np.sin(np.arange(10_000) / 9), np.cos(np.arange(10_000) / 7)], axis=1)
    ),
    "negative": Roi.polygon(SQUARE - 100),
    "partly outside": Roi.rectangle(-10, -10, 20, 500),
    "far outside": Roi.oval(40_000, 50_000, 50_000, 59_000),
    "very far outside": Roi.polygon(SQUARE * 1000 + 100_000),
    "larger than the image": Roi.rectangle(-1000, -1000, 3000, 3000),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_rois_are_shown_selected_and_edited(window: Stage, name: str) -> None:
    strange = STRANGE[name].replace(name="strange")
    raw, cells = window.show((image(), (), plane()), (rois(), (), [*three(), strange]))
    sent = cells.items[()]
    assert len(drawn(window, raw)) == len(listed(window)) == 4
    run(window, "", 3)
    assert window.viewer.screenshot().any()
    run(window, "", 0)
    assert window.edits() == []
    window.act(lambda: manager(window).rename(3, "known"))
    (edit,) = window.edits()
    assert (edit.action, after(edit)) == ("renamed", [strange.replace(name="known")])
    run(window, "delete", 1)
    window.edits()
    assert [a is b for a, b in zip(cells.items[()], (sent[0], sent[2]), strict=False)] == [True] * 2
    window.act(lambda: manager(window).getRoi(2).setGroup(5))
    (edit,) = window.edits()
    (now,) = after(edit)
    assert now.replace(group=0, stroke_color="") == strange.replace(name="known")
    run(window, "delete", 2)
    (edit,) = window.edits()
    assert before(edit) == [now]


def test_an_empty_list_takes_what_is_drawn(window: Stage) -> None:
    raw, cells = window.show((image(), (), plane()), (rois(), (), []))
    assert cells.items[()] == []
    java = window.viewer.java

    def work() -> None:
        imp = window.viewer.image(raw)
        imp.setRoi(java.Roi(1, 2, 30, 40))
        java.RoiManager.getRoiManager().runCommand("add")

    window.act(work)
    (edit,) = window.edits()
    assert (edit.action, edit.name) == ("added", "cells")


# --- what is new ----------------------------------------------------------------------------------


def draw(stage: Stage, layer: SceneLayer, *box: int) -> None:
    """Draw a rectangle (x, y, width, height) and press t."""
    java = stage.viewer.java

    def work() -> None:
        imp = stage.viewer.image(layer)
        java.WindowManager.setCurrentWindow(imp.getWindow())
        imp.setRoi(java.Roi(*box))
        manager(stage).runCommand("add")

    stage.act(work)


def test_a_new_roi_joins_the_layer_on_its_image(window: Stage) -> None:
    raw, cells = shown(window)
    draw(window, raw, 1, 2, 30, 40)
    (edit,) = window.edits()
    assert (edit.action, edit.name, edit.indices) == ("added", "cells", (3,))
    (now,) = after(edit)
    assert (now.kind, now.name, now.position, now.properties) == (
        "rectangle", "0022-0016", (0, 0, 0), {},
    )  # fmt: skip
    np.testing.assert_array_equal(now.coordinates, [(1, 2), (31, 42)])
    assert cells.items[()][3] == now
    assert len(drawn(window, raw)) == 4
    # It is a ROI as all others now.
    run(window, "", 3)
    window.act(lambda: manager(window).rename(3, "mine"))
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("renamed", (3,))
    run(window, "delete", 3)
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("removed", (3,))


def test_of_several_layers_the_one_selected_last(window: Stage) -> None:
    raw, _ = shown(window)
    window.show((rois(name="others"), (), [Roi.polygon(SQUARE, name="o")]))
    draw(window, raw, 1, 2, 3, 4)
    (edit,) = window.edits()
    assert edit.name == "others"  # none was selected: the last that came
    run(window, "", 0)
    window.act(lambda: window.viewer.turn(lambda: None))
    draw(window, raw, 1, 2, 3, 5)
    (edit,) = window.edits()
    assert edit.name == "cells"


def test_a_new_layer_where_there_is_none(window: Stage) -> None:
    java = window.viewer.java
    raw, = window.show(*((image("well", "channel", "z"), (w, c, z), plane())
                         for w in ("A1", "A2") for c in ("x", "y") for z in (1, 2)))  # fmt: skip

    def work() -> None:
        imp = window.viewer.image(raw)
        imp.setPosition(2, 2, 1)
        imp.setRoi(java.Roi(3, 4, 5, 6))
        java.RoiManager.getRoiManager().runCommand("add")

    window.act(work)
    (edit,) = window.edits()
    assert (edit.action, edit.name, edit.source) == ("added", "drawn on raw", "plate")
    assert dict(edit.place) == {"well": "A1", "z": 2}
    (layer,) = (each for each in window.scene.layers.values() if each.kind == "rois")
    assert layer.items[("A1", 2)] == after(edit)
    assert len(listed(window)) == 1


def test_a_new_roi_stands_where_the_image_stands(window: Stage) -> None:
    raw, cells = window.show(
        *((image("channel", "z"), (c, z), plane()) for c in ("x", "y") for z in (1, 2, 3)),
        (rois("z"), (1,), three()),
    )
    window.viewer.go_to(z=3)
    draw(window, raw, 1, 2, 3, 4)
    (edit,) = window.edits()
    assert dict(edit.place) == {"z": 3}
    assert len(cells.items[(3,)]) == 1
    assert len(cells.items[(1,)]) == 3


def test_moved_to_another_slice_by_update(window: Stage) -> None:
    _, cells = window.show(
        *((image("z"), (z,), plane()) for z in (1, 2, 3)), (rois("z"), (1,), three())
    )
    sent = cells.items[(1,)]
    run(window, "", 1)
    window.viewer.go_to(z=3)
    window.act(lambda: manager(window).runCommand("update"))
    removed, added = sorted(window.edits(), key=lambda edit: edit.action, reverse=True)
    assert (removed.action, dict(removed.place)) == ("removed", {"z": 1})
    assert (added.action, dict(added.place)) == ("added", {"z": 3})
    assert before(removed) == after(added) == [sent[1]]


def test_moved_to_another_slice_by_its_properties(window: Stage) -> None:
    _, cells = window.show(
        *((image("z"), (z,), plane()) for z in (1, 2, 3)), (rois("z"), (1,), three())
    )
    run(window, "", 0, 1)
    window.act(lambda: manager(window).setPosition(2))
    assert sorted((edit.action, edit.place["z"]) for edit in window.edits()) == [
        ("added", 2), ("removed", 1),
    ]  # fmt: skip
    assert [len(cells.items[(z,)]) for z in (1, 2)] == [1, 2]
    window.act(lambda: manager(window).getRoi(2).setPosition(0))
    assert window.edits() == []  # it says nothing of another place


def test_a_position_that_the_place_leaves_open(window: Stage) -> None:
    window.show(
        *((image("channel", "z"), (c, z), plane()) for c in ("x", "y") for z in (1, 2)),
        (rois("z"), (1,), three()),
    )
    window.act(lambda: manager(window).getRoi(0).setPosition(2, 1, 1))
    (edit,) = window.edits()
    assert [roi.position for roi in after(edit)] == [(2, 0, 0)]


def test_a_loaded_set_is_one_edit(window: Stage, tmp_path: Path) -> None:
    _, cells = shown(window)
    path = tmp_path / "RoiSet.zip"
    loaded = [Roi.polygon(SQUARE + n, name=f"loaded {n}") for n in range(20)]
    write_imagej(path, loaded)
    window.act(lambda: manager(window).open(str(path)))
    (edit,) = window.edits()
    assert edit.action == "added"
    assert after(edit) == loaded
    assert len(cells.items[()]) == 23


def test_a_set_that_was_saved_here_comes_back_to_its_layer(window: Stage, tmp_path: Path) -> None:
    shown(window)
    window.show((rois(name="others"), (), [Roi.polygon(SQUARE, name="o")]))
    path = tmp_path / "RoiSet.zip"
    run(window, "", 0, 1, 2)
    window.act(lambda: manager(window).save(str(path)))
    assert [roi.name for roi in read_imagej(path)] == ["cell 0", "cell 1", "cell 2"]
    run(window, "delete", 0, 1, 2)
    (removed,) = window.edits()
    window.act(lambda: manager(window).open(str(path)))
    (added,) = window.edits()
    assert (added.action, added.name) == ("added", "cells")
    for now, was in zip(after(added), before(removed), strict=True):
        assert now.properties == {}
        np.testing.assert_allclose(now.coordinates, was.coordinates, rtol=1e-6)


def test_split_adds_the_parts(window: Stage) -> None:
    window.show(
        (image(), (), plane()),
        (rois(), (), [Roi.composite([SQUARE, SQUARE + 20], name="two")]),
    )
    run(window, "", 0)
    window.act(lambda: manager(window).runCommand("split"))
    (edit,) = window.edits()
    assert (edit.action, len(after(edit))) == ("added", 2)


def test_a_roi_of_somebody_elses_image_stays_out(window: Stage) -> None:
    java = window.viewer.java
    shown(window)
    other = java.IJ.createImage("mine", "8-bit", 50, 50, 1)

    def work() -> None:
        other.show()
        other.setRoi(java.Roi(1, 2, 3, 4))
        manager(window).runCommand("add")

    window.act(work)
    assert window.edits() == []
    assert len(listed(window)) == 4
    window.show((rois(), (), three()[:1]))
    assert len(listed(window)) == 2
    other.changes = False
    window.act(other.close)


def test_closing_the_manager_takes_nothing_away(window: Stage) -> None:
    _, cells = shown(window)
    run(window, "show none")  # else ImageJ asks what to do with what is shown
    window.act(lambda: manager(window).close())
    window.act(lambda: window.viewer.turn(lambda: None))
    assert window.edits() == []
    assert len(cells.items[()]) == 3


def test_another_manager_gets_what_the_closed_one_had(window: Stage) -> None:
    raw, cells = shown(window)
    run(window, "show none")
    window.act(lambda: manager(window).close())
    window.act(lambda: window.viewer.turn(lambda: None))
    java = window.viewer.java

    def work() -> None:
        imp = window.viewer.image(raw)
        java.WindowManager.setCurrentWindow(imp.getWindow())
        imp.setRoi(java.Roi(1, 2, 30, 40))
        java.RoiManager.getRoiManager().runCommand("add")

    window.act(work)
    (edit,) = window.edits()
    assert (edit.action, edit.name, edit.indices) == ("added", "cells", (3,))
    assert sorted(listed(window)) == ["0022-0016", "cell 0", "cell 1", "cell 2"]
    assert len(cells.items[()]) == 4


def test_a_manager_that_a_person_opened_stays(window: Stage) -> None:
    java = window.viewer.java
    window.show((image(), (), plane()))
    window.act(java.RoiManager.getRoiManager)
    window.act(lambda: window.viewer.turn(lambda: None))
    assert window.edits() == []
    assert manager(window) is not None
    _, cells = window.show((image(name="b"), (), plane()), (rois(), (), three()))
    assert len(listed(window)) == 3
    window.viewer.remove_layer(cells)
    assert manager(window) is None
    assert window.edits() == []


@pytest.mark.parametrize("command", ["delete", "rename"])
def test_one_of_several_copies_stands_for_all(window: Stage, command: str) -> None:
    raw, _ = window.show(
        *((image("well", "site"), (w, s), plane()) for w in ("A1", "A2") for s in (1, 2)),
        (rois("well"), ("A2",), three()),
    )
    assert len(listed(window)) == 6
    if command == "delete":
        run(window, "delete", 4)
    else:
        window.act(lambda: manager(window).rename(4, "x"))
    (edit,) = window.edits()
    assert edit.indices == (1,)
    assert edit.action == {"delete": "removed", "rename": "renamed"}[command]
    names = ["cell 0", "cell 2"] if command == "delete" else ["cell 0", "x", "cell 2"]
    assert sorted(listed(window)) == sorted(names * 2)
    assert sorted(str(each.getName()) for each in drawn(window, raw)) == sorted(names * 2)
    assert window.edits() == []


# --- points and tracks ----------------------------------------------------------------------------

#: Not exact in float32.
SPOTS = np.array([[2.1, 3.2], [12.3, 13.4], [20.5, 30.6]])


def table(data: bytes) -> npt.NDArray[np.float64]:
    rows: npt.NDArray[np.float64] = np.frombuffer(data, "<f8").reshape(-1, 2)
    return rows


def spots(window: Stage) -> tuple[SceneLayer, SceneLayer]:
    raw, layer = window.show((image(), (), plane()), (points(), (), SPOTS))
    run(window, "", 0)
    return raw, layer


def test_a_point_is_added_to_what_is_selected(window: Stage) -> None:
    raw, layer = spots(window)
    imp = window.viewer.image(raw)
    window.act(lambda: imp.getRoi().addPoint(imp, 40.0, 50.0))
    (edit,) = window.edits()
    assert (edit.action, edit.kind, edit.name, edit.indices) == ("added", "points", "spots", (3,))
    assert table(edit.after).tolist() == [[50, 40]]
    np.testing.assert_array_equal(layer.items[()], [*SPOTS, (50, 40)])
    # The person goes on.
    window.act(lambda: imp.getRoi().addPoint(imp, 41.0, 50.0))
    (edit,) = window.edits()
    assert table(edit.after).tolist() == [[50, 41]]


def test_a_point_is_moved(window: Stage) -> None:
    raw, layer = spots(window)
    java = window.viewer.java

    def move() -> None:
        native = window.viewer.image(raw).getRoi()
        field = java.PolygonRoi.class_.getDeclaredField("xpf")
        field.setAccessible(True)
        field.get(native)[1] += 2  # between the others: the bounds stay

    window.act(move)
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("changed", (1,))
    np.testing.assert_allclose(table(edit.after), [(12.3, 15.4)], rtol=1e-6)
    np.testing.assert_array_equal(table(edit.before), SPOTS[1:2])
    np.testing.assert_array_equal(layer.items[()][[0, 2]], SPOTS[[0, 2]])


def test_a_point_is_deleted(window: Stage) -> None:
    raw, layer = spots(window)
    window.act(lambda: window.viewer.image(raw).getRoi().deleteHandle(13.4, 12.3))
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("removed", (1,))
    np.testing.assert_array_equal(layer.items[()], SPOTS[[0, 2]])


def test_all_points_are_deleted_and_new_ones_drawn(window: Stage) -> None:
    java = window.viewer.java
    raw, layer = spots(window)
    run(window, "delete", 0)
    (edit,) = window.edits()
    assert (edit.action, edit.indices) == ("removed", (0, 1, 2))
    assert layer.items[()].shape == (0, 2)

    def draw_points(*y: float) -> None:
        imp = window.viewer.image(raw)
        java.WindowManager.setCurrentWindow(imp.getWindow())
        imp.setRoi(java.PointRoi(java.floats([1.0, 2.5]), java.floats(y)))
        manager(window).runCommand("add")

    window.act(lambda: draw_points(3.0, 4.5))
    (edit,) = window.edits()
    assert (edit.action, edit.name) == ("added", "spots")
    assert table(edit.after).tolist() == [[3, 1], [4.5, 2.5]]
    assert len(listed(window)) == 1
    window.act(lambda: draw_points(6.0, 7.0))
    (edit,) = window.edits()
    assert edit.indices == (2, 3)
    assert len(listed(window)) == 1


def test_points_go_to_the_slice_where_they_were_set(window: Stage) -> None:
    raw, layer = window.show(
        *((image("z"), (z,), plane()) for z in (1, 2, 3)), (points("z"), (1,), SPOTS)
    )
    run(window, "", 0)
    imp = window.viewer.image(raw)
    window.viewer.go_to(z=3)
    window.act(lambda: imp.getRoi().addPoint(imp, 40.0, 50.0))
    (edit,) = window.edits()
    assert (edit.action, dict(edit.place)) == ("added", {"z": 3})
    np.testing.assert_array_equal(layer.items[(1,)], SPOTS)
    np.testing.assert_array_equal(layer.items[(3,)], [(50, 40)])
    assert len(listed(window)) == 2
    # The person goes on clicking.
    window.act(lambda: imp.getRoi().addPoint(imp, 41.0, 51.0))
    (edit,) = window.edits()
    assert (edit.action, dict(edit.place), edit.indices) == ("added", {"z": 3}, (1,))


def test_a_point_roi_in_a_layer_of_rois(window: Stage) -> None:
    sent = Roi.points([(2, 3), (12, 13), (20, 30)], name="p")
    window.show((image(), (), plane()), (rois(), (), [sent]))
    run(window, "", 0)
    window.act(lambda: manager(window).getRoi(0).deleteHandle(13.0, 12.0))
    (edit,) = window.edits()
    (now,) = after(edit)
    assert now == sent.replace(coordinates=sent.coordinates[[0, 2]])


def test_tracks_are_put_back(window: Stage) -> None:
    rows = np.array([(7, t, 2.0 * t, 3.0 * t) for t in range(4)])
    raw, layer = window.show(
        (image("time"), (0,), plane()), (image(kind="tracks", name="paths", axes="TYX"), (), rows)
    )
    run(window, "delete", 0)
    assert window.edits() == []
    assert listed(window) == ["paths 7"]
    assert len(drawn(window, raw)) == 1
    assert layer.items[()] is rows or np.array_equal(layer.items[()], rows)
