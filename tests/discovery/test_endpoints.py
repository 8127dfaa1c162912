from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream.discovery import (
    Endpoint,
    endpoints,
    find,
    publish,
    sweep,
)
from openhcs_stream.errors import UsageError
from openhcs_stream.runtime import runtime_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Publishes argv[1] (a name), says so, and holds it until its standard input ends.
HOLDER = """
import os, sys, time
from openhcs_stream.discovery import Endpoint, publish
from openhcs_stream.errors import UsageError
endpoint = Endpoint("memory", sys.argv[1], os.getpid(), time.time(), (1, 0),
                    ("tcp://127.0.0.1:" + sys.argv[2],), "secret", True)
sys.stdin.readline() if "wait" in sys.argv else None
try:
    publication = publish(endpoint, number="number" in sys.argv)
except UsageError:
    print("taken", flush=True)
else:
    print("published " + publication.endpoint.name, flush=True)
    sys.stdin.read()
    publication.close()
"""


def make(name: str = "one", **changes: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "viewer": "memory",
        "name": name,
        "pid": os.getpid(),
        "started": time.time(),
        "protocol": (1, 0),
        "addresses": ("ipc:///tmp/x", "tcp://127.0.0.1:4711"),
        "token": "secret",
        "headless": True,
    }
    return Endpoint(**fields | changes)


@contextlib.contextmanager
def holder(name: str, port: int = 1, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name, str(port), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def stale_files() -> list[Path]:
    return [found.path for found in sweep(dry_run=True).removed]


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_round_trip(folder: Path) -> None:
    endpoint = make()
    with publish(endpoint) as publication:
        assert publication.path == folder / "memory-one.json"
        assert stat.S_IMODE(publication.path.stat().st_mode) == 0o600
        assert endpoints() == [endpoint] == endpoints("memory")
        assert endpoints("napari") == []
        assert find("memory") == endpoint
        assert stale_files() == []
    assert list(folder.iterdir()) == []
    publication.close()


def test_order_and_filters(folder: Path) -> None:
    old = make("old", started=1.0, addresses=("tcp://127.0.0.1:1",))
    new = make("new", started=3.0, addresses=("ipc:///tmp/y",))
    middle = make("a-b.c", started=2.0, addresses=("ipc:///z", "tcp://127.0.0.1:2"))
    with publish(old), publish(new), publish(middle):
        assert endpoints() == [new, middle, old]
        assert find("memory") == new
        assert find("memory", port=1) == old
        assert find("memory", port=2) == middle
        assert find("memory", port=3) is None
        assert find("memory", name="a-b.c") == middle
        assert find("memory", name="old", port=2) is None
        assert find("mem") is None


def test_port_property() -> None:
    assert make().port == 4711
    assert make(addresses=("ipc:///x",)).port is None


def test_repr_hides_the_token() -> None:
    assert "secret" not in repr(make())


def test_name_taken_by_a_living_viewer(folder: Path) -> None:
    with publish(make()) as first:
        with pytest.raises(UsageError, match=r"'one' already.*--name.*openhcs-stream stop one"):
            publish(make())
        assert endpoints() == [first.endpoint]
        assert [path.name for path in folder.iterdir()] == ["memory-one.json"]
        with publish(make(), number=True) as second, publish(make(), number=True) as third:
            assert second.endpoint.name == "one-2"
            assert third.endpoint.name == "one-3"
            assert len(endpoints()) == 3
    with publish(make(viewer="napari")), publish(make()):
        assert len(endpoints()) == 2


def test_long_name_is_numbered_within_its_bounds(folder: Path) -> None:
    with publish(make("n" * 64)), publish(make("n" * 64), number=True) as second:
        assert second.endpoint.name == "n" * 62 + "-2"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "../up"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": ".hidden"},
        {"name": "n" * 65},
        {"viewer": "with-dash"},
        {"viewer": "Upper"},
        {"viewer": ""},
        {"addresses": ()},
        {"addresses": ("x" * 2000,)},
        {"pid": -1},
    ],
    ids=lambda changes: "-".join(f"{key}-{str(value)[:8]!r}" for key, value in changes.items()),
)
def test_what_cannot_be_published(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="can't be"):
        publish(make(**changes))
    assert not folder.exists() or list(folder.iterdir()) == []


def test_killed_viewer_is_not_found_and_its_file_goes(folder: Path) -> None:
    with holder("one", 7) as process:
        assert said(process) == "published one"
        endpoint = find("memory", port=7)
        assert endpoint is not None
        assert endpoint.pid == process.pid
        assert stale_files() == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    path = folder / "memory-one.json"
    assert stale_files() == [path]
    assert path.exists()
    assert endpoints() == []
    assert not path.exists()


def test_name_of_a_killed_viewer_is_free(folder: Path) -> None:
    with holder("one") as process:
        assert said(process) == "published one"
        process.kill()
        process.wait()
    endpoint = make()
    with publish(endpoint):
        assert endpoints() == [endpoint]


def test_ending_of_itself_removes_the_file(folder: Path) -> None:
    with holder("one") as process:
        assert said(process) == "published one"
        process.communicate("", timeout=30)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("stale", [False, True], ids=["free", "stale"])
def test_publishers_at_once_leave_one(folder: Path, stale: bool) -> None:
    if stale:
        runtime_folder()
        (folder / "memory-one.json").write_text("left by the dead")
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(holder("one", n, "wait")) for n in range(8)]
        for process in crowd:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = sorted(said(process) for process in crowd)
        assert answers == ["published one"] + ["taken"] * 7
        assert len(endpoints()) == 1
        assert [path.name for path in folder.iterdir()] == ["memory-one.json"]


def test_numbered_publishers_at_once_all_stand(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(holder("one", n, "wait", "number")) for n in range(6)]
        for process in crowd:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        names = sorted(said(process).removeprefix("published ") for process in crowd)
        assert names == ["one", "one-2", "one-3", "one-4", "one-5", "one-6"]
        assert sorted(endpoint.name for endpoint in endpoints()) == names


def test_lookers_never_disturb_publishers(folder: Path) -> None:
    """A reader must not take a living viewer for dead, nor keep a publisher from its name."""
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from openhcs_stream.discovery import endpoints\n"
            "print('looking', flush=True)\n"
            "while True: endpoints()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with looker:
        try:
            assert said(looker) == "looking"
            for number in range(200):
                with publish(make(started=float(number))) as publication:
                    assert find("memory") == publication.endpoint
        finally:
            looker.kill()


def test_child_program_does_not_keep_the_lock(folder: Path) -> None:
    publication = publish(make())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        os.close(publication._fd)  # as at this process's death
        publication._fd = -1
        assert stale_files() == [publication.path]
        child.communicate(b"\n", timeout=30)
    assert endpoints() == []


def test_forked_child_does_not_keep_the_lock(folder: Path) -> None:
    """A fork shares the open file, and the lock with it, unless it lets go."""
    script = HOLDER.replace(
        "sys.stdin.read()",
        "child = os.fork()\n"
        "    if child == 0:\n"
        "        publication.close()\n"
        "        os.write(1, b'child\\n')  # whole, though two processes write to this pipe\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    os.write(1, f'{child}\\n'.encode())\n"
        "    sys.stdin.read()",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "one", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert said(process) == "published one"
        lines = {said(process), said(process)}
        child = int((lines - {"child"}).pop())
        try:
            assert find("memory") is not None  # the child's close() took nothing away
            process.kill()
            process.wait()
            assert stale_files() == [folder / "memory-one.json"]
        finally:
            os.kill(child, signal.SIGKILL)


def test_cleared_folder_does_not_disturb_closing(folder: Path) -> None:
    first = publish(make())
    first.path.unlink()
    with publish(make()) as second:
        first.close()
        assert endpoints() == [second.endpoint]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 60_000,
        b"\xff" * 100,
        b'{"viewer": "\xff"}',
        b" " * 70_000,
        json.dumps({"viewer": "memory"}).encode(),
        json.dumps(
            {
                "viewer": "memory",
                "name": "other",
                "pid": 1,
                "started": 1.0,
                "protocol": [1, 0],
                "addresses": ["ipc:///x"],
                "token": "",
                "headless": True,
            }
        ).encode(),
    ],
    ids=["empty", "cut", "list", "deep", "binary", "no-text", "long", "fields", "other-name"],
)
def test_broken_file_of_a_living_owner_is_skipped(
    folder: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with publish(make()) as broken, publish(make("two")) as whole:
        os.ftruncate(broken._fd, 0)
        os.pwrite(broken._fd, content, 0)
        with caplog.at_level(logging.WARNING, "openhcs_stream.discovery"):
            assert endpoints() == [whole.endpoint]
        assert "memory-one.json" in caplog.text
        assert broken.path.exists()


def test_unknown_fields_are_a_later_versions(folder: Path) -> None:
    with publish(make()) as publication:
        content = json.loads(publication.path.read_text())
        publication.path.write_text(json.dumps(content | {"colour": "blue"}))
        assert endpoints() == [publication.endpoint]


def test_half_published_files_are_cleared(folder: Path) -> None:
    runtime_folder()
    (folder / ".new-0123456789abcdef").write_text("")
    (folder / "notes.txt").write_text("not ours")
    assert [path.name for path in stale_files()] == [".new-0123456789abcdef"]
    assert endpoints() == []
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_link_in_the_folder_is_skipped(folder: Path, tmp_path: Path) -> None:
    runtime_folder()
    target = tmp_path / "target"
    target.write_text("{}")
    (folder / "memory-link.json").symlink_to(target)
    assert endpoints() == []
    assert target.exists()


def test_looking_without_clearing_removes_nothing(folder: Path) -> None:
    with holder("one") as process:
        assert said(process) == "published one"
        process.kill()
        process.wait()
    assert endpoints(clear=False) == []
    assert (folder / "memory-one.json").exists()
