"""Shards of two passes have the bytes of shards made row by row, however groups and runs are cut."""

from __future__ import annotations

import os
import tempfile
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.schema import SAMPLE
from stages.packing.order import plan_order
from stages.settings import InterleaveSettings
from tests.pipeline.jobs.shards_run import Killed, ShardsRun
from tests.stages.samples import changed, described, speech_unit, text_unit

pytestmark = pytest.mark.law

BASE = InterleaveSettings(
    seed=0, shard_megabytes=0.002, validation_share=0.1, overlong_speech="split"
)


def tables_of(rng, texts, frames, units):
    """Units of text and speech in turns; some of them are empty."""
    found = {"none-00000": SAMPLE.empty_table()}
    for unit in range(units):
        mine, clips = texts[unit::units], frames[unit::units]
        found[f"dolly-{unit:05d}"] = text_unit(rng, mine, first=100 * unit)
        found[f"jvs-{unit:05d}"] = speech_unit(rng, clips, first=100 * unit)
    return {
        name: table if table.num_rows else SAMPLE.empty_table() for name, table in found.items()
    }


@pytest.fixture(autouse=True, scope="module")
def unsynced():
    """No machine fails here, and syncing each file would take most of the time."""
    with patch.object(os, "fsync", lambda file: None):
        yield


CASES = st.fixed_dictionaries(
    {
        "texts": st.lists(st.integers(8, 300), min_size=1, max_size=40),
        "frames": st.lists(st.integers(1, 40), max_size=40),
        "units": st.integers(1, 9),
        "megabytes": st.sampled_from([0.0005, 0.002, 1.0]),
        "group_tokens": st.sampled_from([1, 200, 1000, 1 << 26]),
        "forwards": st.booleans(),
        "seed": st.integers(0, 3),
    }
)


def made_up(root, texts, frames, units, megabytes, group_tokens, forwards, seed):
    tables = tables_of(np.random.default_rng(seed), texts, frames, units)
    config = changed(BASE, max_row_tokens=100, shard_megabytes=megabytes, seed=seed)
    run = ShardsRun(root, tables, config, group_tokens, forwards)
    run.store_samples()
    return run


def expected(run):
    return run.plain_files(plan_order(described(run.tables), run.settings).shards())


def shards_of(run):
    return {name: data for name, data in run.files().items() if name.endswith(".arrow")}


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_two_passes_make_the_bytes_of_the_plain_way(case):
    with tempfile.TemporaryDirectory() as root:
        run = made_up(root, **case)
        run.make()
        assert shards_of(run) == expected(run)
        left = {name for name in run.storage.names("interleave") if not name.endswith(".json")}
        assert left <= {"order.arrow", "order.excluded.arrow"}
        assert run.make() == []


@settings(max_examples=40, deadline=None)
@given(CASES, st.lists(st.integers(0, 12), max_size=4), st.integers(0, 5))
def test_killed_and_damaged_runs_end_with_the_same_bytes(case, kills, lost):
    with tempfile.TemporaryDirectory() as root:
        run = made_up(root, **case)
        for number in kills:
            run.kill_at = number
            try:
                run.make()
            except Killed:
                continue
        run.kill_at = None
        run.make()
        whole = run.files()
        assert shards_of(run) == expected(run)
        names = sorted(shards_of(run))
        gone = names[: lost % (len(names) + 1)]
        for name in gone:
            run.storage.remove(f"shards/{name}")
        done = run.make()
        assert [name for name in done if f"{name}.arrow" in names] == [
            name.removesuffix(".arrow") for name in (gone if run.forwards else reversed(gone))
        ]
        assert run.files() == whole
