"""The ``openhcs-stream`` command. Importing it is cheap: each command imports what it needs."""

from __future__ import annotations

from openhcs_stream.cli._main import main

__all__ = ["main"]
