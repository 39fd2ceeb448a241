"""A bad record never takes a neighbour: k broken ones among n cost at most k, in every kind of source.

`KINDS` has a row for each kind: how it is written with some of its records broken, and how it is
read. A broken record is broken in any of the ways that its kind knows, chosen at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from koe.errors import BadRecord, attempt
from stages.sources.base import Record
from stages.sources.location import ClipReader
from tests.laws.broken_kinds import KINDS
from tests.laws.broken_sources import Content, contents


def content(record: Record, reader: ClipReader, names: Sequence[str]) -> Content | None:
    """Return what a record holds; None for one that is bad, or whose audio is."""
    if record.bad or not all(name in record.fields for name in names):
        return None
    audio = b"" if record.audio is None else attempt(reader.read, record.audio)
    if isinstance(audio, BadRecord):
        return None
    return {name: record.fields[name] for name in names}, audio


@pytest.mark.law
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_k_broken_records_cost_at_most_k(tmp_path, name, seed):
    kind = KINDS[name]
    names = kind.names
    rng = np.random.default_rng([seed, *name.encode()])
    records = contents(rng, int(rng.integers(1, 40)))
    number = int(rng.integers(0, max(2, len(records) // 4)))
    broken = set(rng.choice(len(records), number, replace=False).tolist())
    kind.write(tmp_path, records, broken, rng)
    expected = [
        ({key: fields[key] for key in names}, audio if kind.has_audio else b"")
        for place, (fields, audio) in enumerate(records)
        if place not in broken
    ]
    read: list[list[str]] = []
    for unit_records in (1, int(rng.integers(2, 9)), 1000):
        source = kind.open(tmp_path, unit_records)
        units = list(source.units())
        assert all(unit.records <= unit_records for unit in units)
        with ClipReader() as reader:
            found = [record for unit in units for record in source.records_of(unit)]
            good = [whole for record in found if (whole := content(record, reader, names))]
        missing = [item for item in expected if item not in good]
        assert not missing, f"{len(missing)} of {len(expected)} sound records are missing"
        assert [item for item in good if item in expected] == expected
        gaps = [r for r in found if r.bad and r.bad.reason == "unreadable_bytes"]
        assert sum(unit.gaps for unit in units) >= len(gaps)
        assert all(unit.lost_records >= unit.gaps for unit in units)
        assert bool(sum(unit.lost_bytes for unit in units)) >= bool(
            [gap for gap in gaps if not gap.bad.detail.startswith("0 bytes")]
        )
        read.append([repr(record) for record in found])
    assert read[0] == read[1] == read[2], "the size of units changes what is read"
