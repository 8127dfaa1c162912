"""README's example of correcting by hand is run as it stands, with a person at the viewer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import Change, MemoryViewer

README = Path(__file__).resolve().parents[1] / "README.md"


class Person(MemoryViewer):
    """Deletes the first outline of what is asked about, and says Done."""

    asked: list[str]

    def show_question(self, question: object) -> None:
        super().show_question(question)  # type: ignore[arg-type]
        if self.question is None:
            return
        self.asked.append(self.question.text)
        layer = next(each for key, each in self.layers.items() if key.name == "nuclei")
        coords = tuple(self.question.place.values())
        base = layer.items[coords]
        self.report_edit(Change(layer, coords, base, base[1:], range(1, len(base))))
        answer = self.question.answer
        self.do(lambda: answer("done"))


def test_corrections_are_in_the_labels_that_it_goes_on_with(
    own_runtime_folder: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    (code,) = (block for block in blocks if ".ask(" in block)
    image = np.full((64, 64), 100, np.uint16)
    for corner in (4, 20, 40):
        image[corner : corner + 9, corner : corner + 6] = 3000
    tifffile.imwrite(tmp_path / "A01.tif", image)
    viewer = Person()
    viewer.asked = []
    with run_receiver(viewer, publish=True, name="napari"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 nuclei after 1 corrections\n"
    assert viewer.asked == ["Please check the outlines."]
