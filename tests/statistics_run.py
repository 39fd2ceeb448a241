"""A run whose statistics are counted again, its plan, its tables, and the contract of `koe stats`."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console

from koe.dataflow import stage_chain
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage
from tests.corpus import write_corpus

KEYS = {
    "schema_version", "accounting", "samples", "sources", "scores", "thresholds", "transcripts", "shards", "codec",
    "distributions", "codebooks", "duplicates", "mix", "shard_files", "quarantine_examples", "unreadable_receipts",
    "set_aside",
}  # fmt: skip
THRESHOLDS = [1.3, 1.9, 2.0, 2.05, 9.0]


def run_corpus(folder: Path) -> Path:
    """Run a corpus in which two more clips say what an earlier one says, one of them in its voice."""
    path = write_corpus(folder)
    shutil.copy(path.parent / "2.flac", path.parent / "again.flac")
    with (path.parent / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
        for file in ("again.flac", "3.flac"):
            clip = {"audio_filepath": file, "text": "文章その2です。", "offset": 0.0}
            manifest.write(json.dumps(clip, ensure_ascii=False) + "\n")
    # one clip in a source of its own, so that there is more than one
    (path.parent / "second.jsonl").write_text('{"audio_filepath": "4.flac", "text": "別の文"}\n')
    second = "  - {name: second, kind: manifest, paths: [second.jsonl]}\n  text:"
    path.write_text(path.read_text().replace("  text:", second, 1))
    report = run_job(
        load_config(path, []),
        select_stages(None, "interleave", None, []),
        Console(stderr=True, quiet=True),
    )
    assert not report.failed
    return path


def opened(run_dir: Path) -> tuple[Plan, Ledger]:
    storage = Storage(str(run_dir))
    plan = load_plan(storage)
    assert plan is not None
    return plan, Ledger(storage)


def kept_records(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the kept records of each stage, in plan order."""
    plan, ledger = opened(corpus.parent / "run")
    found = defaultdict(list)
    for unit in plan.units:
        for stage in stage_chain(unit.modality):
            receipt = ledger.receipt(stage, unit.unit)
            assert receipt is not None
            found[stage] += ledger.read(receipt).to_pylist()
    return found
