"""``openhcs-stream send``: files into a viewer."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from openhcs_stream.cli._readers import FileItem, check, read, suffixes
from openhcs_stream.cli._target import find_or_launch, label
from openhcs_stream.errors import DeadlineExceeded, ItemFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openhcs_stream.stream import Receipt, Stream

__all__ = ["add_arguments", "run"]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,14})\Z")
_LOOK_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=f"images and outlines: {', '.join(suffixes())}",
    )
    parser.add_argument(
        "--to",
        metavar="VIEWER",
        help="a kind of viewer (napari), which is started if none runs; or a running one's name "
        "or address. By default the one that started last, else napari",
    )
    parser.add_argument("--labels", action="store_true", help="the images are label images")
    parser.add_argument("--name", help="name of the layer (by default the file's)")
    parser.add_argument(
        "--place",
        type=_place,
        default={},
        metavar="COMPONENT=VALUE,...",
        help="where it belongs: well=A01,site=1,channel=DAPI,z=3,time=0",
    )
    parser.add_argument("--source", default="", help="plate or experiment; groups the layers")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long the viewer may take to start, and then to show anything (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from openhcs_stream.stream import connect

    for path in arguments.files:  # all of them, before anything is sent or started
        check(path)
    endpoint = find_or_launch(arguments.to, timeout_s=arguments.timeout)
    receipts: list[Receipt] = []
    with _progress(len(arguments.files), quiet=not sys.stderr.isatty()) as progress:
        stream = connect(
            endpoint.addresses[0],
            name="openhcs-stream send",
            source=arguments.source,
            timeout_s=arguments.timeout,
            token=endpoint.token,
            launch=False,
        )
        try:
            for item in _items(arguments, progress):
                receipts.append(_send(stream, item))
                progress.sent(item.name)
            _wait(receipts, progress, arguments.timeout)
        finally:
            stream.close(timeout_s=1.0)
    return _report(label(endpoint), receipts, as_json=arguments.json)


def _items(arguments: argparse.Namespace, progress: _Progress) -> Iterator[FileItem]:
    seen: dict[tuple[object, ...], Path] = {}
    for path in arguments.files:
        for item in read(path, labels=arguments.labels):
            place = {**item.place, **arguments.place}
            name = arguments.name or item.name
            key = (item.kind, name, *sorted(place.items(), key=str))
            if key in seen:
                raise UsageError(
                    f"{path} would replace what {seen[key]} shows as {name!r}.",
                    cure="Send them one by one, each with its own --name or --place.",
                )
            seen[key] = path
            yield FileItem(item.kind, name, item.data, item.axes, item.pixel_size, item.unit, place)
        progress.file_done()


def _send(stream: Stream, item: FileItem) -> Receipt:
    look: dict[str, Any] = {"name": item.name, "place": item.place}
    if item.pixel_size:
        look |= {"pixel_size": item.pixel_size, "unit": item.unit}
    match item.kind:
        case "image":
            return stream.image(item.data, axes=item.axes, **look)
        case "labels":
            return stream.labels(item.data, axes=item.axes, **look)
        case "rois":
            return stream.rois(item.data, warn=False, **look)  # the report tells


def _wait(receipts: Sequence[Receipt], progress: _Progress, timeout_s: float) -> None:
    """Until each is displayed or has failed, or nothing has happened for `timeout_s`.

    Raises
    ------
    DeadlineExceeded
        Nothing happened for that long.
    """
    deadline = time.monotonic() + timeout_s
    for done, receipt in enumerate(receipts):
        while receipt.state in ("sent", "received"):
            try:
                receipt.wait(timeout_s=_LOOK_S)
            except DeadlineExceeded:
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"{receipt.name} was not displayed, and nothing else for "
                        f"{timeout_s:g} s; {done} of {len(receipts)} items were.",
                        cure="Look at the viewer: it may be busy or stopped.",
                    ) from None
            except ItemFailed:
                break  # its state says so; the report lists it
        progress.done()
        deadline = time.monotonic() + timeout_s


def _report(viewer: str, receipts: Sequence[Receipt], *, as_json: bool) -> int:
    states = [receipt.state for receipt in receipts]
    failures = [receipt for receipt in receipts if receipt.state != "displayed"]
    if as_json:
        counts = {state: states.count(state) for state in ("displayed", "failed", "dropped")}
        failed = [{"item": each.name, "reason": each.reason} for each in failures]
        remarks = [
            {"item": each.name, "remark": remark} for each in receipts for remark in each.remarks
        ]
        lists = {"failures": failed, "remarks": remarks}
        print(json.dumps({"viewer": viewer, "sent": len(receipts), **counts, **lists}))
    else:
        shown = states.count("displayed")
        print(f"{viewer} shows {shown} of {len(receipts)} items.")
        for each in failures:
            print(f"  {each.name}: {each.reason or each.state}", file=sys.stderr)
        for each in receipts:
            for remark in each.remarks:
                print(f"  {each.name}, in {remark}.", file=sys.stderr)
    return 0 if receipts and not failures else 1


def _place(text: str) -> dict[str, int | str]:
    """``well=A01,site=1`` as a place; what looks like a whole number is one."""
    place: dict[str, int | str] = {}
    for pair in text.split(","):
        component, equals, value = (part.strip() for part in pair.partition("="))
        if not (component and equals and value):
            raise argparse.ArgumentTypeError(f"{pair!r} is no COMPONENT=VALUE")
        if component in place:
            raise argparse.ArgumentTypeError(f"{component} is given twice")
        place[component] = int(value) if _INTEGER.match(value) else value
    return place


# --- progress -------------------------------------------------------------------------------------


class _Progress(Protocol):
    """What is shown while files are read, sent and displayed."""

    def file_done(self) -> None: ...

    def sent(self, name: str) -> None: ...

    def done(self) -> None: ...


@contextlib.contextmanager
def _progress(files: int, *, quiet: bool) -> Iterator[_Progress]:
    """A bar where rich is installed, else a line that is written over; nothing into a pipe."""
    if quiet:
        yield _Silent()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        line = _Line(files)
        try:
            yield line
        finally:
            line.end()
        return
    with Progress(
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[name]}"),
        console=Console(stderr=True),
    ) as bars:
        yield _Bars(bars, files)


class _Silent:
    def file_done(self) -> None:
        pass

    def sent(self, name: str) -> None:
        pass

    def done(self) -> None:
        pass


class _Line:
    def __init__(self, files: int) -> None:
        self._files = files
        self._read = self._sent = self._done = 0

    def file_done(self) -> None:
        self._read += 1
        self._show()

    def sent(self, name: str) -> None:
        self._sent += 1
        self._show()

    def done(self) -> None:
        self._done += 1
        self._show()

    def end(self) -> None:
        print(file=sys.stderr)

    def _show(self) -> None:
        text = f"\rread {self._read}/{self._files}  displayed {self._done}/{self._sent}"
        print(text, end="", file=sys.stderr, flush=True)


class _Bars:
    def __init__(self, bars: Any, files: int) -> None:
        self._bars = bars
        self._files = bars.add_task("read", total=files, name="")
        self._items = bars.add_task("displayed", total=0, name="")
        self._sent = 0

    def file_done(self) -> None:
        self._bars.advance(self._files)

    def sent(self, name: str) -> None:
        self._sent += 1
        self._bars.update(self._items, total=self._sent, name=name)

    def done(self) -> None:
        self._bars.advance(self._items)
