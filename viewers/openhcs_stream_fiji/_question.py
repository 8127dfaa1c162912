"""A worker's question: a small window with Done and Skip, which keeps nobody from working."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.viewer import Outcome, Question
    from openhcs_stream_fiji._java import Java

__all__ = ["QuestionWindow"]

#: Of the text: characters in a line, and lines; more of them are scrolled.
_WIDTH: Final = 56
_MOST_LINES: Final = 14
_POINTS: Final = 13
#: Around everything, and between its parts, pixels.
_MARGIN: Final = 14


class QuestionWindow:
    """The window of one question; belongs to AWT's event thread.

    Parameters
    ----------
    java : Java
    question : Question
    """

    def __init__(self, java: Java, question: Question) -> None:
        self._java = java
        self._question = question
        self._answered = False
        frame = self._frame = java.Frame(f"Question from {question.worker}")
        frame.setBackground(java.SystemColor.window)
        frame.setLayout(java.BorderLayout(_MARGIN, _MARGIN))
        for side in ("North", "West", "East", "South"):
            frame.add(java.Panel(), side)
        inside = java.Panel(java.BorderLayout(_MARGIN, _MARGIN // 2))
        frame.add(inside, "Center")
        asking = textwrap.shorten(f"{question.worker} asks:", _WIDTH, placeholder="...")
        inside.add(self._label(asking, java.Font.BOLD), "North")
        inside.add(self._text(), "Center")
        foot = java.Panel(java.BorderLayout(_MARGIN, 0))
        about = self._label(_about(question), java.Font.PLAIN)
        about.setForeground(java.Color.darkGray)
        foot.add(about, "Center")
        foot.add(self._buttons(), "East")
        inside.add(foot, "South")
        self._on_close = java.jpype.JProxy(
            "java.awt.event.WindowListener",
            dict={"windowClosing": lambda _: self._answer("skipped")}
            | dict.fromkeys(
                ("windowOpened", "windowClosed", "windowIconified", "windowDeiconified",
                 "windowActivated", "windowDeactivated"),
                _ignore,
            ),
        )  # fmt: skip
        frame.addWindowListener(self._on_close)
        frame.pack()
        frame.setResizable(False)
        screen, size = frame.getGraphicsConfiguration().getBounds(), frame.getSize()
        # Begun anew, because it is moved: some X servers tell its old place for a while.
        frame.removeNotify()
        frame.setBounds(
            screen.x + (screen.width - size.width) // 2,
            screen.y + screen.height - size.height - 2 * _MARGIN,
            size.width,
            size.height,
        )
        frame.setVisible(True)

    def close(self) -> None:
        """Take it off the screen; it is not answered by that."""
        self._answered = True
        self._frame.dispose()

    def _text(self) -> Any:
        java = self._java
        lines = [
            line
            for paragraph in self._question.text.splitlines() or [""]
            for line in textwrap.wrap(paragraph, _WIDTH) or [""]
        ]
        if len(lines) <= _MOST_LINES:
            return self._label("\n".join(line or " " for line in lines), java.Font.PLAIN)
        area = java.TextArea(
            "\n".join(lines), _MOST_LINES, _WIDTH, java.TextArea.SCROLLBARS_VERTICAL_ONLY
        )
        area.setEditable(False)
        area.setFont(java.Font("SansSerif", java.Font.PLAIN, _POINTS))
        return area

    def _label(self, text: str, style: int) -> Any:
        label = self._java.MultiLineLabel(text or " ")
        label.setFont(self._java.Font("SansSerif", style, _POINTS))
        return label

    def _buttons(self) -> Any:
        java = self._java
        panel = java.Panel(java.FlowLayout(java.FlowLayout.RIGHT, _MARGIN // 2, 0))
        answers: tuple[tuple[str, Outcome], ...] = (("Done", "done"), ("Skip", "skipped"))
        self._listeners = []  # Java's reference alone does not keep them
        for label, outcome in answers:
            button = java.Button(f"   {label}   ")
            button.setActionCommand(label)
            listener = java.jpype.JProxy(
                "java.awt.event.ActionListener",
                dict={"actionPerformed": self._answering(outcome)},
            )
            button.addActionListener(listener)
            self._listeners.append(listener)
            panel.add(button)
        return panel

    def _answering(self, outcome: Outcome) -> Callable[[Any], None]:
        return lambda _: self._answer(outcome)

    def _answer(self, outcome: Outcome) -> None:
        if not self._answered:
            self.close()
            self._question.answer(outcome)


def _about(question: Question) -> str:
    """What it is about, and how many more there are, in one line."""
    at = ", ".join(
        str(value) if isinstance(value, str) else f"{component} {value}"
        for component, value in question.place.items()
    )
    names = ", ".join(question.names)
    more = f"{question.waiting} more wait" if question.waiting else ""
    if question.waiting == 1:
        more = "1 more waits"
    told = " at ".join(part for part in (names, at) if part)
    return textwrap.shorten("; ".join(part for part in (told, more) if part), 60, placeholder="...")


def _ignore(_: Any) -> None:
    """Nothing follows from that."""
