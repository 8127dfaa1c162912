"""A viewer, as a program, that gets into trouble when it is shown a layer of a certain name.

"fork": it has a child from then on, as plugins do. "no memory": it gets no more address space.
"no files": it can open no more files; "few files": 40 more. It prints its address, then the
child's process number.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from openhcs_stream.viewer import MemoryViewer, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.viewer import Coords, SceneLayer


class TroubledViewer(MemoryViewer):
    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        super().show_layer(layer, arrived)
        match layer.title:
            case "fork":
                child = os.fork()
                if child == 0:
                    signal.pause()
                print(child, flush=True)
            case "no memory":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + (48 << 20)
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            case "no files":
                limit = len(os.listdir("/proc/self/fd")) - 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            case "few files":
                limit = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 40
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


if __name__ == "__main__":
    serve(TroubledViewer(), on_ready=lambda endpoint: print(endpoint.addresses[0], flush=True))
