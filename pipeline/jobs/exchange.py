"""The two passes that make the shards of samples and order, as units of the ledger.

First the order is turned around (`PlacementsWork`). Then each group of units writes one file, in which
the pieces of each shard lie together (`ExchangeWork`), and each shard is made of one range of each of
these files (`ShardWork`). Every sample is read once, and so is everything between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from koe.dataflow import EXCHANGE, INTERLEAVE, PLACEMENTS_UNIT, is_temporary, last_stage_with
from koe.dataflow import output_path as path_of
from koe.fingerprint import sha256_json
from koe.schema import EXCLUDED, ORDER, PIECE, PLACEMENT
from koe.stage import Outcome
from pipeline.execution.runner import UnitOutput, UnitTask, Work
from pipeline.run_dir.ledger import Ledger, Receipt, Streamed
from pipeline.run_dir.passes import groups_of, made_from, shards_of
from pipeline.run_dir.storage import Storage
from stages.interleave import ExchangeStage, OrderStage, PlacementsStage
from stages.packing.exchange import GROUP_TOKENS, Placements
from stages.packing.pieces import gather_pieces, lay_pieces


@dataclass(frozen=True)
class PlacementsWork(Work[PlacementsStage]):
    """Turns the order around; its one unit is the placements.

    The segments of its output are the slice of the order of each shard, then the placements of each
    group of units.
    """

    stage: PlacementsStage
    root: str
    order: Receipt
    force: bool = False
    group_tokens: int = GROUP_TOKENS

    @property
    def name(self) -> str:
        return PLACEMENTS_UNIT

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        return lambda _: (made_from(self.order), lambda: self._make(ledger))

    def _make(self, ledger: Ledger) -> UnitOutput:
        remove_temporary(ledger)  # made for other shards or of another order: there may be more
        placements = Placements(self.stage.shards, self.group_tokens)

        def tables() -> Iterator[pa.Table]:
            with ledger.storage.open_batches(self.order.output.path, ORDER.names) as batches:
                yield from placements.slices(pa.Table.from_batches([batch]) for batch in batches)
            yield from placements.groups()

        return _segmented(PLACEMENT, tables(), self.order.output.rows)


@dataclass(frozen=True)
class ExchangeWork(Work[ExchangeStage]):
    """Lays the pieces of each shard together, for a group of units; a unit is one group.

    A segment of its output holds the pieces of a shard, in the order of `shards_of`.
    """

    stage: ExchangeStage
    root: str
    order: Receipt
    placements: Receipt
    units: tuple[str, ...]  # names, by the index that the order uses
    force: bool = False

    @property
    def name(self) -> str:
        return EXCHANGE

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        numbers = {name: number for number, name in enumerate(groups_of(self.placements))}
        sources = [made_from(self.order), self.placements.output.sha256]

        def task(unit: str) -> UnitTask:
            return sha256_json([*sources, unit]), partial(self._make, ledger, numbers[unit])

        return task

    def _make(self, ledger: Ledger, group: int) -> UnitOutput:
        def samples(index: int) -> pa.Table:
            path = path_of(last_stage_with("input_ids"), self.units[index])
            return ledger.storage.read_table(path)

        shards = len(shards_of(self.placements))
        placements = read_part(ledger.storage, self.placements, shards + group, PLACEMENT)
        pieces = gather_pieces(placements, shards, samples, self.units)
        return _segmented(PIECE, pieces, placements.num_rows)


@dataclass(frozen=True)
class ShardWork(Work[OrderStage]):
    """Makes shards from their pieces; a unit is a shard's name."""

    stage: OrderStage
    root: str
    order: Receipt
    placements: Receipt
    exchanges: tuple[Receipt, ...]  # of all groups
    units: tuple[str, ...]  # names, by the index that the order uses
    force: bool = False

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        numbers = {name: number for number, name in enumerate(shards_of(self.placements))}

        def task(shard: str) -> UnitTask:
            return self.order.output.sha256, partial(self._make, ledger, numbers[shard])

        return task

    def _make(self, ledger: Ledger, number: int) -> UnitOutput:
        part = read_part(ledger.storage, self.placements, number, ORDER)
        pieces = (
            read_part(ledger.storage, exchange, number, PIECE)
            for exchange in self.exchanges
            if exchange.segments[number] < exchange.segments[number + 1]
        )
        rows = lay_pieces(part, pieces, self.units)
        metadata = {"koe": json.dumps(self.stage.identity, ensure_ascii=False, sort_keys=True)}
        none = EXCLUDED.empty_table()
        return UnitOutput(
            Outcome(rows.replace_schema_metadata(metadata), none, none),
            records_in=part.num_rows,
            kept=part.num_rows,
            measures=_row_measures(rows),
        )


def read_part(storage: Storage, receipt: Receipt, number: int, schema: pa.Schema) -> pa.Table:
    """Read a segment of an output."""
    begin, end = receipt.segments[number : number + 2]
    return storage.read_segment(receipt.output.path, begin, end, schema)


def remove_temporary(ledger: Ledger) -> None:
    """Remove what is needed only until the shards are made: receipts first, then what they vouch for."""
    found = sorted(ledger.storage.names(INTERLEAVE), key=lambda name: not name.endswith(".json"))
    for name in found:
        if is_temporary(name.split(".")[0]):
            ledger.storage.remove(f"{INTERLEAVE}/{name}")


def _segmented(schema: pa.Schema, tables: Iterator[pa.Table], pieces: int) -> UnitOutput:
    kept = Streamed(schema, tables, (), {}, {}, segmented=True)
    return UnitOutput(kept, records_in=pieces, kept=pieces, measures={})


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
