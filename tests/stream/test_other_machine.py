"""A worker and a viewer on two machines: two network namespaces with a cable between them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
VIEWER_HOST, WORKER_HOST = "10.77.0.1", "10.77.0.2"
PORT = 5571

#: What each worker begins with: it says in one line what came of it.
PRELUDE = """
import json, sys, time
import numpy as np
from openhcs_stream import connect
from openhcs_stream.errors import StreamError
def tell(**facts):
    print(json.dumps(facts), flush=True)
image = np.arange(1 << 22, dtype=np.uint16).reshape(2048, 2048)
file = sys.argv[1]
"""


@dataclass
class Machine:
    """A network namespace that lives as long as one process."""

    holder: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> str:
        return str(self.holder.pid)

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        # Folders of its own too: nothing is found through the file system.
        (self.folder / "run").mkdir(mode=0o700, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPENHCS_STREAM_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }
        return subprocess.Popen(
            self.command(sys.executable, *words),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            **options,
        )

    def received_nbytes(self) -> int:
        """What came in by the cable."""
        (link,) = json.loads(self.run("ip", "-s", "-j", "link", "show", "cable"))
        return int(link["stats64"]["rx"]["bytes"])


def why_not() -> str:
    """What is missing for machines of our own; empty: nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"there is no {', '.join(missing)} (packages iproute2 and util-linux)"
    done = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "name", "one", "type", "veth", "peer", "other"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no cable can be made here: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="module")
def can_make_machines() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    folder.mkdir()
    # `cat` ends when this process does, whatever becomes of it, and the namespace with it.
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"  # from here on it has a namespace of its own
        yield Machine(holder, folder)
    finally:
        holder.communicate(timeout=20)


@pytest.fixture
def machines(can_make_machines: None, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """The viewer's and the worker's."""
    with machine(tmp_path / "v") as here, machine(tmp_path / "w") as there:
        subprocess.run(
            ["ip", "link", "add", "name", "cable", "netns", here.pid, "type", "veth",
             "peer", "name", "cable", "netns", there.pid],
            check=True,
        )  # fmt: skip
        for each, host in ((here, VIEWER_HOST), (there, WORKER_HOST)):
            each.run("ip", "address", "add", f"{host}/24", "dev", "cable")
            each.run("ip", "link", "set", "lo", "up")
            each.run("ip", "link", "set", "cable", "up")
        yield here, there


@pytest.fixture
def viewer_file(machines: tuple[Machine, Machine]) -> Iterator[Path]:
    """A viewer runs on its machine; a copy of its file is on the worker's."""
    here, there = machines
    process = here.start(str(Path(__file__).with_name("serve_public.py")), VIEWER_HOST, str(PORT))
    try:
        assert process.stdout is not None
        original = Path(process.stdout.readline().strip())
        copy = there.folder / "copied.viewer"
        shutil.copy(original, copy)
        yield copy
    finally:
        process.kill()
        process.communicate()


def run_worker(there: Machine, code: str, *arguments: object) -> dict[str, Any]:
    process = there.start("-c", PRELUDE + code, *map(str, arguments))
    try:
        stdout, _ = process.communicate(timeout=50)
    finally:
        process.kill()
        process.communicate()
    found: dict[str, Any] = json.loads(stdout)
    return found


def test_pixels_go_to_another_machine_whole(
    machines: tuple[Machine, Machine], viewer_file: Path
) -> None:
    here, there = machines
    before = here.received_nbytes()
    told = run_worker(
        there,
        """
import hashlib
from openhcs_stream.stream import ask
with connect(file, name="far") as stream:
    stream.image(image, name="raw", place={"z": 3}).wait()
    stream.labels(image[:64, :64] > 7, name="bright").wait()
    stream.rois([np.array([[0, 0], [0, 9], [9, 9]])], name="cells").wait()
    (status,) = stream.request("status")["streams"]
    back = ask(file, "read", layer="raw", place={"z": 3}, timeout_s=20)
tell(shared=status["shared_memory"], shape=back["shape"],
     digest=hashlib.sha256(back["data"]).hexdigest())
""",
        viewer_file,
    )
    import numpy as np

    pixels = np.arange(1 << 22, dtype=np.uint16)
    assert told == {
        "shared": False,
        "shape": [2048, 2048],
        "digest": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }
    assert here.received_nbytes() - before > pixels.nbytes, "it went by the cable"


def test_nobody_comes_in_without_what_is_in_the_file(
    machines: tuple[Machine, Machine], viewer_file: Path
) -> None:
    told = run_worker(
        machines[1],
        """
content = json.loads(open(file).read())
address, _, key = content["addresses"][0].partition("?key=")
reasons = {}
def attempt(name, address, **how):
    began = time.monotonic()
    try:
        connect(address, timeout_s=20, **how)
    except StreamError as error:
        reasons[name] = f"{type(error).__name__}: {error}"
attempt("no key", address, token=content["token"])
attempt("wrong key", address, key="ab" * 32, token=content["token"])
attempt("no token", address, key=key)
attempt("old token", address, key=key, token="12" * 32)
tell(**reasons)
""",
        viewer_file,
    )
    assert told["no key"].startswith("InvalidItem: refused to connect")
    assert told["wrong key"].startswith("Refused: what listens at")
    assert "does not know the key" in told["wrong key"]
    assert told["no token"].startswith("Refused: the viewer at")
    assert "the token is missing, wrong or old" in told["old token"]


def test_a_cable_that_is_pulled_ends_every_wait(
    machines: tuple[Machine, Machine], viewer_file: Path
) -> None:
    here, there = machines
    code = """
from openhcs_stream.protocol import SILENCE_S
with connect(file, name="far") as stream:
    stream.image(image, name="raw").wait()
    tell(connected=True)
    sys.stdin.readline()
    # Longer than the silence after which a viewer counts as lost, shorter than this test.
    try:
        stream.image(image, name="lost").wait(timeout_s=SILENCE_S + 20)
        tell(error="none")
    except StreamError as error:
        tell(error=type(error).__name__)
    stream.close(timeout_s=0.1)
try:
    connect(file, timeout_s=1.0)
    tell(error="none")
except StreamError as error:
    tell(error=type(error).__name__)
"""
    process = there.start("-c", PRELUDE + code, str(viewer_file))
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert json.loads(process.stdout.readline()) == {"connected": True}
        here.run("ip", "link", "set", "cable", "down")
        print(file=process.stdin, flush=True)
        lost = json.loads(process.stdout.readline())["error"]
        assert lost in ("ItemFailed", "ViewerLost", "DeadlineExceeded")
        assert json.loads(process.stdout.readline()) == {"error": "ViewerUnreachable"}
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    # The viewer, too, has noticed; it serves on.
    deadline = time.monotonic() + 40
    while streams_at(here):
        assert time.monotonic() < deadline
    here.run("ip", "link", "set", "cable", "up")
    told = run_worker(
        there,
        """
with connect(file, name="again") as stream:
    tell(state=stream.image(image, name="back").wait().state)
""",
        viewer_file,
    )
    assert told == {"state": "displayed"}


def streams_at(here: Machine) -> list[dict[str, Any]]:
    """The streams that the viewer knows, asked on its own machine."""
    process = here.start("-m", "openhcs_stream", "status", "--json")
    stdout, _ = process.communicate(timeout=30)
    (viewer,) = json.loads(stdout)["viewers"]
    streams: list[dict[str, Any]] = viewer["status"]["streams"]
    return streams
