"""What the data report is made of, written by hand; and the report of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from koe.schema import EXCLUDED, SPEECH, TEXT
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.report import write_data_report
from pipeline.report.clips import Reconstruction
from pipeline.report.page import Content
from pipeline.report.survey import LeftOut
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import full_stats
from pipeline.stats.model import (
    Account,
    CodecUsed,
    Distribution,
    DuplicateStats,
    ExcludedRecord,
    Histogram,
    MixPart,
    RunStats,
    ScoreStats,
    ShardFile,
    ShardStats,
    SlotUse,
    SourceTranscripts,
    Thresholds,
    TranscriptStats,
    WhatIf,
)
from tests.webpage import Page

RATES = {"p1": 2.0, "p5": 3.0, "p50": 6.0, "p95": 9.0, "p99": 12.0}
QUANTITIES = ("seconds", "characters", "characters_per_second", "tokens", "sig", "bak", "ovrl")


def described() -> Distribution:
    marks = {"p5": 1.0, "p50": 2.0, "p95": 3.0}
    return Distribution(3, 2.0, marks, Histogram([1, 2, 3], [1, 2]))


def written_stats(name: str = "clips") -> RunStats:
    """Return statistics written by hand; `name` is the speech source's."""

    def account(modality: str) -> Account:
        return Account(
            modality, records_in=10, kept=6, seconds_in=7200, seconds_kept=3600,
            rejected=Counter(below_threshold=3), quarantined=Counter({name: 1}),
        )  # fmt: skip

    return RunStats(
        schema_version=1,
        clips=account(SPEECH),
        samples=account(TEXT),
        sources={name: account(SPEECH), "text": account(TEXT)},
        scores=ScoreStats(9, 9, ["dnsmos"], {"ovrl": {"p50": 2.0}}),
        thresholds=Thresholds(2.5, [WhatIf(2.0, 9, 1.9, 0.9, 2), WhatIf(3.0, 3, 0.5, 0.3, 0)]),
        shards=ShardStats(
            num_shards=1, rows=1, tokens=100, fill=0.98, row_capacity=102,
            tokens_by_modality={SPEECH: 90, TEXT: 10},
        ),
        codec=CodecUsed(name, "ab" * 32, False, {"label": name, "trained": False}),
        distributions={
            "all": {q: described() for q in (*QUANTITIES, "text_tokens")},
            name: {q: described() for q in QUANTITIES},
            "text": {},
        },
        codebooks=[SlotUse(slot, 0, 2, 0.1, 1.5, [1, 2, 4096], [9, 1, 0]) for slot in range(7)],
        duplicates={"audio": DuplicateStats(1, 1, 0.1, [[name, "b"]])},
        transcripts=TranscriptStats(
            {"max_repeats": 8, "invented_phrases": [name]},
            {
                name: SourceTranscripts(10, {"repeated_text": 2, name: 1}, RATES, [1.5, 20.0]),
                "b": SourceTranscripts(0, {}, {}),
            },
            [ExcludedRecord(name, name, "what-if", "rejected", "repeated_text", name, "")],
        ),
        mix=[MixPart(0.5, 90, 10, 1, 0.98, 3.0)],
        shard_files=[ShardFile(name, "train", 1, 100, 10, "ab" * 32, 0.98)],
    )  # fmt: skip


def empty_stats(**parts: Any) -> RunStats:
    """Return the statistics of a run without records, but for some parts."""
    none = {"clips": Account(SPEECH), "samples": Account(TEXT), "sources": {}}
    return RunStats(**({"schema_version": 1} | none | parts))


def excluded(number: int, reason: str = "below_threshold", **changes: str) -> pa.Table:
    row = {"source": "clips", "stage": "encode", "outcome": "rejected", "reason": reason}
    row |= {"detail": "ovrl 2", "location": "here", **changes}
    return pa.Table.from_pylist([{"id": f"{reason}{n}", **row} for n in range(number)], EXCLUDED)


def left_out(*tables: pa.Table, limit: int = 100) -> LeftOut:
    found = LeftOut(limit)
    for table in tables:
        found.add(table)
    return found


def content(stats: RunStats, found: LeftOut | None = None, **changes: Any) -> Content:
    made: dict[str, Any] = {"name": "run", "about": "", "stats": stats, "threshold": 2.5}
    made |= {"left_out": found or left_out(), "clips": [], "codec": Reconstruction(None, "snac")}
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
