"""Time points that had to make room are gone from napari, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from openhcs_stream.stream import connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import create

pytest.importorskip("napari")


def test_the_oldest_time_points_make_room() -> None:
    viewer = create("napari", headless=True)
    with run_receiver(viewer, memory_nbytes=16 << 20, when_memory_full="oldest") as running:
        with connect(running.address) as stream:
            for time in range(30):
                at = {"time": time}
                pixels = np.full((1024, 512), time, np.uint8)
                stream.image(pixels, name="raw", place=at).wait()
                stream.labels(pixels, name="cells", place=at).wait()
                stream.rois([np.array([[0.0, 0], [0, 9], [9, 9]])], name="rims", place=at).wait()
                if time == 5:
                    # What a person chose stays as it was chosen.
                    native = viewer.model.layers["raw"]  # type: ignore[attr-defined]
                    native.contrast_limits = (3, 77)
            (times,) = (axis.values for axis in running.receiver.scene.axes)
            layers = viewer.model.layers  # type: ignore[attr-defined]
            assert [each.name for each in layers] == ["raw", "cells", "rims"]
            assert layers["raw"] is native
            assert tuple(native.contrast_limits) == (3, 77)
            assert 4 < len(times) < 20
            assert list(times) == list(range(30 - len(times), 30))
            assert native.data.shape == layers["cells"].data.shape == (len(times), 1024, 512)
            for index, value in enumerate(times):
                assert np.unique(np.asarray(native.data[index])).tolist() == [value]
                viewer.go_to(time=value)  # type: ignore[attr-defined]
                assert np.unique(native._slice.image.raw).tolist() == [value]
                assert len(layers["rims"].data) == 1
