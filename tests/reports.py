"""What the data report is made of, written by hand; and the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from koe.schema import EXCLUDED
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.report import write_data_report
from pipeline.report.page import Content
from pipeline.report.survey import LeftOut
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import full_stats
from tests.webpage import Page

QUANTITIES = ("seconds", "characters", "characters_per_second", "tokens", "sig", "bak", "ovrl")


def described() -> dict[str, Any]:
    return {
        "count": 3,
        "mean": 2.0,
        "quantiles": {"p5": 1.0, "p50": 2.0, "p95": 3.0},
        "histogram": {"edges": [1, 2, 3], "counts": [1, 2]},
    }


def written_stats(name: str = "clips") -> dict[str, Any]:
    """Return what `koe stats --json` prints, written by hand; `name` is the speech source's."""
    account = {"kept": 6, "rejected": {"below_threshold": 3}, "quarantined": {name: 1}}
    account |= {"pending": 0, "closed": True}
    return {
        "accounting": {"clips_in": 10, **account},
        "samples": {"samples_in": 10, **account},
        "sources": {
            name: {"modality": "speech", "clips_in": 10, "hours_in": 2.0, "hours_kept": 1.0, **account},
            "text": {"modality": "text", "samples_in": 10, **account},
        },
        "distributions": {
            "all": {q: described() for q in (*QUANTITIES, "text_tokens")},
            name: {q: described() for q in QUANTITIES},
            "text": {},
        },
        "thresholds": {
            "configured": 2.5,
            "what_if": [
                {"threshold": 2.0, "clips": 9, "hours": 1.9, "share": 0.9, "uncertain": 2},
                {"threshold": 3.0, "clips": 3, "hours": 0.5, "share": 0.3, "uncertain": 0},
            ],
        },
        "codebooks": [
            {"slot": slot, "codebook": 0, "used": 2, "share": 0.1, "perplexity": 1.5,
             "ranks": [1, 2, 4096], "counts_sorted": [9, 1, 0]}
            for slot in range(7)
        ],
        "duplicates": {"audio": {"groups": 1, "clips": 1, "hours": 0.1, "examples": [[name, "b"]]}},
        "mix": [
            {"progress": 0.5, "speech_tokens": 90, "text_tokens": 10, "rows": 1, "fill": 0.98,
             "documents_per_row": 3.0}
        ],
        "shards": {"num_shards": 1, "rows": 1, "tokens": 100, "fill": 0.98, "row_capacity": 102,
                   "tokens_by_modality": {"speech": 90, "text": 10}},
        "shard_files": [{"path": name, "split": "train", "rows": 1, "tokens": 100, "bytes": 10,
                         "sha256": "ab" * 32, "fill": 0.98}],
        "codec": {"label": name, "trained": False},
    }  # fmt: skip


def excluded(number: int, reason: str = "below_threshold", **changes: str) -> pa.Table:
    row = {"source": "clips", "stage": "encode", "outcome": "rejected", "reason": reason}
    row |= {"detail": "ovrl 2", "location": "here", **changes}
    return pa.Table.from_pylist([{"id": f"{reason}{n}", **row} for n in range(number)], EXCLUDED)


def left_out(*tables: pa.Table, most: int = 100) -> LeftOut:
    found = LeftOut(most)
    for table in tables:
        found.add(table)
    return found


def content(stats: dict[str, Any], found: LeftOut | None = None, **changes: Any) -> Content:
    made: dict[str, Any] = {"title": "run", "about": "", "stats": stats, "threshold": 2.5}
    made |= {"left_out": found or left_out(), "clips": [], "codec": "snac", "trained": True}
    return Content(**made | changes)


def run_to(path: Path, stage: str, *overrides: str) -> tuple[Plan, Ledger]:
    """Run the corpus at a configuration up to a stage."""
    config = load_config(path, list(overrides))
    console = Console(stderr=True, quiet=True)
    assert not run_job(config, select_stages(None, stage, None, ()), console).failed
    return opened(path, *overrides)


def opened(path: Path, *overrides: str) -> tuple[Plan, Ledger]:
    storage = Storage(load_config(path, list(overrides)).run_dir)
    plan = load_plan(storage)
    assert plan is not None
    return plan, Ledger(storage)


def write_report(path: Path, folder: Path, *overrides: str, num_clips: int = 6) -> Path:
    """Write the report of a run, and of what is not done of it."""
    plan, ledger = opened(path, *overrides)
    config = load_config(path, list(overrides))
    return write_data_report(config, plan, ledger, full_stats(plan, ledger), folder, num_clips)


def report(path: Path, folder: Path, *overrides: str, num_clips: int = 6) -> Page:
    written = write_report(path, folder, *overrides, num_clips=num_clips)
    return Page(written.read_text(encoding="utf-8"))
