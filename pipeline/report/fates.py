"""What became of a clip after scoring: kept, left out by which stage and why, or not done yet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from koe.dataflow import INTERLEAVE, ORDER_UNIT, stage_making
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.stats import read_index

PENDING, KEPT = "pending", "kept"
ClipKey = tuple[str, str]  # unit, id: an id is in a unit once, but may come again in another


@dataclass(frozen=True)
class Fate:
    """`outcome` is kept, rejected, quarantined or pending; `why` is empty where it is kept.

    `encoded` is the clip's row of ENCODED, if it has one.
    """

    outcome: str
    why: str
    encoded: dict[str, Any] | None = None


class Fates:
    """Answers for the clips named; what interleave left out of the shards is read once, for all."""

    def __init__(self, ledger: Ledger, wanted: Collection[ClipKey]) -> None:
        self._ledger = ledger
        self._placed = read_index(ledger) is not None
        self._left_out = _left_out_of_shards(ledger, wanted) if self._placed else {}

    def of(self, score: Receipt, id: str) -> Fate:
        """Say what became of a clip of the unit that `score` vouches for."""
        encode = self._ledger.receipt(stage_making("frames"), score.unit)
        if encode is None or encode.input_sha256 != score.output.sha256:
            return Fate(PENDING, "not encoded yet")
        rows = _rows_of(self._ledger.read_excluded(encode), id)
        if rows:
            return _ended(rows[0])
        kept = _rows_of(self._ledger.read(encode), id)
        encoded = kept[0] if kept else None
        tokenize = self._ledger.receipt(stage_making("input_ids"), score.unit)
        if tokenize is None or tokenize.input_sha256 != encode.output.sha256:
            return Fate(PENDING, "encoded, not tokenized yet", encoded)
        rows = _rows_of(self._ledger.read_excluded(tokenize), id)
        rows += [self._left_out[key] for key in [(score.unit, id)] if key in self._left_out]
        if rows:
            return _ended(rows[0], encoded)
        if not self._placed:
            return Fate(PENDING, "tokenized, in no shard yet", encoded)
        return Fate(KEPT, "", encoded)


def _left_out_of_shards(ledger: Ledger, wanted: Collection[ClipKey]) -> dict[ClipKey, Any]:
    """Find which of some clips have no place in the shards, batch by batch."""
    receipt = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    if receipt is None or receipt.excluded is None or not wanted:
        return {}
    ids = pa.array(sorted({id for _, id in wanted}))
    columns = ["id", "outcome", "reason", "detail", "location"]
    found = {}
    with ledger.storage.open_batches(receipt.excluded.path, columns) as batches:
        for batch in batches:
            hits = batch.filter(pc.field("id").isin(ids))
            for row in hits.to_pylist():
                unit = row["location"].rpartition("#")[0]  # location is unit#row
                found[unit, row["id"]] = row
    return {key: found[key] for key in wanted if key in found}


def _ended(row: dict[str, Any], encoded: dict[str, Any] | None = None) -> Fate:
    return Fate(row["outcome"], f"{row['reason']}: {row['detail']}", encoded)


def _rows_of(table: pa.Table | None, id: str) -> list[dict[str, Any]]:
    return [] if table is None else table.filter(pc.field("id") == id).to_pylist()
