"""A recording back into a viewer, at its own pace or faster."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openhcs_stream import rois as roi_codecs
from openhcs_stream.errors import InvalidItem, ItemFailed, OutOfSpace
from openhcs_stream.recording._format import DamagedRecording

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.recording._format import Entry, Recording
    from openhcs_stream.stream import Receipt, Stream

__all__ = ["Replayed", "replay"]

logger = logging.getLogger(__name__)

#: Connections at once; of more recorded streams some share one.
MAX_STREAMS = 16
#: Failures that are told by name.
_TOLD = 100


@dataclass
class Replayed:
    """What became of a recording's items."""

    sent: int = 0
    displayed: int = 0
    damaged: int = 0  #: in the file, and so not sent
    failures: list[str] = field(default_factory=list)  #: of the first ones: what, and why
    failed: int = 0


def replay(
    recording: Recording,
    connect: Callable[[str], Stream],
    *,
    speed: float | None = 1.0,
    timeout_s: float = 60.0,
    progress: Callable[[Entry], None] = lambda _: None,
) -> Replayed:
    """Send the items of a recording as they came.

    Parameters
    ----------
    recording : Recording
        Open.
    connect : callable
        Opens a stream of that name; it is closed here.
    speed : float or None
        2: twice as fast. None: as fast as the viewer takes them.
    timeout_s : float
        How long the viewer may take to show what is on its way at the end.
    progress : callable
        Called with each entry before it is sent.

    Returns
    -------
    Replayed

    Raises
    ------
    DamagedRecording
        The file is damaged so that later items can't be found; those before were sent.
    PeerError
        The viewer is gone, or did not take anything in time.
    """
    done = Replayed()
    streams: dict[str, Stream] = {}
    begun: float | None = None  # when the first item was due
    with contextlib.ExitStack() as stack:
        try:
            for entry in recording.entries():
                stream = streams.get(entry.stream)
                if stream is None:
                    stream = _open(entry.stream, streams, connect, stack)
                if speed is not None:
                    if begun is None:
                        begun = time.monotonic() - entry.time_s / speed
                    _wait_until(begun + entry.time_s / speed)
                progress(entry)
                try:
                    _send(stream, entry)
                except (DamagedRecording, InvalidItem) as error:
                    done.damaged += isinstance(error, DamagedRecording)
                    done.failed += isinstance(error, InvalidItem)
                    if len(done.failures) < _TOLD:
                        done.failures.append(str(error))
                else:
                    done.sent += 1
        finally:
            for stream in set(streams.values()):
                _finish(stream, done, timeout_s)
    return done


def _open(
    name: str,
    streams: dict[str, Stream],
    connect: Callable[[str], Stream],
    stack: contextlib.ExitStack,
) -> Stream:
    opened = list(dict.fromkeys(streams.values()))
    if len(opened) < MAX_STREAMS:
        stream = connect(name)
        stack.callback(stream.close, timeout_s=1.0)
    else:
        stream = opened[len(streams) % MAX_STREAMS]
    streams[name] = stream
    return stream


def _wait_until(due: float) -> None:
    while (left := due - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))


def _finish(stream: Stream, done: Replayed, timeout_s: float) -> None:
    """Wait for what is on its way, and count."""
    try:
        stream.flush(timeout_s)
    except ItemFailed as error:
        done.failures += [f"{name}: {reason}" for name, reason in error.failures]
        del done.failures[_TOLD:]
    for queue in stream.status():
        done.displayed += queue.displayed
        done.failed += queue.failed


def _send(stream: Stream, entry: Entry) -> Receipt:
    spec = entry.spec
    place = dict(zip(spec.components, entry.place, strict=True))
    common: dict[str, Any] = {
        "source": spec.source,
        "modes": spec.modes,
        "order": spec.order,
        "unit": spec.unit,
        "opacity": spec.opacity,
        "visible": spec.visible,
        "images_dir": spec.images_dir,
        "metadata": entry.info,
    }
    if spec.pixel_size:
        common["pixel_size"] = spec.pixel_size
    name = spec.name
    match spec.kind:
        case "image":
            look: dict[str, Any] = {
                "colormap": spec.colormap,
                "contrast_limits": spec.contrast_limits,
                "blending": spec.blending,
            }
            pixels = _pixels(stream, entry)
            return stream.image(pixels, name=name, axes=spec.axes, place=place, **look, **common)
        case "labels":
            pixels = _pixels(stream, entry)
            return stream.labels(pixels, name=name, axes=spec.axes, place=place, **common)
        case "rois":
            rois = roi_codecs.decode(entry.read().tobytes())
            receipt = stream.rois(rois, name=name, place=place, warn=False, **common)
            for remark in receipt.remarks:
                logger.info("%s, in %s.", receipt, remark)
            return receipt
        case "points":
            return stream.points(entry.read(), name=name, axes=spec.axes, place=place, **common)
        case "tracks":
            return stream.tracks(entry.read(), name=name, axes=spec.axes, place=place, **common)


def _pixels(stream: Stream, entry: Entry) -> npt.NDArray[Any]:
    """From the file straight into shared memory, where one slot can hold it."""
    if entry.nbytes:
        try:
            array = stream.allocate(entry.shape, entry.dtype)
        except OutOfSpace:
            return entry.read()
        entry.read_into(array)
        return array
    return entry.read()
