"""Bandwidth from a GPU to an arena, beside that of a copy into memory that is pinned anyway."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.bench import Figure
from openhcs_stream.pixels import PixelPool
from openhcs_stream.stream._device import DeviceArray, copy_into, on_device

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is demanded of the ratio.
LEAST = 0.9
_WARM_UP = 3


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_device", description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[8, 128], metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = _packages()
    if not found:
        reason = "no CUDA device here: neither torch nor cupy sees one"
        print(json.dumps({"skipped": reason}) if arguments.json else reason)
        return 0
    figures: dict[str, Any] = {}
    for name, prepare in found.items():
        for mib in arguments.mib:
            figures[f"{name}.{mib}MiB"] = _measure(prepare, mib << 20, arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for case, each in figures.items():
            ratio = each["arena_over_pinned"]
            print(
                f"{case:14s} arena {each['arena_gb_s']:6.1f} GB/s, pinned "
                f"{each['pinned_gb_s']:6.1f} GB/s, ratio {ratio['median']:.3f} "
                f"({ratio['q1']:.3f} to {ratio['q3']:.3f}), slots pinned: {each['slots_pinned']}"
            )
    return int(any(each["arena_over_pinned"]["median"] < LEAST for each in figures.values()))


Prepared = tuple[Any, "Callable[[], object]"]


def _packages() -> dict[str, Callable[[np.ndarray[Any, Any]], Prepared]]:
    """Who has a device: makes an array on it, and what copies that to memory pinned by itself."""
    found: dict[str, Callable[[np.ndarray[Any, Any]], Prepared]] = {}
    for name, prepare in (("torch", _torch), ("cupy", _cupy)):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if module.cuda.is_available():
            found[name] = prepare
    return found


def _torch(values: np.ndarray[Any, Any]) -> Prepared:
    import torch

    tensor = torch.from_numpy(values).cuda()
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)

    def copy() -> None:
        pinned.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()

    return tensor, copy


def _cupy(values: np.ndarray[Any, Any]) -> Prepared:
    import cupy
    import cupyx

    array = cupy.asarray(values)
    pinned = cupyx.empty_pinned(values.shape, values.dtype)

    def copy() -> None:
        stream = cupy.cuda.get_current_stream()
        array.get(stream=stream, out=pinned)
        stream.synchronize()

    return array, copy


def _measure(
    prepare: Callable[[np.ndarray[Any, Any]], Prepared], nbytes: int, rounds: int
) -> dict[str, Any]:
    values = np.random.default_rng(0).integers(0, 65536, (nbytes >> 12, 2048), np.uint16)
    array, copy_to_pinned = prepare(values)
    with PixelPool(quota_nbytes=max(4 * nbytes, 64 << 20)) as pool:
        slots_seen = set()

        def copy_to_arena() -> None:
            slot = pool.acquire(nbytes)
            assert slot is not None
            described = on_device(array)
            assert isinstance(described, DeviceArray)
            copy_into(slot, described, described.dtype.str)
            slots_seen.add(slot.address)
            pool.cancel(slot)

        for _ in range(_WARM_UP):
            copy_to_arena()
            copy_to_pinned()
        slot = pool.acquire(nbytes)
        assert slot is not None
        if not np.array_equal(slot.array(values.shape, values.dtype), values):
            sys.exit("what came to the arena is not what was on the device")
        pool.cancel(slot)
        seconds: dict[Callable[[], object], list[float]] = {copy_to_arena: [], copy_to_pinned: []}
        for _ in range(rounds):
            for act in (copy_to_arena, copy_to_pinned, copy_to_pinned, copy_to_arena):
                begin = time.perf_counter()
                act()
                seconds[act].append(time.perf_counter() - begin)
        arena, pinned = (np.reshape(each, (rounds, 2)).sum(1) for each in seconds.values())
        ratio = Figure.of([float(each) for each in pinned / arena])
        return {
            "arena_gb_s": round(2e-9 * nbytes / float(np.median(arena)), 2),
            "pinned_gb_s": round(2e-9 * nbytes / float(np.median(pinned)), 2),
            "arena_over_pinned": ratio.to_json(),
            "slots_pinned": _pinned(pool),
            "slots_used": len(slots_seen),
        }


def _pinned(pool: PixelPool) -> int:
    return sum(len(arena._unpin) for arena in pool.arenas())  # noqa: SLF001


if __name__ == "__main__":
    raise SystemExit(main())
