"""Environments of the real packages, made once from PyPI with `venv` and pip."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

#: Of each generation the requirements. The second list is for the checks: what our own package
#: imports in a worker; what generation 2's Fiji viewer imports, which its package asks for in an
#: extra that brings much more; and what generation 3's registry imports and nobody asks for.
REQUIREMENTS: dict[str, tuple[list[str], list[str]]] = {
    "gen1": (["openhcs[viz,gui]==0.3.15", "pyzmq"], ["msgspec", "roifile"]),
    "gen2": (["openhcs[napari,gui]==0.8.6", "roifile"], ["msgspec", "jpype1", "scyjava"]),
    "gen3": (
        ["polystore==0.6.3", "zmqruntime==0.6.5", "roifile", "scikit-image"],
        ["msgspec", "pandas"],
    ),
}

#: Of each generation the exact version of everything that its requirements bring. Without them pip
#: takes the newest of everything, finds that the old packages can't live with some of it, and goes
#: back from version to version; one day it would find none, or packages that nobody tried together.
#: To renew one: empty its file, run scripts/interop on Python 3.11 (later ones take versions that
#: 3.11 can't), and if every check passes, keep what the environment holds, below the first line:
#: `build/interop/gen1/bin/python -m pip freeze >>scripts/_interop/constraints/gen1.txt`.
CONSTRAINTS = Path(__file__).resolve().parent / "constraints"

INSTALL_LIMIT_S = 1800


def make(folder: Path, generation: str) -> Path:
    """Make an environment unless it is there; gives its Python.

    Others who want the same one wait for it. An interrupted one is made anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packages, extra = REQUIREMENTS[generation]
    constraints = CONSTRAINTS / f"{generation}.txt"
    wanted = (packages, extra, constraints.read_text(), sys.version_info[:2])
    stamp_text = hashlib.sha256(repr(wanted).encode()).hexdigest()
    home = folder / generation
    stamp = home / ".installed"
    python = home / "bin" / "python"
    with (folder / f"{generation}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == stamp_text and python.exists():
            return python
        print(f"==> installing {', '.join(packages)} (some minutes, once)", file=sys.stderr)
        run = [sys.executable, "-m", "venv", "--clear", str(home)]
        subprocess.run(run, check=True, timeout=300)
        # A new pip first: the one that comes with Python may be years old, and only to read the
        # lists of the packages' releases takes it minutes.
        for arguments in (
            ["--upgrade", "pip"],
            ["--constraint", str(constraints), *packages, *extra],
        ):
            subprocess.run(
                [str(python), "-m", "pip", "install", "--quiet", "--no-input",
                 "--disable-pip-version-check", *arguments],
                check=True, timeout=INSTALL_LIMIT_S,
                env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
            )  # fmt: skip
        stamp.write_text(stamp_text)
    return python
