"""What the tests of the clients share: exports that take seconds to write."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.clients.exports import write_exports
from tests.shared import one_tokenizer
from tests.training.helpers import one_thread

__all__ = ["one_thread", "one_tokenizer"]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `tests.clients.exports.write_exports`.

    Made once a session, for all its processes: nobody may change it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "exports"
    with (root / "exports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            write_exports(folder)
            (folder / "complete").touch()
    return folder
