"""The processes of a benchmark: ``python -m openhcs_stream.bench viewer|original|worker ...``."""

from __future__ import annotations

import sys

from openhcs_stream.bench._original import serve_original
from openhcs_stream.bench._viewers import serve_viewer
from openhcs_stream.bench._worker import work

match sys.argv[1:]:
    case ["viewer", name]:
        serve_viewer(name)
    case ["original"]:
        serve_original()
    case ["worker", address]:
        work(address)
    case words:
        raise SystemExit(f"a benchmark has no process {words}.")
