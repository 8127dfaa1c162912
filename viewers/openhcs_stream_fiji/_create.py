"""Start the viewer that was asked for, or say what is missing and how to mend it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import UsageError
from openhcs_stream_fiji._java import (
    end_quietly,
    find_java,
    jvm_options,
    needs_display,
    running_java,
    start_java,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.viewer import Viewer
    from openhcs_stream_fiji._java import Java

__all__ = ["create"]

#: Options, as regular expressions of what they may be; they come from the command line as text.
_OPTIONS = {
    "fiji": r".+",
    "java": r".+",
    "memory": r"[1-9]\d*[mMgG]",
    "round": "yes|no",
    "save": r".+",
}
#: With less, Java ends the process, or nothing but it fits.
_LEAST_NBYTES = 192 << 20
_LIBRARIES = "libx11-6 libxext6 libxi6 libxrender1 libxtst6 libfontconfig1 fonts-dejavu-core"


def create(*, headless: bool, title: str, options: Mapping[str, str]) -> Viewer:
    """Make the Fiji viewer.

    Parameters
    ----------
    headless : bool
        No window: hyperstacks, and ROIs as overlays, are held and can be saved.
    title : str
        Of ImageJ's main window.
    options : mapping
        ``fiji``: your own Fiji, its folder or an endpoint such as "sc.fiji:fiji", through
        pyimagej; or a folder of ImageJ 1 with its ``ij.jar``. By default ImageJ as it is on Maven
        Central, with nothing else. ``memory``: "8g", the most that images may take, by default
        60 % of the machine's. ``java``: home of another Java. ``round``: "yes" to round numbers
        that 32-bit floats can't hold, where they are refused by default. ``save``: a folder into
        which all hyperstacks are saved as TIFF when the viewer ends.

    Raises
    ------
    UsageError
        Java, the jar, a display or pyimagej is missing, or an option is unknown.
    """
    for name, value in options.items():
        if name not in _OPTIONS or not re.fullmatch(_OPTIONS[name], value):
            raise UsageError(
                f"the fiji viewer has no option {name}={value}.",
                cure="There are: fiji=PATH_OR_ENDPOINT, memory=8g, java=HOME, round=yes, "
                "save=FOLDER.",
            )
    memory = options.get("memory", "")
    if memory and int(memory[:-1]) << (30 if memory[-1] in "gG" else 20) < _LEAST_NBYTES:
        raise UsageError(
            f"memory={memory} is too little for ImageJ, Java and any image.",
            cure=f"Give it {_LEAST_NBYTES >> 20}m or more.",
        )
    save = options.get("save")
    if save and not Path(save).is_dir():
        raise UsageError(f"save={save} is no folder.", cure="Make it first.")
    if importlib.util.find_spec("jpype") is None:
        raise UsageError(
            f"JPype is not installed in {sys.prefix}.",
            cure="Install it with: pip install 'openhcs-stream[fiji]'.",
        )
    if not headless:
        needs_display()
    java, gateway = _java(headless, options)
    if not headless:
        _check_windows(java)
    from openhcs_stream_fiji._viewer import FijiViewer

    return FijiViewer(
        java,
        headless=headless,
        title=title,
        gateway=gateway,
        rounds=options.get("round") == "yes",
        save=Path(save) if save else None,
    )


def _java(headless: bool, options: Mapping[str, str]) -> tuple[Java, Any]:
    """Java with ImageJ in it, and ImageJ2's gateway where pyimagej brought it."""
    fiji = options.get("fiji", "")
    java = running_java()
    if java is not None:
        # There is one Java to a process and it can't be started again.
        if not headless and java.is_headless:
            raise UsageError(
                "Java runs in this process already, and without windows.",
                cure="Start the viewer in a process of its own.",
            )
        try:
            _ = java.ImagePlus
        except TypeError as error:
            raise UsageError(
                "Java runs in this process already, and without ImageJ.",
                cure="Start the viewer in a process of its own.",
            ) from error
        return java, None
    jar = _own_jar(fiji) if fiji else None
    if fiji and jar is None:
        return _through_pyimagej(fiji, headless=headless, options=options)
    from openhcs_stream_fiji._jar import imagej_jar

    library = find_java(options.get("java", ""))
    flags = jvm_options(library, headless=headless, memory=options.get("memory", ""))
    if jar is not None:
        flags.append(f"-Dplugins.dir={jar.parent}")
    return start_java(library, flags, [jar or imagej_jar()]), None


def _own_jar(fiji: str) -> Path | None:
    """The jar of a folder of ImageJ 1; None: it is a Fiji, or an endpoint.

    Raises
    ------
    UsageError
        It is a folder and neither.
    """
    path = Path(fiji).expanduser()
    if path.is_file() and path.suffix == ".jar":
        return path
    if not path.is_dir():
        if "/" in fiji or "\\" in fiji or ":" not in fiji:
            raise UsageError(
                f"there is no folder {fiji}.",
                cure="Name the folder of your Fiji (Fiji.app), or an endpoint: sc.fiji:fiji.",
            )
        return None
    for candidate in (path / "ij.jar", path / "Contents" / "Java" / "ij.jar"):
        if candidate.is_file():
            return candidate
    if not any((path / "jars").glob("ij*.jar")):
        raise UsageError(
            f"{path} is no Fiji: there is no jars/ij-*.jar in it.",
            cure="Name the folder of your Fiji: the one with its launcher, often Fiji.app or Fiji.",
        )
    return None


def _through_pyimagej(fiji: str, *, headless: bool, options: Mapping[str, str]) -> tuple[Java, Any]:
    try:
        import imagej
        import scyjava.config
    except ImportError as error:
        raise UsageError(
            f"your own Fiji needs pyimagej, which can't be imported: {error}.",
            cure="Install it with: pip install 'openhcs-stream[fiji-full]'.",
        ) from error
    import os

    from openhcs_stream_fiji._java import Java

    end_quietly()
    library = find_java(options.get("java", ""))
    # scyjava looks there; where it is set, it fetches no other.
    os.environ.setdefault("JAVA_HOME", str(_home_of(library)))
    flags = jvm_options(library, headless=headless, memory=options.get("memory", ""))
    scyjava.config.add_options(flags)
    # Else it fetches another Java, from where not everybody gets; "never" does not work (1.12).
    scyjava.config.set_java_constraints(fetch="auto")
    folder = Path(fiji).expanduser()
    if any((folder / "jars").glob("imglib2-imglyb-*.jar")):
        # All that pyimagej itself needs is there: nothing has to be fetched.
        scyjava.config.endpoints.clear()
    try:
        gateway = imagej.init(
            str(folder) if folder.is_dir() else fiji,
            mode="headless" if headless else "interactive",
        )
        java = Java()
        _ = java.ImagePlus
    except Exception as error:  # whatever pyimagej, scyjava, jgo or Java raises
        raise UsageError(
            f"pyimagej could not start {fiji}: {type(error).__name__}: {error}.",
            cure="Check that it starts by itself, or leave --option fiji= out and use the embedded "
            "ImageJ.",
        ) from error
    finally:
        end_quietly()  # scyjava has put an ending of its own before
    return java, gateway


def _home_of(library: Path) -> Path:
    """The home of the Java that a library belongs to: two or three folders up."""
    for folder in library.parents[1:4]:
        if (folder / "bin").is_dir() and (folder / "lib").is_dir():
            return folder
    return library.parents[2]


def _check_windows(java: Java) -> None:
    """Open no window, but see whether one could be opened."""
    try:
        java.Toolkit.getDefaultToolkit().getScreenSize()
        java.Font("SansSerif", 0, 12).canDisplay("a")
    except java.jpype.JException as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"ImageJ can't open a window: {text}.",
            cure="Check DISPLAY and XAUTHORITY, and the libraries: apt-get install "
            f"{_LIBRARIES}; or start with --headless.",
        ) from error
