"""A receiver inside the user's own napari: a dock widget that starts and stops it."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import (
    QFormLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from openhcs_stream.errors import StreamError
from openhcs_stream.viewer import TICK_S, Receiver
from openhcs_stream_napari._panel import EditPanel
from openhcs_stream_napari._window import NapariWindowViewer

if TYPE_CHECKING:
    import napari

__all__ = ["ReceiverWidget"]

#: What the table shows of each stream: a key of its row in `Receiver.status()` and its heading.
_COLUMNS = (
    ("name", "stream"),
    ("received", "received"),
    ("displayed", "shown"),
    ("failed", "failed"),
    ("waiting", "waiting"),
    ("items_per_s", "per second"),
    ("ended", "ended"),
)
#: How often the table is written, milliseconds.
_TABLE_MS = 250
_LOG_LINES = 500


class _LogLines(logging.Handler):
    """Keeps lines for the GUI thread to fetch; records come from the receiver's thread too."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _Session:
    """One started receiver; knows nothing of the widget, so that it outlives it by a moment."""

    def __init__(
        self, viewer: Any, panel: EditPanel, *, name: str | None, port: int | None
    ) -> None:
        self.viewer = NapariWindowViewer.attach(viewer)
        self.viewer.use_panel(panel)
        self.receiver = Receiver(self.viewer, name=name, port=port)
        self.endpoint = self.receiver.start()
        self.viewer.start(self.receiver.tick, TICK_S)

    def close(self) -> None:
        self.receiver.close()
        self.viewer.close()


class ReceiverWidget(QWidget):
    """Start, watch and stop receiving streamed images in this napari.

    What was received stays when the receiver is stopped, or the widget closed.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self._napari = napari_viewer
        self._session: _Session | None = None
        self._log = _LogLines()
        self._name = QLineEdit(self)
        self._name.setPlaceholderText("napari")
        self._name.setToolTip("What senders call this napari: connect('napari', name=...)")
        self._port = QSpinBox(self)
        self._port.setRange(0, 65535)
        self._port.setSpecialValueText("none")
        self._port.setToolTip("TCP port on this machine; senders on it do not need one")
        self._button = QPushButton("Start receiving", self)
        self._button.clicked.connect(self._toggle)
        self._address = QLabel("not receiving", self)
        self._address.setWordWrap(True)
        self._table: Any = QTableWidget(0, len(_COLUMNS), self)
        self._table.setHorizontalHeaderLabels([heading for _, heading in _COLUMNS])
        numbers: Any = self._table.verticalHeader()
        numbers.setVisible(False)
        self._table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        header: Any = self._table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self._lines = QPlainTextEdit(self)
        self._lines.setReadOnly(True)
        self._lines.setMaximumBlockCount(_LOG_LINES)
        #: Questions of workers, saving, and layers to draw in.
        self.panel = EditPanel(self)
        form = QFormLayout()
        form.addRow("name", self._name)
        form.addRow("port", self._port)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self._button)
        layout.addWidget(self._address)
        layout.addWidget(self.panel)
        layout.addWidget(self._table, stretch=2)
        layout.addWidget(self._lines, stretch=1)
        self._timer = QTimer(self)
        self._timer.setInterval(_TABLE_MS)
        self._timer.timeout.connect(self.refresh)
        # A closed dock, and a closed napari, destroy the widget without asking it.
        self.destroyed.connect(_closer(self.__dict__))

    @property
    def receiver(self) -> Receiver | None:
        """The receiver while it runs."""
        return None if self._session is None else self._session.receiver

    def start(self) -> None:
        """Begin to receive; where that fails, the reason is shown in place of the address."""
        if self._session is not None:
            return
        for logger in _loggers():
            logger.addHandler(self._log)
        try:
            self._session = _Session(
                self._napari,
                self.panel,
                name=self._name.text().strip() or None,
                port=self._port.value() or None,
            )
        except StreamError as error:
            self._stop_logging()
            self._address.setText(f"{error.what}\n{error.cure}".strip())
            return
        endpoint = self._session.endpoint
        self._log.lines.append(f"receiving as {endpoint.name!r}")
        self._address.setText(f"receiving as {endpoint.name!r}\n" + "\n".join(endpoint.addresses))
        self._button.setText("Stop receiving")
        self._name.setEnabled(False)
        self._port.setEnabled(False)
        self._timer.start()

    def stop(self) -> None:
        """End all streams; what was received stays."""
        session = getattr(self, "_session", None)  # Qt may call before the widget is complete
        self._session = None
        if session is None:
            return
        self._timer.stop()
        session.close()
        self.panel.use(None)
        self._log.lines.append("stopped")
        self._write_log()
        self._stop_logging()
        self._button.setText("Start receiving")
        self._address.setText("not receiving")
        self._name.setEnabled(True)
        self._port.setEnabled(True)

    def refresh(self) -> None:
        """Write the table and the log as they are now."""
        if self._session is None:
            return
        if self._session.viewer.is_stopping:  # somebody asked for it from outside
            self.stop()
            return
        status = self._session.receiver.status()
        streams = [*status["streams"], *status["ended"]]
        self._table.setRowCount(len(streams))
        for row, stream in enumerate(streams):
            for column, (key, _) in enumerate(_COLUMNS):
                text = _ending(stream) if key == "ended" else str(stream[key])
                item = self._table.item(row, column)
                if item is None:
                    self._table.setItem(row, column, QTableWidgetItem(text))
                elif item.text() != text:
                    item.setText(text)
        self._write_log()

    def event(self, event: Any) -> bool:
        # napari takes the widget of a closed dock out of it and may leave it alive.
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.stop()
        return bool(super().event(event))

    def closeEvent(self, event: Any) -> None:
        self.stop()
        super().closeEvent(event)

    def _toggle(self) -> None:
        if self._session is None:
            self.start()
        else:
            self.stop()

    def _write_log(self) -> None:
        while self._log.lines:
            self._lines.appendPlainText(self._log.lines.popleft())

    def _stop_logging(self) -> None:
        for logger in _loggers():
            logger.removeHandler(self._log)


def _ending(stream: dict[str, Any]) -> str:
    """When and how a stream ended; empty while it runs."""
    if "ended" not in stream:
        return ""
    return f"{stream['ended_s_ago']:.0f} s ago: {stream['ended']}"


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger("openhcs_stream"), logging.getLogger("openhcs_stream_napari")]


def _closer(state: dict[str, Any]) -> Any:
    """What closes the session of a widget that is gone: it may only touch plain objects."""

    def close() -> None:
        session = state.get("_session")
        if session is not None:
            state["_session"] = None
            session.close()
        for logger in _loggers():
            logger.removeHandler(state["_log"])

    return close
