"""Groups of units are bounded and hold every piece once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koe.errors import ContractError
from koe.schema import ORDER
from stages.packing.exchange import Placements, by_shard, group_units
from stages.packing.order import plan_order
from stages.settings import InterleaveSettings
from tests.stages.samples import corpus, described


@given(st.lists(st.integers(0, 100)), st.integers(1, 200), st.data())
def test_groups_hold_all_units_and_no_more_than_they_may(held, most, data):
    others = data.draw(st.lists(st.integers(0, 10**9), min_size=len(held), max_size=len(held)))
    read = np.array(held, np.int64) + np.array(others, np.int64)
    lasts = group_units(np.array(held, np.int64), read, most)
    assert lasts == sorted(set(lasts))
    assert sum(held[: lasts[-1] + 1] if lasts else ()) == sum(held)
    for first, last in zip([0, *(last + 1 for last in lasts)], lasts, strict=False):
        units = [unit for unit in range(first, last + 1) if held[unit]]
        assert units
        assert len(units) == 1 or sum(held[unit] for unit in units) <= most


def placed(order, shards, group_tokens):
    placements = Placements(shards, group_tokens)
    slices = list(placements.slices(table for table in order.tables()))
    return slices, list(placements.groups())


@pytest.mark.parametrize("group_tokens", [1, 20_000, 1 << 26])
def test_placements_are_the_order_by_unit(group_tokens):
    settings = InterleaveSettings(seed=0, shard_megabytes=0.05)
    order = plan_order(described(corpus()), settings)
    chosen = order.shard_names()[1::2]
    slices, groups = placed(order, chosen, group_tokens)
    shards = order.shards()
    assert len(slices) == len(chosen)
    assert all(part.equals(shards[name]) for name, part in zip(chosen, slices, strict=True))
    last = -1
    for group in groups:
        units = group["unit"].to_numpy()
        assert last < units[0]
        assert (np.diff(units) >= 0).all()
        last = units[-1]
    found = pa.concat_tables(groups).sort_by([("shard", "ascending"), ("place", "ascending")])
    together = pa.concat_tables(slices)
    for name in ("unit", "sample", "start", "stop"):
        assert found[name].to_pylist() == together[name].to_pylist()
    places = [place for part in slices for place in range(part.num_rows)]
    assert found["place"].to_pylist() == places


def test_a_shard_that_the_order_does_not_have_is_told():
    order = plan_order(described(corpus()), InterleaveSettings(seed=0))
    with pytest.raises(ContractError, match="1 of 2 shards"):
        placed(order, [order.shard_names()[0], "train-99999"], 100)
    assert list(by_shard([ORDER.empty_table()])) == []
