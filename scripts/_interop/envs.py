"""Environments of the real packages, made once from PyPI with `venv` and pip."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

INSTALL_LIMIT_S = 1800


def make(folder: Path, generation: str) -> Path:
    """Make an environment unless it is there; gives its Python.

    Others who want the same one wait for it. An interrupted one is made anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = REQUIREMENTS[generation]
    stamp_text = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()
    home = folder / generation
    stamp = home / ".installed"
    python = home / "bin" / "python"
    with (folder / f"{generation}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == stamp_text and python.exists():
            return python
        print(f"==> installing {', '.join(wanted[0])} (some minutes, once)", file=sys.stderr)
        run = [sys.executable, "-m", "venv", "--clear", str(home)]
        subprocess.run(run, check=True, timeout=300)
        environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
        for requirements in wanted:
            if requirements:
                subprocess.run(
                    [str(python), "-m", "pip", "install", "--quiet", "--no-input",
                     "--disable-pip-version-check", *requirements],
                    check=True, timeout=INSTALL_LIMIT_S, env=environment,
                )  # fmt: skip
        stamp.write_text(stamp_text)
    return python
