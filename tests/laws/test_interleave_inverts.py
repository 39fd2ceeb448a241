"""Shards hold every kept sample exactly once: interleave can be undone, and nothing is lost."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.schema import QUARANTINED, REJECTED
from stages.interleave import gather_rows
from stages.packing.order import plan_order
from stages.settings import InterleaveSettings
from tests.stages.samples import (
    changed,
    corpus,
    described,
    excluded,
    reader,
    speech_unit,
    text_unit,
)

BASE = InterleaveSettings(seed=0, shard_megabytes=0.1, validation_share=0.05)
CASES = {
    "default": BASE,
    "split": changed(BASE, overlong_speech="split", seed=3),
    "drop": changed(BASE, overlong_text="drop"),
    "ratio": changed(
        BASE, ratio=[(0.0, {"text": 3, "speech": 1}), (1.0, {"text": 1, "speech": 3})]
    ),
    "speech only": changed(BASE, ratio=[(0.0, {"speech": 1})], overlong_speech="split"),
    "short rows": changed(BASE, max_row_tokens=64, overlong_speech="split"),
}


def undo(tables, config):
    """Put the documents of all shards together again: {id: token ids}, and the order."""
    order = plan_order(described(tables), config)
    pieces = defaultdict(dict)
    for part in order.shards().values():
        for row in gather_rows(part, reader(tables), list(tables)).to_pylist():
            ends = np.cumsum(row["document_lengths"]).tolist()
            for i, end in enumerate(ends):
                mine = pieces[row["document_ids"][i]]
                assert row["document_parts"][i] not in mine  # once
                begin = end - row["document_lengths"][i]
                mine[row["document_parts"][i]] = row["input_ids"][begin:end]
    whole = {}
    for name, parts in pieces.items():
        assert sorted(parts) == list(range(len(parts)))
        whole[name] = [token for part in sorted(parts) for token in parts[part]]
    return whole, order


def require_inverse(tables, config):
    whole, order = undo(tables, config)
    out = {
        row["id"]
        for row in [
            *excluded(order, REJECTED).to_pylist(),
            *excluded(order, QUARANTINED).to_pylist(),
        ]
    }
    samples = [row for table in tables.values() for row in table.to_pylist()]
    assert len(samples) == order.num_samples
    assert len(whole) + excluded(order, REJECTED).num_rows + excluded(
        order, QUARANTINED
    ).num_rows == len(samples)
    kept = {row["id"]: row["input_ids"] for row in samples if row["id"] not in out}
    assert whole == kept


@pytest.mark.law
@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_interleave_inverts(config):
    require_inverse(corpus(), config)


def lengths(low, high):
    return st.lists(st.integers(low, high), max_size=25)


@pytest.mark.law
@settings(max_examples=60, deadline=None)
@given(
    lengths(8, 300),
    lengths(1, 40),
    st.sampled_from(["drop", "split"]),
    st.sampled_from(["drop", "split"]),
    st.sampled_from([64, 128, 150]),
    st.integers(0, 4),
)
def test_interleave_inverts_any_samples(texts, frames, speech, text, capacity, seed):
    rng = np.random.default_rng(seed)
    tables = {
        "dolly-0": text_unit(rng, texts[:10]),
        "jvs-0": speech_unit(rng, frames),
        "dolly-1": text_unit(rng, texts[10:], first=10),
    }
    config = changed(
        BASE, max_row_tokens=capacity, overlong_speech=speech, overlong_text=text, seed=seed
    )
    require_inverse(tables, config)
    fitting = any(6 + 12 + 7 * number + 2 <= capacity for number in frames)
    if fitting:  # one row of speech is enough for this ratio
        ratio = [(0.0, {"text": 1, "speech": 2})]
        config = changed(config, overlong_speech="drop", overlong_text="drop", ratio=ratio)
        require_inverse(tables, config)
