"""What the doctor looks at for Fiji."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from openhcs_stream.errors import UsageError
from openhcs_stream_fiji import VIEWER, _checks, _jar

if TYPE_CHECKING:
    from pathlib import Path

    from openhcs_stream_fiji._checks import Finding


def found() -> dict[str, Finding]:
    return {finding[0]: finding for finding in _checks.checks()}


def test_the_registered_row_names_them() -> None:
    assert VIEWER.checks == f"{_checks.__name__}:checks"


def test_without_jpype_nothing_else_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checks, "find_spec", lambda _: None)
    ((check, state, _, cure),) = _checks.checks()
    assert (check, state) == ("java", "warn")
    assert "openhcs-stream[fiji]" in cure


def test_java_and_the_jar_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("jpype")
    jar = tmp_path / "ij.jar"
    jar.touch()
    monkeypatch.setenv(_jar.VARIABLE, str(jar))
    monkeypatch.setenv("FIJI_HOME", str(tmp_path / "nowhere"))
    facts = found()
    assert facts["java"][1] == "ok"
    assert facts["java"][2][0].isdigit()
    assert facts["imagej"][1:] == ("ok", str(jar), "")
    assert facts["fiji"][1] == "ok"
    monkeypatch.setenv(_jar.VARIABLE, str(tmp_path / "absent.jar"))
    assert found()["imagej"][1] == "fail"


def test_java_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> Path:
        raise UsageError("there is no Java.", cure="Install one.")

    monkeypatch.setattr(_checks, "find_java", none)
    monkeypatch.setattr(_checks, "find_spec", lambda _: object())
    assert found()["java"] == ("java", "fail", "there is no Java.", "Install one.")


@pytest.mark.parametrize("is_fetchable", [True, False])
def test_a_jar_that_is_not_here_yet(monkeypatch: pytest.MonkeyPatch, is_fetchable: bool) -> None:
    monkeypatch.setattr(_checks, "found_jar", lambda: None)
    monkeypatch.setattr(_checks, "is_fetchable", lambda _: is_fetchable)
    _, state, text, cure = _checks._jar()
    assert state == ("ok" if is_fetchable else "fail")
    assert ("first start" in text) == is_fetchable
    assert ("OPENHCS_STREAM_IMAGEJ_JAR" in cure) == (not is_fetchable)


def test_nothing_is_fetchable_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy or mirror this machine has: where nobody listens, nothing is to be had."""
    constants = pytest.importorskip("jgo.constants")
    monkeypatch.setattr(constants, "MAVEN_CENTRAL_URL", "http://127.0.0.1:9/maven2")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not _jar.is_fetchable(2.0)


def test_a_fiji_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    monkeypatch.setenv("FIJI_HOME", str(tmp_path))
    monkeypatch.setattr(_checks, "find_spec", lambda _: object())
    assert _checks._fiji() == ("fiji", "ok", f"use your own with --fiji {tmp_path}", "")
    monkeypatch.setattr(_checks, "find_spec", lambda name: None if name == "imagej" else object())
    _, state, _, cure = _checks._fiji()
    assert state == "warn"
    assert "fiji-full" in cure
    (tmp_path / "ij.jar").touch()  # a folder of ImageJ 1 needs no more
    assert _checks._fiji()[1] == "ok"
