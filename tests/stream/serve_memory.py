"""A viewer process for tests: keeps everything in memory, prints its address, serves."""

from __future__ import annotations

import sys

from openhcs_stream.viewer import MemoryViewer, serve

if __name__ == "__main__":
    required = tuple(sys.argv[1:])
    serve(
        MemoryViewer(),
        required=required,
        on_ready=lambda endpoint: print(endpoint.addresses[0], flush=True),
    )
