"""The interleave stage around its pure core: one order for all samples, then a unit a shard.

The order is a unit of the ledger like any other; so is every shard, so that a kill costs the
shards in flight. `index.json` is written when the last shard is whole and says what there is.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # its functions are made at import: pyright cannot see them

from pipeline.errors import StageError
from pipeline.fingerprint import sha256_json
from pipeline.ledger import Ledger, Receipt
from pipeline.plan import Plan
from pipeline.runner import DONE, SKIPPED, UnitFunction, UnitResult, guarded, result_of
from pipeline.schema import EXCLUDED, ROW, SCHEMA_VERSION
from pipeline.stage import Outcome, Resources
from pipeline.stats import INDEX, ORDER_UNIT
from pipeline.storage import Storage
from stages.interleave import (
    NAME,
    VERSION,
    InterleaveSettings,
    Order,
    gather_rows,
    plan_order,
    unit_samples,
)

_OPEN_UNITS = 256  # sample tables that a worker keeps mapped


@dataclass(frozen=True)
class OrderStage:
    """What decides the order and the shards, for their receipts."""

    settings: InterleaveSettings
    identity: Mapping[str, Any]  # of codec and tokenizer, which the shards' metadata name
    resources: Resources = field(default_factory=Resources)
    name: str = NAME
    version: int = VERSION

    @property
    def content(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.settings), **self.identity}


def make_order(
    stage: OrderStage, plan: Plan, ledger: Ledger, force: bool
) -> tuple[Receipt, UnitResult]:
    """Decide which sample goes where, unless that was decided for just these samples.

    Raises: StageError when a unit is not tokenized yet.
    """
    receipts = [_tokenized(ledger, unit.unit) for unit in plan.units]
    input_sha256 = sha256_json([[r.unit, r.output.sha256] for r in receipts])
    check = ledger.check(stage, ORDER_UNIT, input_sha256)
    if check.receipt and not force:
        return check.receipt, _as_order(result_of(check.receipt, SKIPPED))
    started = time.perf_counter()
    order = plan_order(
        [unit_samples(k, r.unit, ledger.read(r)) for k, r in enumerate(receipts)], stage.settings
    )
    ledger.storage.remove(INDEX)  # it describes the shards of the order before this one
    receipt = ledger.commit(
        stage,
        ORDER_UNIT,
        input_sha256,
        Outcome(order.table, order.rejected, order.quarantined),
        records_in=order.num_samples,
        kept=order.num_samples - order.rejected.num_rows - order.quarantined.num_rows,
        seconds=time.perf_counter() - started,
        measures=_placed(order, plan),
    )
    return receipt, _as_order(result_of(receipt, DONE, check.why))


def _as_order(result: UnitResult) -> UnitResult:
    """Name the order apart from the shards: its samples are not the shards' documents."""
    return dataclasses.replace(result, stage=ORDER_UNIT)


def _tokenized(ledger: Ledger, unit: str) -> Receipt:
    receipt = ledger.receipt("tokenize", unit)
    if receipt is None:
        raise StageError(
            f"unit {unit} is not tokenized",
            "interleave needs the samples of every unit",
            "Run `koe run` without --only, it does what is missing.",
            stage=NAME,
            unit=unit,
        )
    return receipt


def _placed(order: Order, plan: Plan) -> dict[str, float]:
    """Count the samples placed, by source, and the shards."""
    whole = order.table.filter(pc.equal(order.table["part"], 0))  # pyright: ignore[reportAttributeAccessIssue]
    by_unit = Counter(whole["unit"].to_pylist())
    placed: Counter[str] = Counter()
    for unit, count in by_unit.items():
        placed[plan.units[unit].source] += count
    measures: dict[str, float] = {f"placed.{name}": placed[name] for name in plan.modalities}
    return {"shards": len(order.shards())} | measures


@dataclass(frozen=True)
class ShardWork:
    """Makes shards from their slices of the order; a unit is a shard's name."""

    stage: OrderStage
    root: str
    order: Receipt
    units: tuple[str, ...]  # names, by the index that the order uses
    force: bool = False

    @property
    def name(self) -> str:
        return NAME

    @property
    def resources(self) -> Resources:
        return self.stage.resources

    def open(self) -> UnitFunction:
        ledger = Ledger(Storage(self.root))
        slices: dict[str, pa.Table] = {}

        @lru_cache(maxsize=_OPEN_UNITS)
        def samples(index: int) -> pa.Table:
            return ledger.read(_tokenized(ledger, self.units[index]))

        def run(shard: str) -> UnitResult:
            check = ledger.check(self.stage, shard, self.order.output.sha256)
            if check.receipt and not self.force:
                return result_of(check.receipt, SKIPPED)
            started = time.perf_counter()
            if not slices:
                slices.update(order_slices(ledger.read(self.order)))
            rows = gather_rows(slices[shard], samples, self.units)
            metadata = {"koe": json.dumps(self.stage.identity, ensure_ascii=False, sort_keys=True)}
            none = EXCLUDED.empty_table()
            receipt = ledger.commit(
                self.stage,
                shard,
                self.order.output.sha256,
                Outcome(rows.replace_schema_metadata(metadata), none, none),
                records_in=slices[shard].num_rows,
                kept=slices[shard].num_rows,
                seconds=time.perf_counter() - started,
                output_path=f"shards/{shard}.arrow",
                measures=_row_measures(rows),
            )
            return result_of(receipt, DONE, check.why)

        return lambda shard: guarded(NAME, shard, lambda: run(shard))


def order_slices(order: pa.Table) -> dict[str, pa.Table]:
    """Slice a stored order by shard."""
    none = EXCLUDED.empty_table()
    return Order(order.combine_chunks(), none, none, 0).shards()


def _row_measures(rows: pa.Table) -> dict[str, float]:
    lengths = np.diff(rows["input_ids"].combine_chunks().offsets.to_numpy())
    documents = rows["document_lengths"].combine_chunks().flatten()
    modalities = rows["document_modalities"].combine_chunks().flatten()
    by_modality = (
        pa.table({"m": modalities, "n": documents}).group_by("m").aggregate([("n", "sum")])
    )
    measures: dict[str, float] = {
        "tokens": int(lengths.sum()),
        "longest_row_tokens": int(lengths.max(initial=0)),
        "documents": len(documents),
    }
    return measures | {f"tokens.{row['m']}": row["n_sum"] for row in by_modality.to_pylist()}


def write_index(stage: OrderStage, ledger: Ledger, shards: Sequence[str]) -> dict[str, Any]:
    """Describe the shards in `index.json`, and remove those of an earlier order.

    The same shards give the same bytes: the index holds no time and no path of the machine.
    """
    entries = []
    for shard in shards:
        receipt = ledger.receipt(NAME, shard)
        if receipt is None:
            raise StageError(f"shard {shard} is not made yet", remedy="Run `koe run` again.")
        sums = receipt.measures
        entries.append(
            {
                "path": f"{shard}.arrow",
                "split": shard.rsplit("-", 1)[0],
                "rows": receipt.output.rows,
                "documents": int(sums["documents"]),
                "tokens": int(sums["tokens"]),
                "tokens_by_modality": {
                    name.removeprefix("tokens."): int(value)
                    for name, value in sorted(sums.items())
                    if name.startswith("tokens.")
                },
                "longest_row_tokens": int(sums["longest_row_tokens"]),
                "num_bytes": receipt.output.num_bytes,
                "sha256": receipt.output.sha256,
            }
        )
    index = {
        "schema_version": SCHEMA_VERSION,
        "max_row_tokens": stage.settings.max_row_tokens,
        **stage.identity,
        "interleave": dataclasses.asdict(stage.settings),
        "schema": ROW.to_string(show_field_metadata=False).splitlines(),
        "shards": entries,
    }
    kept = {f"{shard}.arrow" for shard in shards}
    for name in ledger.storage.names("shards"):
        if name.endswith(".arrow") and name not in kept:
            ledger.forget(NAME, name.removesuffix(".arrow"))
            ledger.storage.remove(f"shards/{name}")
    ledger.storage.write_bytes(INDEX, json.dumps(index, ensure_ascii=False, indent=1).encode())
    return index
