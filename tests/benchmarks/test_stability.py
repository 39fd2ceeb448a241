"""The stability experiment: what is damaged in a dirty corpus, and what its tables are computed from."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from benchmarks.stability_arms import ARMS, CURE, SCALES, plan, plan_of_dirt, plan_of_size
from benchmarks.stability_damage import (
    DAMAGED,
    OTHER_CLIP,
    REPEATED_CODE,
    SILENCE,
    SPEECH_DAMAGE,
    TEXT_DAMAGE,
    damaged_codes,
    damaged_rows,
    damaged_text,
    with_shuffled_slots,
)
from benchmarks.stability_data import CodeSource, Corpus, Vocabulary, write_shards
from benchmarks.stability_sizes import crossings, dirty_table, power_law, read_runs, sizes_table
from benchmarks.stability_spikes import JUMP, damage_figures
from benchmarks.stability_text import Record
from koe.errors import ConfigError
from koe.vocabulary import CODEBOOK_SIZE, FIRST_AUDIO, SLOTS, speech_ids

RECORDS = [Record(f"問い{k}", f"答えは{k}です。長い文が続きます。") for k in range(40)]


def encode(text: str) -> list[int]:
    return list(text.encode())


def corpus(share: float, voices: int = 4) -> Corpus:
    return Corpus(Vocabulary(1536, 64), RECORDS, encode, CodeSource(64, voices), 6, share)


def test_one_voice_is_the_source_of_the_published_figures():
    rng = np.random.default_rng(1)
    successors = rng.integers(0, 64, (SLOTS, 64, 16), dtype=np.uint16)
    assert np.array_equal(CodeSource(64)._next[0], successors)


def test_damage_leaves_all_other_documents_as_they_are():
    for modality, kinds in (("text", TEXT_DAMAGE), ("speech", SPEECH_DAMAGE)):
        clean, dirty = (getattr(corpus(share), modality)(3) for share in (0.0, 0.3))
        found = [(next(clean), next(dirty)) for _ in range(200)]
        damaged = [b for _, b in found if b.damage]
        assert 30 < len(damaged) < 90
        assert {document.damage for document in damaged} == set(kinds)
        for whole, other in found:
            assert not whole.damage
            same = len(whole.ids) == len(other.ids) and bool((whole.ids == other.ids).all())
            assert same == (not other.damage)


@settings(deadline=None)  # the first call imports
@given(st.integers(1, 20), st.integers(0, 2**31))
def test_damaged_codes(frames: int, seed: int):
    codes = np.random.default_rng(seed).integers(0, CODEBOOK_SIZE, frames * SLOTS).astype(np.uint16)
    assert set(damaged_codes(codes, REPEATED_CODE)) == {codes[0]}
    silence = damaged_codes(codes, SILENCE).reshape(-1, SLOTS)
    assert (silence == codes[:SLOTS]).all()
    for kind in ("", OTHER_CLIP):
        assert damaged_codes(codes, kind) is codes
    ids = np.array(speech_ids([1, 2], codes))
    shuffled = with_shuffled_slots(ids)
    audio = ids >= FIRST_AUDIO
    assert (shuffled[~audio] == ids[~audio]).all()
    right, wrong = ids[audio].reshape(-1, SLOTS), shuffled[audio].reshape(-1, SLOTS)
    assert (np.sort(right, axis=1) == np.sort(wrong, axis=1)).all()
    assert ((right - FIRST_AUDIO) // CODEBOOK_SIZE != (wrong - FIRST_AUDIO) // CODEBOOK_SIZE).all()


def test_mojibake_is_text_of_accented_letters():
    assert damaged_text("声") == "å£°"


def test_damaged_rows_are_counted_by_what_was_applied(tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, corpus(0.2), rows=30, row_tokens=64, block=0, short=64, seed=0)
    table = ipc.open_file(str(folder / "train-00000.arrow")).read_all()
    damaged = damaged_rows(table)
    assert 0 < damaged.sum() < 30
    assert [any(DAMAGED in id for id in row) for row in table["document_ids"].to_pylist()] == list(
        damaged
    )
    validation = ipc.open_file(str(folder / "validation-00000.arrow")).read_all()
    assert not damaged_rows(validation).any(), "the loss is measured on clean documents"
    rows = [
        {"data_step": step + 1, "action": "skip" if step % 3 == 0 else "accept",
         "loss_by_modality": {"text": 1.0, "speech": 1.0 if step != 14 else 99.0}}
        for step in range(15)
    ]  # fmt: skip
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = damage_figures(out, folder, 2)
    pairs = damaged.reshape(15, 2).sum(axis=1)
    assert found["damaged_rows_seen"] == found["damaged_rows"] == damaged.sum()
    assert found["damaged_rows_applied"] == sum(pairs[step] for step in range(15) if step % 3)
    assert found["damaged_batches"] == (pairs > 0).sum()
    assert found["damaged_batches_with_spike"] == int(pairs[14] > 0)
    clean = tmp_path / "clean"
    write_shards(clean, corpus(0.0), rows=30, row_tokens=64, block=0, short=64, seed=0)
    assert damage_figures(out, clean, 2) == {}


def run(multiple: float, jump: float, seed: int = 0, arm: str = "exploding", **more):
    losses = {"text": 4.0, "speech": 3.0}
    return {"arm": arm, "multiple": multiple, "seed": seed, "jump": jump, "stopped": None, "dirty": False,
            "guarded": False, "guard": {}, "spikes": 0, "validation_loss": losses, **more}  # fmt: skip


@given(st.floats(17, 255), st.floats(0.2, 2))
def test_the_edge_lies_where_a_straight_line_of_logarithms_reaches_the_jump(
    edge: float, slope: float
):
    jumps = {multiple: JUMP * (multiple / edge) ** slope for multiple in (16.0, 64.0, 256.0)}
    runs = [run(multiple, jump, seed) for seed in (0, 1) for multiple, jump in jumps.items()]
    assert crossings(runs) == pytest.approx([edge, edge])


def test_the_edge_is_outside_of_what_was_tried_where_all_or_none_jump():
    assert crossings([run(16, 1.6), run(64, 2.0)]) == [0]
    assert crossings([run(16, 1.0), run(64, 1.2)]) == [math.inf]
    assert crossings([run(16, 1.0), run(64, 1.0) | {"stopped": "exploded"}]) == pytest.approx([32])


def test_the_table_of_sizes_draws_a_line_through_the_edges():
    found = {
        name: (size, [run(16, 1.0, seed, arm) for seed in (0, 1) for arm in ("exploding", "cure")]
               + [run(64, jump, seed) for seed in (0, 1)] + [run(64, 1.0, 0, "cure")])
        for name, size, jump in (("size-1M", 1_000_000, 1.5**2), ("size-10M", 10_000_000, 1.5**4))
    }  # fmt: skip
    head, _, exploding, cure = sizes_table(found)
    assert head == "| arm | 1 M | 10 M | line | at 3.3 B |"
    assert exploding.startswith("| exploding | x32 (2 seeds) | x23 (2 seeds) | size^-0.15 |")
    assert cure == "| cure | above x64 (2 seeds) | above x64 (2 seeds) | – | – |"


@given(st.floats(-2, 2), st.floats(0.1, 10))
def test_a_power_law_is_found_again(exponent: float, factor: float):
    sizes = [1e6, 1e7, 1e8]
    found = power_law(sizes, [factor * (size / 1e6) ** exponent for size in sizes])
    assert found[1] == pytest.approx(exponent, abs=1e-6)
    assert found[0] * 1e6 ** found[1] == pytest.approx(factor, rel=1e-6)


def test_runs_without_their_control_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there are none"):
        read_runs(tmp_path)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps(run(16, 1.0) | {"largest_loss": {"text": 4.0}}))
    with pytest.raises(ConfigError, match="have no control"):
        read_runs(tmp_path)


def test_the_table_of_damage_sums_the_seeds():
    name = "cure with 2 sequences"
    more = {"damaged_rows_applied": 3, "damaged_rows_seen": 5, "damaged_batches_with_spike": 1}
    runs = [
        run(16, 1, seed, name, dirty=True, guarded=True, spikes=2, guard={"skip": 2}, **more)
        for seed in (0, 1)
    ]
    assert list(dirty_table(runs))[2] == (
        f"| {name}, x16 | 1 % damaged | on | 2 | 4 | 2 | 6 of 10 | "
        "4.000 (4.000 to 4.000) / 3.000 (3.000 to 3.000) | skip 4 |"
    )


def test_each_plan_has_a_control_for_all_its_shards():
    for make, names in ((plan, ["small"]), (plan_of_size, ["size-1M"]), (plan_of_dirt, ["dirty"])):
        for name in names:
            specs = make(SCALES[name])
            assert len({spec.name for spec in specs}) == len(specs)
            controls = {spec.shards for spec in specs if spec.multiple < 0.01}
            firsts = {spec.shards for spec in specs if spec.seed == 0 and not spec.dirty}
            assert firsts <= controls
    assert CURE.name in ARMS
