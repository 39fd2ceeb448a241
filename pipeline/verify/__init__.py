"""Proves a run from its bytes alone: hashes, record counts, ids, grammar, order, shards, index and card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from koe.dataflow import CARD, INDEX, INTERLEAVE, ORDER_UNIT, receipt_path, stage_chain
from koe.errors import ContractError
from koe.schema import SPEECH, TEXT
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.reading import stored_index
from pipeline.run_dir.set_aside import set_aside_units
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats import RunTally
from pipeline.verify.cut import CutDocuments
from pipeline.verify.duplicates import prove_duplicates
from pipeline.verify.index import prove_card, prove_folder, prove_identity, prove_index
from pipeline.verify.order import (
    RECEIPT,
    prove_distinct,
    prove_left_out,
    prove_order_measures,
    prove_order_receipt,
    shard_pieces,
)
from pipeline.verify.placing import Placing
from pipeline.verify.rates import prove_rates
from pipeline.verify.receipts import STALE, setting
from pipeline.verify.samples import SampleTable
from pipeline.verify.shards import prove_pieces, prove_shard, shard_figures
from pipeline.verify.units import Seen, prove_names, prove_units

_FILES = (RECEIPT, INDEX, CARD)  # of the shards


@dataclass(frozen=True)
class Proof:
    """One thing that was proved, and of how many things."""

    what: str
    count: int
    unit: str


Proved = Callable[[str, int, str], None]


def verify_run(
    plan: Plan, ledger: Ledger, on_proof: Callable[[Proof], None] = lambda proof: None
) -> list[Proof]:
    """Read everything again and prove it, in the order of the data flow.

    An incomplete run is proved as far as it goes (see `not_made`). Holds 21 bytes per sample, 8
    more while ids are compared, and one shard.
    Raises: ContractError at the first contradiction, naming the file and what it contradicts.
    """
    proofs: list[Proof] = []

    def proved(what: str, count: int, unit: str) -> None:
        if count:
            proofs.append(Proof(what, count, unit))
            on_proof(proofs[-1])

    prove_names(plan)
    proved("units have unique names and sources that the plan knows", len(plan.units), "units")
    order = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    holds_seconds = order is not None and order.excluded is not None
    samples, seen = SampleTable(plan, ledger.storage, holds_seconds), Seen()
    tally = RunTally(plan, UnitFiles(ledger.storage))
    prove_units(plan, ledger, samples, seen, tally)
    _report_units(seen, proved)
    index, order = stored_index(ledger), prove_order_receipt(order, samples)
    if order is None:
        if index is not None:
            what = f"{INDEX} describes shards without an order"
            raise ContractError(what, f"{RECEIPT} is missing or corrupt", STALE)
        return proofs
    made = _prove_shards(order, index, ledger, samples, proved)
    prove_identity(order, seen)
    num_identities = len(seen.codecs) + len(seen.tokenizers)
    proved("units, order and metadata of the shards name the same codec and tokenizer",
           num_identities, "identities")  # fmt: skip
    if index is not None:
        prove_index(index, order, made)
        prove_folder(ledger, index)
        proved("the index names these shards with their hashes and figures, and there is no other shard",
               len(made), "shards")  # fmt: skip
        has_card = prove_card(ledger, index, tally.counted().stats(index, order, samples.left_out))
        proved("the dataset card agrees with the statistics", int(has_card), "card")
    return proofs


def not_made(plan: Plan, ledger: Ledger) -> list[str]:
    """Name what an incomplete run lacks up to the shards: stages with their units, then files."""
    chains = {modality: stage_chain(modality) for modality in (SPEECH, TEXT)}
    folders = {*chains[SPEECH], *chains[TEXT], *(path.partition("/")[0] for path in _FILES)}
    present = {f"{folder}/{name}" for folder in folders for name in ledger.storage.names(folder)}
    missing = Counter(
        stage
        for unit in plan.units
        for stage in chains[unit.modality]
        if receipt_path(stage, unit.unit) not in present
    )
    units = [f"{stage} of {number:,} units" for stage, number in missing.items()]
    units += [f"{why.stage} of {why.unit}, set aside" for why in set_aside_units(ledger.storage)]
    return units + [path for path in _FILES if path not in present]


def _report_units(seen: Seen, proved: Proved) -> None:
    proved("receipts agree with the hash, size, schema and rows of their tables",
           seen.outputs + seen.excluded, "tables")  # fmt: skip
    proved("in = kept + rejected + quarantined, by reason, for every stage, unit and source",
           seen.records, "records of stages")  # fmt: skip
    proved("each stage accounts once for every record of its input and carries its columns unchanged",
           seen.outputs, "outputs")  # fmt: skip
    proved("clips above the threshold have 7 codes per frame, all in range", seen.encoded, "clips")
    proved("speech follows the 7-slot layout and holds the codes that encode stored",
           seen.samples[SPEECH], "samples")  # fmt: skip
    proved("text consists of turns of user and answer", seen.samples[TEXT], "samples")


def _prove_shards(
    order: Receipt,
    index: dict[str, Any] | None,
    ledger: Ledger,
    samples: SampleTable,
    proved: Proved,
) -> list[dict[str, Any]]:
    """Prove the order and the shards made of it; return their entries of the index."""
    seconds_left_out = prove_left_out(order, ledger.storage, samples)
    prove_distinct(samples)
    prove_rates(order, ledger, samples)
    prove_duplicates(order, ledger, samples)
    proved("ids are unique, and samples left out have a reason", len(samples), "samples")
    placing, cut, shards, made = Placing(samples), CutDocuments(samples, ledger.storage), [], []
    for pieces in shard_pieces(ledger.storage, order.output, len(samples.units)):
        shards.append(pieces.shard)
        shard = prove_shard(pieces, order, ledger, samples)
        if shard is None and index is not None:
            raise ContractError(
                f"{INDEX} describes shards that do not all exist",
                f"{receipt_path(INTERLEAVE, pieces.shard)} is missing or corrupt",
                STALE,
            )
        sizes = prove_pieces(pieces, samples, shard and shard[1])
        placing.add(pieces, sizes)
        if shard is not None:
            cut.add(pieces, sizes, shard[1])
            made.append(shard_figures(pieces, *shard, samples))
        del shard  # before the next one is read
    cut.prove()
    placing.prove_complete()
    prove_order_measures(order, shards, samples, seconds_left_out)
    proved("shards agree with their receipts in hash, rows and tokens", len(made), "shards")
    rows, documents = (sum(entry[key] for entry in made) for key in ("rows", "documents"))
    capacity = setting(order, "max_row_tokens")
    proved(f"rows hold at most {capacity} tokens and exactly their documents", rows, "rows")
    proved("documents follow the order and equal their pieces of the samples",
           documents, "documents")  # fmt: skip
    proved("every sample is placed once and completely, or left out", len(samples), "samples")
    return made
