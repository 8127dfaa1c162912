"""What a person changes comes back: as edits, as the state now, and as an answer to a question."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream import Edit
from openhcs_stream.errors import DeadlineExceeded, InvalidItem, Refused, StreamClosed, ViewerLost
from openhcs_stream.rois import Roi
from openhcs_stream.viewer import Change, MemoryViewer, Painting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from openhcs_stream import Stream
    from openhcs_stream.stream import Edits
    from openhcs_stream.viewer import Coords, SceneLayer
    from tests.stream.conftest import Served

A, B, C = (Roi.rectangle(n, n, n + 5, n + 8, name=f"cell {n}") for n in (1, 20, 40))


@pytest.fixture(params=[True, False], ids=["shared-memory", "zeromq"])
def stream(request: pytest.FixtureRequest, served: Served) -> Iterator[Stream]:
    with openhcs_stream.connect(served.address, side_lane=request.param, timeout_s=20) as stream:
        yield stream


class Person:
    """Does to a memory viewer what a person's hand does to one with a window."""

    def __init__(self, served: Served) -> None:
        self.viewer = served.viewer
        self.book = served.receiver.edits

    def layer(self, name: str) -> SceneLayer:
        return next(each for key, each in self.viewer.layers.items() if key.name == name)

    def do(self, work: Callable[[], object]) -> None:
        done = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)
            done.set()

        self.viewer.do(run)
        assert done.wait(20)
        if failures:
            raise failures[0]

    def change(
        self, name: str, coords: Coords, edit: Callable[[list[Any]], list[tuple[Any, int | None]]]
    ) -> None:
        """`edit` gets what is there and gives what is to be there, each with its origin."""

        def work() -> None:
            layer = self.layer(name)
            base = layer.items[coords]
            now = edit(list(base))
            items: Any = [item for item, _ in now]
            if layer.kind == "points":
                items = np.array(items, float).reshape(-1, base.shape[1])
            origins = [origin for _, origin in now]
            self.viewer.report_edit(Change(layer, coords, base, items, origins))

        self.do(work)

    def paint(self, name: str, coords: Coords, top: int, left: int, value: Any) -> None:
        def work() -> None:
            layer = self.layer(name)
            plane = layer.stack.planes[coords]
            value_ = np.atleast_2d(value)
            region = (slice(top, top + value_.shape[0]), slice(left, left + value_.shape[1]))
            before = plane[region].copy()
            plane[region] = value_
            after = plane[region].copy()
            self.viewer.report_edit(Painting(layer, coords, top, left, before, after))

        self.do(work)

    def answer(self, outcome: Any) -> None:
        deadline = time.monotonic() + 20
        while (question := self.viewer.question) is None:
            assert time.monotonic() < deadline, "no question was shown"
            threading.Event().wait(0.005)
        self.do(functools.partial(question.answer, outcome))


@pytest.fixture
def person(served: Served) -> Person:
    return Person(served)


def moved(roi: Roi) -> Roi:
    return dataclasses.replace(roi, coordinates=roi.coordinates + 2.25)


def take(edits: Edits, count: int) -> list[Edit]:
    found = [edits.next(20) for _ in range(count)]
    assert all(found), found
    return [each for each in found if each is not None]


def test_each_thing_that_a_person_does_is_one_edit(stream: Stream, person: Person) -> None:
    place: dict[str, int | str] = {"well": "A01", "z": 3}
    stream.rois([A, B, C], name="nuclei", place=place, source="plate").wait()
    at = ("A01", 3)
    with stream.edits(on="nuclei") as edits:
        person.change("nuclei", at, lambda x: [(x[0], 0), (moved(x[1]), 1), (x[2], 2)])
        person.change("nuclei", at, lambda x: [(x[0], 0), (x[2], 2)])
        person.change(
            "nuclei", at, lambda x: [(dataclasses.replace(x[0], name="big"), 0), (x[1], 1)]
        )
        person.change("nuclei", at, lambda x: [(x[0], 0), (x[1], 1), (moved(C), None)])
        change, removal, renaming, addition = take(edits, 4)
    assert (change.action, change.before, change.after) == ("changed", [B], [moved(B)])
    assert (removal.action, removal.before, removal.after) == ("removed", [moved(B)], [])
    assert (renaming.action, [roi.name for roi in renaming.after]) == ("renamed", ["big"])
    assert (addition.action, addition.after, addition.indices) == ("added", [moved(C)], (2,))
    assert (change.kind, change.name, change.source) == ("rois", "nuclei", "plate")
    assert change.place == place
    assert change.who
    assert change.time.tzinfo is not None
    ours = [A, B, C]
    for edit in (change, removal, renaming, addition):
        ours = edit.apply(ours)
    assert ours == stream.get_rois(on="nuclei")
    assert str(removal) == "removed 1 of rois 'nuclei' at well A01, z 3"


def test_an_untouched_list_is_no_edit(stream: Stream, person: Person) -> None:
    stream.rois([A, B], name="nuclei").wait()
    person.change("nuclei", (), lambda x: [(x[0], 0), (x[1], 1)])
    assert not person.book.waiting()


def test_a_worker_hears_only_what_it_asked_for(stream: Stream, person: Person) -> None:
    for well in ("A01", "A02"):
        for name in ("nuclei", "cells"):
            stream.rois([A], name=name, place={"well": well}).wait()
    with stream.edits(on=["nuclei"], place={"well": "A02"}) as edits:
        for well in ("A01", "A02"):
            for name in ("cells", "nuclei"):
                person.change(name, (well,), lambda x: [(moved(x[0]), 0)])
        (edit,) = take(edits, 1)
        assert (edit.name, edit.place) == ("nuclei", {"well": "A02"})
        assert edits.next(0.05) is None


def test_painting_comes_back_as_the_region(stream: Stream, person: Person) -> None:
    labels = np.arange(6 * 40 * 50, dtype=np.uint32).reshape(6, 40, 50)
    stream.labels(labels, name="nuclei", place={"well": "B02"}).wait()
    with stream.edits() as edits:
        person.paint("nuclei", ("B02", 4), 3, 7, [[9, 9, 9], [9, 1, 9]])
        (edit,) = take(edits, 1)
    assert (edit.action, edit.kind) == ("painted", "labels")
    assert edit.place == {"well": "B02", "z": 4}
    assert edit.region == (slice(3, 5), slice(7, 10))
    np.testing.assert_array_equal(edit.before, labels[4][edit.region])
    corrected = edit.apply(labels[4])
    np.testing.assert_array_equal(
        corrected, stream.get_labels(on="nuclei", place={"z": 4}), strict=True
    )
    assert corrected[4, 8] == 1
    assert labels[4, 3, 7] != 9


def test_points_are_moved_added_and_removed(stream: Stream, person: Person) -> None:
    points = np.array([[1.5, 2.5], [3, 4], [5, 6]])
    stream.points(points, name="spots").wait()
    with stream.edits() as edits:
        person.change("spots", (), lambda x: [(x[0] + 1, 0), (x[2], 2), (np.zeros(2), None)])
        found = take(edits, 3)
    assert [each.action for each in found] == ["changed", "removed", "added"]
    ours = points
    for edit in found:
        ours = edit.apply(ours)
    np.testing.assert_array_equal(ours, stream.get_points(on="spots"))


def test_an_edit_waits_until_it_is_dealt_with(served: Served, person: Person) -> None:
    with openhcs_stream.connect(served.address, timeout_s=20) as first:
        first.rois([A, B], name="nuclei").wait()
        person.change("nuclei", (), lambda x: [(moved(x[0]), 0), (x[1], 1)])
        person.change("nuclei", (), lambda x: [(x[0], 0)])
        with pytest.raises(RuntimeError, match="the worker's own"), first.edits() as edits:
            assert take(edits, 1)[0].action == "changed"
            raise RuntimeError("the worker's own")
    assert len(person.book.waiting()) == 2
    with openhcs_stream.connect(served.address, timeout_s=20) as second:
        with second.edits() as edits:
            assert [each.action for each in take(edits, 2)] == ["changed", "removed"]
        second.request("layers")  # on the same lane: what was said before is heard
        assert not person.book.waiting()


def test_edits_can_be_awaited(stream: Stream, person: Person) -> None:
    stream.rois([A], name="nuclei").wait()

    async def listen() -> list[str]:
        found: list[str] = []
        async for edit in stream.edits(timeout_s=20):
            found.append(edit.action)
            if len(found) == 2:
                break
            person_thread = threading.Thread(
                target=person.change, args=("nuclei", (), lambda x: [])
            )
            person_thread.start()
        return found

    person.change("nuclei", (), lambda x: [(moved(x[0]), 0)])
    assert asyncio.run(listen()) == ["changed", "removed"]


def test_a_callback_may_use_the_stream(stream: Stream, person: Person) -> None:
    stream.rois([A], name="nuclei").wait()
    seen: list[Edit] = []
    done = threading.Event()

    def corrected(edit: Edit) -> None:
        seen.append(edit)
        stream.labels(np.ones((4, 4), np.uint8), name="again").wait()
        done.set()

    with stream.on_edit(corrected, on="nuclei"):
        person.change("nuclei", (), lambda x: [(moved(x[0]), 0)])
        assert done.wait(20)
    assert [each.action for each in seen] == ["changed"]


def test_a_callback_that_fails_leaves_the_edit_to_others(
    stream: Stream, person: Person, caplog: pytest.LogCaptureFixture
) -> None:
    stream.rois([A], name="nuclei").wait()
    failed = threading.Event()

    def wrong(edit: Edit) -> None:
        failed.set()
        raise RuntimeError("the callback's own")

    stream.on_edit(wrong)
    person.change("nuclei", (), lambda x: [(moved(x[0]), 0)])
    assert failed.wait(20)
    with stream.edits() as edits:
        assert len(person.book.waiting()) == 1
        assert edits.next(20) is not None


async def _async_function(edit: Edit) -> None: ...


async def _async_generator(edit: Edit) -> AsyncIterator[None]:
    yield None


class _AsyncObject:
    async def __call__(self, edit: Edit) -> None: ...


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (_async_function, "_async_function"),
        (_async_generator, "_async_generator"),
        (functools.partial(_async_function), "_async_function"),
        (_AsyncObject(), "_AsyncObject"),
    ],
    ids=["function", "generator", "partial", "object"],
)
def test_a_coroutine_function_is_no_callback(
    stream: Stream, person: Person, callback: Any, name: str
) -> None:
    stream.rois([A], name="nuclei").wait()
    with pytest.raises(InvalidItem, match=rf"{name}.* async.*async for edit in stream\.edits"):
        stream.on_edit(callback)
    person.change("nuclei", (), lambda x: [(moved(x[0]), 0)])
    assert len(person.book.waiting()) == 1


def test_what_cannot_be_called_is_no_callback(stream: Stream) -> None:
    with pytest.raises(InvalidItem, match="'nuclei' can't be called"):
        stream.on_edit("nuclei")  # type: ignore[arg-type]


def _gives_a_coroutine(edit: Edit) -> object:
    return _async_function(edit)


def _raises_an_error_of_ours(edit: Edit) -> object:
    raise InvalidItem("what the callback sent was wrong.")


@pytest.mark.parametrize(
    ("callback", "text"),
    [(_gives_a_coroutine, "coroutine"), (_raises_an_error_of_ours, "what the callback sent")],
)
def test_an_edit_whose_callback_came_to_nothing_waits_for_others(
    stream: Stream, person: Person, caplog: pytest.LogCaptureFixture, callback: Any, text: str
) -> None:
    stream.rois([A], name="nuclei").wait()
    listener = stream.on_edit(callback)
    person.change("nuclei", (), lambda x: [(moved(x[0]), 0)])
    deadline = time.monotonic() + 20
    while not listener.is_closed:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    assert "a callback for edits failed" in caplog.text
    assert text in caplog.text
    with stream.edits() as edits:
        assert take(edits, 1)[0].action == "changed"


@pytest.mark.parametrize("on", [[], (), 5, b"nuclei", [5], [b"nuclei"]], ids=repr)
def test_what_names_no_layer_is_refused(stream: Stream, on: Any) -> None:
    with pytest.raises(InvalidItem, match=r"names? |name\."):
        stream.edits(on=on)
    with pytest.raises(InvalidItem, match=r"names? |name\."):
        stream.on_edit(print, on=on)


@pytest.mark.parametrize("wait", ["a", float("nan"), b"1"], ids=repr)
def test_what_is_no_time_is_refused_and_nothing_asked(
    stream: Stream, person: Person, wait: Any
) -> None:
    stream.rois([A], name="nuclei").wait()
    for call in (
        functools.partial(stream.ask, "well?"),
        functools.partial(stream.edits),
        functools.partial(stream.get_rois, "nuclei"),
        functools.partial(stream.request, "layers"),
        stream.edits().next,
    ):
        with pytest.raises(InvalidItem, match="no number of seconds"):
            call(timeout_s=wait)
    stream.request("layers")
    assert person.viewer.question is None


def test_times_that_are_over_and_times_without_end(stream: Stream, person: Person) -> None:
    assert stream.edits().next(-1) is None
    with pytest.raises(DeadlineExceeded):
        stream.ask("well?", timeout_s=-1)
    stream.rois([A], name="nuclei").wait()
    assert stream.get_rois("nuclei", timeout_s=float("inf")) == [A]
    thread = threading.Thread(target=person.answer, args=("skipped",))
    thread.start()
    assert not stream.ask("well?", timeout_s=float("inf")).done
    thread.join(20)


@pytest.mark.parametrize("text", [5, None, b"well?", "", "x" * 4097], ids=lambda x: repr(x)[:9])
def test_a_message_is_text(stream: Stream, text: Any) -> None:
    with pytest.raises(InvalidItem, match="can't be asked"):
        stream.ask(text)


def test_a_question_is_answered_with_what_was_corrected(stream: Stream, person: Person) -> None:
    stream.rois([A, B], name="nuclei", place={"well": "A01"}).wait()

    def correct() -> None:
        person.change("nuclei", ("A01",), lambda x: [(x[0], 0)])
        person.answer("done")

    thread = threading.Thread(target=correct)
    thread.start()
    answer = stream.ask(
        "please check the outlines", on="nuclei", place={"well": "A01"}, timeout_s=20
    )
    thread.join(20)
    assert answer.done
    assert answer.outcome == "done"
    assert [edit.action for edit in answer.edits] == ["removed"]
    assert stream.get_rois(on="nuclei") == [A]
    stream.request("layers")
    assert not person.book.waiting()
    assert person.viewer.question is None


def test_questions_stand_one_behind_the_other(served: Served, person: Person) -> None:
    outcomes: dict[str, str] = {}

    def ask(text: str) -> None:
        with openhcs_stream.connect(served.address, name=text, timeout_s=20) as stream:
            outcomes[text] = stream.ask(text, place={"timepoint": 1}, timeout_s=20).outcome

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    asked = []
    for outcome in ("done", "skipped", "done"):
        deadline = time.monotonic() + 20
        while (question := person.viewer.question) is None or question.text in asked:
            assert time.monotonic() < deadline
            threading.Event().wait(0.005)
        assert question.worker == question.text
        assert question.place == {"time": 1}
        asked.append(question.text)
        person.do(functools.partial(question.answer, outcome))
    for thread in threads:
        thread.join(20)
    assert [outcomes[text] for text in asked] == ["done", "skipped", "done"]
    assert person.viewer.question is None


def test_a_question_that_nobody_answers_ends_and_goes_away(stream: Stream, person: Person) -> None:
    with pytest.raises(DeadlineExceeded, match=r"nobody answered within 0\.05 s"):
        stream.ask("is anybody there?", timeout_s=0.05)
    stream.request("layers")
    assert person.viewer.question is None


def test_a_worker_that_is_gone_takes_its_question_with_it(served: Served, person: Person) -> None:
    stream = openhcs_stream.connect(served.address, timeout_s=20)
    closed = threading.Event()

    def ask() -> None:
        with pytest.raises(StreamClosed):
            stream.ask("well?")
        closed.set()

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 20
    while person.viewer.question is None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    stream.close()
    assert closed.wait(20)
    thread.join(20)
    while person.viewer.question is not None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_a_viewer_where_nobody_can_answer_says_so(
    serve_here: Callable[..., Served],
) -> None:
    class Mute(MemoryViewer):
        can_ask = False

    mute = serve_here(Mute())
    with (
        openhcs_stream.connect(mute.address, timeout_s=20) as stream,
        pytest.raises(Refused, match="no window, so nobody can answer"),
    ):
        stream.ask("well?")


def test_of_two_viewers_the_first_answer_counts(
    serve_here: Callable[..., Served],
) -> None:
    one, two = serve_here(), serve_here()
    with openhcs_stream.connect([one.address, two.address], timeout_s=20) as stream:
        thread = threading.Thread(target=Person(two).answer, args=("done",))
        thread.start()
        answer = stream.ask("well?", timeout_s=20)
        thread.join(20)
        assert answer.viewer == two.receiver.endpoint.name  # type: ignore[union-attr]
        stream.request("layers")
        assert one.viewer.question is None


def test_what_can_be_read_is_named_where_it_is_not_there(stream: Stream) -> None:
    stream.rois([A], name="nuclei", place={"well": "A01"}).wait()
    stream.rois([B], name="nuclei", place={"well": "A02"}).wait()
    assert stream.places("nuclei") == [{"well": "A01"}, {"well": "A02"}]
    assert stream.get_rois("nuclei", place={"well": "A02"}) == [B]
    with pytest.raises(Refused, match="is at 2 places"):
        stream.get_rois("nuclei")
    with pytest.raises(Refused, match="has no rois 'cells'"):
        stream.get_rois("cells")
    with pytest.raises(Refused, match="nothing at"):
        stream.get_rois("nuclei", place={"well": "H12"})
    with pytest.raises(InvalidItem, match="no viewer 'fiji'"):
        stream.get_rois("nuclei", viewer="fiji")


@pytest.mark.parametrize("axes", ["TYX", "TZYX"])
def test_tracks_are_read_as_they_were_sent(stream: Stream, axes: str) -> None:
    rows = np.random.default_rng(1).uniform(0, 90, (7, len(axes) + 1))
    rows[:, 0] = (3, 3, 3, 8, 8, 9, 2**40)
    stream.tracks(rows, name="paths", axes=axes, place={"well": "A01"}, pixel_size=0.5).wait()
    stream.tracks(rows[:0], name="paths", axes=axes, place={"well": "A02"}).wait()
    read = stream.get_tracks(on="paths", place={"well": "A01"})
    np.testing.assert_array_equal(read, rows, strict=True)
    read[:] = 0  # their own, not the viewer's
    assert stream.get_tracks("paths", place={"well": "A02"}).shape == (0, len(axes) + 1)
    with pytest.raises(Refused, match="is at 2 places"):
        stream.get_tracks("paths")
    with pytest.raises(Refused, match=r"has no tracks 'moves'.*tracks 'paths'"):
        stream.get_tracks("moves")
    with pytest.raises(Refused, match="has no points 'paths'"):
        stream.get_points("paths")


def test_the_columns_of_tracks_come_in_napari_order(stream: Stream) -> None:
    stream.tracks([[1.0, 7, 3, 20, 30]], name="paths", axes="ZTYX").wait()
    assert stream.get_tracks("paths").tolist() == [[1.0, 3, 7, 20, 30]]


def test_a_place_may_have_values_of_numpy(stream: Stream, person: Person) -> None:
    planes: Any = np.arange(2)
    for z in planes:
        stream.labels(np.full((4, 4), z, np.uint8), name="nuclei", place={"z": z}).wait()
    for z in planes:
        assert stream.get_labels("nuclei", place={"z": z}).max() == z
    with stream.edits(on="nuclei", place={"z": planes[1]}) as edits:
        for z in (0, 1):
            person.paint("nuclei", (z,), 0, 0, 9)
        assert take(edits, 1)[0].place == {"z": 1}


def test_new_data_of_the_worker_is_no_edit_and_wins(stream: Stream, person: Person) -> None:
    stream.rois([A, B], name="nuclei").wait()
    base = person.layer("nuclei").items[()]
    stream.rois([C], name="nuclei").wait()
    # A person's edit of what stood before comes too late for the screen; it is told all the same.
    layer = person.layer("nuclei")
    person.do(lambda: person.viewer.report_edit(Change(layer, (), base, [base[0]], [0])))
    assert stream.get_rois("nuclei") == [C]
    assert [each.action for each in person.book.waiting()] == ["removed"]


def test_a_loop_ends_with_the_stream_and_fails_without_viewers(served: Served) -> None:
    stream = openhcs_stream.connect(served.address, timeout_s=20)
    edits = stream.edits()
    closer = threading.Timer(0.05, stream.close)
    closer.start()
    assert list(edits) == []
    closer.join()
    with pytest.raises(StreamClosed):
        stream.edits()


def test_an_edit_that_does_not_fit_says_what_it_is_for(stream: Stream, person: Person) -> None:
    stream.rois([A, B, C], name="nuclei").wait()
    stream.labels(np.zeros((20, 20), np.uint8), name="mask").wait()
    with stream.edits() as edits:
        person.change("nuclei", (), lambda x: [(x[0], 0), (x[1], 1)])
        person.paint("mask", (), 10, 10, np.ones((5, 5), np.uint8))
        removal, painting = take(edits, 2)
    with pytest.raises(InvalidItem, match="does not fit a list of 1"):
        removal.apply([A])
    with pytest.raises(InvalidItem, match=r"does not fit labels of shape \(4, 4\)"):
        painting.apply(np.zeros((4, 4), np.uint8))


def test_no_viewer_no_edits(serve_here: Callable[..., Served]) -> None:
    here = serve_here()
    with openhcs_stream.connect(here.address, timeout_s=20) as stream:
        edits = stream.edits()
        here.receiver.close()
        with pytest.raises(ViewerLost):
            edits.next(20)


def test_what_was_sent_before_is_there_when_it_is_asked_for(
    serve_here: Callable[..., Served],
) -> None:
    """Also where the viewer is drawing something else when both come."""

    class Busy(MemoryViewer):
        def show_layer(self, layer: SceneLayer, arrived: Any) -> None:
            super().show_layer(layer, arrived)
            if layer.key.name == "first":
                drawing.set()
                deadline = time.monotonic() + 10
                while not here.receiver._asked and time.monotonic() < deadline:
                    threading.Event().wait(0.005)

    drawing = threading.Event()
    here = serve_here(Busy())
    with openhcs_stream.connect(here.address, side_lane=False, timeout_s=20) as stream:
        stream.points([[1.0, 2.0]], name="first")
        stream.request("status")  # what was gathered has left
        assert drawing.wait(20)
        stream.points([[3.0, 4.0]], name="second")
        assert stream.get_points("second").tolist() == [[3.0, 4.0]]
