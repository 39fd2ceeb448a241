"""Whatever is wrong with a file, its records are kept or quarantined, each once, or it is refused by name.

`tests/fuzz` has the readers, and the long form: `make fuzz`.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import READERS
from tests.fuzz.reading import READ, read_in

pytestmark = pytest.mark.law
EXAMPLES = 40
NUMBERS = itertools.count()


@pytest.mark.parametrize("name", READERS)
def test_a_sound_source_is_read_whole(tmp_path, name):
    reader = READERS[name]
    files = {**reader.pack(reader.sound), **reader.whole}
    assert read_in(tmp_path / "sound", files, reader.source, is_sound=True) == READ


@pytest.mark.parametrize("name", READERS)
@given(data=st.binary(min_size=4, max_size=40))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_damage_stops_a_source(tmp_path, name, data):
    """A folder of its own for each example: what is known of a file is known by its path."""
    reader = READERS[name]
    read_in(tmp_path / str(next(NUMBERS)), reader.files(data), reader.source)
