"""``python -m openhcs_stream`` is ``openhcs-stream``."""

from __future__ import annotations

import sys

from openhcs_stream.cli import main

if __name__ == "__main__":
    sys.exit(main())
