"""Every number of `koe stats` is that of the tables, counted again plainly."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.stats import full_stats, run_stats, stats_json
from tests.statistics_run import KEYS, THRESHOLDS, kept_records, opened, run_corpus

pytestmark = pytest.mark.slow

QUANTILES = {"p1": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return run_corpus(tmp_path_factory.mktemp("stats") / "corpus")


@pytest.fixture(scope="module")
def stats(corpus) -> dict[str, Any]:
    return stats_json(full_stats(*opened(corpus.parent / "run"), thresholds=THRESHOLDS))


@pytest.fixture(scope="module")
def tables(corpus) -> dict[str, list[dict[str, Any]]]:
    return kept_records(corpus)


def plain_values(tables) -> dict[tuple[str, str], list[float]]:
    """Collect each quantity by (source, name), and under `all`."""
    found = defaultdict(list)
    for clip in tables["ingest"]:
        for key in (clip["source"], "all"):
            found[key, "seconds"].append(clip["seconds"])
            found[key, "characters"].append(len(clip["text"]))
            found[key, "characters_per_second"].append(len(clip["text"]) / clip["seconds"])
    for clip in tables["score"]:
        for key in (clip["source"], "all"):
            for name in ("sig", "bak", "ovrl"):
                found[key, name].append(clip[name])
    for sample in tables["tokenize"]:
        length = len(sample["input_ids"])
        found[sample["source"], "tokens"].append(length)
        found["all", "tokens" if sample["modality"] == "speech" else "text_tokens"].append(length)
    return found


def test_the_contract_has_its_keys_and_is_json(stats):
    assert stats.keys() == KEYS
    assert stats["schema_version"] == 1
    json.dumps(stats, allow_nan=False)
    assert set(stats["sources"]) == {"clips", "second", "text"}


def test_distributions_are_those_of_the_tables(stats, tables):
    expected = plain_values(tables)
    shown = {(s, name) for s, found in stats["distributions"].items() for name in found}
    assert shown == expected.keys()
    for (source, name), values in expected.items():
        found = stats["distributions"][source][name]
        assert found["count"] == len(values)
        assert found["mean"] == pytest.approx(sum(values) / len(values), abs=1e-4)
        for mark, percent in QUANTILES.items():
            plain = np.percentile(np.array(values), percent)
            assert found["quantiles"][mark] == pytest.approx(plain, rel=1e-5, abs=1e-4)
        edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
        assert len(edges) == len(counts) + 1
        assert len(counts) <= 40
        np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-5)
        assert counts == plain_histogram(values, edges)


def plain_histogram(values, edges) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        bins = [k for k in range(len(counts)) if edges[k] <= np.float32(value) < edges[k + 1]]
        outside = 0 if value < edges[0] else len(counts) - 1
        counts[bins[0] if bins else outside] += 1
    return counts


def test_a_threshold_keeps_what_filtering_keeps(stats, tables):
    assert stats["thresholds"]["configured"] == 1.3
    for row in stats["thresholds"]["what_if"]:
        kept = [clip for clip in tables["score"] if clip["ovrl"] > row["threshold"]]
        assert row["clips"] == len(kept)
        assert row["hours"] == pytest.approx(sum(c["seconds"] for c in kept) / 3600, abs=1e-4)
        assert row["share"] == pytest.approx(len(kept) / len(tables["score"]), abs=1e-6)
        assert row["uncertain"] == 0
    applied = stats["thresholds"]["what_if"][0]
    assert applied["clips"] == len(tables["encode"])
    counts = {row["clips"] for row in stats["thresholds"]["what_if"]}
    assert len(counts) == 5  # each threshold decides otherwise, or the comparison shows nothing


def test_codebook_use_is_that_of_the_codes(stats, tables):
    counts = [Counter() for _ in range(7)]
    for clip in tables["encode"]:
        for place, code in enumerate(clip["codes"]):
            counts[place % 7][code] += 1
    assert [slot["slot"] for slot in stats["codebooks"]] == list(range(7))
    assert [slot["codebook"] for slot in stats["codebooks"]] == [0, 1, 2, 2, 1, 2, 2]
    for slot, count in zip(stats["codebooks"], counts, strict=True):
        total = count.total()
        entropy = -sum(n / total * math.log(n / total) for n in count.values())
        assert slot["used"] == len(count)
        assert slot["share"] == pytest.approx(len(count) / 4096, abs=1e-6)
        assert slot["perplexity"] == pytest.approx(math.exp(entropy), abs=1e-3)
        ranked = sorted(count.values(), reverse=True) + [0] * 4096
        assert slot["counts_sorted"] == [ranked[rank - 1] for rank in slot["ranks"]]
        assert len(slot["ranks"]) <= 64


@pytest.mark.parametrize(("kind", "column"), [("audio", "codes"), ("text", "text")])
def test_duplicates_are_those_that_comparing_finds(stats, tables, kind, column):
    groups = defaultdict(list)
    for clip in tables["encode"]:
        groups[str(clip[column])].append(clip)
    groups = [clips for clips in groups.values() if len(clips) > 1]
    found = stats["duplicates"][kind]
    assert found["groups"] == len(groups)
    assert found["clips"] == sum(len(clips) - 1 for clips in groups)
    seconds = sum(clip["seconds"] for clips in groups for clip in clips[1:])
    assert found["hours"] == pytest.approx(seconds / 3600, abs=1e-4)
    groups.sort(key=len, reverse=True)
    assert found["examples"] == [[clip["id"] for clip in clips] for clips in groups]
    injected = {"clips/2.flac", "clips/again.flac@0.0"}
    assert any(injected <= set(example) for example in found["examples"])


def test_the_mix_sums_to_the_training_shards(stats, corpus):
    _, ledger = opened(corpus.parent / "run")
    rows = []
    for shard in stats["shard_files"]:
        if shard["split"] == "train":
            rows += ledger.storage.read_table(f"shards/{shard['path']}").to_pylist()
    mix = stats["mix"]
    num_buckets = min(50, len(rows))
    assert len(mix) == num_buckets
    for k, part in enumerate(mix):
        mine = [row for r, row in enumerate(rows) if r * num_buckets // len(rows) == k]
        tokens = Counter()
        for row in mine:
            for length, name in zip(
                row["document_lengths"], row["document_modalities"], strict=True
            ):
                tokens[name] += length
        assert part["rows"] == len(mine)
        assert (part["speech_tokens"], part["text_tokens"]) == (tokens["speech"], tokens["text"])
        assert part["fill"] == pytest.approx(tokens.total() / (1024 * len(mine)), abs=1e-6)
        documents = sum(len(row["document_ids"]) for row in mine)
        assert part["documents_per_row"] == pytest.approx(documents / len(mine), abs=1e-4)
        assert part["progress"] == pytest.approx((k + 0.5) / num_buckets, abs=1e-6)
    total = stats["shards"]["splits"]["train"]
    assert sum(part["rows"] for part in mix) == total["rows"]
    assert sum(part["speech_tokens"] + part["text_tokens"] for part in mix) == total["tokens"]
    assert any(part["speech_tokens"] for part in mix)


def test_shard_files_are_the_files(stats, corpus):
    files = {file["path"]: file for file in stats["shard_files"]}
    assert len(files) == stats["shards"]["num_shards"] > 2
    for path in (corpus.parent / "run/shards").glob("*.arrow"):
        file = files.pop(path.name)
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file["fill"] == pytest.approx(file["tokens"] / (1024 * file["rows"]), abs=1e-6)
    assert not files


def test_examples_are_excluded_records_and_cover_every_reason(stats, corpus):
    _, ledger = opened(corpus.parent / "run")
    excluded = [
        json.dumps(row, sort_keys=True)
        for path in sorted((corpus.parent / "run").glob("*/*.excluded.arrow"))
        for row in ledger.storage.read_table(f"{path.parent.name}/{path.name}").to_pylist()
    ]
    examples = stats["quarantine_examples"]
    assert {json.dumps(row, sort_keys=True) for row in examples} <= set(excluded)
    reasons = {(row["source"], row["outcome"], row["reason"]) for row in examples}
    assert reasons == {
        (source, outcome, reason)
        for source, account in stats["sources"].items()
        for outcome in ("rejected", "quarantined")
        for reason in account[outcome]
    }


def test_the_end_of_a_run_shows_a_part_of_the_same(stats, corpus):
    quick = run_stats(*opened(corpus.parent / "run"), thresholds=THRESHOLDS)
    shown = {key: value for key, value in stats_json(quick).items() if value}
    assert {key: stats[key] for key in shown} == shown
    assert KEYS - shown.keys() == {
        "distributions", "codebooks", "duplicates", "transcripts", "mix", "shard_files",
        "quarantine_examples", "unreadable_receipts", "set_aside",
    }  # fmt: skip


def test_a_unit_that_waits_for_encode_counts_with_what_is_done(corpus, tmp_path, tables):
    run_dir = tmp_path / "run"
    shutil.copytree(corpus.parent / "run", run_dir)
    plan, ledger = opened(run_dir)
    unit = plan.units_of("speech")[0].unit
    ledger.forget("encode", unit)
    (run_dir / "shards/index.json").unlink()
    stats = full_stats(plan, ledger)
    scored = stats.distributions["all"]["ovrl"].count
    assert scored == len(tables["score"])
    assert 0 < stats.distributions["all"]["tokens"].count < len(tables["encode"])
    assert stats.clips.pending > 0
    assert stats.clips.adds_up
