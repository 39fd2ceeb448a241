"""A hole in a source counts as about as many records as it held."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.laws.broken_kinds import KINDS
from tests.laws.broken_sources import contents


@pytest.mark.law
@pytest.mark.parametrize(
    ("name", "hole"),
    [
        *product(["ustar", "pax", "array", "array_lines", "array_pretty"], [b"\0", b"\x80"]),
        *product(["manifest", "lines"], [b"\0"]),  # lines are not parsed when they are planned
    ],
)
def test_a_hole_counts_as_about_as_many_records_as_it_held(tmp_path, name, hole):
    """One record may stand for many, as long as the accounts say of how many."""
    kind, rng = KINDS[name], np.random.default_rng([7, *name.encode(), *hole])
    kind.write(tmp_path, contents(rng, 200), set(), rng)
    data = bytearray((tmp_path / kind.file).read_bytes())
    first, last = len(data) * 3 // 10, len(data) * 6 // 10
    data[first:last] = hole * (last - first)
    (tmp_path / kind.file).write_bytes(data)
    for unit_records in (1, 7, 1000):
        source = kind.open(tmp_path, unit_records)
        units = list(source.units())
        found = [record for unit in units for record in source.records_of(unit)]
        kept = sum(not record.bad for record in found)
        assert 130 <= kept <= 145
        assert 180 <= kept + sum(unit.lost_records for unit in units) <= 220
        lost_bytes = sum(unit.lost_bytes for unit in units)
        assert abs(lost_bytes - (last - first)) <= 10_000  # it begins and ends within records
