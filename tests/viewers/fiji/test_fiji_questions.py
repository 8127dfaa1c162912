"""A worker's question in a window of its own, with Done and Skip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec
from openhcs_stream.viewer import Outcome, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.viewers.fiji.conftest import Stage


def asked(answer: Callable[[Outcome], None], **changes: Any) -> Question:
    fields: dict[str, Any] = {
        "text": "Please check the outlines.",
        "worker": "segment (4711)",
        "names": ("nuclei",),
        "place": {},
        "waiting": 0,
    }
    return Question(**{**fields, **changes}, answer=answer)


def window_of(stage: Stage) -> Any:
    """The question's window, None where there is none."""
    found = [
        frame
        for frame in stage.viewer.java.Frame.getFrames()
        if frame.isShowing() and str(frame.getTitle()).startswith("Question from")
    ]
    assert len(found) <= 1
    return found[0] if found else None


def components(container: Any) -> Iterator[Any]:
    for component in container.getComponents():
        yield component
        if hasattr(component, "getComponents"):
            yield from components(component)


def texts(stage: Stage) -> str:
    """All that the window says."""
    words = []
    for component in components(window_of(stage)):
        if isinstance(component, stage.viewer.java.MultiLineLabel):
            field = stage.viewer.java.MultiLineLabel.class_.getDeclaredField("lines")
            field.setAccessible(True)
            words += [str(line) for line in field.get(component)]
        for getter in ("getText", "getLabel"):
            if hasattr(component, getter):
                words += [str(getattr(component, getter)() or "")]
    return " | ".join(word.strip() for word in words if word.strip())


def click(stage: Stage, label: str) -> None:
    java = stage.viewer.java
    (button,) = (
        each for each in components(window_of(stage))
        if str(getattr(each, "getActionCommand", str)()) == label
    )  # fmt: skip
    event = java.jpype.JClass("java.awt.event.ActionEvent")
    stage.act(lambda: button.dispatchEvent(event(button, event.ACTION_PERFORMED, label)))


@pytest.mark.parametrize(("label", "outcome"), [("Done", "done"), ("Skip", "skipped")])
def test_an_answer(window: Stage, label: str, outcome: str) -> None:
    answers: list[str] = []
    assert window.viewer.can_ask
    window.viewer.show_question(asked(answers.append, waiting=2, place={"well": "A1", "z": 3}))
    said = texts(window)
    for part in (
        "segment (4711) asks:",
        "Please check the outlines.",
        "nuclei at A1, z 3; 2 more wait",
        "Done",
        "Skip",
    ):
        assert part in said
    click(window, label)
    assert answers == [outcome]
    assert window_of(window) is None


def test_closing_the_window_skips(window: Stage) -> None:
    java = window.viewer.java
    answers: list[str] = []
    window.viewer.show_question(asked(answers.append))
    event = java.jpype.JClass("java.awt.event.WindowEvent")
    frame = window_of(window)
    window.act(lambda: frame.dispatchEvent(event(frame, event.WINDOW_CLOSING)))
    assert answers == ["skipped"]
    assert window_of(window) is None


def test_the_next_takes_its_place_and_none_takes_it_away(window: Stage) -> None:
    answers: list[str] = []
    window.viewer.show_question(asked(answers.append, text="first"))
    window.viewer.show_question(asked(answers.append, text="second", worker="other"))
    assert "other asks:" in texts(window)
    window.viewer.show_question(None)
    assert window_of(window) is None
    assert answers == []


def test_an_answer_may_show_the_next_question(window: Stage) -> None:
    answers: list[str] = []

    def answer(outcome: Outcome) -> None:
        answers.append(outcome)
        window.viewer.show_question(asked(answers.append, text="next", worker="next"))

    window.viewer.show_question(asked(answer))
    click(window, "Done")
    assert "next asks:" in texts(window)
    click(window, "Skip")
    assert answers == ["done", "skipped"]


def test_the_sliders_go_where_the_question_is(window: Stage) -> None:
    spec = LayerSpec(kind="image", name="raw", axes="YX", components=("well", "z"))
    items = [(spec, (w, z), np.ones((20, 120), np.uint8)) for w in ("A1", "A2") for z in (1, 2, 3)]
    (layer,) = window.show(*items)
    imp = window.viewer.image(layer)
    window.viewer.show_question(asked(print, place={"well": "A2", "z": 3, "unknown": 7}))
    assert (imp.getSlice(), imp.getFrame()) == (3, 2)
    window.viewer.show_question(asked(print, place={"z": 2}))
    assert (imp.getSlice(), imp.getFrame()) == (2, 2)


def test_it_is_seen_where_it_stands(window: Stage) -> None:
    window.viewer.show_question(asked(print))
    bounds, screen = window_of(window).getBounds(), window_of(window).getToolkit().getScreenSize()
    assert bounds.x > 0
    assert 0 < screen.height - bounds.y - bounds.height < 60


def test_long_texts_are_scrolled(window: Stage) -> None:
    window.viewer.show_question(asked(print, text="\n".join(f"line {n}" for n in range(100))))
    frame = window_of(window)
    assert frame.getHeight() < 500
    window.viewer.show_question(asked(print, text="x" * 3000, worker="y" * 500))
    assert window_of(window).getWidth() < 800


def test_the_window_goes_with_the_viewer(window: Stage) -> None:
    window.viewer.show_question(asked(print))
    window.viewer.close()
    assert window_of(window) is None


def test_without_windows_nobody_answers(headless: Stage) -> None:
    assert not headless.viewer.can_ask
