"""No row of a shard is longer than asked, none is empty, and packing fills them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from koe.schema import SAMPLE, SPEECH, TEXT
from stages.interleave import gather_rows
from stages.packing.ids import hash_ids
from stages.packing.order import plan_order, unit_samples
from stages.settings import InterleaveSettings
from tests.stages.samples import changed, corpus, described, reader

SETTINGS = InterleaveSettings(seed=0, shard_megabytes=0.1, validation_share=0.05)


def row_tokens(tables, config):
    order = plan_order(described(tables), config)
    shards = [gather_rows(p, reader(tables), list(tables)) for p in order.shards().values()]
    return pc.list_value_length(pa.concat_tables(shards)["input_ids"]).to_numpy()


@pytest.mark.law
@pytest.mark.parametrize("capacity", [64, 100, 512, 2048])
@pytest.mark.parametrize("policy", ["drop", "split"])
def test_rows_bounded(capacity, policy):
    config = changed(
        SETTINGS, max_row_tokens=capacity, overlong_speech=policy, overlong_text=policy
    )
    tokens = row_tokens(corpus(), config)
    assert len(tokens)
    assert tokens.max() <= capacity
    assert tokens.min() > 0


@pytest.mark.parametrize("seed", range(3))
def test_small_mix_fills_rows(seed):
    tokens = row_tokens(corpus(seed, num_samples=250), changed(SETTINGS, seed=seed))
    assert tokens.sum() / (2048 * len(tokens)) >= 0.99


def described_by_length(modality, lengths, num_frames, first):
    """A unit of which only the lengths are known; the order needs no tokens."""
    names = pa.array([f"{modality}/{first + i}" for i in range(len(lengths))], pa.string())
    unit = unit_samples(first, f"{modality}-{first}", SAMPLE.empty_table)
    return replace(
        unit,
        id_hashes=hash_ids(pa.chunked_array([names])),
        is_text=np.full(len(lengths), modality == TEXT),
        lengths=lengths.astype(np.int32),
        num_frames=num_frames.astype(np.int32),
    )


def test_large_corpus_fills_rows():
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(np.log(6) - 0.18, 0.6, 60_000)
    frames = np.ceil(seconds * 24000 / 2048)
    text = rng.integers(10, 60, len(frames))
    samples = np.clip(rng.lognormal(np.log(250), 0.9, 40_000), 30, 6000)
    units = [
        described_by_length(SPEECH, 8 + text + 7 * frames, frames, 0),
        described_by_length(TEXT, samples, np.zeros(len(samples)), 1),
    ]
    order = plan_order(units, changed(SETTINGS, shard_megabytes=256))
    table = order.table
    tokens = np.sum(table["stop"].to_numpy() - table["start"].to_numpy())
    num_rows = sum(part["row"][-1].as_py() + 1 for part in order.shards().values())
    assert tokens / (2048 * num_rows) >= 0.995
