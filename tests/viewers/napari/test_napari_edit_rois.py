"""What a person does to outlines and points in napari comes back, one edit each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Arrow, Roi, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.viewer import SceneLayer
    from tests.viewers.napari.conftest import Stage

SQUARE = np.array([(2.1, 2.2), (2.3, 8.4), (8.5, 8.6), (8.7, 2.8)])
#: On the outline of the square: an outline that is not filled is a path to napari.
EDGE = (2.2, 5.3)
SPEC = LayerSpec(kind="rois", name="cells", axes="", components=("well",), source="plate")
SPOTS = LayerSpec(kind="points", name="spots", axes="YX", components=("well",))
POINTS = np.array([(1.1, 2.2), (3.3, 4.4), (15.5, 16.6)])


def image(*wells: str) -> Any:
    spec = LayerSpec(kind="image", name="raw", axes="YX", components=("well",))
    return [(spec, (well,), np.zeros((40, 60), "u1")) for well in wells]


def rois() -> list[Roi]:
    return [
        Roi.polygon(SQUARE, name="one", group=3, properties={"area": "1"}, position=(1, 2, 3)),
        Roi.rectangle(12.25, 12.5, 20.75, 25.125, name="two", stroke_color="#ff0000"),
        Roi.oval(22.25, 32.5, 30.75, 45.125, name="three", fill_color="#00ff0080"),
    ]


class Bench:
    """One layer at two wells."""

    def __init__(self, stage: Stage, spec: LayerSpec, first: Any, second: Any = ()) -> None:
        self.stage = stage
        stage.show(*image("A01", "A02"))
        (self.layer,) = stage.show((spec, ("A01",), first), (spec, ("A02",), second))
        self.native = stage.viewer.native_layer(self.layer)
        stage.viewer.model.layers.selection.active = self.native
        self.native.scale_factor = 0.05  # as zoomed in 20 times: handles are small
        self.mouse = stage.mouse

    def here(self, well: str = "A01") -> Any:
        return self.layer.items[(well,)]


@pytest.fixture
def cells(model: Stage) -> Bench:
    return Bench(model, SPEC, rois(), [Roi.line((0, 0), (9, 9), name="other")])


@pytest.fixture
def spots(model: Stage) -> Bench:
    return Bench(model, SPOTS, POINTS.copy(), np.array([(9.0, 9.0)]))


def summary(edits: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
    return [(edit.action, edit.indices) for edit in edits]


# --- shapes ---------------------------------------------------------------------------------------


def test_a_drag_is_one_edit_when_the_button_is_let_go_of(cells: Bench) -> None:
    before = rois()
    cells.native.mode = "select"
    cells.mouse.press(*EDGE)
    for step in range(1, 6):
        cells.mouse.move(EDGE[0] + step, EDGE[1] + 2 * step)
        assert not cells.stage.edits()
        cells.stage.viewer.settle()
    cells.mouse.release(10, 15)
    cells.stage.viewer.settle()
    (edit,) = cells.stage.edits(finish=False)
    assert (edit.action, edit.indices, edit.place, edit.source) == (
        "changed", (0,), {"well": "A01"}, "plate",
    )  # fmt: skip
    assert edit.before == before[:1]
    (moved,) = edit.after
    np.testing.assert_allclose(moved.coordinates, np.add(before[0].coordinates, (10, 5)), atol=1e-4)
    assert moved.replace(coordinates=before[0].coordinates) == before[0]
    assert cells.here() == [moved, *before[1:]]
    assert not cells.stage.edits()


def test_resizing_an_oval_keeps_it_an_oval(cells: Bench) -> None:
    cells.native.mode = "select"
    cells.mouse.click(26, 38)
    box = cells.native._selected_box
    corner = box[4]  # the handle at the bottom right
    cells.mouse.drag(tuple(corner), tuple(corner + 2), tuple(np.add(corner, (4, 6))))
    (edit,) = cells.stage.edits()
    assert summary([edit]) == [("changed", (2,))]
    (after,) = edit.after
    assert (after.kind, after.fill_color, after.stroke_color) == ("oval", "#00ff0080", "")
    assert after.coordinates[0].tolist() == [32.5, 22.25]  # the side that stayed
    np.testing.assert_allclose(after.coordinates[1], (51.125, 34.75), atol=1e-3)


def test_turning_a_rectangle(cells: Bench) -> None:
    cells.native.mode = "select"
    cells.mouse.click(15, 18)
    handle = cells.native._selected_box[9]
    centre = cells.native._selected_box[8]
    cells.mouse.drag(tuple(handle), (centre[0] + 9, centre[1]))
    (edit,) = cells.stage.edits()
    (after,) = edit.after
    assert (after.kind, after.name, after.stroke_color) == (
        "rectangle",
        "two",
        "#ff0000ff",
    )  # fmt: skip - by a right angle: it is upright again
    np.testing.assert_allclose(np.ptp(after.coordinates, axis=0), (8.5, 12.625), atol=1e-3)


def test_a_vertex_of_an_outline(cells: Bench) -> None:
    cells.native.mode = "direct"
    cells.native.selected_data = {0}
    cells.mouse.drag(tuple(SQUARE[2]), (9, 9), (9.5, 9.75))
    (edit,) = cells.stage.edits()
    (after,) = edit.after
    np.testing.assert_allclose(after.coordinates[2], (10.25, 10.0), atol=1e-3)
    np.testing.assert_array_equal(after.coordinates[[0, 1, 3]], rois()[0].coordinates[[0, 1, 3]])


def test_a_corner_of_a_rectangle_makes_another_shape_of_the_same_roi(cells: Bench) -> None:
    cells.native.mode = "direct"
    cells.native.selected_data = {1}
    corner = cells.native.data[1][2]
    cells.mouse.drag(tuple(corner), tuple(corner + 1), tuple(np.add(corner, (2, 3))))
    (edit,) = cells.stage.edits()
    assert summary([edit]) == [("changed", (1,))]
    assert (edit.after[0].kind, edit.after[0].name) == ("polygon", "two")
    cells.native.mode = "select"
    cells.mouse.drag((15, 18), (16, 18), (17, 18))
    assert summary(cells.stage.edits()) == [("changed", (1,))]


@pytest.mark.parametrize("which", [0, 1])
def test_vertices_added_and_removed(cells: Bench, which: int) -> None:
    cells.native.mode = "vertex_insert"
    cells.native.selected_data = {which}
    top = (2.25, 5.0) if which == 0 else (11.75, 18.0)
    cells.mouse.click(*top)
    (edit,) = cells.stage.edits()
    assert summary([edit]) == [("changed", (which,))]
    assert (edit.after[0].kind, len(edit.after[0].coordinates)) == ("polygon", 5)
    cells.native.mode = "vertex_remove"
    cells.mouse.click(*cells.native.data[which][2])
    (edit,) = cells.stage.edits()
    assert len(edit.after[0].coordinates) == 4
    assert edit.after[0].name == rois()[which].name


def test_taking_the_last_vertices_away_removes_the_line(model: Stage) -> None:
    bench = Bench(model, SPEC, [Roi.line((2, 2), (20, 20), name="gone"), *rois()[:1]])
    bench.native.mode = "vertex_remove"
    bench.native.selected_data = {0}
    bench.mouse.click(2, 2)  # napari forgets to remove its name and colours
    (edit,) = bench.stage.edits()
    assert summary([edit]) == [("removed", (0,))]
    assert bench.here() == rois()[:1]
    assert list(bench.native.features["name"]) == ["one"]
    assert len(bench.native.edge_color) == bench.native.nshapes == 1
    assert not bench.stage.edits()


def test_what_is_deleted_stays_so_when_the_slider_comes_back(cells: Bench) -> None:
    cells.native.selected_data = {0, 2}
    cells.native.remove_selected()
    (edit,) = cells.stage.edits()
    assert summary([edit]) == [("removed", (0, 2))]
    assert edit.before == [rois()[0], rois()[2]]
    cells.stage.viewer.go_to(well="A02")
    assert list(cells.native.features["name"]) == ["other"]
    cells.stage.viewer.go_to(well="A01")
    assert list(cells.native.features["name"]) == ["two"]
    assert cells.here() == rois()[1:2]
    assert not cells.stage.edits()


def test_everything_can_be_deleted(cells: Bench) -> None:
    cells.native.selected_data = {0, 1, 2}
    cells.native.remove_selected()
    assert summary(cells.stage.edits()) == [("removed", (0, 1, 2))]
    assert cells.here() == []
    cells.native.add(SQUARE, shape_type="polygon")
    assert summary(cells.stage.edits()) == [("added", (0,))]


def drawn(cells: Bench) -> Roi:
    (edit,) = cells.stage.edits()
    assert summary([edit]) == [("added", (3,))]
    roi: Roi
    (roi,) = edit.after
    assert cells.here() == [*rois(), roi]
    assert (roi.name, roi.stroke_color, roi.fill_color, roi.stroke_width) == ("", "", "", 0.0)
    return roi


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("add_rectangle", "rectangle"), ("add_ellipse", "oval"), ("add_line", "line")],
)
def test_drawing_by_dragging(cells: Bench, mode: str, kind: str) -> None:
    cells.native.mode = mode
    cells.mouse.press(10, 40)
    for at in ((12, 42), (15, 47), (18, 50)):
        cells.mouse.move(*at)
        assert not cells.stage.edits()
    cells.mouse.release(18, 50)
    assert drawn(cells).kind == kind


@pytest.mark.parametrize(
    ("mode", "kind"), [("add_polygon", "polygon"), ("add_polyline", "polyline")]
)
def test_drawing_click_by_click(cells: Bench, mode: str, kind: str) -> None:
    cells.native.mode = mode
    for at in ((10, 40), (20, 40), (20, 50), (10, 55)):
        cells.mouse.move(*at, pressed=False)
        cells.mouse.click(*at)
        cells.stage.viewer.settle()
        assert not cells.stage.edits()  # it is not finished
    cells.mouse.double_click(10, 55)
    roi = drawn(cells)
    assert roi.kind == kind
    assert len(roi.coordinates) == 4


def test_drawing_with_the_lasso(cells: Bench) -> None:
    cells.native.mode = "add_polygon_lasso"
    angle = np.linspace(0, 2 * np.pi, 40)
    path = np.stack([20 + 9 * np.sin(angle), 45 + 9 * np.cos(angle)], axis=1)
    cells.mouse.drag(*map(tuple, path))
    assert drawn(cells).kind == "polygon"


def test_half_drawn_is_taken_when_the_person_says_done_or_leaves(cells: Bench) -> None:
    cells.native.mode = "add_polygon"
    for at in ((10, 40), (20, 40), (20, 50), (10, 55)):
        cells.mouse.move(*at, pressed=False)
        cells.mouse.click(*at)
    cells.stage.viewer.finish_drawing()
    assert drawn(cells).kind == "polygon"
    for at in ((30, 4), (35, 4), (35, 9), (30, 9)):
        cells.mouse.move(*at, pressed=False)
        cells.mouse.click(*at)
    cells.stage.viewer.go_to(well="A02")
    (edit,) = cells.stage.edits()
    assert (edit.action, edit.place) == ("added", {"well": "A01"})
    assert len(cells.here()) == 5


def test_a_shape_too_small_to_be_one_is_no_edit(cells: Bench) -> None:
    cells.native.mode = "add_polygon"
    cells.mouse.click(10, 40)
    cells.mouse.double_click(10, 40)
    assert not cells.stage.edits()


def test_recolouring_what_is_selected(cells: Bench) -> None:
    cells.native.selected_data = {0}
    cells.native.current_edge_color = "#0000ff80"
    cells.native.current_face_color = "magenta"
    cells.native.current_edge_width = 4
    (edit,) = cells.stage.edits()
    (after,) = edit.after
    assert (after.stroke_color, after.fill_color, after.stroke_width) == (
        "#0000ff80", "#ff00ffff", 4.0,
    )  # fmt: skip
    assert after.replace(stroke_color="", fill_color="", stroke_width=0) == rois()[0]
    cells.native.current_face_color = "transparent"
    (edit,) = cells.stage.edits()
    assert edit.after[0].fill_color == ""


def test_selecting_is_no_edit(cells: Bench) -> None:
    cells.native.mode = "select"
    for at in ((5, 5), (15, 18), (26, 38), (1, 55)):
        cells.mouse.click(*at)
    cells.native.selected_data = {0, 1}
    cells.native.opacity = 0.5
    cells.native.visible = False
    assert not cells.stage.edits()


def test_renaming_in_the_table(cells: Bench) -> None:
    features = cells.native.features.copy()
    features.loc[1, "name"] = "zwei"
    cells.native.features = features
    (edit,) = cells.stage.edits()
    assert summary([edit]) == [("renamed", (1,))]
    assert edit.after == [rois()[1].replace(name="zwei")]
    features.loc[0, "name"] = float("nan")
    cells.native.features = features
    (edit,) = cells.stage.edits()
    assert edit.after[0].name == ""


def test_renaming_in_place_as_the_features_table_does(
    cells: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhcs_stream_napari._rois.NAMES_S", 0.0)
    cells.native.features.loc[1, "name"] = np.str_("zwei")
    cells.stage.viewer.settle()
    cells.stage.viewer.settle()
    (edit,) = cells.stage.edits(finish=False)
    assert (edit.action, edit.after[0].name) == ("renamed", "zwei")


def test_a_burst_is_one_edit_when_it_is_over(cells: Bench) -> None:
    now = [100.0]
    cells.stage.viewer._hand._clock = lambda: now[0]
    cells.native.selected_data = {1}
    for width in range(2, 12):
        cells.native.current_edge_width = width
        now[0] += 0.1
        cells.stage.viewer.settle()
        assert not cells.stage.edits(finish=False)
    now[0] += 0.5
    cells.stage.viewer.settle()
    (edit,) = cells.stage.edits(finish=False)
    assert edit.after[0].stroke_width == 11


def test_the_next_press_ends_a_burst(cells: Bench) -> None:
    cells.native.selected_data = {1}
    cells.native.current_edge_width = 7
    cells.native.mode = "select"
    cells.mouse.drag(EDGE, (6, 6))
    assert summary(cells.stage.edits()) == [("changed", (1,)), ("changed", (0,))]


def test_copies_are_added_and_stay_what_they_were(model: Stage) -> None:
    arrow = Roi.arrow((2.5, 2.5), (20.5, 20.5), Arrow("open"), name="look", group=4)
    bench = Bench(model, SPEC, [arrow, *rois()])
    bench.native.mode = "select"
    bench.native.selected_data = {0}
    bench.native._copy_data()
    bench.native._paste_data()
    (edit,) = bench.stage.edits()
    assert summary([edit]) == [("added", (4,))]
    assert edit.after == [arrow]
    bench.mouse.drag((15, 15), (16, 16))
    (edit,) = bench.stage.edits()
    assert summary([edit]) == [("changed", (4,))]
    assert edit.after[0].details == arrow.details


def test_what_lies_in_front_is_no_edit(cells: Bench) -> None:
    cells.native.selected_data = {0}
    cells.native.move_to_front()
    cells.native.move_to_back()
    assert not cells.stage.edits()


def test_new_data_slider_moves_and_our_own_writing_are_no_edits(cells: Bench) -> None:
    for well in ("A02", "A01", "A02"):
        cells.stage.viewer.go_to(well=well)
        cells.stage.viewer.settle()
    cells.stage.show((SPEC, ("A02",), rois()), (SPEC, ("A01",), []))
    cells.stage.show(*image("A00", "A03"))
    cells.stage.viewer.settle()
    assert not cells.stage.edits()


def test_a_pending_edit_is_told_before_the_place_is_left(cells: Bench) -> None:
    cells.native.selected_data = {0}
    cells.native.current_edge_color = "red"
    cells.stage.viewer.go_to(well="A02")
    (edit,) = cells.stage.edits(finish=False)
    assert edit.place == {"well": "A01"}
    assert cells.here()[0].stroke_color == "#ff0000ff"
    cells.stage.viewer.go_to(well="A01")
    np.testing.assert_allclose(cells.native.edge_color[0], (1, 0, 0, 1))


def test_a_pending_edit_is_told_before_new_data_of_its_place_is_shown(cells: Bench) -> None:
    cells.native.mode = "select"
    cells.mouse.press(*EDGE)
    cells.mouse.move(7, 7)
    cells.stage.show((SPEC, ("A01",), rois()[1:]))  # under the person's hand
    (edit,) = cells.stage.edits(finish=False)
    assert (edit.action, edit.before) == ("changed", rois()[:1])
    cells.mouse.move(9, 9)
    cells.mouse.release(9, 9)
    assert not cells.stage.edits()
    assert cells.here() == rois()[1:]
    assert list(cells.native.features["name"]) == ["two", "three"]


@pytest.mark.parametrize("mode", ["add_polygon_lasso", "add_polygon", "add_path", "add_ellipse"])
def test_new_data_under_the_hand_that_draws(cells: Bench, mode: str) -> None:
    cells.native.mode = mode
    cells.mouse.press(10, 40)
    cells.mouse.move(15, 45)
    cells.stage.show((SPEC, ("A01",), rois()[:1]))
    cells.mouse.move(20, 48)
    cells.mouse.release(20, 48)
    cells.stage.viewer.finish_drawing()
    assert cells.here()[:1] == rois()[:1]


def test_drawing_where_nothing_had_arrived(cells: Bench) -> None:
    cells.stage.show(*image("A03"))
    cells.stage.viewer.go_to(well="A03")
    cells.native.add(SQUARE, shape_type="polygon")
    (edit,) = cells.stage.edits()
    assert (edit.action, edit.place) == ("added", {"well": "A03"})
    assert len(cells.here("A03")) == 1
    cells.native.selected_data = {0}
    cells.native.remove_selected()
    assert summary(cells.stage.edits()) == [("removed", (0,))]
    assert cells.here("A03") == []


def test_scripts_may_replace_everything(cells: Bench) -> None:
    cells.native.data = [shape + 1 for shape in cells.native.data]
    assert summary(cells.stage.edits()) == [("changed", (0, 1, 2))]
    kept = cells.native.data[1].copy()
    cells.native.data = [(kept, "rectangle"), (SQUARE, "polygon")]
    actions = {edit.action: edit for edit in cells.stage.edits()}
    assert (actions["removed"].indices, actions["added"].indices) == ((0, 2), (1,))
    cells.native.data = []
    assert summary(cells.stage.edits()) == [("removed", (0, 1))]


@pytest.mark.parametrize("filled", [False, True])
def test_every_kind_keeps_its_kind_when_it_is_moved(
    model: Stage, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhcs_stream_napari._sheet.fills_are_cheap", lambda: filled)
    ring = np.array([(0, 0), (0, 9), (9, 9), (9, 0)]) + 20.5
    given = [
        *rois(),
        Roi("freehand", SQUARE),
        Roi("traced", SQUARE + 3),
        Roi.polyline(SQUARE),
        Roi("freeline", SQUARE),
        Roi("angle", SQUARE[:3]),
        Roi.line((1, 2), (3, 4)),
        Roi("ellipse", np.array([(2.0, 5.0), (12.0, 5.0), (7.0, 8.0)])),
        Roi("rotated rectangle", np.array([(2.0, 10.0), (10.0, 14), (4.8, 14.4)])),
        Roi.rounded_rectangle(1, 2, 15, 19, 6),
        Roi.composite([ring, ring[:, ::-1] / 3 + 15]),
        Roi.arrow((1, 2), (20, 30), Arrow("bar")),
        Roi.text(3, 3, 9, 20, Text("words")),
        Roi.points([(3, 3), (6, 6)]),
    ]
    bench = Bench(model, SPEC, given)
    bench.native.mode = "select"
    bench.native.selected_data = set(range(len(given)))
    bench.mouse.drag((5, 5), (6, 7), (8, 9))
    (edit,) = bench.stage.edits()
    assert edit.before == given
    assert [roi.kind for roi in edit.after] == [roi.kind for roi in given]
    assert [roi.details for roi in edit.after] == [roi.details for roi in given]
    step = edit.after[0].coordinates[0] - given[0].coordinates[0]
    assert np.abs(step).max() > 1
    for now, was in zip(edit.after, given, strict=True):
        np.testing.assert_allclose(now.coordinates, was.coordinates + step, atol=1e-3)
    bench.stage.viewer.go_to(well="A02")
    bench.stage.viewer.go_to(well="A01")
    assert not bench.stage.edits()


def test_what_is_lost_is_said(model: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(model.viewer), "tell", lambda _, text: said.append(text))
    model.viewer._view.tell = said.append
    bench = Bench(model, SPEC, [Roi.rounded_rectangle(2, 2, 20, 30, 6, name="soft")])
    bench.native.mode = "direct"
    bench.native.selected_data = {0}
    bench.mouse.drag(tuple(bench.native.data[0][3]), (3, 3), (1, 1))
    (edit,) = bench.stage.edits()
    assert edit.after[0].kind == "polygon"
    (told,) = said
    assert "'soft'" in told
    assert "round corners" in told


def test_a_dragged_arrow_head_snaps_back(model: Stage) -> None:
    arrow = Roi.arrow((2.5, 2.5), (20.5, 20.5), Arrow("open"))
    bench = Bench(model, SPEC, [arrow])
    bench.native.mode = "direct"
    bench.native.selected_data = {0}
    was = bench.native.data[0].copy()
    bench.mouse.drag(tuple(was[2]), tuple(was[2] + 2), tuple(was[2] + 5))
    assert not bench.stage.edits()
    np.testing.assert_array_equal(bench.native.data[0], was)


# --- points ---------------------------------------------------------------------------------------


def test_dragging_points_is_one_edit(spots: Bench) -> None:
    spots.native.mode = "select"
    spots.native.selected_data = {0, 1}
    spots.mouse.press(*POINTS[0])
    for step in range(1, 5):
        spots.mouse.move(*(POINTS[0] + step))
        assert not spots.stage.edits()
    spots.mouse.release(*(POINTS[0] + 4))
    (edit,) = spots.stage.edits()
    assert summary([edit]) == [("changed", (0, 1))]
    np.testing.assert_array_equal(edit.before, POINTS[:2])
    np.testing.assert_allclose(edit.after, POINTS[:2] + 4)
    assert spots.here()[2].tolist() == POINTS[2].tolist()
    assert not spots.stage.edits()


def test_adding_moving_and_deleting_points(spots: Bench) -> None:
    spots.native.mode = "add"
    spots.mouse.click(20, 30)
    (edit,) = spots.stage.edits()
    assert summary([edit]) == [("added", (3,))]
    assert edit.after.tolist() == [[20, 30]]
    spots.native.selected_data = {0, 2}
    spots.native.remove_selected()
    (edit,) = spots.stage.edits()
    assert summary([edit]) == [("removed", (0, 2))]
    np.testing.assert_array_equal(edit.before, POINTS[[0, 2]])
    spots.stage.viewer.go_to(well="A02")
    assert spots.native.data.tolist() == [[9, 9]]
    spots.stage.viewer.go_to(well="A01")
    np.testing.assert_array_equal(spots.native.data, [POINTS[1], (20, 30)])
    assert not spots.stage.edits()


def test_several_things_at_once(spots: Bench) -> None:
    """Nobody looked in between: still each is told for what it is."""
    spots.native.remove([1])
    spots.native.add((30.0, 40.0))
    spots.native.data[0] += 1
    edits = spots.stage.edits()
    assert summary(edits) == [("changed", (0,)), ("removed", (1,)), ("added", (2,))]


def test_pasted_points_are_added(spots: Bench) -> None:
    spots.native.selected_data = {1}
    spots.native._copy_data()
    spots.native._paste_data()
    spots.stage.viewer.settle()
    (edit,) = spots.stage.edits(finish=False)
    assert summary([edit]) == [("added", (3,))]
    np.testing.assert_array_equal(edit.after, POINTS[1:2])


def test_points_by_a_script(spots: Bench) -> None:
    spots.native.data = POINTS[[2, 0]]
    assert summary(spots.stage.edits()) == [("removed", (1,))]
    spots.native.data = np.zeros((0, 2))
    assert summary(spots.stage.edits()) == [("removed", (0, 1))]
    assert spots.here().shape == (0, 2)


def test_points_where_nothing_had_arrived(spots: Bench) -> None:
    spots.stage.show(*image("A03"))
    spots.stage.viewer.go_to(well="A03")
    spots.native.add((3.0, 4.0))
    (edit,) = spots.stage.edits()
    assert (edit.action, edit.place) == ("added", {"well": "A03"})
    assert spots.here("A03").tolist() == [[3, 4]]


def test_new_points_from_a_worker_are_no_edit(spots: Bench) -> None:
    spots.native.mode = "select"
    spots.mouse.press(*POINTS[2])
    spots.mouse.move(*(POINTS[2] + 2))
    spots.stage.show((SPOTS, ("A01",), POINTS[1:]))
    assert summary(spots.stage.edits(finish=False)) == [("changed", (2,))]
    spots.mouse.move(*(POINTS[2] + 4))
    spots.mouse.release(*(POINTS[2] + 4))
    assert not spots.stage.edits()
    np.testing.assert_array_equal(spots.here(), POINTS[1:])


def test_sizes_and_colours_of_points_are_no_edit(spots: Bench) -> None:
    spots.native.selected_data = {0}
    spots.native.current_size = 20
    spots.native.current_face_color = "red"
    assert not spots.stage.edits()


def test_what_could_not_be_told_is_told_with_the_next_edit(
    cells: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    sink, cells.stage.viewer._edit_sink = cells.stage.viewer._edit_sink, _refuse
    cells.native.selected_data = {0}
    cells.native.remove_selected()
    assert not cells.stage.edits()
    assert "on purpose" in caplog.text
    cells.stage.viewer._edit_sink = sink
    cells.native.selected_data = {1}
    cells.native.remove_selected()
    assert summary(cells.stage.edits()) == [("removed", (0, 2))]


def _refuse(_: object) -> None:
    raise ZeroDivisionError("on purpose")


def test_nobody_listens(model: Stage) -> None:
    """Without a receiver a person may do what they like, too."""
    model.viewer._edit_sink = None
    bench = Bench(model, SPEC, rois())
    bench.native.selected_data = {0}
    bench.native.remove_selected()
    model.viewer.settle()
    layer: SceneLayer = bench.layer
    assert len(layer.items[("A01",)]) == 3
