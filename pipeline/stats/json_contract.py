"""`koe stats --json`: names and nesting are a contract. Fields may be added, never renamed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from koe.schema import QUARANTINED, REJECTED, SPEECH
from pipeline.stats.model import Account, RunStats, ScoreStats


def stats_json(stats: RunStats) -> dict[str, Any]:
    """Return what `koe stats --json` prints."""
    return {
        "schema_version": stats.schema_version,
        "accounting": _account(stats.clips),
        "samples": _account(stats.samples),
        "sources": {
            name: {"modality": account.modality, **_account(account)}
            for name, account in stats.sources.items()
        },
        "scores": _scores(stats.scores),
        "thresholds": asdict(stats.thresholds),
        "shards": asdict(stats.shards),
        "codec": dict(stats.codec.description) if stats.codec else {},
        "distributions": {
            source: {name: asdict(values) for name, values in found.items()}
            for source, found in stats.distributions.items()
        },
        "codebooks": [asdict(slot) for slot in stats.codebooks],
        "duplicates": {kind: asdict(found) for kind, found in stats.duplicates.items()},
        "transcripts": asdict(stats.transcripts) if stats.transcripts else {},
        "mix": [asdict(part) for part in stats.mix],
        "shard_files": [asdict(file) for file in stats.shard_files],
        "quarantine_examples": [asdict(record) for record in stats.quarantine_examples],
        "unreadable_receipts": list(stats.unreadable_receipts),
        "set_aside": [dict(unit) for unit in stats.set_aside],
    }


def _account(account: Account) -> dict[str, Any]:
    return {
        "clips_in" if account.modality == SPEECH else "samples_in": account.records_in,
        "kept": account.kept,
        "rejected": account.reasons(REJECTED),
        "quarantined": account.reasons(QUARANTINED),
        "pending": account.pending,
        "closed": account.adds_up,
        "hours_in": account.hours_in,
        "hours_kept": account.hours_kept,
        "lost_records": account.lost_records,
        "lost_bytes": account.lost_bytes,
        "notes": dict(sorted(account.notes.items())),
    }


def _scores(scores: ScoreStats | None) -> dict[str, Any]:
    if scores is None:
        return {}
    fields = asdict(scores)
    by_score = fields.pop("quantiles")
    return {**fields, **by_score}
