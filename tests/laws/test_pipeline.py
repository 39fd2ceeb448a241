"""The whole way on a small corpus: records are accounted for, stages rerun alone, shards decode back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from koe.errors import ConfigError, ContractError
from koe.vocabulary import unflatten_codes
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.stats import run_stats, stats_json
from pipeline.trace.document import documents_of
from pipeline.verify import verify_run
from tests.corpus import opened, opened_shard, run_bytes, write_corpus

QUIET = Console(stderr=True, quiet=True)


def run(path: Path, *overrides: str, first=None, last="interleave", only=None, force=()):
    config = load_config(path, list(overrides))
    last = None if only else last
    report = run_job(config, select_stages(first, last, only, force), QUIET)
    assert not report.failed
    return config


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def done(finished_run) -> Path:
    return finished_run


def receipt_times(path: Path, stage: str) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in (path.parent / "run" / stage).glob("*.json")}


@pytest.mark.law
def test_accounting_closes(done):
    stats = run_stats(*opened(done))
    clips, samples = stats.clips, stats.samples
    assert clips.records_in == 12
    assert clips.quarantined == {
        "all_zero_audio": 1, "broken_json": 1, "empty_audio": 1, "missing_transcript": 1,
    }  # fmt: skip
    assert clips.rejected["below_threshold"] >= 1
    assert samples.records_in == 40
    assert samples.quarantined == {"missing_answer": 1}
    for account in (clips, samples, *stats.sources.values()):
        assert account.adds_up
        assert account.pending == 0
    assert 0 < clips.kept < 8
    assert stats.shards.max_row_tokens <= 1024
    assert stats.shards.num_shards > 2
    assert stats.codec is not None
    assert stats.codec.label.startswith("UNTRAINED")
    json.dumps(stats_json(stats))


@pytest.mark.slow
def test_verify_names_a_flipped_byte(done, corpus):
    proofs = verify_run(*opened(done))
    assert len(proofs) == 15
    run(corpus)
    shard = next((corpus.parent / "run/shards").glob("train-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ContractError, match=shard.name):
        verify_run(*opened(corpus))


@pytest.mark.law
def test_documents_trace_to_clips(done):
    plan, ledger = opened(done)
    index = json.loads(ledger.storage.read_bytes("shards/index.json"))
    seen = {}
    for shard in index["shards"]:
        for row in range(shard["rows"]):
            for document in documents_of(opened_shard(ledger, shard["path"]), row):
                if document.codes is not None:
                    seen[document.id] = document
    encoded = {}
    for unit in (unit.unit for unit in plan.units_of("speech")):
        receipt = ledger.receipt("encode", unit)
        assert receipt is not None
        for row in ledger.read(receipt).to_pylist():
            encoded[row["id"]] = row
    assert seen.keys() == encoded.keys()
    for id, document in seen.items():
        np.testing.assert_array_equal(document.codes, encoded[id]["codes"])
        assert document.clip is not None
        assert document.clip["text"] == encoded[id]["text"]
        assert Path(document.clip["audio_path"]).exists()
        assert [len(book) for book in unflatten_codes(document.codes)] == [
            k * encoded[id]["frames"] for k in (1, 2, 4)
        ]


def test_shards_say_the_codec_is_untrained(done):
    shard = next((done.parent / "run/shards").glob("train-*.arrow"))
    with pa.ipc.open_file(pa.memory_map(str(shard))) as reader:
        assert b"UNTRAINED" in reader.schema.metadata[b"koe"]


@pytest.mark.slow
def test_moving_the_threshold_scores_nothing_again(corpus):
    run(corpus)
    before = {stage: receipt_times(corpus, stage) for stage in ("ingest", "score", "encode")}
    index = (corpus.parent / "run/shards/index.json").read_bytes()
    run(corpus, "encode.threshold_ovrl=1.9")
    after = {stage: receipt_times(corpus, stage) for stage in before}
    assert after["ingest"] == before["ingest"]
    assert after["score"] == before["score"]
    assert after["encode"].keys() == before["encode"].keys()
    assert all(after["encode"][name] != before["encode"][name] for name in before["encode"])
    assert (corpus.parent / "run/shards/index.json").read_bytes() != index
    verify_run(*opened(corpus))


@pytest.mark.slow
def test_stages_run_alone_and_forced(corpus):
    run(corpus, last="ingest")
    run(corpus, only="score")
    assert not receipt_times(corpus, "encode")
    run(corpus, first="encode")
    before = run_bytes(corpus.parent / "run")
    times = {s: receipt_times(corpus, s) for s in ("score", "interleave")}
    run(corpus, force=["interleave"])
    assert receipt_times(corpus, "score") == times["score"]
    assert receipt_times(corpus, "interleave") != times["interleave"]
    assert run_bytes(corpus.parent / "run") == before


@pytest.mark.slow
def test_new_source_redoes_no_other(corpus):
    run(corpus, last="encode")
    before = receipt_times(corpus, "encode")
    ingested = receipt_times(corpus, "ingest")
    text = corpus.read_text()
    (corpus.parent / "second.jsonl").write_text('{"audio_filepath": "0.flac", "text": "別"}\n')
    second = "  - {name: second, kind: manifest, paths: [second.jsonl]}\n  text:"
    corpus.write_text(text.replace("  text:", second, 1))
    run(corpus)
    after = receipt_times(corpus, "encode")
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert receipt_times(corpus, "ingest").items() > ingested.items()


def test_changed_source_is_redone(corpus):
    run(corpus, last="ingest")
    before = receipt_times(corpus, "ingest")
    manifest = corpus.parent / "manifest.jsonl"
    corpus.write_text(
        corpus.read_text().replace("kind: manifest", "kind: manifest\n    fields: {speaker: text}")
    )
    run(corpus, last="ingest")
    after = receipt_times(corpus, "ingest")
    assert all(after[name] != before[name] for name in before)
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    run(corpus, last="ingest")
    assert all(receipt_times(corpus, "ingest")[name] != after[name] for name in after)


@pytest.mark.slow
def test_too_much_quarantine_stops_the_run(corpus):
    with pytest.raises(Exception, match=r"max_quarantine_share 0.1.*broken_json 1"):
        run(corpus, "max_quarantine_share=0.1")
    assert not (corpus.parent / "run/shards/index.json").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sources.speech=[{name: a, kind: manifest, paths: [none.jsonl]}]", "none.jsonl"),
        ("snac={weights: ./nowhere}", "nowhere"),
        ("tokenize.tokenizer=./nowhere", "nowhere"),
        ("score.model=nowhere.onnx", "nowhere.onnx"),
        ("score.provider=cuda", "(?i)cuda"),
        ("train={device: cpu, precision: fp16}", "(?i)fp16"),
    ],
)
def test_refused_before_any_work(corpus, override, words):
    with pytest.raises(ConfigError, match=words):
        run(corpus, override, last=None)
    assert not list((corpus.parent / "run").glob("*/*.json"))


def test_contradictory_options_are_refused():
    for options in (("ingst", None, None, ()), (None, None, None, ("x",)), ("train", "score", None, ()),
                    ("score", None, "score", ()), (None, "score", None, ("train",))):  # fmt: skip
        with pytest.raises(ConfigError):
            select_stages(*options)
