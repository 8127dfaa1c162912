"""The loop over the decoders: finds whatever ends otherwise than by an answer or a refusal."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from openhcs_stream.errors import LossyConversion
from scripts._fuzz.targets import TARGETS, Target

__all__ = ["Findings", "fuzz", "fuzz_with_atheris", "has_atheris", "limit_memory", "try_one"]

ROOT: Final = Path(__file__).resolve().parents[2]
#: One input may take this long; what takes longer is a finding.
SLOW_S: Final = 5.0
#: What one process may use: an input that makes more of itself is a finding.
MEMORY_NBYTES: Final = 6 << 30
#: Inputs that led somewhere new are kept to be changed further, so many of a target.
_KEPT: Final = 2000


@dataclass
class Findings:
    """What one target did."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def limit_memory() -> None:
    """Make what takes too much memory an error of its own, and libraries silent."""
    logging.disable()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", LossyConversion)  # what is lost is told: that is an answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_NBYTES, resource.RLIM_INFINITY))


def try_one(target: Target, data: bytes) -> tuple[str, str]:
    """Give one input to a target: ("accepted" | "refused" | "finding", what it said)."""
    began = time.monotonic()
    try:
        target.decode(data)
        said = ("accepted", "")
    except target.refusals as error:
        said = ("refused", f"{type(error).__name__}: {error}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "finding", "".join(traceback.format_exception(error))[-4000:]
    took = time.monotonic() - began
    return ("finding", f"it took {took:.1f} s") if took > SLOW_S else said


def fuzz(
    seconds: float, seed: int, names: list[str] | None = None, corpus: Path | None = None
) -> dict[str, Findings]:
    """Change samples of each target in turn until the time is up."""
    chosen = [TARGETS[name] for name in names or TARGETS]
    random = Random(seed)
    found = {target.name: Findings() for target in chosen}
    kept = {target.name: list(target.samples()) for target in chosen}
    ways: dict[str, set[str]] = {target.name: set() for target in chosen}
    for target in chosen:
        for sample in target.samples():
            what, said = try_one(target, sample)
            if what == "finding":
                _note(found[target.name], target, sample, said, corpus)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for target in chosen:
            turn = min(time.monotonic() + 0.2, end)
            while time.monotonic() < turn:
                pool = kept[target.name]
                data = target.mutation(random.choice(pool), random, pool)
                what, said = try_one(target, data)
                counts = found[target.name]
                counts.inputs += 1
                counts.accepted += what == "accepted"
                counts.refused += what == "refused"
                if what == "finding":
                    _note(counts, target, data, said, corpus)
                    continue
                # Another answer than before: worth going on from.
                way = re.sub(r"[0-9]+|'[^']*'", "", said)[:80] + str(len(data).bit_length())
                if way not in ways[target.name] and len(pool) < _KEPT:
                    ways[target.name].add(way)
                    pool.append(data)
    return found


def _note(counts: Findings, target: Target, data: bytes, said: str, corpus: Path | None) -> None:
    last = said.strip().splitlines()[-1][:200]
    # The same end again is no other finding.
    if len(counts.findings) >= 20 or any(each["what"] == last for each in counts.findings):
        return
    name = hashlib.sha256(data).hexdigest()[:16]
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / f"{target.name.replace(' ', '-')}-{name}").write_bytes(data)
    counts.findings.append(
        {"target": target.name, "what": last, "how": said, "input": data[:200].hex(), "name": name}
    )


# --- atheris --------------------------------------------------------------------------------------


def has_atheris() -> bool:
    """Whether the coverage-guided engine is installed."""
    return importlib.util.find_spec("atheris") is not None


def fuzz_with_atheris(
    seconds: float, seed: int, names: list[str] | None, corpus: Path
) -> dict[str, Findings]:
    """Give each target its share of the time, in a process of its own: atheris ends its process."""
    chosen = names or list(TARGETS)
    found = {name: Findings() for name in chosen}
    corpus.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        own = corpus / name.replace(" ", "-")
        seeds, artifacts = own / "corpus", own / "findings"
        for folder in (seeds, artifacts):
            folder.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(TARGETS[name].samples()):
            (seeds / f"sample-{number}").write_bytes(sample)
        earlier = set(artifacts.iterdir())
        share = max(1, int(seconds / len(chosen)))
        done = subprocess.run(
            [
                sys.executable, "-m", "scripts._fuzz.guided", name, str(seeds),
                f"-max_total_time={share}", f"-artifact_prefix={artifacts}/", f"-seed={seed + 1}",
                "-timeout=20", "-rss_limit_mb=6144", "-print_final_stats=1", "-verbosity=1",
            ],
            cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        counts = found[name]
        executed = re.search(r"number_of_executed_units:\s*([0-9]+)", done.stderr)
        counts.inputs = int(executed[1]) if executed else 0
        for path in sorted(artifacts.iterdir()):
            what, said = try_one(TARGETS[name], path.read_bytes())
            # What an earlier run found may be mended by now.
            if what == "finding" or path not in earlier:
                _note(counts, TARGETS[name], path.read_bytes(), said or what, None)
        if done.returncode and not counts.findings:
            counts.findings.append(
                {"target": name, "what": "atheris failed", "how": done.stderr[-4000:]}
            )
    return found
