"""The panel for corrections: a worker's question, what waits, saving, and layers to draw in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from openhcs_stream.errors import StreamError

if TYPE_CHECKING:
    from pathlib import Path

    from openhcs_stream.messages import Kind
    from openhcs_stream.viewer import Outcome, Question

__all__ = ["EditPanel", "Host"]

#: What a person can begin to draw, and what it is called.
_NEW: tuple[tuple[Kind, str], ...] = (
    ("rois", "Outlines"),
    ("points", "Points"),
    ("labels", "Labels"),
)


#: A question that was just shown takes no answer for so long.
_UNREAD_MS = 500


class Host(Protocol):
    """What the panel needs of a viewer."""

    def finish_drawing(self) -> None: ...

    def save(self, folder: Path | str, *, everything: bool = False) -> list[Path]: ...

    def new_layer(self, kind: Kind, name: str = "") -> Any: ...


class EditPanel(QWidget):
    """What a person needs to correct things and to answer workers.

    Parameters
    ----------
    parent : QWidget, optional
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._host: Host | None = None
        self._question: Question | None = None
        self._told: tuple[int, int] | None = None
        self._unread = QTimer(self)
        self._unread.setSingleShot(True)
        self._unread.setInterval(_UNREAD_MS)
        self._unread.timeout.connect(lambda: self._can_answer(True))
        layout = QVBoxLayout(self)
        layout.addWidget(self._make_question())
        self.waiting = _text("")
        layout.addWidget(self.waiting)
        self.save_edited = self._button(
            "Save edited…",
            "Write every place that was changed here: outlines for ImageJ and QuPath, labels as "
            "TIFF, points as CSV",
            lambda: self._ask_where(everything=False),
        )
        self.save_all = self._button(
            "Save all…",
            "Write all outlines, labels and points as they are now",
            lambda: self._ask_where(everything=True),
        )
        layout.addLayout(_row(self.save_edited, self.save_all))
        layout.addWidget(_text("Draw in a new layer:"))
        self.new = {kind: self._make_new(kind, text) for kind, text in _NEW}
        layout.addLayout(_row(*self.new.values()))
        self.message = _text("")
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        layout.addWidget(self.message)
        layout.addStretch(1)
        self.use(None)

    def use(self, host: Host | None) -> None:
        """Work for this viewer from now on; None: for none."""
        self._host = host
        self._told = None
        self.show_question(None)
        for button in (self.save_edited, self.save_all, *self.new.values()):
            button.setEnabled(host is not None)
        self.show_waiting(0, 0)

    # --- questions ------------------------------------------------------------------------------

    def _make_question(self) -> QWidget:
        self.question = QFrame(self)
        self.question.setFrameShape(QFrame.Shape.StyledPanel)
        self.question.setObjectName("question")
        self.question.setStyleSheet("#question { border: 1px solid palette(highlight); }")
        self.worker = _text("")
        font = self.worker.font()
        font.setBold(True)
        self.worker.setFont(font)
        self.text = _text("")
        self.where = _text("")
        self.more = _text("")
        self.done = self._button("Done", "Tell the worker to go on with what is there now",
                                 lambda: self._answer("done"))  # fmt: skip
        self.skip = self._button("Skip", "Tell the worker to go on without an answer",
                                 lambda: self._answer("skipped"))  # fmt: skip
        inside = QVBoxLayout(self.question)
        for widget in (self.worker, self.text, self.where):
            inside.addWidget(widget)
        inside.addLayout(_row(self.done, self.skip))
        inside.addWidget(self.more)
        return self.question

    def show_question(self, question: Question | None) -> None:
        """Show a question with its two buttons, or none."""
        self._question = question
        self.question.setVisible(question is not None)
        if question is None:
            return
        # The second half of a double click must not answer what was never read.
        self._can_answer(False)
        self._unread.start()
        self.worker.setText(f"{question.worker} asks:")
        self.text.setText(question.text)
        place = ", ".join(f"{component} {value}" for component, value in question.place.items())
        self.where.setText(" · ".join(filter(None, (", ".join(question.names), place))))
        self.where.setVisible(bool(self.where.text()))
        self.show_more(question.waiting)

    def _can_answer(self, yes: bool) -> None:
        self.done.setEnabled(yes)
        self.skip.setEnabled(yes)

    @property
    def asks(self) -> bool:
        """Whether a question stands open."""
        return self._question is not None

    def show_more(self, count: int) -> None:
        """Tell how many more questions wait."""
        text = "1 more question waits" if count == 1 else f"{count} more questions wait"
        self.more.setText(text)
        self.more.setVisible(count > 0)

    def _answer(self, outcome: Outcome) -> None:
        question, self._question = self._question, None  # a double click answers once
        if question is not None and self._host is not None:
            self._host.finish_drawing()
            question.answer(outcome)

    # --- what waits, what is saved --------------------------------------------------------------

    def show_waiting(self, waiting: int, edited: int) -> None:
        """Tell how many edits no worker has taken, and how many places were changed here."""
        if (waiting, edited) == self._told:
            return
        self._told = (waiting, edited)
        if waiting:
            count = "1 edit waits" if waiting == 1 else f"{waiting} edits wait"
            self.waiting.setText(f"{count} for a worker.")
        else:
            self.waiting.setText("No edit waits for a worker.")
        self.save_edited.setEnabled(edited > 0)

    def tell(self, text: str) -> None:
        """Show a message below everything else."""
        self.message.setText(text)

    def _ask_where(self, *, everything: bool) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Save to a folder")
        if folder:
            self.save(folder, everything=everything)

    def save(self, folder: str, *, everything: bool) -> None:
        """Write layers to a folder, and say what became of it."""
        if self._host is None:
            return
        try:
            written = self._host.save(folder, everything=everything)
        except StreamError as error:
            self.tell(str(error))
            return
        files = "1 file" if len(written) == 1 else f"{len(written)} files"
        self.tell(f"Saved {files} in {folder}.")

    # --- new layers -----------------------------------------------------------------------------

    def _make_new(self, kind: Kind, text: str) -> QPushButton:
        return self._button(
            text,
            "A layer that follows the sliders; workers can read what you draw in it",
            lambda: self._new_layer(kind),
        )

    def _new_layer(self, kind: Kind) -> None:
        if self._host is None:
            return
        try:
            layer = self._host.new_layer(kind)
        except StreamError as error:
            self.tell(str(error))
        else:
            self.tell(f"Workers know it as {layer.key.name!r}.")

    def _button(self, text: str, tip: str, act: Any) -> QPushButton:
        button = QPushButton(text, self)
        button.setToolTip(tip)
        button.clicked.connect(act)
        return button


def _text(text: str) -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)  # a worker's text is no markup
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row
