from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pytest

from koe.errors import ConfigError, ContractError
from koe.schema import EXCLUDED, ORDER, QUARANTINED, REJECTED, ROW, SAMPLE, SPEECH, TEXT
from koe.vocabulary import split_speech_ids
from stages.interleave import gather_rows
from stages.packing.order import plan_order, unit_samples
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

SETTINGS = InterleaveSettings(seed=0, shard_megabytes=0.1, validation_share=0.1)


def shards_of(tables, settings):
    order = plan_order(described(tables), settings)
    names = list(tables)
    return order, {
        name: gather_rows(part, reader(tables), names) for name, part in order.shards().items()
    }


def reasons(table):
    return Counter(table["reason"].to_pylist())


def row_modalities(shards, split="train"):
    """Per row in the order of training: the set of its documents' modalities."""
    return [
        set(row)
        for name in sorted(shards)
        if name.startswith(split)
        for row in shards[name]["document_modalities"].to_pylist()
    ]


def test_schemas_and_names():
    order, shards = shards_of(corpus(), SETTINGS)
    assert order.table.schema.equals(ORDER)
    assert excluded(order, REJECTED).schema.equals(EXCLUDED)
    assert excluded(order, QUARANTINED).schema.equals(EXCLUDED)
    names = list(shards)
    assert names == sorted(names)
    assert {"train-00000", "train-00001", "validation-00000"} <= set(names)
    assert all(shard.schema.equals(ROW) for shard in shards.values())


def test_documents_carry_their_origin():
    tables = corpus()
    _, shards = shards_of(tables, SETTINGS)
    unit_of = {i: name for name, table in tables.items() for i in table["id"].to_pylist()}
    for shard in shards.values():
        for row in shard.to_pylist():
            assert sum(row["document_lengths"]) == len(row["input_ids"])
            assert row["document_units"] == [unit_of[i] for i in row["document_ids"]]
            assert row["document_sources"] == [i.split("/")[0] for i in row["document_ids"]]
            kinds = [TEXT if s == "dolly" else SPEECH for s in row["document_sources"]]
            assert row["document_modalities"] == kinds


def test_overlong_samples_are_dropped_or_split_as_asked():
    tables = corpus()
    dropped, _ = shards_of(tables, changed(SETTINGS, overlong_text="drop"))
    assert reasons(excluded(dropped, REJECTED)) == {"overlong": 6}
    row = excluded(dropped, REJECTED).to_pylist()[0]
    assert (row["id"], row["source"], row["stage"]) == ("jvs/0", "jvs", "interleave")
    assert "4920 tokens" in row["detail"]
    assert row["location"] == "jvs-00000#0"
    mixed, _ = shards_of(tables, SETTINGS)
    assert reasons(excluded(mixed, REJECTED)) == {"overlong": 3}
    split, _ = shards_of(tables, changed(SETTINGS, overlong_speech="split"))
    assert excluded(split, REJECTED).num_rows == 0


def test_speech_is_split_at_whole_frames():
    tables = {"jvs-00000": speech_unit(np.random.default_rng(1), [700, 900, 20])}
    settings = changed(SETTINGS, overlong_speech="split", validation_share=0)
    _, shards = shards_of(tables, settings)
    original = {row["id"]: row["input_ids"] for row in tables["jvs-00000"].to_pylist()}
    seen = 0
    for row in (row for shard in shards.values() for row in shard.to_pylist()):
        ends = np.cumsum(row["document_lengths"])
        for i, end in enumerate(ends):
            ids = row["input_ids"][end - row["document_lengths"][i] : end]
            whole = original[row["document_ids"][i]]
            head = len(whole) - 2 - 7 * (len(split_speech_ids(np.array(whole))[1]) // 7)
            before = ids[head:] if row["document_parts"][i] == 0 else ids
            audio = [token for token in before if token >= 128266]
            assert len(audio) % 7 == 0
            slots = (np.array(audio) - 128266) // 4096
            assert (slots.reshape(-1, 7) == np.arange(7)).all()
            seen += 1
    assert seen == 3 + 4 + 1


def test_a_transcript_longer_than_a_row_is_rejected():
    tables = {"jvs-00000": speech_unit(np.random.default_rng(1), [3, 3], num_text=90)}
    settings = changed(SETTINGS, max_row_tokens=64, overlong_speech="split")
    order = plan_order(described(tables), settings)
    assert reasons(excluded(order, REJECTED)) == {"overlong": 2}
    assert order.table.num_rows == 0
    assert order.shards() == {}


def test_the_first_of_equal_ids_in_plan_order_stays():
    rng = np.random.default_rng(2)
    tables = {
        "a": text_unit(rng, [20, 30], first=0),
        "b": text_unit(rng, [40, 50], first=1),
        "c": text_unit(rng, [60, 70], first=1),
    }
    units = described(tables)
    order = plan_order(units, SETTINGS)
    assert excluded(order, QUARANTINED)["location"].to_pylist() == ["b#0", "c#0", "c#1"]
    assert excluded(order, QUARANTINED)["id"].to_pylist() == ["dolly/1", "dolly/1", "dolly/2"]
    assert reasons(excluded(order, QUARANTINED)) == {"duplicate_id": 3}
    with pytest.raises(ContractError, match="order of the units"):
        plan_order([units[2], units[0], units[1]], SETTINGS)


def test_ratio_rejects_whole_samples_of_what_there_is_too_much():
    tables = corpus(speech_units=2, text_units=8)
    ratio = [(0.0, {"text": 1, "speech": 1})]
    order, shards = shards_of(tables, changed(SETTINGS, ratio=ratio, validation_share=0))
    rejected = reasons(excluded(order, REJECTED))
    assert rejected["ratio_exhausted"] > 100
    exhausted = [
        r for r in excluded(order, REJECTED).to_pylist() if r["reason"] == "ratio_exhausted"
    ]
    assert {row["source"] for row in exhausted} == {"dolly"}
    placed = {
        i for shard in shards.values() for row in shard["document_ids"].to_pylist() for i in row
    }
    assert placed.isdisjoint(row["id"] for row in excluded(order, REJECTED).to_pylist())
    rows = row_modalities(shards)
    text = [TEXT in row for row in rows]
    assert abs(sum(text) - len(text) / 2) <= 1
    # never far from taking turns
    assert np.abs(np.cumsum(text) - np.arange(1, len(text) + 1) / 2).max() <= 2


def test_the_schedule_shows_in_the_rows():
    ratio = [(0.0, {"text": 1}), (1.0, {"speech": 1})]
    _, shards = shards_of(
        corpus(num_samples=150), changed(SETTINGS, ratio=ratio, validation_share=0)
    )
    text = np.array([TEXT in row for row in row_modalities(shards)])
    quarter = len(text) // 4
    assert text[:quarter].mean() == pytest.approx(7 / 8, abs=0.08)
    assert text[-quarter:].mean() == pytest.approx(1 / 8, abs=0.08)


def test_a_ratio_that_nothing_fits_is_a_config_error():
    with pytest.raises(ConfigError, match="0 rows of text"):
        plan_order(
            described(corpus(text_units=0)),
            changed(SETTINGS, ratio=[(0.0, {"text": 1, "speech": 0.001})]),
        )


def test_at_most_one_row_holds_both_modalities():
    counts = []
    for seed in range(6):
        _, shards = shards_of(corpus(seed), changed(SETTINGS, seed=seed))
        both = [len(row) == 2 for row in row_modalities(shards)]
        assert not any(len(row) == 2 for row in row_modalities(shards, "validation"))
        counts.append(sum(both))
    assert max(counts) == 1
    rng = np.random.default_rng(3)
    tables = {"jvs-0": speech_unit(rng, [30]), "dolly-0": text_unit(rng, [100])}
    _, shards = shards_of(tables, SETTINGS)
    assert [shard.num_rows for shard in shards.values()] == [1]


def test_validation_rows_are_few_whole_and_of_both_modalities():
    tables = corpus(num_samples=300)
    for share, least in ((0.1, 0.08), (1e-6, 0)):
        _, shards = shards_of(tables, changed(SETTINGS, validation_share=share))
        rows = row_modalities(shards, "validation")
        kinds = Counter(kind for row in rows for kind in row)
        assert set(kinds) == {TEXT, SPEECH}
        total = sum(shard.num_rows for shard in shards.values())
        assert max(least * total, 2) <= len(rows) <= max(share * total * 1.1, 2)
        parts = [
            p for n, s in shards.items() if n[0] == "v" for p in s["document_parts"].to_pylist()
        ]
        ids = {n: s["document_ids"].to_pylist() for n, s in shards.items()}
        train = {i for n, lists in ids.items() if n[0] == "t" for row in lists for i in row}
        held = {i for n, lists in ids.items() if n[0] == "v" for row in lists for i in row}
        assert train.isdisjoint(held)
        assert {p for row in parts for p in row} == {0}
    _, shards = shards_of(tables, changed(SETTINGS, validation_share=0))
    assert all(name.startswith("train") for name in shards)


def test_shards_are_about_the_size_asked():
    tables = corpus(num_samples=200)
    _, shards = shards_of(tables, changed(SETTINGS, shard_megabytes=0.2, validation_share=0))
    sizes = [shard.nbytes / 1e6 for shard in shards.values()]
    assert len(sizes) > 3
    assert max(sizes) < 0.24
    assert min(sizes) > 0.14


def test_the_seed_decides_and_nothing_else():
    tables = corpus()
    _, first = shards_of(tables, SETTINGS)
    _, again = shards_of(tables, SETTINGS)
    assert first.keys() == again.keys()
    assert all(bytes_of(first[name]) == bytes_of(again[name]) for name in first)
    other = plan_order(described(tables), changed(SETTINGS, seed=1))
    assert not other.table.equals(plan_order(described(tables), SETTINGS).table)


def bytes_of(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_order_and_samples_that_do_not_fit_are_refused():
    tables = corpus()
    names = list(tables)
    part = plan_order(described(tables), SETTINGS).shards()["train-00000"]
    with pytest.raises(ContractError, match="--force interleave"):
        gather_rows(part, lambda index: SAMPLE.empty_table(), names)
    shorter = corpus(seed=5)
    with pytest.raises(ContractError, match="tokenize ran again"):
        gather_rows(part, reader(shorter), names)
    for broken in (part.slice(part.num_rows // 2), part.take(list(range(part.num_rows))[::-1])):
        with pytest.raises(ContractError, match="sorted by row"):
            gather_rows(broken, reader(tables), names)


def test_nothing_in_gives_nothing_out():
    order = plan_order([unit_samples(0, "a", SAMPLE.empty_table)], SETTINGS)
    assert (order.num_samples, order.table.num_rows, order.shards()) == (0, 0, {})
    assert plan_order([], SETTINGS).num_samples == 0


def test_samples_may_lie_in_several_chunks_and_in_slices():
    tables = corpus()
    chunked = {
        name: pa.concat_tables([table.slice(0, 7), table.slice(7)])
        for name, table in tables.items()
    }
    sliced = {
        name: pa.concat_tables([table, table]).slice(60, 60) for name, table in tables.items()
    }
    _, whole = shards_of(tables, SETTINGS)
    for other in (chunked, sliced):
        _, shards = shards_of(other, SETTINGS)
        assert all(bytes_of(shards[name]) == bytes_of(whole[name]) for name in whole)


def test_datasets_reads_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    _, shards = shards_of(corpus(), SETTINGS)
    shard = shards["train-00000"]
    path = tmp_path / "train-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, shard.schema) as writer:
        writer.write_table(shard)
    loaded = datasets.load_dataset(
        "arrow", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert loaded.column_names == ROW.names
    assert loaded.to_list() == shard.to_pylist()
