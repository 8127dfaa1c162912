"""A viewer under hostile senders, with a good one beside them.

The good sender's images must all be displayed, pixel for pixel; the viewer's memory must be as flat
as before, its descriptors must be given back, and its log must tell of no defect.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.dialects import FAMILIES, family_of
from openhcs_stream.errors import StreamError
from openhcs_stream.stream import ask, connect
from scripts._fuzz.traffic import WAYS
from scripts._ports import free_port

if TYPE_CHECKING:
    from openhcs_stream.discovery import Endpoint

__all__ = ["Live", "run"]

ROOT: Final = Path(__file__).resolve().parents[2]
#: What the viewer may keep: hostile items count too, so that its memory must stay below.
MEMORY: Final = "32M"
#: By how much it may have grown when all are gone, and at most while messages wait to be read.
GROWTH_NBYTES: Final = 64 << 20
MOST_NBYTES: Final = 1 << 30
#: Descriptors that come and go: connections that are just being made.
SPARE_FDS: Final = 8
#: One way sends at most this part of all messages: its inverse.
SHARE: Final = 5
_SETTLE_S: Final = 40.0
#: What a sender may be told that sends too much for the viewer's memory.
_DEFECT: Final = re.compile(r" ERROR |Traceback|Exception|CRITICAL|Fatal")


@dataclass
class Live:
    """What came of it."""

    messages: int = 0
    seconds: float = 0.0
    by_way: dict[str, int] = field(default_factory=dict)
    good_sent: int = 0
    good_displayed: int = 0
    good_verified: int = 0
    rss_begin: int = 0
    rss_fifth: int = 0  #: after a fifth of the messages
    rss_end: int = 0
    rss_most: int = 0
    fds_begin: int = 0
    fds_end: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)

    def found(self, what: str, how: str = "") -> None:
        """Note something that should not be."""
        self.findings.append({"target": "live", "what": what, "how": how})


def run(messages: int, seconds: float, seed: int) -> Live:
    """Send so many hostile messages, or for so long, and give what came of it."""
    result = Live()
    folder = Path(tempfile.mkdtemp(prefix="ohs-fuzz-"))
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OPENHCS_STREAM_RUNTIME_DIR": str(folder / "run"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PYTHONPATH": str(ROOT),
    }
    for name in ("run", "config"):
        (folder / name).mkdir(mode=0o700)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        _run(result, folder, messages, seconds, seed)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _run(result: Live, folder: Path, messages: int, seconds: float, seed: int) -> None:
    port = free_port()
    log = folder / "viewer.log"
    with log.open("wb") as stderr:
        viewer = subprocess.Popen(
            [
                sys.executable, "-m", "openhcs_stream", "memory", "--json",
                f"--port={port}", f"--memory={MEMORY}",
            ],
            stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT,
        )  # fmt: skip
    hostile: list[subprocess.Popen[str]] = []
    try:
        assert viewer.stdout is not None
        line = viewer.stdout.readline()
        if not line:
            result.found("the viewer did not start", log.read_text(errors="replace")[-4000:])
            return
        endpoint = _endpoint(folder)
        good = _Good(endpoint.addresses[0], result)
        good.start()
        good.wait_for(20)
        result.rss_begin, result.fds_begin = _rss(viewer.pid), _fds(viewer.pid)
        began = time.monotonic()
        hostile = [
            _start_hostile(way, number, endpoint, port, messages, seconds, seed)
            for number, way in enumerate(WAYS)
        ]
        _watch(result, viewer, hostile, messages, seconds)
        result.seconds = round(time.monotonic() - began, 1)
        good.stop()
        _settle(result, viewer, endpoint)
    finally:
        for each in (*hostile, viewer):
            each.kill()
            each.communicate()
    for text in sorted(set(_defects(log)))[:20]:
        result.found(f"in the viewer's log: {text[:300]}")
    if any(each["what"].startswith("the viewer ended") for each in result.findings):
        result.found("its last words", log.read_text(errors="replace")[-6000:])
    if result.good_sent != result.good_displayed:
        result.found(f"the good sender sent {result.good_sent}, {result.good_displayed} displayed")


def _start_hostile(
    way: str, number: int, endpoint: Endpoint, port: int, messages: int, seconds: float, seed: int
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts._fuzz.traffic"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    families = [family_of(name) for name in FAMILIES]
    controls = [f"tcp://127.0.0.1:{port + each.control_offset}" for each in families]
    controls += [each.ipc(port + each.control_offset) for each in families]
    told = {
        "way": way,
        "seed": seed * 100 + number,
        "addresses": list(endpoint.addresses),
        "doors": [each.ipc(port) for each in families],
        "controls": sorted(set(controls)),
        "token": endpoint.token,
        # So that the ways that are quick don't send it all.
        "messages": messages // SHARE,
        "seconds": seconds,
    }
    assert process.stdin is not None
    print(json.dumps(told), file=process.stdin, flush=True)
    return process


def _watch(
    result: Live,
    viewer: subprocess.Popen[str],
    hostile: list[subprocess.Popen[str]],
    messages: int,
    seconds: float,
) -> None:
    """Until all hostile senders together have sent enough, or their time is up."""
    sent = dict.fromkeys(WAYS, 0)

    def listen(way: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                sent[way] = json.loads(line).get("sent", sent[way])

    threads = [
        threading.Thread(target=listen, args=(way, each), daemon=True)
        for way, each in zip(WAYS, hostile, strict=True)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while sum(sent.values()) < messages and time.monotonic() < end:
        if viewer.poll() is not None:
            result.found(f"the viewer ended with status {viewer.returncode}")
            break
        if not any(thread.is_alive() for thread in threads):
            break
        rss = _rss(viewer.pid)
        result.rss_most = max(result.rss_most, rss)
        if not result.rss_fifth and 5 * sum(sent.values()) >= messages:
            result.rss_fifth = rss
        time.sleep(0.1)
    for each in hostile:
        each.terminate()
    for thread in threads:
        thread.join(10)
    result.by_way = dict(sent)
    result.messages = sum(sent.values())


def _settle(result: Live, viewer: subprocess.Popen[str], endpoint: Endpoint) -> None:
    """When all are gone: is it as it was?"""
    if viewer.poll() is not None:
        return
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        result.fds_end = _fds(viewer.pid)
        if result.fds_end <= result.fds_begin + SPARE_FDS:
            break
        time.sleep(0.2)
    else:
        result.found(f"{result.fds_end} descriptors are open, {result.fds_begin} were at first")
    while time.monotonic() < deadline:
        result.rss_end = _rss(viewer.pid)
        if result.rss_end <= result.rss_begin + GROWTH_NBYTES:
            break
        time.sleep(0.2)
    else:
        result.found(f"it has {result.rss_end} bytes, and had {result.rss_begin} at first")
    if result.rss_most > result.rss_begin + MOST_NBYTES:
        result.found(f"it had {result.rss_most} bytes at some time")
    try:
        status = ask(endpoint, "status", timeout_s=10.0)
        if status["kept"]["nbytes"] > status["kept"]["limit_nbytes"]:
            result.found(f"it keeps more than it may: {status['kept']}")
        ask(endpoint, "stop", timeout_s=10.0)
        viewer.wait(20)
    except (StreamError, subprocess.TimeoutExpired) as error:
        result.found(f"it does not answer any more: {error}")


class _Good:
    """A sender that keeps to the rules, and looks at what is shown."""

    def __init__(self, address: str, result: Live) -> None:
        self._address = address
        self._result = result
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_for(self, displayed: int) -> None:
        deadline = time.monotonic() + 30
        while self._result.good_displayed < displayed and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        if self._thread.is_alive():
            self._result.found("the good sender hangs")

    def _run(self) -> None:
        result = self._result
        try:
            with connect(self._address, name="good", timeout_s=30.0) as stream:
                while not self._stop.is_set():
                    number = result.good_sent
                    pixels = np.full((64, 64), number % 251, np.uint8)
                    pixels[number % 64] = 255
                    result.good_sent += 1
                    receipt = stream.image(pixels, name="good", place={"n": number % 8})
                    receipt.wait(timeout_s=30.0)
                    result.good_displayed += 1
                    if number % 20 == 0:
                        told = stream.request("read", layer="good", place={"n": number % 8})
                        if told["data"] != pixels.tobytes():
                            result.found(f"image {number} is shown with other pixels")
                        result.good_verified += 1
                    time.sleep(0.002)
        except StreamError as error:
            result.found(f"the good sender was told: {type(error).__name__}: {error}")


def _endpoint(folder: Path) -> Endpoint:
    from openhcs_stream.discovery import find

    endpoint = find("memory")
    assert endpoint is not None, list((folder / "run").iterdir())
    return endpoint


def _rss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    return 0


def _fds(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _defects(log: Path) -> list[str]:
    with log.open(errors="replace") as lines:
        defects = [line.strip() for line in lines if _DEFECT.search(line)]
    return [re.sub(r"[0-9a-f]{6,}|[0-9]+", "#", line) for line in defects]
