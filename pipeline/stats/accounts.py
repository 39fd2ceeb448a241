"""Where every record went: the closed books of each source, from plan and receipts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from koe.dataflow import INDEX, INTERLEAVE, ORDER_UNIT, last_stage_with, stage_chain, stage_making
from koe.errors import ContractError
from koe.schema import QUARANTINED, REJECTED, SPEECH, TEXT, Unit
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan

Receipts = dict[str, Receipt]  # of one unit, by stage


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

    def as_json(self, modality: str) -> dict[str, Any]:
        """Return the books; hours kept are those of `kept` and, until the shards are made, of
        the pending clips that were encoded."""
        return {
            "clips_in" if modality == SPEECH else "samples_in": self.records_in,
            "kept": self.kept,
            "rejected": dict(sorted(self.rejected.items())),
            "quarantined": dict(sorted(self.quarantined.items())),
            "pending": self.pending,
            "closed": self.closes(),
            "hours_in": round(self.seconds_in / 3600, 4),
            "hours_kept": round(self.seconds_kept / 3600, 4),
        }


def read_index(ledger: Ledger) -> dict[str, Any] | None:
    """Return the shard index; None while the shards are not complete.

    Raises: ContractError for a file that is no index.
    """
    if ledger.storage.size(INDEX) is None:
        return None
    remedy = f"Remove {INDEX} and run `koe run`: it is written again."
    try:
        index = json.loads(ledger.storage.read_bytes(INDEX))
    except ValueError as error:
        raise ContractError(f"{INDEX} is no JSON", str(error), remedy) from error
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not all(isinstance(entry, dict) for entry in shards):
        raise ContractError(f"{INDEX} is no index", "it lists no shards", remedy)
    return index


def unit_receipts(plan: Plan, ledger: Ledger) -> Iterator[tuple[Unit, Receipts]]:
    """Yield each unit with its receipts by stage, up to the first stage that is not done.

    One unit's are held at a time: those of 15 M clips would take half a gigabyte.
    """
    for unit in plan.units:
        done: Receipts = {}
        previous = None
        for stage in stage_chain(unit.modality):
            receipt = ledger.receipt(stage, unit.unit)
            stale = previous and receipt and receipt.input_sha256 != previous.output.sha256
            if receipt is None or stale:
                break
            done[stage] = previous = receipt
        yield unit, done


def account_sources(plan: Plan, units: Iterable[tuple[Unit, Receipts]]) -> dict[str, Account]:
    """Close the books of every source up to the tokenize stage."""
    accounts = {name: Account() for name in plan.modalities}
    first, last_clips = stage_making("seconds"), last_stage_with("seconds")
    for unit, receipts in units:
        account = accounts[unit.source]
        account.records_in += unit.num_records
        last = unit.num_records
        for stage in stage_chain(unit.modality):
            receipt = receipts.get(stage)
            if receipt is None:
                break
            account.rejected.update(receipt.rejected)
            account.quarantined.update(receipt.quarantined)
            last = receipt.kept
            if stage == first:
                account.seconds_in += receipt.measures["seconds"]
            if stage == last_clips:
                account.seconds_kept += receipt.measures["seconds"]
        account.pending += last
    return accounts


def encoded_seconds(ledger: Ledger, unit: str, ids: pa.ChunkedArray) -> float:
    """Sum the seconds of those clips of a unit that were encoded and have one of `ids`."""
    receipt = ledger.receipt(last_stage_with("seconds"), unit)
    if receipt is None or not len(ids):
        return 0.0
    wanted = set(ids.to_pylist())
    total = 0.0
    with ledger.storage.open_batches(receipt.output.path, ["id", "seconds"]) as batches:
        for batch in batches:
            clips = zip(batch["id"].to_pylist(), batch["seconds"].to_pylist(), strict=True)
            total += sum(seconds for id, seconds in clips if id in wanted)
    return total


def close_with_order(accounts: dict[str, Account], ledger: Ledger) -> None:
    """Move what the interleave stage placed or left out from pending to its end."""
    receipt = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    if receipt is None or read_index(ledger) is None:
        return
    for source, account in accounts.items():
        account.kept = int(receipt.measures.get(f"placed.{source}", 0))
        account.pending -= account.kept
        account.seconds_kept -= receipt.measures.get(f"seconds_left_out.{source}", 0.0)
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


def accounting_json(plan: Plan, accounts: dict[str, Account]) -> dict[str, Any]:
    """Return the books of all clips, of all samples, and of each source."""
    totals = {SPEECH: Account(), TEXT: Account()}
    for source, modality in plan.modalities.items():
        totals[modality].add(accounts[source])
    return {
        "accounting": totals[SPEECH].as_json(SPEECH),
        "samples": totals[TEXT].as_json(TEXT),
        "sources": {
            name: {"modality": plan.modalities[name], **account.as_json(plan.modalities[name])}
            for name, account in accounts.items()
        },
    }
