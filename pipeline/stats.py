"""Statistics of a run, computed from receipts, excluded records, scores and the shard index."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.ledger import Ledger, Receipt
from pipeline.plan import Plan
from pipeline.schema import QUARANTINED, REJECTED, SCHEMA_VERSION, SPEECH, TEXT, Unit

LANES = {SPEECH: ("ingest", "score", "encode", "tokenize"), TEXT: ("tokenize",)}
INDEX = "shards/index.json"
ORDER_UNIT = "order"
Receipts = dict[str, Receipt]  # of one unit, by stage
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass
class Account:
    """Closed books of one source or modality; `pending` records await a later stage."""

    records_in: int = 0
    kept: int = 0
    pending: int = 0
    seconds_in: float = 0.0
    seconds_kept: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def closes(self) -> bool:
        """Say whether in = kept + rejected + quarantined + pending."""
        ended = self.kept + self.rejected.total() + self.quarantined.total()
        return self.records_in == ended + self.pending

    def add(self, other: Account) -> None:
        self.records_in += other.records_in
        self.kept += other.kept
        self.pending += other.pending
        self.seconds_in += other.seconds_in
        self.seconds_kept += other.seconds_kept
        self.rejected += other.rejected
        self.quarantined += other.quarantined

    def as_json(self, name_in: str) -> dict[str, Any]:
        return {
            name_in: self.records_in,
            "kept": self.kept,
            "rejected": dict(sorted(self.rejected.items())),
            "quarantined": dict(sorted(self.quarantined.items())),
            "pending": self.pending,
            "closed": self.closes(),
        }


def read_index(ledger: Ledger) -> dict[str, Any] | None:
    """Return the shard index; None while the shards are not complete."""
    if ledger.storage.size(INDEX) is None:
        return None
    return json.loads(ledger.storage.read_bytes(INDEX))


def run_stats(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Return the statistics of a run, in the layout of `koe stats --json`."""
    index = read_index(ledger)
    scores, codec = _ScoreTally(ledger), {} if index is None else index["codec"]

    def seen() -> Iterator[tuple[Unit, Receipts]]:
        nonlocal codec
        for unit, done in unit_receipts(plan, ledger):
            if "score" in done:
                scores.add(done["score"])
            if not codec and index is None and "encode" in done:
                codec = done["encode"].content.get("codec", {})
            yield unit, done

    accounts = account_sources(plan, seen())
    _close_with_order(accounts, ledger)
    totals = {SPEECH: Account(), TEXT: Account()}
    for source, modality in plan.modalities.items():
        totals[modality].add(accounts[source])
    return {
        "schema_version": SCHEMA_VERSION,
        "accounting": totals[SPEECH].as_json("clips_in"),
        "samples": totals[TEXT].as_json("samples_in"),
        "sources": {
            name: {
                "modality": plan.modalities[name],
                **account.as_json("clips_in" if plan.modalities[name] == SPEECH else "samples_in"),
                "hours_in": round(account.seconds_in / 3600, 4),
                "hours_kept": round(account.seconds_kept / 3600, 4),
            }
            for name, account in accounts.items()
        },
        "scores": scores.as_json(),
        "shards": _shards(index),
        "codec": codec,
    }


def unit_receipts(plan: Plan, ledger: Ledger) -> Iterator[tuple[Unit, Receipts]]:
    """Yield each unit with its receipts by stage, up to the first stage that is not done.

    One unit's are held at a time: those of 15 M clips would take half a gigabyte.
    """
    for unit in plan.units:
        done: Receipts = {}
        previous = None
        for stage in LANES[unit.modality]:
            receipt = ledger.receipt(stage, unit.unit)
            stale = previous and receipt and receipt.input_sha256 != previous.output.sha256
            if receipt is None or stale:
                break
            done[stage] = previous = receipt
        yield unit, done


def account_sources(plan: Plan, units: Iterable[tuple[Unit, Receipts]]) -> dict[str, Account]:
    """Close the books of every source up to the tokenize stage."""
    accounts = {name: Account() for name in plan.modalities}
    for unit, receipts in units:
        account = accounts[unit.source]
        account.records_in += unit.num_records
        last = unit.num_records
        for stage in LANES[unit.modality]:
            receipt = receipts.get(stage)
            if receipt is None:
                break
            account.rejected.update(receipt.rejected)
            account.quarantined.update(receipt.quarantined)
            last = receipt.kept
            if stage == "ingest":
                account.seconds_in += receipt.measures["seconds"]
            if stage == "encode":
                account.seconds_kept += receipt.measures["seconds"]
        account.pending += last
    return accounts


def _close_with_order(accounts: dict[str, Account], ledger: Ledger) -> None:
    """Move what the interleave stage placed or left out from pending to its end."""
    receipt = ledger.receipt("interleave", ORDER_UNIT)
    if receipt is None or read_index(ledger) is None:
        return
    for source, account in accounts.items():
        account.kept = int(receipt.measures.get(f"placed.{source}", 0))
        account.pending -= account.kept
    if receipt.excluded is None:
        return
    columns = ["source", "outcome", "reason"]
    with ledger.storage.open_batches(receipt.excluded.path, columns) as batches:
        left_out = Counter(
            key for batch in batches for key in zip(*(c.to_pylist() for c in batch), strict=True)
        )
    for (source, outcome, reason), number in left_out.items():
        account = accounts[source]
        account.pending -= number
        if outcome == REJECTED:
            account.rejected[reason] += number
        elif outcome == QUARANTINED:
            account.quarantined[reason] += number


class _ScoreTally:
    """The scores of all clips, 8 bytes each: their quantiles are exact."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._values = {name: bytearray() for name in ("sig", "bak", "ovrl")}
        self._scorers: set[str] = set()
        self._clips = self._windows = self._units = 0

    def add(self, receipt: Receipt) -> None:
        scores = self._ledger.read(receipt)
        self._units += 1
        self._clips += scores.num_rows
        self._windows += sum(scores["windows"].to_pylist())
        self._scorers.update(scores["scorer"].unique().to_pylist())
        for name, values in self._values.items():
            values += scores[name].drop_null().to_numpy().tobytes()

    def as_json(self) -> dict[str, Any]:
        if not self._units:
            return {}
        found: dict[str, Any] = {
            "clips": self._clips,
            "windows": self._windows,
            "scorers": sorted(self._scorers),
        }
        for name, values in self._values.items():
            present = np.frombuffer(values, np.float64)
            if len(present):
                marks = np.quantile(present, _QUANTILES, overwrite_input=True)
                found[name] = {
                    f"p{q * 100:g}": round(float(v), 3)
                    for q, v in zip(_QUANTILES, marks, strict=True)
                }
        return found


def _shards(index: dict[str, Any] | None) -> dict[str, Any]:
    empty = {"num_shards": 0, "rows": 0, "tokens": 0, "fill": 0.0, "max_row_tokens": 0}
    if index is None:
        return empty
    shards = index["shards"]
    rows, tokens = (sum(shard[key] for shard in shards) for key in ("rows", "tokens"))
    capacity = rows * index["max_row_tokens"]
    return {
        "num_shards": len(shards),
        "rows": rows,
        "tokens": tokens,
        "fill": round(tokens / capacity, 6) if capacity else 0.0,
        # the longest row there is; the bound that it may not pass stands beside it
        "max_row_tokens": max((shard["longest_row_tokens"] for shard in shards), default=0),
        "row_capacity": index["max_row_tokens"],
        "documents": sum(shard["documents"] for shard in shards),
        "tokens_by_modality": {
            modality: sum(shard["tokens_by_modality"].get(modality, 0) for shard in shards)
            for modality in (SPEECH, TEXT)
        },
        "splits": {
            split: {
                key: sum(shard[key] for shard in shards if shard["split"] == split)
                for key in ("rows", "tokens")
            }
            for split in sorted({shard["split"] for shard in shards})
        },
    }
