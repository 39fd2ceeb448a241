"""The interleave stage around its pure core: one order for all samples, then one unit per shard.

The order is a unit of the ledger like any other; so is every shard, so that a
killed run loses only the shards in flight. `index.json` is written when the last shard is complete, and lists them all.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import CARD, INDEX, INTERLEAVE, ORDER_UNIT, SHARDS, last_stage_with, output_path
from koe.errors import StageError
from koe.fingerprint import sha256_json
from koe.schema import EXCLUDED, ORDER, QUARANTINED, REJECTED, ROW, SCHEMA_VERSION, split_location
from koe.stage import Outcome
from pipeline.execution.runner import UnitOutput, UnitTask, Work
from pipeline.run_dir.ledger import Ledger, Receipt, Streamed
from pipeline.run_dir.storage import Output, Storage
from pipeline.stats import encoded_seconds
from pipeline.stats.accounts import clips_of_samples
from stages.interleave import OrderStage, gather_rows
from stages.packing.leaving import wants_clips
from stages.packing.order import Order, plan_order, unit_samples
from stages.sources.files.source_index import index_folder

_OPEN_UNITS = 256  # sample tables that a worker keeps mapped


@dataclass(frozen=True)
class OrderWork(Work[OrderStage]):
    """Decides which sample goes where; its one unit is the order.

    A worker does it, and not the process that runs the engine: the memory of that process must not
    grow with the number of samples.
    """

    stage: OrderStage
    root: str
    units: tuple[str, ...]  # of the plan, in its order
    sources: tuple[str, ...]  # of each unit
    force: bool = False

    @property
    def name(self) -> str:
        return ORDER_UNIT  # shown apart from the shards: samples are not the shards' documents

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        def task(_: str) -> UnitTask:
            read = ledger.receipts((last_stage_with("input_ids"), unit) for unit in self.units)
            outputs = [
                _require_tokenized(unit, receipt).output
                for unit, receipt in zip(self.units, read, strict=True)
            ]
            clips = self._clips(ledger)
            made_from = [
                [unit, output.sha256, *([of_unit.sha256] if of_unit else [])]
                for unit, output, of_unit in zip(self.units, outputs, clips, strict=True)
            ]
            return sha256_json(made_from), lambda: self._make(ledger, outputs, clips)

        return task

    def _clips(self, ledger: Ledger) -> list[Output | None]:
        """List the clips that the samples of each unit were made of; None where none is looked at."""
        if not wants_clips(self.stage.settings):
            return [None] * len(self.units)
        receipts = ledger.receipts((last_stage_with("codes"), unit) for unit in self.units)
        return [None if receipt is None else receipt.output for receipt in receipts]

    def _make(
        self, ledger: Ledger, outputs: Sequence[Output], clips: Sequence[Output | None]
    ) -> UnitOutput:
        storage = ledger.storage
        order = plan_order(
            (
                unit_samples(
                    k,
                    unit,
                    partial(storage.read_table, output.path),
                    of_unit and partial(clips_of_samples, storage, of_unit.path, output.path),
                )
                for k, (unit, output, of_unit) in enumerate(
                    zip(self.units, outputs, clips, strict=True)
                )
            ),
            self.stage.settings,
            index_folder(storage.root),
        )
        for path in (INDEX, CARD):  # they describe the shards of the previous order
            ledger.storage.remove(path)
        rejected, quarantined = order.reasons(REJECTED), order.reasons(QUARANTINED)
        return UnitOutput(
            Streamed(
                ORDER,
                order.tables(),
                chain(order.excluded(REJECTED), order.excluded(QUARANTINED)),
                rejected,
                quarantined,
            ),
            records_in=order.num_samples,
            kept=order.num_samples - sum(rejected.values()) - sum(quarantined.values()),
            measures=self._placed(order) | self._left_out(order, ledger),
        )

    def _placed(self, order: Order) -> dict[str, float]:
        """Count the samples placed, by source, and the shards."""
        placed: Counter[str] = Counter()
        for unit, count in order.placed_by_unit():
            placed[self.sources[unit]] += count
        measures: dict[str, float] = {
            f"placed.{name}": placed[name] for name in dict.fromkeys(self.sources)
        }
        return {"shards": len(order.shard_names())} | measures

    def _left_out(self, order: Order, ledger: Ledger) -> dict[str, float]:
        """Sum the seconds of the clips without a place, by source."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for table in chain(order.excluded(REJECTED), order.excluded(QUARANTINED)):
            location, source = (table[name][0].as_py() for name in ("location", "source"))
            unit, _ = split_location(location)  # of all rows of the table
            seconds[source] += encoded_seconds(ledger, unit, table["id"])
        return {f"seconds_left_out.{name}": round(value, 3) for name, value in seconds.items()}


def _tokenized(ledger: Ledger, unit: str) -> Receipt:
    return _require_tokenized(unit, ledger.receipt(last_stage_with("input_ids"), unit))


def _require_tokenized(unit: str, receipt: Receipt | None) -> Receipt:
    if receipt is None:
        raise StageError(
            f"unit {unit} is not tokenized",
            "interleave needs the samples of every unit",
            "Run `koe run` without --only: it does what is missing.",
            stage=INTERLEAVE,
            unit=unit,
        )
    return receipt


@dataclass(frozen=True)
class ShardWork(Work[OrderStage]):
    """Makes shards from their slices of the order; a unit is a shard's name."""

    stage: OrderStage
    root: str
    order: Receipt
    units: tuple[str, ...]  # names, by the index that the order uses
    force: bool = False

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        @lru_cache(maxsize=1)
        def order() -> tuple[pa.Table, dict[str, tuple[int, int]]]:
            return ledger.read(self.order), shard_places(ledger.storage, self.order)

        @lru_cache(maxsize=_OPEN_UNITS)
        def samples(index: int) -> pa.Table:
            return ledger.read(_tokenized(ledger, self.units[index]))

        def make(shard: str) -> UnitOutput:
            table, places = order()
            begin, end = places[shard]
            part = table.slice(begin, end - begin)
            rows = gather_rows(part, samples, self.units)
            metadata = {"koe": json.dumps(self.stage.identity, ensure_ascii=False, sort_keys=True)}
            none = EXCLUDED.empty_table()
            return UnitOutput(
                Outcome(rows.replace_schema_metadata(metadata), none, none),
                records_in=part.num_rows,
                kept=part.num_rows,
                measures=_row_measures(rows),
            )

        return lambda shard: (self.order.output.sha256, lambda: make(shard))


def shard_places(storage: Storage, order: Receipt) -> dict[str, tuple[int, int]]:
    """Find where each shard begins and ends in the stored order, in the order of their names."""
    places: dict[str, tuple[int, int]] = {}
    row = 0
    with storage.open_batches(order.output.path, ["shard"]) as batches:
        for batch in batches:
            names = batch.column(0)
            if len(names) and names[0] == names[-1]:  # the column is sorted, so all are equal
                counts = [(names[0].as_py(), len(names))]
            else:
                counts = Counter(names.to_pylist()).items()
            for name, count in counts:
                begin, _ = places.get(name, (row, row))
                row += count
                places[name] = (begin, row)
    return places


def _row_measures(rows: pa.Table) -> dict[str, float]:
    row_tokens = np.concatenate([c.value_lengths().to_numpy() for c in rows["input_ids"].chunks])
    measures: dict[str, float] = {
        "tokens": int(row_tokens.sum()),
        "longest_row_tokens": int(row_tokens.max(initial=0)),
        "documents": 0,
    }
    lists = zip(rows["document_modalities"].chunks, rows["document_lengths"].chunks, strict=True)
    for modalities, lengths in lists:
        names = modalities.flatten().dictionary_encode()
        sums = np.bincount(names.indices.to_numpy(), weights=lengths.flatten().to_numpy())
        measures["documents"] += len(names)
        for name, tokens in zip(names.dictionary.to_pylist(), sums.tolist(), strict=True):
            measures[f"tokens.{name}"] = measures.get(f"tokens.{name}", 0) + int(tokens)
    return measures


def write_index(stage: OrderStage, ledger: Ledger, shards: Sequence[str]) -> dict[str, Any]:
    """Describe the shards in `index.json`, and remove those of an earlier order.

    The same shards give the same bytes: the index holds no time and no path of the machine.
    """
    entries = []
    receipts = ledger.receipts((INTERLEAVE, shard) for shard in shards)
    for shard, receipt in zip(shards, receipts, strict=True):
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
        INTERLEAVE: stage.settings.content(),
        "schema": ROW.to_string(show_field_metadata=False).splitlines(),
        "shards": entries,
    }
    kept = {f"{shard}.arrow" for shard in shards}
    for name in ledger.storage.names(SHARDS):
        if name.endswith(".arrow") and name not in kept:
            ledger.forget(INTERLEAVE, name.removesuffix(".arrow"))
            ledger.storage.remove(output_path(INTERLEAVE, name.removesuffix(".arrow")))
    ledger.storage.write_bytes(INDEX, json.dumps(index, ensure_ascii=False, indent=1).encode())
    return index
