"""``python -m openhcs_stream_fiji``: fetch ImageJ once, so that later starts need no network."""

from __future__ import annotations

import sys

from openhcs_stream.errors import StreamError
from openhcs_stream_fiji._jar import imagej_jar


def main() -> int:
    """Fetch the jar where it is missing and say where it is."""
    try:
        print(imagej_jar())
    except StreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
