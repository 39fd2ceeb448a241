"""The shards' folder is a dataset that `datasets` loads by its card, offline, and koe accepts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from koe.dataflow import CARD
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import run_stats
from pipeline.stats.dataset_card import dataset_card
from pipeline.verify import verify_run
from tests.corpus import write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Ledger:
    path = write_corpus(tmp_path_factory.mktemp("card"), num_samples=200)
    config = load_config(path, ["interleave.validation_share=0.2"])
    report = run_job(
        config, select_stages(None, "interleave", None, ()), Console(stderr=True, quiet=True)
    )
    ledger = Ledger(Storage(config.run_dir))
    plan = load_plan(ledger.storage)
    assert plan is not None
    assert report.stats == run_stats(plan, ledger)
    verify_run(plan, ledger)
    return ledger


def card(ledger: Ledger) -> tuple[dict, str]:
    _, front, body = ledger.storage.read_bytes(CARD).decode().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_folder_loads_as_a_dataset_with_both_splits(run, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    folder = run.storage.local_path("shards")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    index = json.loads((folder / "index.json").read_text())
    rows: dict[str, int] = {}
    for shard in index["shards"]:
        rows[shard["split"]] = rows.get(shard["split"], 0) + shard["rows"]
    assert {split: len(part) for split, part in loaded.items()} == rows
    assert rows.keys() == {"train", "validation"}
    first = loaded["train"][0]
    assert len(first["input_ids"]) == sum(first["document_lengths"])


def test_the_card_says_what_the_statistics_say(run):
    front, body = card(run)
    assert front["size_categories"] == ["n<1K"]
    assert "language" not in front, "nobody told which"
    plan = load_plan(run.storage)
    assert plan is not None
    stats = run_stats(plan, run)
    shards, clips = stats.shards, stats.sources["clips"]
    assert f"| clips | speech | {clips.records_in} | {clips.kept} | below_threshold " in body
    assert "broken_json 1" in body
    assert f"{shards.tokens:,} tokens" in body
    assert f"{shards.fill:.2%}" in body
    assert "kept above overall quality 1.3" in body
    assert "**UNTRAINED codec.**" in body
    assert stats.codec is not None
    assert stats.codec.sha256 in body
    for split, sums in shards.splits.items():
        assert f"| {split} | {sums.rows:,} | {sums.tokens:,} |" in body
    assert str(Path(run.storage.root)) not in body


def test_the_same_figures_give_the_same_bytes_and_a_trained_codec_no_warning(run):
    plan = load_plan(run.storage)
    assert plan is not None
    index, stats = json.loads(run.storage.read_bytes("shards/index.json")), run_stats(plan, run)
    text = dataset_card(index, stats)
    assert text.encode() == run.storage.read_bytes(CARD)
    assert stats.codec is not None
    trained = replace(stats, codec=replace(stats.codec, label="snac", trained=True))
    assert "UNTRAINED" not in dataset_card(index, trained)
    whole = replace(stats.shards, splits={"train": stats.shards.splits["train"]})
    assert "validation-*" not in dataset_card(index, replace(stats, shards=whole))
