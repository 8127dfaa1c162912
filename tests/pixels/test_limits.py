"""Memory that runs out is an error of ours, never a signal: in control groups and under ulimits."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.pixels import _limits, memory_left_nbytes, memory_limit_nbytes

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def test_the_machine_is_the_limit_without_control_groups(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_limit_nbytes(tmp_path / "none", tmp_path) == machine
    assert 0 < memory_limit_nbytes() <= machine


@pytest.mark.parametrize(
    ("line", "file", "limit"),
    [
        ("0::/work/here", "work/memory.max", 1 << 20),
        ("0::/work/here", "memory.max", 1 << 21),
        ("0::/work/here", "work/here/memory.max", "max"),
        ("4:memory:/work", "memory/work/memory.limit_in_bytes", 1 << 22),
        ("4:cpu,memory:/elsewhere", "memory/memory.limit_in_bytes", 1 << 23),
        ("4:cpu:/work", "cpu/work/memory.limit_in_bytes", "ignored"),
    ],
    ids=["parent", "top", "max", "v1", "v1-container", "v1-other"],
)
def test_control_groups_limit_memory(
    tmp_path: Path, line: str, file: str, limit: int | str
) -> None:
    (tmp_path / "groups").write_text(line + "\n")
    path = tmp_path / "fs" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{limit}\n")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    expected = limit if isinstance(limit, int) else machine
    assert memory_limit_nbytes(tmp_path / "groups", tmp_path / "fs") == expected


@pytest.mark.parametrize(
    ("line", "folder", "files", "left"),
    [
        (
            "0::/work",
            "work",
            {"memory.max": "1000", "memory.current": "900", "memory.stat": "inactive_file 50"},
            150,
        ),
        ("0::/work", "", {"memory.max": "1000", "memory.current": "1100"}, -100),
        ("0::/work", "work", {"memory.max": "max", "memory.current": "900"}, 5 << 10),
        (
            "4:memory:/work",
            "memory/work",
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "cache 7\ntotal_inactive_file 20\ntotal_active_file 30\n",
            },
            150,
        ),
        ("4:cpu:/work", "cpu/work", {"memory.limit_in_bytes": "1"}, 5 << 10),
    ],
    ids=["v2", "parent-over-its-limit", "no-limit", "v1", "other"],
)
def test_what_is_left_is_the_least_of_the_machine_and_the_groups(
    tmp_path: Path, line: str, folder: str, files: dict[str, str], left: int
) -> None:
    (tmp_path / "groups").write_text(line + "\n")
    (tmp_path / "fs" / folder).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "fs" / folder / name).write_text(content)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:          5 kB\n")
    paths = (tmp_path / "groups", tmp_path / "fs", tmp_path / "meminfo")
    assert memory_left_nbytes(*paths) == left


def test_what_is_left_where_nobody_tells(tmp_path: Path) -> None:
    assert memory_left_nbytes(tmp_path / "a", tmp_path, tmp_path / "b") == sys.maxsize
    (tmp_path / "b").write_text("nothing\n")
    assert memory_left_nbytes(tmp_path / "a", tmp_path, tmp_path / "b") == sys.maxsize
    assert 0 < memory_left_nbytes() <= memory_limit_nbytes()


def test_nobody_asks_again_while_there_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([4 << 30, 600 * MIB, 100 * MIB, 9 * MIB, 4 << 30])
    monkeypatch.setattr(_limits, "memory_left_nbytes", lambda: next(answers))
    monkeypatch.setattr(_limits, "_last", [float("-inf"), 0.0])
    monkeypatch.setattr(_limits, "_WHILE_S", 3600.0)
    assert all(_limits.has_memory_for(64 * MIB) for _ in range(56)), "one answer is enough"
    assert _limits.has_memory_for(64 * MIB), "a second: 512 MiB are not left of the first"
    assert _limits.has_memory_for(64 * MIB), "a third"
    assert not _limits.has_memory_for(4 * MIB), "a fourth: too little is left to others"
    assert _limits.has_memory_for(64 * MIB), "and there may be more later"
    with pytest.raises(StopIteration):
        monkeypatch.setattr(_limits, "_WHILE_S", -1.0)
        _limits.has_memory_for(1)


#: Takes all the slots that there are, writes to each, and says how it ended.
GREEDY = """
import resource, sys
from openhcs_stream.errors import OutOfSpace
from openhcs_stream.pixels import PixelPool
kind, limit, quota = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
if kind != "group":
    what = getattr(resource, kind)
    resource.setrlimit(what, (limit, limit))
slots = []
try:
    with PixelPool(quota_nbytes=quota, shared=True) as pool:
        while (slot := pool.acquire(1 << 20)) is not None:
            slot.memory[:] = 1
            slots.append(slot)
        print("full", pool.quota_nbytes)
except OutOfSpace as error:
    print("refused", error.what)
    assert error.cure
print(len(slots))
"""


def run_greedy(kind: str, limit: int, quota: int, *before: str) -> list[str]:
    done = subprocess.run(
        [*before, sys.executable, "-c", GREEDY, kind, str(limit), str(quota)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("kind", "limit", "quota"),
    [
        ("RLIMIT_AS", 1 << 30, 8 << 30),
        ("RLIMIT_FSIZE", 1 * MIB, 64 * MIB),
        ("RLIMIT_NOFILE", 4, 64 * MIB),
    ],
)
def test_a_ulimit_is_an_error_and_no_signal(kind: str, limit: int, quota: int) -> None:
    # Of the pool itself, or, where it was reached on the way, no more than the slots that it has.
    said = run_greedy(kind, limit, quota)[0]
    assert said.startswith(("refused", "full")), said


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 128 MiB; a shell that enters it is started by `sh`."""
    lines = Path("/proc/self/cgroup").read_text().splitlines() if sys.platform == "linux" else []
    memory = [line.split(":", 2) for line in lines if "memory" in line.split(":", 2)[1].split(",")]
    base = Path("/sys/fs/cgroup/memory") if memory else Path("/sys/fs/cgroup")
    limit = "memory.limit_in_bytes" if memory else "memory.max"
    group = base / f"openhcs-stream-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(128 * MIB))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.parametrize("quota", [0, 400 * MIB], ids=["default", "more-than-there-is"])
def test_a_control_group_is_an_error_and_no_kill(small_group: Path, quota: int) -> None:
    assert shutil.which("sh")
    enter = ("sh", "-c", f'echo $$ > {small_group}/cgroup.procs && exec "$@"', "sh")
    said, count = run_greedy("group", 0, quota, *enter)
    if quota:
        assert said.startswith("refused this process may use too little") or said.startswith("full")
    else:
        assert said == f"full {32 * MIB}", "a quarter of what the group may use"
    assert int(count) > 10


#: Takes named blocks and writes to all of each until there is no more; our own memory is elsewhere.
NAMED = """
import os
from openhcs_stream.errors import OutOfSpace
from openhcs_stream.pixels import NamedBlocks, PixelPool
MIB = 1 << 20
room = os.statvfs("/dev/shm")
assert room.f_blocks * room.f_frsize == 64 * MIB
blocks, taken = NamedBlocks(), []
try:
    while len(taken) < 100:
        taken.append(blocks.take(8 * MIB))
        taken[-1].octets[:] = 1
except OutOfSpace as error:
    print(len(taken), error.what, error.cure, flush=True)
with PixelPool(quota_nbytes=256 * MIB, shared=True) as pool:
    for _ in range(12):
        pool.acquire(8 * MIB).memory[:] = 1
blocks.close()
print("done")
"""


def test_a_dev_shm_of_64_mib_is_an_error_and_no_signal() -> None:
    """As containers have it: writing where no page can be had would end the process by SIGBUS."""
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    enter = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], check=False).returncode:
        pytest.skip("no other /dev/shm can be mounted here")
    done = subprocess.run(
        [*enter, sys.executable, "-c", NAMED],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    refused, last = done.stdout.splitlines()
    assert refused.startswith("8 there is no shared memory of")
    assert "--shm-size" in refused
    assert last == "done"
