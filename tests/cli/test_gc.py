"""``openhcs-stream gc``: what the dead left goes, the living keep everything, the rest is told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream.cli import _gc, main
from openhcs_stream.dialects import ipc_address
from openhcs_stream.discovery import endpoints
from openhcs_stream.stream import ask
from scripts._ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Instead of the machine's, in which others may have what looks like a leftover."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(_gc, "_SHARED_MEMORY", folder)
    return folder


def gc(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["gc", "--json", *words]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def files(*folders: Path) -> list[str]:
    return sorted(
        str(path) for folder in folders for path in folder.rglob("*") if not path.is_dir()
    )


def test_nothing_to_do(home: Path, shared_memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == "Nothing was removed.\n"
    assert gc(capsys) == {"dry_run": False, "removed": [], "kept": [], "nbytes": 0}


def test_what_a_killed_viewer_left(
    start: Callable[..., Any],
    home: Path,
    shared_memory: Path,
    own_runtime_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    started, other = start("--port", str(port)), start("--name", "other")
    openhcs = Path(ipc_address(port).removeprefix("ipc://"))
    assert openhcs.is_socket()
    before = files(home, own_runtime_folder)
    # What the other one has: its socket and its ledger; and the ledger of the one that goes.
    others = {path for path in before if f"-{other.pid}-" in path or "/.held-" in path}
    assert gc(capsys)["removed"] == []
    assert files(home, own_runtime_folder) == before
    started.process.kill()
    started.process.wait()
    would = gc(capsys, "--dry-run")
    assert files(home, own_runtime_folder) == before
    removed = {each["path"] for each in would["removed"]}
    assert removed == {path for path in before if "other" not in path} - others
    assert str(openhcs) in {each["path"] for each in would["removed"]}
    assert main(["gc"]) == 0
    text = capsys.readouterr().out
    assert f"removed the socket {openhcs}: the process that made it ({started.pid}) is" in text
    assert f"{len(removed)} things (" in text
    assert not openhcs.exists()
    left = files(home, own_runtime_folder)
    assert len(left) == 3  # endpoint file, socket and ledger of the other
    assert ask("other", "status")["pid"] == other.pid
    other.process.send_signal(signal.SIGTERM)
    assert other.process.wait(20) == 0
    assert files(home, own_runtime_folder) == []


TAKER = """
import sys
from openhcs_stream.dialects._segments import Segment
segment = Segment.attach(sys.argv[1], 4)
segment.take_over()
print(segment.octets.tobytes(), flush=True)
sys.stdin.read()
segment.unlink()
"""


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "finished"])
def test_block_of_openhcs_that_was_taken_over(
    is_killed: bool, home: Path, own_runtime_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = Path(f"/dev/shm/fiji_{random.randrange(1 << 32):08x}")
    block.write_bytes(b"1234")
    try:
        with subprocess.Popen(
            [sys.executable, "-c", TAKER, block.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as taker:
            assert taker.stdout is not None
            assert taker.stdin is not None
            assert taker.stdout.readline() == "b'1234'\n"
            told = gc(capsys)
            assert str(block) not in {each["path"] for each in told["removed"] + told["kept"]}
            assert block.exists()
            if is_killed:
                taker.kill()
            else:
                taker.stdin.close()
            taker.wait(20)
        removed = gc(capsys)["removed"]
        assert [each["path"] for each in removed] == ([str(block)] if is_killed else [])
        assert not block.exists()
        assert files(own_runtime_folder) == []
    finally:
        block.unlink(missing_ok=True)


def test_what_others_left_stays_and_is_told(
    home: Path, shared_memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / ".openhcs" / "ipc"
    folder.mkdir(parents=True)
    dead, alive = folder / "openhcs-zmq-5555.sock", folder / "openhcs-zmq-6555.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    block = shared_memory / "napari_01234567"
    block.write_bytes(b"x" * 8192)
    (shared_memory / "psm_01234567").write_bytes(b"another program's")
    (shared_memory / "napari_settings").write_bytes(b"not even that")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(alive))
        sock.listen()
        kept = {each["path"]: each for each in gc(capsys)["kept"]}
    assert set(kept) == {str(dead), str(block)}
    assert "not one that we made" in kept[str(dead)]["why"]
    assert kept[str(block)]["nbytes"] == 8192
    assert main(["gc"]) == 0
    text = capsys.readouterr().out
    assert f"left the segment {block} (8.2 kB): " in text
    assert f"rm {block}" in text
    assert len(files(folder, shared_memory)) == 5


def test_a_name_with_a_line_break_forges_no_line(
    home: Path, shared_memory: Path, own_runtime_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_runtime_folder / "x\nremoved the thesis").write_text("")
    assert main(["gc"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


SWEEPER = """
import contextlib, io, os, sys
from openhcs_stream.cli import main
os.set_blocking(0, False)
count = 0
while True:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["gc", "--json"]) == 0
    count += 1
    with contextlib.suppress(BlockingIOError):
        if os.read(0, 1) == b"":
            break
print(count, flush=True)
"""

SENDER = """
import os, sys
import numpy as np
from openhcs_stream.stream import connect
os.set_blocking(0, False)
count = 0
with connect(sys.argv[1], name=f"sender {os.getpid()}", launch=False, timeout_s=30) as stream:
    print("ready", flush=True)
    image = np.zeros((64, 64), np.uint8)
    while True:
        receipts = [stream.image(image, name=f"i{n}") for n in range(20)]
        stream.flush()
        assert all(receipt.state == "displayed" for receipt in receipts)
        count += 20
        try:
            if os.read(0, 1) == b"":
                break
        except BlockingIOError:
            pass
print(count, flush=True)
"""


def test_sweepers_beside_viewers_and_senders(
    home: Path, own_runtime_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some live through it all; others start, are killed at any moment, and start again."""
    dice = random.Random(3)
    everybody: list[subprocess.Popen[str]] = []
    before = set(os.listdir("/dev/shm"))

    def run(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        everybody.append(process)
        return process

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    try:
        port, other_port = free_port(), free_port()
        survivor = run("-m", "openhcs_stream", "memory", "--name", "stays", "--port", str(port))
        assert "is ready" in line(survivor)
        sender = run("-c", SENDER, "stays")
        assert line(sender) == "ready\n"
        sweepers = [run("-c", SWEEPER) for _ in range(2)]
        deadline = time.monotonic() + 6
        victims: list[subprocess.Popen[str]] = []
        kills = 0
        while time.monotonic() < deadline:
            victim = run("-m", "openhcs_stream", "memory", "--name", "goes",
                         "--port", str(other_port))  # fmt: skip
            victims.append(victim)
            if dice.random() < 0.6:
                assert "is ready" in line(victim), "a dead one's name, or port, was not free"
                victims.append(run("-c", SENDER, "goes"))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    victims[-1].wait(dice.random() * 0.6)  # the moment of the kill
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    victim.wait(dice.random() * 0.5)
            dice.shuffle(victims)
            for process in victims:
                process.kill()
                process.wait()
                kills += 1
            victims.clear()
            assert ask("stays", "status")["pid"] == survivor.pid
        sent = int(sender.communicate("", timeout=30)[0])
        swept = [int(process.communicate("", timeout=30)[0]) for process in sweepers]
        assert sent > 0
        assert kills >= 3
        assert min(swept) >= 3
        gc(capsys)
        assert [each.name for each in endpoints()] == ["stays"]
        assert ask(f"ipc://{home}/.openhcs/ipc/openhcs-zmq-{port}.sock", "status")["layers"] == 20
        left = files(home, own_runtime_folder)
        # The survivor's: one endpoint file, one ledger, and its sockets.
        kinds = [Path(path).suffix or Path(path).name[:5] for path in left]
        assert (kinds.count(".json"), kinds.count(".held")) == (1, 1), left
        assert all(
            Path(path).is_socket() for path in left if Path(path).suffix in (".ipc", ".sock")
        )
        assert not any(f"-{other_port}." in path for path in left)
        survivor.send_signal(signal.SIGTERM)
        assert survivor.wait(20) == 0
        assert files(home, own_runtime_folder) == []
        # Other tests make names meanwhile, and take them away again.
        appeared = set(os.listdir("/dev/shm")) - before
        deadline = time.monotonic() + 20
        while left_there := appeared & set(os.listdir("/dev/shm")):
            assert time.monotonic() < deadline, left_there
            os.sched_yield()
    finally:
        for process in everybody:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
