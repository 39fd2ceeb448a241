"""Parts of the statistics on tables made for the case: what no small corpus holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from koe.errors import ContractError
from koe.schema import ENCODED, EXCLUDED, ROW, SCORED, SPEECH, Unit
from koe.stage import Outcome
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats.codebooks import CodebookUse
from pipeline.stats.distributions import Values, distributions
from pipeline.stats.duplicates import Duplicates
from pipeline.stats.examples import Examples
from pipeline.stats.model import DuplicateStats, WhatIf
from pipeline.stats.scores import ScoreTally
from pipeline.stats.shards import shard_mix


@dataclass(frozen=True)
class Stub:
    name: str
    version: int = 1
    content: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(Storage(str(tmp_path)))


def unit(name: str, source: str = "clips") -> Unit:
    return Unit(name, source, SPEECH, "clips.tar", "1:1", 0, 1, 1)


def commit(ledger: Ledger, stage: str, name: str, kept: pa.Table, excluded=(), **content: Any):
    rows = {
        outcome: pa.Table.from_pylist(
            [row for row in excluded if row["outcome"] == outcome], schema=EXCLUDED
        )
        for outcome in ("rejected", "quarantined")
    }
    return ledger.commit(
        Stub(stage, content=content),
        name,
        "0" * 64,
        Outcome(kept, rows["rejected"], rows["quarantined"]),
        records_in=kept.num_rows + len(excluded),
        seconds=1.0,
    )


def clips(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """Fill what the rows do not say with zeros and empty strings."""
    zeros = {
        field.name: "" if pa.types.is_string(field.type) else 0
        for field in schema
        if not field.nullable and not pa.types.is_list(field.type)
    }
    return pa.Table.from_pylist([zeros | row for row in rows], schema=schema)


def test_clips_within_the_error_of_a_threshold_are_uncertain(ledger):
    scores = [2.25, 2.4, 2.5, 2.625, 2.7, 3.0]
    errors = [0.125, 0.125, 0.125, 0.125, 0.125, 0.0]
    rows = [
        {"ovrl": score, "ovrl_error": error, "seconds": 3600.0}
        for score, error in zip(scores, errors, strict=True)
    ]
    tally = ScoreTally(UnitFiles(ledger.storage), [2.5, 3.0])
    receipts = {
        "score": commit(ledger, "score", "a", clips(SCORED, rows)),
        "encode": commit(ledger, "encode", "a", clips(ENCODED, []), threshold_ovrl=2.5),
    }
    tally.add(unit("a"), receipts)
    found = tally.thresholds()
    assert found.configured == 2.5
    # 2.4, 2.5 and 2.625 lie at most 0.125 from it; at 3.0 the only score near it is exact
    assert found.what_if == [
        WhatIf(threshold=2.5, clips=3, hours=3.0, share=0.5, uncertain=3),
        WhatIf(threshold=3.0, clips=0, hours=0.0, share=0.0, uncertain=0),
    ]
    scores = tally.scores()
    assert scores is not None
    assert "sig" not in scores.quantiles  # null in every clip, as of a source's own score
    other = {"encode": commit(ledger, "encode", "b", clips(ENCODED, []), threshold_ovrl=2.8)}
    tally.add(unit("b"), other)
    assert tally.thresholds().configured is None


def test_a_score_table_of_another_version_is_named(ledger):
    old = clips(SCORED, [{"ovrl": 2.0}]).drop_columns("ovrl_error")
    receipts = {"score": commit(ledger, "score", "old", old)}
    with pytest.raises(ContractError, match=r"score/old.arrow has no column ovrl_error"):
        ScoreTally(UnitFiles(ledger.storage), []).add(unit("old"), receipts)


def lists(rows) -> pa.ListArray:
    return pa.array(rows, pa.list_(pa.uint16()))


def test_perplexity_counts_codes_that_are_used_evenly():
    use = CodebookUse()
    assert use.by_slot() == []
    use.add(lists([]))
    assert use.by_slot() == []
    # slot k uses 2^k codes evenly; the frames come in clips of several lengths
    frames = np.array([[frame % 2**slot for slot in range(7)] for frame in range(128)])
    use.add(lists([frames[:1].reshape(-1), frames[1:50].reshape(-1)]))
    use.add(lists([frames[50:].reshape(-1)]))
    found = use.by_slot()
    assert [slot.perplexity for slot in found] == [1, 2, 4, 8, 16, 32, 64]
    assert [slot.used for slot in found] == [1, 2, 4, 8, 16, 32, 64]
    assert found[3].counts_sorted[:4] == [16] * 4
    assert found[0].counts_sorted[0] == 128
    assert found[6].share == 64 / 4096


def test_a_code_of_the_last_entry_counts_in_its_own_slot():
    use = CodebookUse()
    use.add(lists([[4095, 0, 0, 0, 0, 0, 4095]]))
    assert [slot.used for slot in use.by_slot()] == [1] * 7


def duplicates_of(units: list[list[dict[str, Any]]]) -> dict[str, DuplicateStats]:
    with Duplicates() as found:
        for rows in units:
            # lists that do not begin at offset 0
            for batch in clips(ENCODED, rows).to_batches(max_chunksize=2):
                found.add("a", batch)
        return found.by_kind()


def test_copies_are_found_within_and_across_units_and_the_first_is_none():
    def clip(id: str, text: str, *codes: int) -> dict[str, Any]:
        return {"id": id, "text": text, "codes": codes, "seconds": 3600.0}

    found = duplicates_of(
        [
            [clip("a", "x", 1, 2), clip("b", "y", 2, 1), clip("c", "x", 1, 2), clip("d", "z", 12)],
            [],
            [clip("e", "y", 1, 2), clip("f", "Y", 1, 2, 1, 2), clip("g", "y ", 3)],
            [clip("h", "w", 2, 1), clip("i", "y", 4)],
        ]
    )
    assert found == {
        "audio": DuplicateStats(2, 3, 3.0, [["a", "c", "e"], ["b", "h"]]),
        "text": DuplicateStats(2, 3, 3.0, [["b", "e", "i"], ["a", "c"]]),
        "speaker_text": DuplicateStats(0, 0, 0.0, []),  # of no clip is the speaker known
        "audio_bytes": DuplicateStats(2, 3, 3.0, [["a", "c", "e"], ["b", "h"]]),
    }


def test_copies_by_speaker_and_by_audio_agree_in_more_than_text_and_codes(ledger):
    def clip(id: str, speaker: str | None, size: int, start: float, channel: int | None = None):
        return {
            "id": id, "text": "x", "codes": [1, 2], "seconds": 3600.0, "speaker": speaker,
            "audio_bytes": size, "start_seconds": start, "channel": channel,
        }  # fmt: skip

    found = duplicates_of(
        [
            [clip("a", "s", 9, 0.0), clip("b", "t", 9, 0.0), clip("c", None, 8, 0.0)],
            [clip("d", "s", 9, 1.0), clip("e", None, 9, 0.0, 1), clip("f", " ", 8, 0.0)],
        ]
    )
    assert found["audio"].clips == found["text"].clips == 5
    assert found["speaker_text"] == DuplicateStats(1, 1, 1.0, [["a", "d"]])
    assert found["audio_bytes"] == DuplicateStats(2, 2, 2.0, [["a", "b"], ["c", "f"]])


def test_only_ten_groups_and_ten_ids_of_each_are_named(ledger):
    rows = [
        {"id": f"{number}-{group}", "text": str(group), "codes": [number, group], "seconds": 1.0}
        for number in range(12)
        for group in range(11)
    ]
    text = duplicates_of([rows[:70], rows[70:]])["text"]
    assert (text.groups, text.clips) == (11, 121)
    assert text.examples == [[f"{n}-{group}" for n in range(10)] for group in range(10)]
    assert duplicates_of([]) == {}


def excluded(source: str, outcome: str, reason: str, number: int, stage="ingest"):
    return [
        {"id": f"{reason}-{k}", "source": source, "stage": stage, "outcome": outcome,
         "reason": reason, "detail": "", "location": f"{source}@{k}"}
        for k in range(number)
    ]  # fmt: skip


def test_five_of_a_reason_are_examples_and_two_of_a_rejection(ledger, monkeypatch):
    files = UnitFiles(ledger.storage)
    examples = Examples(files)
    rows = [*excluded("a", "quarantined", "bad", 7), *excluded("a", "rejected", "low", 3)]
    none = clips(SCORED, [])
    full = commit(ledger, "ingest", "u0", none, rows)
    examples.add(unit("u0", "a"), {"ingest": full})
    other = commit(ledger, "ingest", "u1", none, excluded("b", "quarantined", "bad", 1))
    examples.add(unit("u1", "b"), {"ingest": other})
    with monkeypatch.context() as patch:
        # all reasons of this unit have their examples: its table is not opened
        patch.setattr(UnitFiles, "batches", None)
        examples.add(unit("u2", "a"), {"ingest": full})
    order = excluded("a", "rejected", "left", 4, "interleave")
    for batch in pa.Table.from_pylist(order, schema=EXCLUDED).to_batches():
        examples.take(batch)
    found = [(row.source, row.reason, row.id) for row in examples.sorted()]
    assert found == [
        *(("a", "bad", f"bad-{k}") for k in range(5)),
        ("b", "bad", "bad-0"),
        *(("a", "low", f"low-{k}") for k in range(2)),
        *(("a", "left", f"left-{k}") for k in range(2)),
    ]


def test_a_few_outliers_do_not_squeeze_a_histogram():
    values = np.concatenate([np.linspace(2, 10, 10_000), [5000.0]])
    of_clips = {"seconds": Values()}
    of_clips["seconds"].add("a", values[:5000])
    of_clips["seconds"].add("b", values[5000:])
    found = distributions(of_clips, Values(), ["a", "b"])
    histograms = {source: found[source]["seconds"].histogram for source in ("all", "a", "b")}
    assert len({tuple(histogram.edges) for histogram in histograms.values()}) == 1
    assert histograms["all"].edges[-1] < 11
    assert sum(histograms["all"].counts) == 10_001
    assert max(histograms["all"].counts) < 1000
    both = np.add(histograms["a"].counts, histograms["b"].counts)
    assert both.tolist() == histograms["all"].counts


@pytest.mark.parametrize("value", [0.0, 3.0, 123_456.0])
def test_one_value_makes_a_histogram_of_its_own(value):
    tokens = Values()
    tokens.add("t", np.array([value] * 3))
    found = distributions({}, tokens, ["t"])
    histogram = found["t"]["tokens"].histogram
    assert histogram.edges[0] <= value <= histogram.edges[-1]
    assert sum(histogram.counts) == 3
    assert found["all"]["text_tokens"].quantiles["p99"] == value


def rows_of(documents: list[list[tuple[str, int]]]) -> pa.Table:
    rows = [
        {
            "input_ids": [0] * sum(length for _, length in row),
            "document_lengths": [length for _, length in row],
            "document_modalities": [name for name, _ in row],
            **{
                f"document_{name}": ["x"] * len(row) if name != "parts" else [0] * len(row)
                for name in ("sources", "ids", "units", "parts")
            },
        }
        for row in documents
    ]
    return pa.Table.from_pylist(rows, schema=ROW)


def test_a_way_of_many_rows_is_cut_into_fifty_parts_across_shards(ledger):
    rng = np.random.default_rng(0)
    rows = [
        [(str(rng.choice([SPEECH, "text"])), int(rng.integers(1, 50))) for _ in range(k % 3 + 1)]
        for k in range(123)
    ]
    index = {"max_row_tokens": 150, "shards": []}
    for name, part in (("train-0", rows[:60]), ("train-1", rows[60:]), ("validation-0", rows[:9])):
        ledger.storage.write_table(f"shards/{name}.arrow", rows_of(part))
        split = name.split("-")[0]
        index["shards"].append({"path": f"{name}.arrow", "split": split, "rows": len(part)})
    mix = shard_mix(index, ledger.storage)
    assert len(mix) == 50
    assert {part.rows for part in mix} == {2, 3}
    place = 0
    for part in mix:
        mine = [document for row in rows[place : place + part.rows] for document in row]
        place += part.rows
        for name in (SPEECH, "text"):
            assert getattr(part, f"{name}_tokens") == sum(
                n for modality, n in mine if modality == name
            )
        assert part.documents_per_row == pytest.approx(len(mine) / part.rows, abs=1e-4)
        tokens = sum(length for _, length in mine)
        assert part.fill == pytest.approx(tokens / (150 * part.rows), abs=1e-6)
    assert place == 123
    assert shard_mix({**index, "shards": index["shards"][2:]}, ledger.storage) == []
