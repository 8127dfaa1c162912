"""Blocks with names: written again and again, lent to whoever removes them, never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.errors import InvalidItem, OutOfSpace
from openhcs_stream.pixels import NamedBlocks, _named
from openhcs_stream.pixels._memory import PAGE_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if not sys.platform.startswith("linux"):
    pytest.skip("named blocks are made on Linux only", allow_module_level=True)

SHM = Path("/dev/shm")

#: Makes blocks, says their names, and waits for its end.
WORKER = """
import os, sys
from openhcs_stream.pixels import NamedBlocks
blocks = NamedBlocks()
made = [blocks.take(5000) for _ in range(3)]
print(made[0].name, made[1].name, made[2].lend(), flush=True)
sys.stdin.read()
"""

#: Makes blocks in a folder and lends one; is killed right after a function was called so often.
KILLED = """
import os, signal, sys
from pathlib import Path
from openhcs_stream.pixels import NamedBlocks, _named
folder, name, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
_named.SHM_FOLDER = Path(folder)
real = getattr(os, name)
def last(*arguments, **more):
    global left
    result = real(*arguments, **more)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
blocks = NamedBlocks()
first = blocks.take(5000)
setattr(os, name, last)
second = blocks.take(9000)
first.lend()
first.end_loan()
"""

#: A child that closes what it inherited, and outlives its parent's blocks; whether the name was
#: there then, and after the parent's own closing, and how the janitor ended.
FORKS = """
import os
from openhcs_stream.pixels import NamedBlocks, _named
blocks = NamedBlocks()
path = "/dev/shm/" + blocks.take(1).name
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    blocks.close()
    os.read(read, 1)
    os._exit(0)
os.close(read)
there = os.path.exists(path)
janitor = _named._janitor._process
blocks.close()
print(there, os.path.exists(path), janitor.returncode, flush=True)
os.close(write)
os.waitpid(child, 0)
"""


def until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not reached():
        assert time.monotonic() < deadline, f"not in time: {what}"
        pause.wait(0.005)


def exists(name: str) -> bool:
    return os.path.lexists(SHM / name)


@pytest.fixture
def blocks() -> Iterator[NamedBlocks]:
    made = NamedBlocks()
    yield made
    made.close()


@pytest.fixture
def worker() -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that holds blocks, and all their names."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        names = process.stdout.readline().split()
        assert len(names) == 3
        yield process, names
        process.kill()


class TestBlocks:
    def test_another_process_attaches_by_name(self, blocks: NamedBlocks) -> None:
        block = blocks.take(10)
        block.octets[:10] = range(10)
        code = (
            "import os, sys; from multiprocessing.shared_memory import SharedMemory;"
            "attached = SharedMemory(sys.argv[1]);"
            "print(attached.buf[:10].tolist(), flush=True); os._exit(0)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, block.name], capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == str([*range(10)])

    def test_it_is_whole_pages_of_at_least_that_size(self, blocks: NamedBlocks) -> None:
        for nbytes in (1, PAGE_NBYTES, PAGE_NBYTES + 1, 1_000_003):
            block = blocks.take(nbytes)
            size = (SHM / block.name).stat().st_size
            assert size == block.octets.nbytes >= nbytes
            assert size % PAGE_NBYTES == 0
            assert size <= max(nbytes * 1.13, nbytes + PAGE_NBYTES)

    def test_it_is_this_users_alone(self, blocks: NamedBlocks) -> None:
        status = (SHM / blocks.take(1).name).stat()
        assert status.st_mode & 0o777 == 0o600
        assert status.st_uid == os.geteuid()

    def test_it_is_used_again(self, blocks: NamedBlocks) -> None:
        first = blocks.take(100_000)
        name = first.name
        blocks.give(first)
        assert blocks.take(99_000) is first
        assert first.name == name

    def test_but_not_while_somebody_has_it(self, blocks: NamedBlocks) -> None:
        assert blocks.take(1).name != blocks.take(1).name

    def test_no_more_is_kept_than_is_worth_it(
        self, blocks: NamedBlocks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_named, "KEPT_NBYTES", 2 * PAGE_NBYTES)
        taken = [blocks.take(1) for _ in range(4)]
        names = [block.name for block in taken]
        for block in taken:
            blocks.give(block)
        assert [exists(name) for name in names] == [True, True, False, False]

    def test_one_whose_name_somebody_removed_is_not_used_again(self, blocks: NamedBlocks) -> None:
        block = blocks.take(1)
        os.unlink(SHM / block.name)
        blocks.give(block)
        assert blocks.take(1) is not block

    def test_nor_where_that_happened_while_it_was_not_in_use(self, blocks: NamedBlocks) -> None:
        block = blocks.take(1)
        blocks.give(block)
        os.unlink(SHM / block.name)
        assert blocks.take(1) is not block

    def test_close_removes_all_and_may_be_repeated(self, blocks: NamedBlocks) -> None:
        names = [blocks.take(1).name for _ in range(3)]
        blocks.close()
        blocks.close()
        assert not any(map(exists, names))

    def test_a_full_dev_shm_is_said_so(self, blocks: NamedBlocks) -> None:
        room = os.statvfs(SHM)
        with pytest.raises(OutOfSpace, match="no shared memory of") as caught:
            blocks.take(room.f_blocks * room.f_frsize + (1 << 40))
        assert "shm-size" in caught.value.cure

    def test_another_system_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_named, "SHM_FOLDER", Path("/nowhere"))
        with pytest.raises(InvalidItem, match="/nowhere"):
            NamedBlocks()


class TestLoans:
    def test_whoever_reads_removes_the_name_and_the_memory_is_used_again(
        self, blocks: NamedBlocks
    ) -> None:
        block = blocks.take(1)
        own = block.name
        lent = block.lend()
        assert lent == block.name != own
        assert not block.is_read
        # As a viewer of generation 1 reads: attach, copy, close, remove.
        attached = shared_memory.SharedMemory(lent)
        attached.close()
        attached.unlink()
        assert block.is_read
        assert block.is_whole
        blocks.give(block)
        assert blocks.take(1) is block
        assert block.lend() != lent

    def test_a_name_that_nobody_removed_goes_with_the_loan(self, blocks: NamedBlocks) -> None:
        block = blocks.take(1)
        lent = block.lend()
        blocks.give(block)
        assert not exists(lent)
        assert block.is_whole

    def test_lending_again_ends_the_loan_before(self, blocks: NamedBlocks) -> None:
        block = blocks.take(1)
        first, second = block.lend(), block.lend()
        assert not exists(first)
        assert exists(second)

    def test_close_removes_both_names(self, blocks: NamedBlocks) -> None:
        block = blocks.take(1)
        names = [block.name, block.lend()]
        blocks.close()
        assert not any(map(exists, names))


class TestEndings:
    @pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
    def test_what_a_dead_process_had_is_removed(
        self, worker: tuple[subprocess.Popen[str], list[str]], signal_: signal.Signals
    ) -> None:
        process, names = worker
        assert all(map(exists, names))
        os.killpg(process.pid, signal_)  # the whole group, as a batch system does
        until(lambda: not any(map(exists, names)), "the janitor removes the names")

    @pytest.mark.parametrize(
        ("function", "calls"),
        [("posix_fallocate", 1), ("link", 1), ("link", 2), ("link", 3), ("unlink", 1),
         ("unlink", 2), ("unlink", 3), ("rename", 1)],
    )  # fmt: skip
    def test_whenever_it_died(self, tmp_path: Path, function: str, calls: int) -> None:
        """Also in the middle of making, lending or removing one: nobody need sweep."""
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), function, str(calls)],
            check=False, timeout=50,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
        until(lambda: not os.listdir(tmp_path), "the janitor removes all names")

    def test_what_it_did_not_remove_at_its_end(
        self, worker: tuple[subprocess.Popen[str], list[str]]
    ) -> None:
        process, names = worker
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
        assert not any(map(exists, names))

    def test_a_file_that_took_the_name_afterwards_is_left_alone(
        self, worker: tuple[subprocess.Popen[str], list[str]]
    ) -> None:
        process, names = worker
        os.unlink(SHM / names[0])
        (SHM / names[0]).write_bytes(b"somebody else's")
        try:
            process.kill()
            until(lambda: not any(map(exists, names[1:])), "the janitor removes the others")
            assert (SHM / names[0]).read_bytes() == b"somebody else's"
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(SHM / names[0])

    def test_a_killed_janitor_is_replaced(self, blocks: NamedBlocks) -> None:
        blocks.take(1)
        janitor = _named._janitor._process
        assert janitor is not None
        janitor.kill()
        janitor.wait(20)
        blocks.take(PAGE_NBYTES * 100)
        again = _named._janitor._process
        assert again is not None
        assert again.pid != janitor.pid
        assert again.poll() is None

    def test_the_janitor_ends_with_the_last_of_them(self) -> None:
        first, second = NamedBlocks(), NamedBlocks()
        first.take(1)
        second.take(1)
        janitor = _named._janitor._process
        first.close()
        assert janitor is not None
        assert janitor.poll() is None
        second.close()
        assert janitor.poll() == 0

    def test_a_forked_child_removes_nothing_and_keeps_no_janitor(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout.split() == ["True", "False", "0"]

    def test_pythons_own_tracker_knows_of_none(self, blocks: NamedBlocks) -> None:
        """It would remove the block under a viewer when any child of this process ends."""
        before = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
        blocks.take(1).lend()
        assert resource_tracker._resource_tracker._fd == before  # type: ignore[attr-defined]
