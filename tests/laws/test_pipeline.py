"""The whole way on a small corpus: records are accounted for, stages rerun alone, shards decode back."""

from __future__ import annotations

import json
import subprocess
import sys
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
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import run_stats, stats_json
from pipeline.trace.document import Shard, documents_of
from pipeline.verify import verify_run
from tests import calling
from tests.corpus import run_bytes, write_corpus

QUIET = Console(stderr=True, quiet=True)


def run(path: Path, *overrides: str, first=None, last="interleave", only=None, force=()):
    config = load_config(path, list(overrides))
    last = None if only else last
    report = run_job(config, select_stages(first, last, only, force), QUIET)
    assert not report.failed
    return config


def opened(path: Path):
    storage = Storage(str(path.parent / "run"))
    plan = load_plan(storage)
    assert plan is not None
    return plan, Ledger(storage)


def opened_shard(ledger: Ledger, name: str) -> Shard:
    return Shard(name, ledger.storage.read_table(f"shards/{name}"), ledger)


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


def koe(*arguments: str) -> subprocess.CompletedProcess[str]:
    code, out, err = calling.koe(*arguments)
    return subprocess.CompletedProcess(arguments, code, out, err)


def koe_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run koe in a process of its own, whose stdout also holds what libraries write there."""
    code = "from pipeline.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_command_line_json_and_errors(done):
    stats = koe_process("stats", "-c", str(done), "--json")
    assert stats.returncode == 0, stats.stderr
    assert json.loads(stats.stdout)["accounting"]["clips_in"] == 12
    status = koe("status", "-c", str(done), "--json")
    assert all(row["left"] == 0 for row in json.loads(status.stdout))
    shown = koe("inspect", "train-00000:0", "-c", str(done))
    assert shown.returncode == 0, shown.stderr
    assert "train" not in shown.stderr
    wrong = koe("stats", "-c", "nowhere.yaml")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("koe: nowhere.yaml does not exist")
    assert koe("stats", "--nonsense").returncode == 2


@pytest.mark.slow
def test_score_and_encode_json_contract(done):
    good, bad = str(done.parent / "0.flac"), str(done.parent / "empty.wav")
    scored = koe_process("score", good, bad, "--json")
    assert scored.returncode == 1
    first, second = json.loads(scored.stdout)
    assert first.keys() >= {"path", "seconds", "windows", "sig", "bak", "ovrl", "keep"}
    assert second.keys() == {"path", "error"}
    encoded = koe("encode", good, "-c", str(done), "--json")
    assert encoded.returncode == 0, encoded.stderr
    (row,) = json.loads(encoded.stdout)
    assert [len(codes) for codes in row["codes"]] == [k * row["frames"] for k in (1, 2, 4)]


@pytest.mark.slow
def test_inspect_writes_original_and_reconstruction(done, tmp_path):
    _, ledger = opened(done)
    index = json.loads(ledger.storage.read_bytes("shards/index.json"))
    shard = next(s for s in index["shards"] if s["tokens_by_modality"].get("speech"))
    rows = range(shard["rows"])
    row = next(
        r
        for r in rows
        if any(d.codes is not None for d in documents_of(opened_shard(ledger, shard["path"]), r))
    )
    shown = koe("inspect", f"{shard['path']}:{row}", "-c", str(done), "--wav", str(tmp_path / "w"))
    assert shown.returncode == 0, shown.stderr
    names = sorted(path.name for path in (tmp_path / "w").iterdir())
    assert any(name.endswith("original.wav") for name in names)
    assert any(name.endswith("reconstruction.wav") for name in names)


@pytest.mark.slow
def test_inspect_tells_the_outcome_of_a_record(corpus, tmp_path):
    run(corpus)
    plan, ledger = opened(corpus)
    by_outcome: dict[str, tuple[str, str]] = {}
    for unit in (unit.unit for unit in plan.units_of("speech")):
        receipt = ledger.receipt("encode", unit)
        assert receipt is not None
        for row in ledger.read(receipt).to_pylist():
            by_outcome["kept"] = row["id"], row["audio_path"]
        excluded = ledger.read_excluded(receipt)
        for row in [] if excluded is None else excluded.to_pylist():
            by_outcome["rejected"] = row["id"], row["reason"]
    id, path = by_outcome["kept"]
    found = koe("inspect", id, "-c", str(corpus), "--json")
    assert found.returncode == 0, found.stderr
    (record,) = json.loads(found.stdout)["records"]
    assert {stage["outcome"] for stage in record["stages"]} == {"kept"}
    (place,) = record["places"]
    in_row = koe("inspect", f"{place['shard']}:{place['row']}", "-c", str(corpus), "--json")
    document = json.loads(in_row.stdout)["documents"][place["document"]]
    assert (document["id"], document["text"]) == (id, record["text"])

    Path(path).unlink()
    shown = koe("inspect", id, "-c", str(corpus), "--wav", str(tmp_path / "gone"))
    assert shown.returncode == 0, shown.stderr
    assert f"the original of {id} cannot be read" in shown.stderr
    (file,) = (tmp_path / "gone").iterdir()
    assert file.name.endswith("reconstruction.wav")

    low, reason = by_outcome["rejected"]
    shown = koe("inspect", low, "-c", str(corpus), "--wav", str(tmp_path / "low"))
    assert shown.returncode == 0, shown.stderr
    assert reason in shown.stdout
    (file,) = (tmp_path / "low").iterdir()
    assert file.name.endswith("original.wav")
    assert koe("inspect", "clips/none", "-c", str(corpus)).returncode == 2
