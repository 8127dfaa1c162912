"""The ledger: what a process made stands in it, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.runtime import (
    Entry,
    Identity,
    hold,
    identify,
    runtime_folder,
    sweep_ledgers,
    temporary_folder,
    written_whole,
)
from openhcs_stream.runtime import _ledger as ledger_module
from openhcs_stream.runtime._entries import read_entries, temporary_name, written

if TYPE_CHECKING:
    from collections.abc import Iterator


def ledgers() -> list[Path]:
    return sorted(path for path in runtime_folder().iterdir() if path.name.startswith(".held-"))


def made(path: Path, content: str = "it") -> None:
    path.write_text(content)


@contextlib.contextmanager
def process(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def said(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


#: Makes a file at argv[1] under a ledger and waits; stops before the step that argv[2] names.
MAKER = """
import os, sys
from pathlib import Path
from openhcs_stream.runtime import hold
def step(name):
    if sys.argv[2] == name:
        print(name, flush=True)
        sys.stdin.read()
held = hold("file", Path(sys.argv[1]))
step("held")
held.temporary.write_text("it")
step("made")
link = os.link
def stopping(*words, **named):
    step("before link")
    link(*words, **named)
    step("after link")
os.link = stopping
held.made()
step("named")
"""


def test_a_thing_is_made_under_a_random_name_and_then_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "it"
    held = hold("file", path)
    (ledger,) = ledgers()
    assert held.temporary.parent == tmp_path
    assert not held.temporary.exists()
    made(held.temporary)
    held.made()
    assert path.read_text() == "it"
    assert not held.temporary.exists()
    assert sweep_ledgers().removed == []
    assert ledger.exists()
    held.remove()
    held.remove()
    assert list(tmp_path.glob("it*")) == []
    assert ledgers() == []


def test_a_name_that_is_taken_is_not_given(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "it"
    made(path, "another's")
    held = hold("file", path)
    made(held.temporary)
    with pytest.raises(FileExistsError):
        held.made()
    held.abandon()
    assert path.read_text() == "another's"
    assert [each.name for each in tmp_path.iterdir() if each != folder] == ["it"]
    assert ledgers() == []


def test_what_was_not_made_gets_no_name(folder: Path, tmp_path: Path) -> None:
    held = hold("file", tmp_path / "it")
    with pytest.raises(FileNotFoundError, match="was not made"):
        held.made()
    held.release()
    assert ledgers() == []


@pytest.mark.parametrize("at", ["held", "made", "before link", "after link", "named"])
def test_a_kill_at_any_step_leaves_nothing(folder: Path, tmp_path: Path, at: str) -> None:
    path = tmp_path / "it"
    with process(MAKER, str(path), at) as maker:
        assert said(maker) == at
        assert sweep_ledgers().removed == []
        assert path.exists() == (at in ("after link", "named"))
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    would = sweep_ledgers(dry_run=True)
    assert len(would.removed) == (at != "held")
    assert len(ledgers()) == 1
    assert [each.path for each in sweep_ledgers().removed] == [each.path for each in would.removed]
    assert [each for each in tmp_path.iterdir() if each != folder] == []
    assert ledgers() == []


def test_a_name_that_is_anothers_by_now_stays(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "it"
    with process(MAKER, str(path), "named") as maker:
        said(maker)
        kept = path.with_name("kept")  # so that the other file can't get the same inode
        path.rename(kept)
        made(path, "another's")
        maker.kill()
        maker.wait()
    assert sweep_ledgers().removed == []
    assert path.read_text() == "another's"
    assert ledgers() == []


def test_one_that_comes_between_the_look_and_the_move_gets_its_name_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "it", os.rename
    held = hold("file", path)
    made(held.temporary)
    held.made()
    identity = identify(path)

    def late(source: Path, target: Path) -> None:
        rename(path, tmp_path / "kept")
        made(path, "another's")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    held.remove()
    assert path.read_text() == "another's"
    assert identify(tmp_path / "kept") == identity
    assert sorted(each.name for each in tmp_path.iterdir() if each != folder) == ["it", "kept"]


def test_a_sweeper_that_is_killed_at_it_is_followed_by_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it"
    with process(MAKER, str(path), "named") as maker:
        said(maker)
        maker.kill()
        maker.wait()

    unlink = os.unlink

    def killed(name: Path) -> None:
        if name.exists():
            raise KeyboardInterrupt
        unlink(name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", killed)
        sweep_ledgers()
    assert not path.exists()  # it was moved aside
    assert len(sweep_ledgers().removed) == 1
    assert [each for each in tmp_path.iterdir() if each != folder] == []


def test_what_was_there_and_is_taken_over(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "it"
    made(path)
    held = hold("segment", path, identity=identify(path))
    assert sweep_ledgers().removed == []
    held.remove()
    assert not path.exists()
    assert ledgers() == []


def test_a_file_of_two_names_loses_both(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a sweeper was killed between the two."""
    first, second = tmp_path / "one", tmp_path / "two"
    made(first)
    os.link(first, second)
    both = [hold("segment", path, identity=identify(path)) for path in (first, second)]
    unlink = os.unlink

    def killed(name: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", killed)
        both[0].remove()
    assert os.unlink is unlink
    both[1].remove()
    both[0].remove()
    assert [each for each in tmp_path.iterdir() if each != folder] == []
    assert ledgers() == []


def test_sockets_are_told_apart_though_inodes_are_used_again(folder: Path, tmp_path: Path) -> None:
    path = folder.parent / "s"
    with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as sock:
        sock.bind("s")
        first = identify(path)
        os.utime(path, ns=(1, 1))
        assert first is not None
        assert identify(path) != first


def test_entries_come_and_go_and_the_ledger_stays_small(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_COMPACT_NBYTES", 4096)
    lasting = hold("file", tmp_path / "lasting")
    for number in range(200):
        held = hold("file", tmp_path / f"{number}")
        (ledger,) = ledgers()
        held.release()
        held.release()
    assert ledger.stat().st_size < 8192
    with ledger.open("rb") as file:
        assert [each.final.name for each in read_entries(file.fileno())] == ["lasting"]
    assert sweep_ledgers().living >= {tmp_path / "lasting", lasting.temporary}
    lasting.release()
    assert ledgers() == []


def test_a_ledger_that_somebody_removed_is_written_anew(folder: Path, tmp_path: Path) -> None:
    first = hold("file", tmp_path / "one")
    (ledger,) = ledgers()
    ledger.unlink()
    second = hold("file", tmp_path / "two")
    assert len(ledgers()) == 1
    assert sweep_ledgers().living >= {tmp_path / "one", tmp_path / "two"}
    first.release()
    second.release()
    assert ledgers() == []


def test_a_line_that_was_not_written_whole_is_left_out(folder: Path, tmp_path: Path) -> None:
    entry = hold("file", tmp_path / "it")
    whole, torn = written(0, entry.entry), written(1, entry.entry)
    entry.release()
    path = runtime_folder() / ".held-0123456789abcdef"
    path.write_bytes(whole + torn[:-1])
    with path.open("rb") as file:
        assert read_entries(file.fileno()) == [entry.entry]
    assert sweep_ledgers().kept == []
    assert not path.exists()


@pytest.mark.parametrize("content", [b"\0" * 64, b"{}" * 8, b"\xff" * 7 + b"\1" * 64])
def test_a_broken_ledger_stays_and_is_told(folder: Path, content: bytes) -> None:
    path = runtime_folder() / ".held-0123456789abcdef"
    path.write_bytes(content)
    if len(content) < 8 + int.from_bytes(content[:4], "little"):
        assert sweep_ledgers().kept == []  # a line that was cut off
        return
    sweep = sweep_ledgers()
    assert [each.path for each in sweep.kept] == [path]
    assert "can't be told" in sweep.kept[0].why
    assert path.exists()


@pytest.mark.parametrize(
    ("path", "temporary"),
    [
        (b"/tmp/a\0b", b""),
        (b"relative", b""),
        (b"/", b""),
        (b"/tmp/it", b"../it"),
        (b"/tmp/it", b".."),
        (b"/tmp/it", b"a\0b"),
    ],
)
def test_a_ledger_of_impossible_names_is_broken(
    folder: Path, path: bytes, temporary: bytes
) -> None:
    ledger = runtime_folder() / ".held-0123456789abcdef"
    ledger.write_bytes(written(0, Entry("file", path, temporary, Identity(1, 1))))
    for dry_run in (True, False):
        sweep = sweep_ledgers(dry_run=dry_run)
        assert sweep.removed == []
        assert [each.path for each in sweep.kept] == [ledger]
        assert "names nothing that can be there" in sweep.kept[0].why


def test_what_cannot_be_looked_at_stays_and_is_told(folder: Path, tmp_path: Path) -> None:
    """A name too long stands for a folder that can't be entered, or a server that is lost."""
    there = tmp_path / "it"
    made(there)
    ledger = runtime_folder() / ".held-0123456789abcdef"
    long = Entry("file", os.fsencode(tmp_path / ("x" * 300)), b"", Identity(1, 1))
    ledger.write_bytes(
        written(0, long) + written(1, Entry("file", os.fsencode(there), b"", identify(there)))
    )
    sweep = sweep_ledgers()
    assert [each.path for each in sweep.removed] == [there]
    assert ["can't be told" in each.why for each in sweep.kept] == [True]
    assert ledger.exists()
    assert not there.exists()


def test_a_forged_ledger_reaches_no_plain_file(folder: Path, tmp_path: Path) -> None:
    """Only the same user could write one; still, a temporary name must look like ours."""
    import msgspec

    victim = tmp_path / "thesis"
    made(victim)
    entry = hold("file", tmp_path / "x")
    entry.release()
    forged = msgspec.structs.replace(entry.entry, temporary=b"thesis")
    (runtime_folder() / ".held-0123456789abcdef").write_bytes(written(0, forged))
    assert sweep_ledgers().removed == []
    assert victim.exists()


def test_a_forked_child_neither_holds_nor_removes(folder: Path, tmp_path: Path) -> None:
    program = MAKER.replace(
        'step("named")',
        """
child = os.fork()
if child == 0:
    held.remove()
    hold("file", Path(sys.argv[1] + "-of-child"))
    print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
os.waitid(os.P_PID, child, os.WNOWAIT | os.WNOHANG | os.WEXITED)
sys.stdin.read()
""",
    )
    path = tmp_path / "it"
    with process(program, str(path), "never") as maker:
        assert said(maker) == "child"
        assert path.exists()
        assert len(ledgers()) == 2
        maker.kill()
        maker.wait()
        assert [each.path for each in sweep_ledgers().removed] == [path]
        assert maker.stdin is not None
        maker.stdin.close()


def test_a_file_is_written_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    made(path, "old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as temporary:
        made(temporary, "half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    with written_whole(path) as temporary:
        made(temporary, "new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert [each for each in tmp_path.iterdir() if each != folder] == [path]
    assert ledgers() == []


def test_a_temporary_folder_goes_with_its_process(folder: Path, tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as here:
        made(here / "file")
        assert sweep_ledgers().removed == []
    assert not here.exists()
    program = """
import sys
from pathlib import Path
from openhcs_stream.runtime import temporary_folder
with temporary_folder(Path(sys.argv[1])) as here:
    (here / "below").mkdir()
    (here / "below" / "file").write_text("it")
    print(here, flush=True)
    sys.stdin.read()
"""
    with process(program, str(tmp_path)) as maker:
        here = Path(said(maker))
        assert (here / "below" / "file").exists()
        maker.kill()
        maker.wait()
    (found,) = sweep_ledgers().removed
    assert (found.kind, found.path) == ("folder", here)
    assert found.nbytes > 0
    assert not here.exists()


def test_temporary_names_are_random() -> None:
    assert len({temporary_name() for _ in range(100)}) == 100
