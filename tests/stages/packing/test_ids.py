"""Repeated ids are found exactly, whatever their hashes are."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.packing.ids import first_of_its_id, hash_ids
from stages.packing.order import UnitSamples, plan_order
from stages.settings import InterleaveSettings


def naive(units):
    seen, first = set(), []
    for ids in units:
        for name in ids:
            first.append(name not in seen)
            seen.add(name)
    return first


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.text(max_size=2), max_size=12), max_size=8), st.integers(1, 5))
def test_the_first_of_equal_ids_is_marked_though_hashes_collide(units, num_hashes):
    bounds = np.cumsum([0, *(len(ids) for ids in units)])
    whole = [name for ids in units for name in ids]
    true = hash_ids(pa.chunked_array([whole], pa.string()))
    for hashes in (true, true % num_hashes):
        first = first_of_its_id(hashes, bounds, lambda unit: units[unit])
        assert first.tolist() == naive(units)


def test_ids_are_read_again_only_where_a_hash_repeats():
    read = []

    def ids(unit):
        read.append(unit)
        return [["a", "b"], ["c"], ["a"]][unit]

    hashes = np.array([7, 8, 9, 7])
    assert first_of_its_id(hashes, np.array([0, 2, 3, 4]), ids).tolist() == [True] * 3 + [False]
    assert read == [0, 2]


def bytes_per_sample(number):
    tracemalloc = pytest.importorskip("tracemalloc")

    def units():
        for k in range(number // 1000):
            rng = np.random.default_rng(k)
            lengths = rng.integers(100, 900, 1000).astype(np.int32)
            ids, text = np.arange(1000 * k, 1000 * k + 1000), np.full(1000, k % 3 == 0)
            yield UnitSamples(k, f"u{k}", pytest.fail, ids, text, lengths, lengths // 8 - 2)

    tracemalloc.start()
    try:
        order = plan_order(units(), InterleaveSettings(seed=0))
        assert sum(table.num_rows for table in order.tables()) == number
        return tracemalloc.get_traced_memory()[1] / number
    finally:
        tracemalloc.stop()


def test_the_order_holds_few_bytes_a_sample():
    """24 M samples have to fit in 1 GB; tables with their ids took 450 bytes each."""
    plan_order([], InterleaveSettings(seed=0))
    assert bytes_per_sample(1_000_000) < 60  # a fixed 15 MB of chunks is in it
