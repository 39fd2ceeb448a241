"""What the tests of the clients share: exports that take seconds to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.exports import write_exports
from tests.shared import once_a_session, one_tokenizer
from tests.training.helpers import one_thread

__all__ = ["one_thread", "one_tokenizer"]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `tests.clients.exports.write_exports`.

    Made once a session, for all its processes: nobody may change it.
    """
    return once_a_session(tmp_path_factory, "exports", write_exports)
