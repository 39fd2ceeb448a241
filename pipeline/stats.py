"""Statistics of a run, computed from receipts, excluded records, scores and the shard index."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ledger import Ledger, Receipt
from pipeline.plan import Plan
from pipeline.schema import QUARANTINED, REJECTED, SCHEMA_VERSION, SPEECH, TEXT

LANES = {SPEECH: ("ingest", "score", "encode", "tokenize"), TEXT: ("tokenize",)}
INDEX = "shards/index.json"
ORDER_UNIT = "order"
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
    receipts = _receipts(plan, ledger)
    index = read_index(ledger)
    accounts = account_sources(plan, receipts)
    _close_with_order(accounts, plan, ledger)
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
        "scores": _scores(receipts, ledger),
        "shards": _shards(index),
        "codec": _codec(index, receipts),
    }


def _receipts(plan: Plan, ledger: Ledger) -> dict[str, dict[str, Receipt]]:
    """Read all receipts: unit -> stage -> receipt, ending at the first stage not done."""
    found: dict[str, dict[str, Receipt]] = {}
    for unit in plan.units:
        done = found.setdefault(unit.unit, {})
        previous = None
        for stage in LANES[unit.modality]:
            receipt = ledger.receipt(stage, unit.unit)
            stale = previous and receipt and receipt.input_sha256 != previous.output.sha256
            if receipt is None or stale:
                break
            done[stage] = previous = receipt
    return found


def account_sources(plan: Plan, receipts: dict[str, dict[str, Receipt]]) -> dict[str, Account]:
    """Close the books of every source up to the tokenize stage."""
    accounts = {name: Account() for name in plan.modalities}
    for unit in plan.units:
        account = accounts[unit.source]
        account.records_in += unit.num_records
        last = unit.num_records
        for stage in LANES[unit.modality]:
            receipt = receipts[unit.unit].get(stage)
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


def _close_with_order(accounts: dict[str, Account], plan: Plan, ledger: Ledger) -> None:
    """Move what the interleave stage placed or left out from pending to its end."""
    receipt = ledger.receipt("interleave", ORDER_UNIT)
    if receipt is None or read_index(ledger) is None:
        return
    for source, account in accounts.items():
        account.kept = int(receipt.measures.get(f"placed.{source}", 0))
        account.pending -= account.kept
    excluded = ledger.read_excluded(receipt)
    rows = excluded.to_pylist() if excluded is not None else []
    for row in rows:
        account = accounts[row["source"]]
        account.pending -= 1
        if row["outcome"] == REJECTED:
            account.rejected[row["reason"]] += 1
        elif row["outcome"] == QUARANTINED:
            account.quarantined[row["reason"]] += 1


def _scores(receipts: dict[str, dict[str, Receipt]], ledger: Ledger) -> dict[str, Any]:
    tables = [
        ledger.read(done["score"]).select(["sig", "bak", "ovrl", "windows", "scorer"])
        for done in receipts.values()
        if "score" in done
    ]
    if not tables:
        return {}
    scores = pa.concat_tables(tables)
    values: dict[str, Any] = {
        "clips": scores.num_rows,
        "windows": int(sum(scores["windows"].to_pylist())),
        "scorers": sorted(set(scores["scorer"].to_pylist())),
    }
    for name in ("sig", "bak", "ovrl"):
        present = scores[name].drop_null().to_numpy()
        if len(present):
            marks = np.quantile(present, _QUANTILES)
            values[name] = {
                f"p{q * 100:g}": round(float(v), 3) for q, v in zip(_QUANTILES, marks, strict=True)
            }
    return values


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


def _codec(index: dict[str, Any] | None, receipts: dict[str, dict[str, Receipt]]) -> dict[str, Any]:
    if index is not None:
        return index["codec"]
    for done in receipts.values():
        if "encode" in done:
            return done["encode"].content.get("codec", {})
    return {}
