"""Worker and viewer as processes of their own: every dtype, layout and place, pixel by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.messages import DTYPES

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream import Stream


def read(stream: Stream, layer: str, place: dict[str, Any]) -> npt.NDArray[Any]:
    """What the viewer's process holds."""
    found = stream.request("read", layer=layer, place=place)
    array: npt.NDArray[Any] = np.frombuffer(found["data"], found["dtype"])
    return array.reshape(found["shape"])


def pixels(dtype: str, seed: int) -> npt.NDArray[Any]:
    """Every bit pattern is as likely as any other, except that of NaN."""
    raw = np.random.default_rng(seed).integers(0, 256, (23, 41, 8), np.uint8)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return raw[..., 0] > 127
    array = np.frombuffer(raw[..., : kind.itemsize].tobytes(), kind).reshape(23, 41).copy()
    if kind.kind == "f":
        array[~np.isfinite(array)] = 0
    return array


@pytest.mark.parametrize("side_lane", [True, False], ids=["shared-memory", "zeromq"])
def test_everything_arrives_as_it_was(
    viewer_process: Callable[..., tuple[subprocess.Popen[str], str]], side_lane: bool
) -> None:
    _, address = viewer_process()
    sent: list[tuple[str, dict[str, Any], npt.NDArray[Any]]] = []
    with openhcs_stream.connect(address, side_lane=side_lane) as stream:
        for number, dtype in enumerate(sorted(DTYPES)):
            for well in ("A01", "A02", "B10"):
                for z in (3, 1, 2):
                    place = {"well": well, "site": 1, "z": z, "time": 0}
                    array = pixels(dtype, 100 * number + z + ord(well[0]))
                    stream.image(array, name=dtype, place=place)
                    sent.append((dtype, place, array))
        for name, array in {
            "reversed": pixels("<u2", 1)[::-1, ::-2],
            "transposed": pixels("<u4", 2).T,
            "big-endian": pixels("<u2", 3).astype(">u2"),
        }.items():
            stream.image(array, name=name)
            sent.append((name, {}, array))
        rgb = np.random.default_rng(0).integers(0, 256, (30, 20, 4), np.uint8)
        stream.image(rgb, name="rgba", axes="YXS")
        sent.append(("rgba", {}, rgb))
        out = stream.allocate((64, 65), "float32")
        out[:] = np.arange(64 * 65).reshape(64, 65)
        sent.append(("allocated", {}, out.copy()))
        stream.image(out, name="allocated")
        stack = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
        stream.image(stack, name="own axes", axes="TZYX", place={"well": "A01"})
        sent.extend(
            ("own axes", {"well": "A01", "time": t, "z": z}, stack[t, z])
            for t in range(2)
            for z in range(3)
        )
        stream.flush()
        for layer, place, array in sent:
            got = read(stream, layer, place)
            assert got.dtype == array.dtype.newbyteorder("="), layer
            np.testing.assert_array_equal(got, array, err_msg=f"{layer} {place}")
