"""Measures other ways to bring images to another process beside this library, in one run."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.bench import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "_rivals"
ROOT = HERE.parent

SIZES = {"64KiB": 64 << 10, "8MiB": 8 << 20, "128MiB": 128 << 20}
#: Seconds that a block should take, about.
BLOCK_S = 0.3
LOCKSTEP = 12
START_S = 90.0


@dataclass(frozen=True)
class Rival:
    """One of them: what to install, and the program under _rivals that uses it."""

    title: str
    program: str
    requirements: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("copy",)
    tcp: bool = False
    receives: bool = True
    environment: dict[str, str] = field(default_factory=dict)


OURS = Rival("openhcs-stream", "ours.py", modes=("copy", "loan"))

_GENERATION = {"RIVAL_SENDERS": str(HERE / "_interop")}
RIVALS = {
    "pyzmq_copy": Rival("pyzmq, copy", "raw_zmq.py", ("pyzmq",), ("copy",)),
    "pyzmq_no_copy": Rival("pyzmq, no copy", "raw_zmq.py", ("pyzmq",), ("loan",)),
    "segment_per_image": Rival("a segment for each image", "segments.py", ("pyzmq",)),
    "iceoryx2": Rival("iceoryx2", "iceoryx.py", ("iceoryx2",), ("copy", "loan")),
    "rerun": Rival("rerun", "rerun_rival.py", ("rerun-sdk",), tcp=True),
    "appose": Rival("appose", "appose_rival.py", ("appose",), receives=False),
    "napari_stream": Rival(
        "napari-stream 0.1.2", "napari_stream_rival.py",
        ("napari-stream==0.1.2", "qtpy", "PyQt6<6.12"), tcp=True,
    ),
    "openhcs_0_3_15": Rival(
        "OpenHCS 0.3.15", "openhcs_rival.py", ("openhcs[viz,gui]==0.3.15", "pyzmq"), tcp=True,
        environment={**_GENERATION, "RIVAL_GENERATION": "gen1"},
    ),
    "openhcs_0_8_6": Rival(
        "OpenHCS 0.8.6", "openhcs_rival.py", ("openhcs[napari,gui]==0.8.6", "roifile"), tcp=True,
        environment={**_GENERATION, "RIVAL_GENERATION": "gen2"},
    ),
    "polystore_0_6_3": Rival(
        "polystore 0.6.3", "openhcs_rival.py",
        ("polystore==0.6.3", "zmqruntime==0.6.5", "roifile", "scikit-image"), tcp=True,
        environment={**_GENERATION, "RIVAL_GENERATION": "gen3"},
    ),
}  # fmt: skip


# --- environments -------------------------------------------------------------------------------


def python_of(folder: Path, name: str, rival: Rival) -> Path:
    """The Python of a rival's environment, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ("numpy", *rival.requirements)
    home = folder / name
    stamp, python = home / ".installed", home / "bin" / "python"
    text = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == text and python.exists():
            return python
        print(f"==> installing {', '.join(wanted)} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--no-input",
             "--disable-pip-version-check", *wanted],
            check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}, timeout=1800,
        )  # fmt: skip
        stamp.write_text(text)
    return python


# --- processes ----------------------------------------------------------------------------------


class Program:
    """A program of a comparison, and the lines that are exchanged with it."""

    def __init__(self, python: Path, rival: Rival, role: str, address: str, folder: Path) -> None:
        self._errors = (folder / f"{role}.log").open("w+")
        self._process = subprocess.Popen(
            [str(python), str(PROGRAMS / rival.program), role, address, str(folder / "progress")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, "HOME": str(folder), "OPENHCS_STREAM_RUNTIME_DIR": str(folder),
                 "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1",
                 "QT_QPA_PLATFORM": "offscreen", **rival.environment},
            start_new_session=True,
        )  # fmt: skip
        self.title = rival.title
        while self.read_line(START_S) != "ready":
            pass

    def read_line(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline().strip() if ready else ""
        if not line:
            self._errors.seek(0)
            last = "\n".join(self._errors.read().splitlines()[-8:])
            raise RuntimeError(f"{self.title} said nothing: {last}")
        return line

    def ask(self, **task: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self.read_line(180.0))
        return answer

    def close(self) -> None:
        """End it: some leave names behind where they have no time to tidy up."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
                break
        for pipe in (self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


@contextmanager
def running(python: Path, rival: Rival) -> Iterator[Program]:
    """The sender of a rival, with its receiver, in a folder and with a HOME of their own."""
    folder = Path(tempfile.mkdtemp(prefix="ohsr-"))
    if rival.tcp:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    else:
        address = f"ipc://@rival-{secrets.token_hex(6)}"
    programs: list[Program] = []
    try:
        if rival.receives:
            programs.append(Program(python, rival, "receive", address, folder))
        programs.append(Program(python, rival, "send", address, folder))
        yield programs[-1]
    finally:
        for program in reversed(programs):
            program.close()
        shutil.rmtree(folder, ignore_errors=True)


# --- measuring ----------------------------------------------------------------------------------


def measure(ours: Program, theirs: Program, rival: Rival, rounds: int) -> dict[str, Figure]:
    """Ratios of one rival, above 1 where openhcs-stream is the faster."""
    found: dict[str, Figure] = {}
    for size, nbytes in SIZES.items():
        for mode in rival.modes:
            counts = [_count(each, mode, nbytes) for each in (ours, theirs)]
            rates: list[float] = []
            blocked: list[float] = []
            for _ in range(rounds):
                spent = [0.0, 0.0]
                waits = [0.0, 0.0]
                for which in (0, 1, 1, 0):
                    program = (ours, theirs)[which]
                    answer = program.ask(mode=mode, nbytes=nbytes, count=counts[which])
                    spent[which] += answer["seconds"] / counts[which]
                    waits[which] += answer["blocked_us"]
                rates.append(spent[1] / spent[0])
                blocked.append(waits[1] / waits[0])
            found[f"{size}_{mode}"] = Figure.of(rates)
            found[f"{size}_{mode}_blocked"] = Figure.of(blocked)
    latency = []
    for _ in range(rounds):
        spans = [
            program.ask(mode=rival.modes[0], nbytes=SIZES["8MiB"], count=LOCKSTEP, lockstep=True)
            for program in (ours, theirs, theirs, ours)
        ]
        us = [each["latency_us"] for each in spans]
        latency.append((us[1] + us[2]) / (us[0] + us[3]))
    found["8MiB_latency"] = Figure.of(latency)
    return found


def _count(program: Program, mode: str, nbytes: int) -> int:
    """So many images that a block takes long enough to be measured."""
    first = program.ask(mode=mode, nbytes=nbytes, count=2)["seconds"] / 2
    some = int(min(200, max(2, 0.05 / first)))
    each = program.ask(mode=mode, nbytes=nbytes, count=some)["seconds"] / some
    return int(min(20_000, max(2, BLOCK_S / each)))


# --- the document -------------------------------------------------------------------------------

SHOWN = ("64KiB_copy", "8MiB_copy", "128MiB_copy", "64KiB_loan", "8MiB_loan", "128MiB_loan",
         "8MiB_latency", "8MiB_copy_blocked")  # fmt: skip


def table(results: dict[str, dict[str, Figure]]) -> str:
    """Markdown: a row for each rival, a column for each case, a ratio in each cell."""
    columns = [case for case in SHOWN if any(case in found for found in results.values())]
    lines = [
        "| beside | " + " | ".join(case.replace("_", " ") for case in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for name, found in results.items():
        cells = [f"{found[case].median:.3g}" if case in found else "" for case in columns]
        lines.append(f"| {RIVALS[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document(results: dict[str, dict[str, Figure]], facts: str, missing: dict[str, str]) -> str:
    """What docs/rivals.md says."""
    text = f"""# Beside others

Made by `scripts/bench_rivals` on {facts}. Each number is a ratio inside one run: images a second
of openhcs-stream over those of the other way to bring the same images to another process, median
of palindromic rounds; above 1 openhcs-stream is the faster. *loan*: the image lies in shared memory
already (`allocate`; no copy). *latency*: time until the receiver has read the image, theirs over
ours. *blocked*: time that the sending call takes, theirs over ours. Every receiver reads each page
of each image. openhcs-stream has everything switched on: checks, receipts, tracker, credits; the
raw transports have none of that. OpenHCS's senders talk to a receiver that shows nothing, which
favours them; those of 0.8.6 and polystore sleep 0.1 s in each call.

![Ratios of images a second](rivals.svg)

{table(results)}
"""
    for name, reason in missing.items():
        text += f"\n{RIVALS[name].title} could not be measured: {reason}\n"
    return text


def plot(results: dict[str, dict[str, Figure]]) -> str:
    """A bar for each rival and size, on a logarithmic axis around 1, as SVG."""
    import math

    cases = ("64KiB", "8MiB", "128MiB")
    colours = ("#7aa6c2", "#3d6f94", "#16324f")
    rows = [
        (RIVALS[name].title, [found.get(f"{c}_{m}") for c in cases])
        for name, found in results.items()
        for m in [RIVALS[name].modes[0]]
    ]
    values = [f.median for _, figures in rows for f in figures if f]
    low, high = min(0.5, *values), max(2.0, *values)
    left, width, height = 190, 520, 16
    total = len(rows) * (height * 3 + 14) + 60

    def x(value: float) -> float:
        return left + width * (math.log(value / low) / math.log(high / low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{total}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (case, colour) in enumerate(zip(cases, colours, strict=True)):
        parts.append(
            f'<rect x="{left + 90 * number}" y="10" width="12" height="12" fill="{colour}"/>'
            f'<text x="{left + 90 * number + 17}" y="20">{case}</text>'
        )
    y = 36.0
    for title, figures in rows:
        parts.append(f'<text x="{left - 8}" y="{y + 28}" text-anchor="end">{title}</text>')
        for figure, colour in zip(figures, colours, strict=True):
            if figure:
                begin, end = sorted((x(1.0), x(figure.median)))
                parts.append(
                    f'<rect x="{begin:.1f}" y="{y:.1f}" width="{max(end - begin, 1):.1f}" '
                    f'height="{height - 3}" fill="{colour}"/>'
                    f'<text x="{end + 4:.1f}" y="{y + 11:.1f}" font-size="10">'
                    f"{figure.median:.3g}</text>"
                )
            y += height
        y += 14
    parts.append(
        f'<line x1="{x(1.0):.1f}" y1="28" x2="{x(1.0):.1f}" y2="{y:.1f}" stroke="#444"/>'
        f'<text x="{x(1.0):.1f}" y="{y + 14:.1f}" text-anchor="middle">equal</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_rivals", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=RIVALS, metavar="RIVAL",
                        help=f"of {', '.join(RIVALS)}")  # fmt: skip
    parser.add_argument("--environments", type=Path, default=ROOT / ".rivals",
                        help="where the rivals are installed (%(default)s)")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="write docs/rivals.md and its plot")
    given = parser.parse_args()
    results: dict[str, dict[str, Figure]] = {}
    missing: dict[str, str] = {}
    begin = time.monotonic()
    for name in given.only or RIVALS:
        rival = RIVALS[name]
        print(f"==> {rival.title}", file=sys.stderr, flush=True)
        try:
            python = python_of(given.environments, name, rival)
            with running(Path(sys.executable), OURS) as ours, running(python, rival) as theirs:
                results[name] = measure(ours, theirs, rival, given.rounds)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            missing[name] = " ".join(str(error).split())[-300:]
            print(f"    could not be measured: {error}", file=sys.stderr)
    facts = (
        f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    )
    if given.write:
        (ROOT / "docs" / "rivals.md").write_text(document(results, facts, missing))
        (ROOT / "docs" / "rivals.svg").write_text(plot(results))
    if given.json:
        plain = {
            f"{name}.{case}": figure.to_json()
            for name, found in results.items()
            for case, figure in found.items()
        }
        print(json.dumps({**plain, "missing": missing, "machine": facts,
                          "seconds": round(time.monotonic() - begin, 1)}))  # fmt: skip
    else:
        print(table(results))
        for name, reason in missing.items():
            print(f"{RIVALS[name].title} could not be measured: {reason}")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
