"""A viewer that shows nothing: it writes every item, as it comes, into a recording."""

from __future__ import annotations

import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from openhcs_stream.errors import StreamClosed, UsageError
from openhcs_stream.recording._format import Writer
from openhcs_stream.viewer import MemoryViewer, ViewerInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from openhcs_stream.messages import LayerSpec, PlaceValue

__all__ = ["RECORDER", "Recorder", "create_recorder"]

#: The viewer that writes a recording: ``openhcs-stream record FILE``.
RECORDER = ViewerInfo(
    name="recorder",
    summary="write everything into a file, for openhcs-stream replay",
    extra="",
    factory="openhcs_stream.recording._recorder:create_recorder",
)


class Recorder(MemoryViewer):
    """Writes what is streamed to it into a file, and keeps nothing in memory.

    An item is *received* and *displayed* once it is written: a kill of this process does not undo
    that. One that can't be written is reported failed.

    Parameters
    ----------
    path : Path
        The recording; it must not be there yet.

    Raises
    ------
    UsageError
        The file is there already, or can't be made.
    """

    name: ClassVar[str] = "recorder"
    takes_items: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._writer = Writer(path, program=_program())
        self._lock = threading.Lock()
        self._is_open = True

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        """As every viewer's; when it ends, the recording does."""
        try:
            super().run(tick, interval_s)
        finally:
            self.close()

    def take_item(
        self,
        sender: str,
        spec: LayerSpec,
        place: tuple[PlaceValue, ...],
        array: npt.NDArray[Any],
        info: Mapping[str, Any],
    ) -> None:
        """Write one item."""
        with self._lock:
            if not self._is_open:
                raise StreamClosed("the recording has ended.", cure="Start another one.")
            self._writer.add(sender, spec, place, array, info)

    def close(self) -> None:
        """End the recording. Idempotent."""
        with self._lock:
            self._is_open = False
            self._writer.close()

    def describe(self) -> dict[str, Any]:
        """What is recorded."""
        writer = self._writer
        return {"file": str(writer.path), "items": writer.items, "nbytes": writer.nbytes}


def create_recorder(*, headless: bool, title: str, options: Mapping[str, Any]) -> Recorder:
    """The factory of `RECORDER`; it has no window, with `headless` or without.

    Parameters
    ----------
    headless, title
        Of no matter here.
    options : mapping
        ``file``: the recording.

    Raises
    ------
    UsageError
        No file was named, an option is unknown, or the file can't be made.
    """
    unknown = ", ".join(sorted(set(options) - {"file"}))
    if unknown or not options.get("file"):
        raise UsageError(
            f"the recorder has no option {unknown}."
            if unknown
            else "the recorder was not told which file to write.",
            cure="Start it with `openhcs-stream record FILE`.",
        )
    return Recorder(Path(options["file"]).absolute())


def _program() -> str:
    try:
        return f"openhcs-stream {version('openhcs-stream')}"
    except PackageNotFoundError:
        return "openhcs-stream"
