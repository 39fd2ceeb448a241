"""The order of the files of tests, what they share, and what each of them has to leave as it was."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import browser, chromium
from tests.s3_server import S3Server, s3_server

__all__ = ["browser", "chromium"]

ROOT = Path(__file__).parent
# The files that take longest, longest first: they start Ray, runs that are killed, many ranks.
LONGEST = [
    "laws/test_interrupt.py",
    "laws/test_resume.py",
    "training/test_launch.py",
    "laws/test_pipeline.py",
    "docs/test_commands.py",
    "laws/test_world_size.py",
    "laws/test_engine.py",
]


@pytest.fixture(autouse=True)
def _the_process_as_it_was() -> Iterator[None]:
    """Fail a test that changes what all tests of its process share: they would fail in its place."""
    before = _shared_state()
    yield
    assert _shared_state() == before


def _shared_state() -> dict[str, object]:
    return {
        "level of the root logger": logging.root.level,
        "level up to which all loggers are silent": logging.root.manager.disable,
        "working directory": os.getcwd(),
    }


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """Yield an S3 server that fsspec uses; tests make buckets of their own in it."""
    with s3_server() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, then with the most slow tests, so that none is left to the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    longest = {ROOT / name: len(LONGEST) - place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (-longest.get(item.path, 0), -slow[item.path]))
