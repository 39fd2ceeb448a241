"""The interleave stage around its pure core: one order for all samples, then shards in two passes.

The order is a unit of the ledger like any other; so is every part of the passes and every shard, so
that a killed run loses only what is in flight. `index.json` is written when the last shard is
complete, and lists them all; what lay between the passes is removed then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from koe.dataflow import (
    INDEX,
    INTERLEAVE,
    ORDER_UNIT,
    PLACEMENTS_UNIT,
    SHARDS,
    is_shard,
    output_path,
)
from koe.errors import StageError
from koe.schema import ROW, SCHEMA_VERSION
from pipeline.execution.runner import SKIPPED, UnitResult, Work, result_of
from pipeline.jobs.exchange import ExchangeWork, PlacementsWork, ShardWork, remove_temporary
from pipeline.jobs.order import shard_names
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.passes import groups_of, made_from, shards_of
from stages.interleave import ExchangeStage, OrderStage, PlacementsStage
from stages.packing.exchange import GROUP_TOKENS

# Does work on units, and takes in the results of those that were done before; whether all are done.
RunWork = Callable[[Work, Sequence[str], Sequence[UnitResult]], bool]


@dataclass(frozen=True)
class Shards:
    """The making of the shards of a stored order.

    `units`: the names of the plan's units, by the index that the order uses. `group_tokens`: those
    that a worker of the first pass holds; they do not change the shards.
    """

    stage: OrderStage
    ledger: Ledger
    units: tuple[str, ...]
    run: RunWork
    force: bool = False
    group_tokens: int = GROUP_TOKENS

    def make(self) -> dict[str, Any] | None:
        """Make the shards that are missing or stale, and the index of all; None where a unit failed."""
        order = _required(self.ledger, ORDER_UNIT)
        names = shard_names(self.ledger, order)
        done, missing = self._done(names, order)
        if missing:
            work = self._exchanged(order, missing)
            if work is None or not self.run(work, missing, done):
                return None
        index = write_index(self.stage, self.ledger, names)
        remove_temporary(self.ledger)
        return index

    def _done(self, names: Sequence[str], order: Receipt) -> tuple[list[UnitResult], list[str]]:
        """Return the results of the shards that can stay, and the names of the others."""
        done: list[UnitResult] = []
        missing: list[str] = []
        stamps = self.ledger.storage.stamps(SHARDS, ".arrow")
        sizes = {f"{SHARDS}/{name}": size for name, (size, _) in stamps.items()}
        receipts = self.ledger.receipts((INTERLEAVE, name) for name in names)
        for name, receipt in zip(names, receipts, strict=True):
            check = self.ledger.judge(self.stage, receipt, order.output.sha256, sizes.get)
            if check.receipt is None or self.force:
                missing.append(name)
            else:
                done.append(result_of(check.receipt, SKIPPED))
        return done, missing

    def _exchanged(self, order: Receipt, missing: Sequence[str]) -> ShardWork | None:
        """Do the first pass, and return the work of the second; None where a unit failed."""
        root, force, resources = self.ledger.storage.root, self.force, self.stage.resources
        turned = PlacementsWork(self._placed(order, missing), root, order, force, self.group_tokens)
        if not self.run(turned, [PLACEMENTS_UNIT], ()):
            return None
        placements = _required(self.ledger, PLACEMENTS_UNIT)
        stage = ExchangeStage(resources)
        exchange = ExchangeWork(stage, root, order, placements, self.units, force)
        groups = groups_of(placements)
        if not self.run(exchange, groups, ()):
            return None
        exchanges = tuple(_all_of(self.ledger, groups))
        return ShardWork(self.stage, root, order, placements, exchanges, self.units, force)

    def _placed(self, order: Receipt, missing: Sequence[str]) -> PlacementsStage:
        """Say for which shards the first pass is done.

        After a run that was killed in the second pass, what it brought for more shards serves those
        that are still missing.
        """
        before = self.ledger.receipt(INTERLEAVE, PLACEMENTS_UNIT)
        if before and not self.force and set(missing) <= set(shards_of(before)):
            wider = PlacementsStage(tuple(shards_of(before)), self.stage.holding_all)
            if self.ledger.check(wider, PLACEMENTS_UNIT, made_from(order)).receipt:
                return wider
        return PlacementsStage(tuple(missing), self.stage.holding_all)


def _required(ledger: Ledger, unit: str) -> Receipt:
    return next(_all_of(ledger, [unit]))


def _all_of(ledger: Ledger, units: Sequence[str]) -> Iterator[Receipt]:
    """Yield the receipts of units that are made."""
    receipts = ledger.receipts((INTERLEAVE, unit) for unit in units)
    for unit, receipt in zip(units, receipts, strict=True):
        if receipt is None:
            raise StageError(f"{INTERLEAVE} {unit} is not made yet", remedy="Run `koe run` again.")
        yield receipt


def write_index(stage: OrderStage, ledger: Ledger, shards: Sequence[str]) -> dict[str, Any]:
    """Describe the shards in `index.json`, and remove those of an earlier order.

    The same shards give the same bytes: the index holds no time and no path of the machine.
    """
    entries = []
    for shard, receipt in zip(shards, _all_of(ledger, shards), strict=True):
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
        INTERLEAVE: stage.settings.content(),
        "schema": ROW.to_string(show_field_metadata=False).splitlines(),
        "shards": entries,
    }
    _remove_others(ledger, shards)
    ledger.storage.write_bytes(INDEX, json.dumps(index, ensure_ascii=False, indent=1).encode())
    return index


def _remove_others(ledger: Ledger, shards: Sequence[str]) -> None:
    """Remove the shards of an earlier order, and receipts without a shard."""
    kept = set(shards)
    receipts = (
        name.removesuffix(".json")
        for name in ledger.storage.names(INTERLEAVE)
        if name.endswith(".json")
    )
    for name in receipts:
        if is_shard(name) and name not in kept:
            ledger.forget(INTERLEAVE, name)
    for name in ledger.storage.names(SHARDS):
        shard = name.removesuffix(".arrow")
        if name.endswith(".arrow") and shard not in kept:
            ledger.storage.remove(output_path(INTERLEAVE, shard))
