"""What the campaign looks at when a trial is over: nobody is missed, and what a viewer holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts._campaign.cell import Program, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")

#: A descendant of the cell that goes on as its own child again and again, as a launched viewer
#: does once. It says so before its end; until then every look must find it.
LOOKER = """
import json, os, sys
from pathlib import Path
from scripts._campaign.cell import Cell

folder = Path(sys.argv[1])
cell = Cell(folder)
over = folder / "over"
if os.fork() == 0:
    for _ in range(300):
        if os.fork():
            os._exit(0)
    over.touch()
    os._exit(0)
while cell.strangers():
    pass
print(json.dumps(over.exists()))
cell.end()
"""

#: Does one thing after another when it is told to.
HOLDER = """
import json, os, sys, threading
from qtpy.QtCore import QCoreApplication, QRunnable, QSemaphore, QThreadPool

app = QCoreApplication([])
pool = QThreadPool()
pool.setMaxThreadCount(2)
begun, end = QSemaphore(), QSemaphore()

class Work(QRunnable):
    def run(self):
        begun.release()
        end.acquire()

print(json.dumps({"at": "begun"}), flush=True)
for line in sys.stdin:
    if json.loads(line)["do"] == "paint":
        for _ in range(2):
            pool.start(Work())
        begun.acquire(2)
    else:
        held = os.eventfd(0)
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    print(json.dumps({"at": "done"}), flush=True)
end.release(2)
pool.waitForDone()
os._exit(0)
"""


def test_a_process_that_goes_on_as_its_own_child_is_never_missed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOKER, str(tmp_path / "cell")],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """Run a program as the campaign runs a viewer."""
    started: list[Program] = []

    def run(code: str) -> Program:
        program = Program(
            [sys.executable, "-c", code], dict(os.environ), tmp_path / "log", tmp_path / "point"
        )
        started.append(program)
        return program

    yield run
    for program in started:
        program.kill()
        program.close()


@pytest.mark.skipif(find_spec("qtpy") is None, reason="without Qt nothing has its threads")
@pytest.mark.skipif(
    len(os.sched_getaffinity(0) if sys.platform == "linux" else ()) < 2, reason="needs two"
)
def test_threads_that_qt_paints_with_are_not_held_but_others_are(
    start: Callable[[str], Program],
) -> None:
    program = start(HOLDER)
    assert program.hear("begun", timeout_s=30.0), program.last_words()
    viewer = Running("napari+", program, "napari-1", "", 0)
    viewer.base = viewer.counts()
    program.order(do="paint")
    assert program.hear("done", timeout_s=30.0), program.last_words()
    assert viewer.beyond_base() == []
    program.order(do="hold")
    assert program.hear("done", timeout_s=30.0), program.last_words()
    descriptors, threads = viewer.beyond_base()
    assert descriptors == "napari-1 holds 1 more descriptors: 1 anon_inode:[eventfd]"
    assert threads.startswith("napari-1 holds 1 more threads: 1 ")
