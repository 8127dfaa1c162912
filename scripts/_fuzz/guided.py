"""One decoder under atheris, guided by which of our own lines an input reaches.

As a program: the target's name, then libFuzzer's arguments. It never returns: atheris ends it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main(arguments: list[str]) -> None:
    """Feed one target until its time is up."""
    atheris: Any = importlib.import_module("atheris")  # it has no types
    # Not what we use: numpy alone would take most of a minute.
    with atheris.instrument_imports(include=["openhcs_stream"]):
        decoders = importlib.import_module("scripts._fuzz.decoders")
    target = decoders.TARGETS[arguments[0]]

    def test_one(data: bytes) -> None:
        what, said = decoders.try_one(target, data)
        if what == "finding":
            raise AssertionError(said)

    atheris.Setup([sys.argv[0], *arguments[1:]], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
