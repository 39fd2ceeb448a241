"""Hours kept are those of the clips that are in the shards, whichever stage left the others out."""

import json

import pytest
from rich.console import Console

from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import run_stats
from tests.corpus import write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which tokenize leaves out one encoded clip, and the ratio some others."""
    path = write_corpus(tmp_path_factory.mktemp("hours"), num_samples=12)
    manifest = path.parent / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    named = [line.replace('"text"', '"speaker": "jvs001", "text"') for line in lines[1:]]
    manifest.write_text("\n".join([lines[0], *named]) + "\n", encoding="utf-8")
    fields = "kind: manifest\n    fields: {speaker: speaker}"
    path.write_text(path.read_text().replace("kind: manifest", fields, 1))
    config = load_config(
        path,
        [
            "tokenize.speech_prompt='{speaker}: {text}'",
            "interleave.ratio=[[0.0,{text: 2, speech: 1}]]",
            "interleave.max_row_tokens=512",
        ],
    )
    console = Console(stderr=True, quiet=True)
    assert not run_job(config, select_stages(None, "tokenize", None, ()), console).failed
    storage = Storage(config.run_dir)
    plan = load_plan(storage)
    assert plan is not None
    before = run_stats(plan, Ledger(storage))
    report = run_job(config, select_stages(None, "interleave", None, ()), console)
    assert not report.failed
    return plan, Ledger(storage), before, report.stats


def seconds(plan, ledger, stage):
    """Map the ids that a stage kept to the seconds of the clip."""
    found = {}
    for unit in plan.units:
        receipt = ledger.receipt(stage, unit.unit)
        if receipt is not None and unit.modality == "speech":
            table = ledger.read(receipt)
            found |= dict(zip(table["id"].to_pylist(), table["seconds"].to_pylist(), strict=True))
    return found


def test_what_interleave_leaves_out_is_not_kept(run):
    plan, ledger, before, after = run
    encoded = seconds(plan, ledger, "encode")
    placed = set()
    for shard in json.loads(ledger.storage.read_bytes("shards/index.json"))["shards"]:
        rows = ledger.storage.read_table(f"shards/{shard['path']}")["document_ids"]
        placed |= {id for ids in rows.to_pylist() for id in ids}
    in_shards = [s for id, s in encoded.items() if id in placed]
    assert 0 < len(in_shards) < len(encoded)
    assert after.clips.kept == len(in_shards)
    assert after.clips.rejected["ratio_exhausted"]
    for account in (after.clips, after.sources["clips"]):
        assert account.hours_kept == pytest.approx(sum(in_shards) / 3600, abs=6e-5)
    assert after.clips.hours_kept < before.clips.hours_kept


def test_what_tokenize_leaves_out_is_not_kept(run):
    plan, ledger, before, _ = run
    encoded = seconds(plan, ledger, "encode")
    tokenized = set()
    for unit in plan.units:
        receipt = ledger.receipt("tokenize", unit.unit)
        tokenized |= set(ledger.read(receipt)["id"].to_pylist())
    lost = encoded.keys() - tokenized
    assert len(lost) == 1
    kept = sum(s for id, s in encoded.items() if id in tokenized)
    assert before.clips.hours_kept == pytest.approx(kept / 3600, abs=6e-5)
