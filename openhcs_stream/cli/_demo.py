"""``openhcs-stream demo``: several worker processes stream a small plate into a live viewer.

The parent makes the plate, starts a viewer of its own and the workers, hands out the fields one
by one, shows what becomes of every item, takes a screenshot and ends what it started. Nobody is
left behind: the workers end with their stdin, so also when the parent is killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream import discovery
from openhcs_stream.cli._demo_plate import CHANNELS, make_plate, well_names
from openhcs_stream.cli._demo_progress import Board, Counts, Progress, Row
from openhcs_stream.errors import PeerError, StreamError, UsageError
from openhcs_stream.runtime import temporary_folder
from openhcs_stream.stream import ask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

    from openhcs_stream.discovery import Endpoint

__all__ = ["add_arguments", "run"]

SITES = 2
DEPTH = 3
#: What a worker sends for each z plane: raw and filtered of each channel, labels, outlines.
ITEMS_PER_PLANE = 2 * len(CHANNELS) + 2
#: What is shown where, by what the user asks for; any other viewer is shown alone.
_BOTH = ("napari", "fiji")

#: For a picture of the whole window, large enough for the sliders and the layer list.
_OPTIONS = {"napari": ("--option", "screenshot=window", "--option", "size=1280x860")}

#: A first start on a cold disk reads half a gigabyte of Qt and OpenGL.
_START_S = 120.0
#: The demo ends by itself, whatever its viewer does. Alone it needs some ten seconds.
_SILENCE_S = 120.0
_END_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``openhcs-stream demo``."""
    parser.add_argument(
        "viewer",
        nargs="?",
        default="napari",
        help="napari (the default), fiji, or both: every worker then feeds both at once",
    )
    parser.add_argument("--keep", action="store_true", help="leave the viewer open at the end")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="where the screenshot goes (default: demo-output in the current directory)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the final counts and the screenshot's path as JSON, on the last line",
    )
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--wells", type=int, default=12, metavar="N", help="default: 12")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 only if every item was displayed.

    Raises
    ------
    UsageError
        The demo's packages are not installed, or an option is out of range.
    PeerError
        The viewer could not be started.
    """
    _check(args)
    folder: Path = args.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = _BOTH if args.viewer == "both" else (args.viewer,)
    pictures = {kind: folder / f"openhcs-stream-demo-{kind}.png" for kind in kinds}
    for picture in pictures.values():
        picture.unlink(missing_ok=True)  # an older one is not this run's
    fields = [(well, site) for well in well_names(args.wells) for site in range(1, SITES + 1)]
    board = Board(
        [Row(f"worker {number}") for number in range(1, args.workers + 1)],
        expected=len(fields) * DEPTH * ITEMS_PER_PLANE * len(kinds),
    )
    problems: list[str] = []
    with (
        _terminable(),
        temporary_folder(Path(tempfile.gettempdir())) as plate,
    ):
        print(f"making a plate of {args.wells} wells x {SITES} sites x {len(CHANNELS)} channels "
              f"x {DEPTH} z from real images", flush=True)  # fmt: skip
        make_plate(plate, wells=args.wells, sites=SITES, depth=DEPTH)
        print(f"starting {' and '.join(kinds)}", flush=True)
        with contextlib.ExitStack() as running:
            viewers = [running.enter_context(_own_viewer(kind, keep=args.keep)) for kind in kinds]
            names = " and ".join(viewer.name for viewer in viewers)
            print(f"streaming to {names} from {args.workers} worker processes", flush=True)
            board.started = time.monotonic()
            with Progress(board) as progress, _Crew(board, viewers, plate) as crew:
                problems += crew.work(fields, progress)
                seconds = time.monotonic() - board.started
            for viewer in viewers:
                try:
                    _take_screenshot(viewer, pictures[viewer.viewer])
                except StreamError as error:
                    problems.append(f"no screenshot: {error}")
    return _conclude(args, board, seconds, list(pictures.values()), problems)


def _conclude(
    args: argparse.Namespace,
    board: Board,
    seconds: float,
    pictures: list[Path],
    problems: list[str],
) -> int:
    total = board.total
    if not board.is_complete:
        problems.append(f"{total.displayed} of {board.expected} items were displayed.")
    taken = [str(picture) for picture in pictures if picture.exists()]
    for picture in taken:
        print(f"screenshot: {picture}")
    if not problems:
        print(f"all {total.displayed} items were displayed, in {seconds:.1f} s")
    for problem in problems:
        print(f"openhcs-stream demo: {problem}", file=sys.stderr)
    sys.stderr.flush()
    if args.json:
        found: dict[str, Any] = {"screenshot": taken[0] if taken else None}
        if len(pictures) > 1:
            found["screenshots"] = taken
        print(json.dumps(asdict(total) | found), flush=True)
    return 1 if problems else 0


def _check(args: argparse.Namespace) -> None:
    missing = [
        name for name in ("rich", "scipy", "skimage", "tifffile")
        if importlib.util.find_spec(name) is None
    ]  # fmt: skip
    if missing:
        raise UsageError(
            f"the demo needs packages that are not installed: {', '.join(missing)}.",
            cure='Install them with `pip install "openhcs-stream[demo,napari]"`.',
        )
    for option, value, most in (("--workers", args.workers, 64), ("--wells", args.wells, 96)):
        if not 1 <= value <= most:
            raise UsageError(f"{option} is {value}.", cure=f"Choose 1 to {most}.")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does: with everything cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- the viewer -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_viewer(kind: str, *, keep: bool) -> Iterator[Endpoint]:
    """A viewer for this run alone: the user's own ones are left in peace."""
    viewer = discovery.launch(
        kind,
        name=f"demo-{kind}-{os.getpid()}",
        timeout_s=_START_S,
        options=_OPTIONS.get(kind, ()),
    )
    kept = False
    try:
        yield viewer
        kept = keep
    finally:
        if not kept:
            _stop(viewer)
    if kept:
        print(f"the viewer stays open; end it with `openhcs-stream stop {viewer.name}`")


def _stop(viewer: Endpoint) -> None:
    """Ask it to end, wait until its process is gone, and end it where it does not."""
    with contextlib.suppress(PeerError):
        ask(viewer, "stop", timeout_s=_END_S)
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        # The locked endpoint file tells that this pid is still the viewer's.
        if number is not None and discovery.find(viewer.viewer, name=viewer.name) == viewer:
            print(f"{viewer.name} does not end; sending {number.name}", file=sys.stderr)
            os.kill(viewer.pid, number)
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            if not _exists(viewer.pid):
                return
            time.sleep(0.05)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _take_screenshot(viewer: Endpoint, path: Path) -> None:
    """Save what the viewer shows, and make sure that it shows something.

    Raises
    ------
    PeerError
        The viewer did not, or the picture is blank.
    """
    from skimage import io

    path.write_bytes(ask(viewer, "screenshot", timeout_s=60.0)["png"])
    if io.imread(path)[..., :3].std() < 1:
        raise PeerError(
            f"the screenshot {path} is blank.",
            cure="Run `openhcs-stream doctor`: the display or its OpenGL may not work.",
        )


# --- the workers ----------------------------------------------------------------------------------


class _Worker:
    """One worker process; what it says arrives in the crew's queue."""

    def __init__(
        self, row: Row, viewers: list[Endpoint], plate: Path, heard: queue.Queue[Any]
    ) -> None:
        self.row = row
        self.is_at_work = True
        self._log = plate / f"{row.name}.log"
        command = [
            sys.executable, "-P", "-m", "openhcs_stream.cli._demo_worker",
            "--name", row.name, "--plate", str(plate), *(viewer.name for viewer in viewers),
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._ears = threading.Thread(target=self._hear, args=(heard,), name=row.name, daemon=True)
        self._ears.start()

    def tell(self, field: tuple[str, int] | None) -> None:
        """Give it its next field; None: there is no more to do."""
        assert self.process.stdin is not None
        # A worker that has died is told of by the end of its stdout.
        with contextlib.suppress(BrokenPipeError):
            if field is None:
                self.process.stdin.close()
                return
            print(json.dumps(dict(zip(("well", "site"), field, strict=True))),
                  file=self.process.stdin, flush=True)  # fmt: skip

    def end(self) -> None:
        """Make sure that it has ended."""
        self.tell(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S if not self.is_at_work else 0)
        self.process.terminate()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._ears.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])

    def _hear(self, heard: queue.Queue[Any]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard.put((self, json.loads(line)))
        heard.put((self, {"event": "end"}))


class _Crew:
    """The worker processes: share the fields among them, by whoever is ready first."""

    def __init__(self, board: Board, viewers: list[Endpoint], plate: Path) -> None:
        self._heard: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
        self._workers: list[_Worker] = []
        self._arguments = (board.rows, viewers, plate)

    def __enter__(self) -> _Crew:
        rows, viewers, plate = self._arguments
        try:
            for row in rows:
                self._workers.append(_Worker(row, viewers, plate, self._heard))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def work(self, fields: list[tuple[str, int]], progress: Progress) -> list[str]:
        """Have all fields processed; returns what went wrong."""
        left = deque(fields)
        problems: list[str] = []
        last_news = time.monotonic()
        while any(worker.is_at_work for worker in self._workers):
            progress.update()
            try:
                worker, news = self._heard.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() - last_news > _SILENCE_S:
                    problems.append(f"no worker has said anything for {_SILENCE_S:g} s.")
                    break
                continue
            last_news = time.monotonic()
            match news:
                case {"event": "ready"} if left:
                    field = left.popleft()
                    worker.row.doing = f"{field[0]} s{field[1]}"
                    worker.tell(field)
                case {"event": "ready"}:
                    worker.row.doing = "finishing"
                    worker.tell(None)
                case {"event": "counts", **counts}:
                    worker.row.counts = Counts(**counts)
                case {"event": "error", "what": what}:
                    problems.append(f"{worker.row.name}: {what}")
                case {"event": "end"}:
                    worker.is_at_work = False
                    self._bury(worker, problems)
        return problems

    def _bury(self, worker: _Worker, problems: list[str]) -> None:
        status = worker.process.wait()
        worker.row.doing = "done" if status == 0 else "failed"
        if status < 0:
            problems.append(f"{worker.row.name} was ended by {signal.Signals(-status).name}.")
        elif status > 0:
            problems.append(f"{worker.row.name} ended with status {status}. {worker.last_words()}")
