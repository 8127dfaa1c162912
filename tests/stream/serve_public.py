"""A viewer process that other machines can reach: prints its file, serves from memory."""

from __future__ import annotations

import sys

from openhcs_stream.discovery import viewer_file
from openhcs_stream.viewer import MemoryViewer, serve

if __name__ == "__main__":
    serve(
        MemoryViewer(),
        port=int(sys.argv[2]),
        public=sys.argv[1],
        on_ready=lambda endpoint: print(viewer_file(endpoint), flush=True),
    )
