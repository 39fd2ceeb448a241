"""Repeated values are found wherever they stand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from koe import repeats
from koe.repeats import repeated


@given(st.lists(st.integers(-4, 4)), st.integers(1, 5))
def test_every_value_that_occurs_twice_is_listed_at_all_its_places(values, chunk):
    expected = [place for place, value in enumerate(values) if values.count(value) > 1]
    before, repeats._CHUNK = repeats._CHUNK, chunk
    try:
        assert repeated(np.array(values, np.int64)).tolist() == expected
    finally:
        repeats._CHUNK = before
