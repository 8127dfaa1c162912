"""Processes that make everything a viewer makes and are killed at any moment, beside sweepers.

``crowd.py sweep`` sweeps until it is told to end. ``crowd.py live SECONDS FOLDER`` makes and kills
children, checks those that live, and prints one JSON object: how many lived, and what was hurt.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

from openhcs_stream.discovery import Endpoint, find, publish, sweep
from openhcs_stream.errors import UsageError
from openhcs_stream.runtime import hold, identify, runtime_folder
from openhcs_stream.transport._socket_files import SocketFile

NAMES = ("one", "two")


def live(folder: Path, number: int, ready: int, check: int) -> None:
    """What a viewer does on its way up; then it looks after itself until it is killed."""
    me = f"{os.getpid()}-{number:x}"
    own = runtime_folder() / f"memory-{os.getpid()}-{number:x}.ipc"
    shared = folder / f"shared-{number % 2}.sock"
    files = [SocketFile.bind(str(own))]
    paths = [own]
    with contextlib.suppress(OSError):  # another one listens there
        files.append(SocketFile.bind(str(shared)))
        paths.append(shared)
    segment = hold("segment", folder / f"segment-{me}")
    segment.temporary.write_bytes(b"\1" * 4096)
    segment.made()
    paths.append(segment.entry.final)
    endpoint = Endpoint("memory", NAMES[number % 2], os.getpid(), time.time(), (1, 0),
                        (f"ipc://{own}",), "", True)  # fmt: skip
    with contextlib.suppress(UsageError):  # another one has the name
        publication = publish(endpoint)
        paths.append(publication.path)
    identities = {path: identify(path) for path in paths}
    os.write(ready, b"r")
    os.read(check, 1)
    hurt = [str(path) for path, identity in identities.items() if identify(path) != identity]
    for path in paths[: len(files)]:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        except OSError as error:
            hurt.append(f"{path}: {error}")
    if publication_of(endpoint, paths) and find("memory", name=endpoint.name) != endpoint:
        hurt.append(f"{endpoint.name} is not found")
    os.write(ready, json.dumps(hurt).encode() + b"\n")
    signal.pause()


def publication_of(endpoint: Endpoint, paths: list[Path]) -> bool:
    return paths[-1].suffix == ".json" and endpoint.name in paths[-1].name


def driver(seconds: float, folder: Path) -> None:
    """Keep two children going; each is killed before it is ready, or after it was checked."""
    dice = random.Random(os.getpid())
    deadline = time.monotonic() + seconds
    count = {"born": 0, "checked": 0}
    hurt: list[str] = []
    while time.monotonic() < deadline:
        ready_ours, ready_theirs = os.pipe()
        check_theirs, check_ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ready_ours)
            os.close(check_ours)
            try:
                live(folder, count["born"], ready_theirs, check_theirs)
            except BaseException as error:
                os.write(ready_theirs, json.dumps([repr(error)]).encode() + b"\n")
            os._exit(0)
        os.close(ready_theirs)
        os.close(check_theirs)
        count["born"] += 1
        if dice.random() < 0.5:
            time.sleep(dice.random() * 0.004)  # the moment of the kill, not a wait for anything
        elif os.read(ready_ours, 1) == b"r":
            time.sleep(dice.random() * 0.004)
            os.write(check_ours, b"c")
            told = b""
            while not told.endswith(b"\n"):
                piece = os.read(ready_ours, 4096)
                if not piece:
                    break
                told += piece
            hurt += json.loads(told)
            count["checked"] += 1
        else:
            hurt.append("a child could not make its things")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready_ours)
        os.close(check_ours)
    print(json.dumps(count | {"hurt": hurt}), flush=True)


def sweeper() -> None:
    """Sweep all the time, until standard input ends."""
    os.set_blocking(0, False)
    count = removed = 0
    while True:
        removed += len(sweep().removed)
        count += 1
        with contextlib.suppress(BlockingIOError):
            if os.read(0, 1) == b"":
                break
    print(json.dumps({"sweeps": count, "removed": removed}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        sweeper()
    else:
        driver(float(sys.argv[2]), Path(sys.argv[3]))
