from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from openhcs_stream.runtime import _ledger

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test's own, for it and the processes that it starts."""
    path = tmp_path / "runtime"
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(path))
    # Nothing that other tests of this process still hold.
    monkeypatch.setattr(_ledger, "_own", _ledger._Ledger())
    return path
