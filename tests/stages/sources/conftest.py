from __future__ import annotations

import pytest

from tests.stages.sources.compressed_files import forget_all


@pytest.fixture(autouse=True)
def forget_streams():
    """Each test opens its streams anew."""
    forget_all()
