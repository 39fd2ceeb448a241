"""What became of every record: the account of each source, from plan and receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from koe.dataflow import last_stage_with, receipt_path, stage_chain, stage_making
from koe.errors import ContractError
from koe.schema import QUARANTINED, REJECTED, Unit
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan, by_source, lost_in
from pipeline.run_dir.reading import Receipts
from pipeline.run_dir.storage import Storage
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats.model import Account

LeftOut = Counter[tuple[str, str, str]]  # records by source, outcome and reason


def open_accounts(plan: Plan) -> dict[str, Account]:
    """Begin the account of every source with what planning found."""
    accounts = {name: Account(modality) for name, modality in plan.modalities.items()}
    for name, units_of_source in by_source(plan.units).items():
        lost = lost_in(units_of_source)
        accounts[name].lost_records, accounts[name].lost_bytes = lost.records, lost.num_bytes
    for name, remarks in plan.remarks.items():
        accounts[name].notes.update(remarks)
    return accounts


def account_unit(account: Account, unit: Unit, receipts: Receipts) -> None:
    """Count what became of the records of a unit, up to the tokenize stage."""
    first, last_clips = stage_making("seconds"), last_stage_with("seconds")
    account.records_in += unit.records
    last = unit.records
    for stage in stage_chain(unit.modality):
        receipt = receipts.get(stage)
        if receipt is None:
            break
        account.rejected.update(receipt.rejected)
        account.quarantined.update(receipt.quarantined)
        account.notes.update(receipt.notes)
        last = receipt.kept
        if stage == first:
            account.seconds_in += _seconds(receipt)
        if stage == last_clips:
            account.seconds_kept += _seconds(receipt)
    account.pending += last


def _seconds(receipt: Receipt) -> float:
    if "seconds" not in receipt.measures:
        raise ContractError(
            f"{receipt_path(receipt.stage, receipt.unit)} does not say how long its clips are",
            "it is damaged, or another version of koe wrote it",
            "Remove it and run `koe run`: the unit is done again.",
        )
    return receipt.measures["seconds"]


def encoded_seconds(ledger: Ledger, unit: str, ids: pa.ChunkedArray) -> float:
    """Sum the seconds of the clips of a unit that were encoded and have one of `ids`."""
    receipt = ledger.receipt(last_stage_with("seconds"), unit)
    if receipt is None:
        return 0.0
    return seconds_of(UnitFiles(ledger.storage), receipt, ids)


def seconds_of(files: UnitFiles, clips: Receipt, ids: pa.ChunkedArray) -> float:
    """Sum the seconds of those clips of a unit that have one of `ids`."""
    if not len(ids):
        return 0.0
    is_wanted = pc.field("id").isin(ids.combine_chunks())
    batches = files.batches(clips.output, ["id", "seconds"])
    return float(sum(sum(batch.filter(is_wanted)["seconds"].to_pylist()) for batch in batches))


def clips_of_samples(storage: Storage, clips: str, samples: str, columns: list[str]) -> pa.Table:
    """Read columns of those clips of a unit (`clips`, a path) that its `samples` were made of.

    Rows are in the order of the samples. Raises: ContractError for a sample without its clip.
    """
    wanted = storage.read_table(samples)["id"]
    table = storage.read_table(clips)
    options = pc.SetLookupOptions(table["id"].combine_chunks())
    rows = pc.call_function("index_in", [wanted], options)
    if rows.null_count:
        missing = wanted.filter(pc.call_function("is_null", [rows]))[0]
        raise ContractError(
            f"{samples} holds {missing}, which {clips} does not",
            "it was made from other clips",
            "Run `koe run --force tokenize`.",
        )
    return table.select(columns).take(rows)


def close_with_order(accounts: dict[str, Account], order: Receipt, left_out: LeftOut) -> None:
    """Count what the interleave stage placed or left out, which was pending until then."""
    for source, account in accounts.items():
        account.kept = int(order.measures.get(f"placed.{source}", 0))
        account.pending -= account.kept
        account.seconds_kept -= order.measures.get(f"seconds_left_out.{source}", 0.0)
    for (source, outcome, reason), number in left_out.items():
        account = accounts[source]
        account.pending -= number
        counts = {REJECTED: account.rejected, QUARANTINED: account.quarantined}[outcome]
        counts[reason] += number


def total_account(accounts: Mapping[str, Account], modality: str) -> Account:
    """Add up the accounts of all sources of a modality."""
    total = Account(modality)
    for account in accounts.values():
        if account.modality == modality:
            total.add(account)
    return total
