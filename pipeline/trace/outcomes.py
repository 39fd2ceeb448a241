"""What became of a clip after scoring: kept, left out by which stage and why, or not done yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import dropwhile, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from koe.dataflow import INTERLEAVE, ORDER_UNIT, output_schema, stage_making
from koe.schema import ENCODED, SPEECH, split_location
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.reading import read_index, unit_history
from pipeline.run_dir.storage import Storage

PENDING, KEPT = "pending", "kept"
ClipKey = tuple[str, str]  # unit, id: an id is in a unit once, but may come again in another


@dataclass(frozen=True)
class ClipOutcome:
    """`outcome` is kept, rejected, quarantined or pending; `why` is empty where it is kept.

    `encoded` is the clip's row of ENCODED, if it has one.
    """

    outcome: str
    why: str
    encoded: dict[str, Any] | None = None


class ClipOutcomes:
    """The outcomes of the `wanted` clips; what interleave left out is read once for all of them."""

    def __init__(self, ledger: Ledger, wanted: Collection[ClipKey]) -> None:
        self._ledger = ledger
        self._placed = read_index(ledger) is not None
        self._left_out = _left_out_of_shards(ledger, wanted) if self._placed else {}

    def of(self, unit: str, id: str) -> ClipOutcome:
        """Return what became of a scored clip of a unit."""
        history = unit_history(self._ledger, SPEECH, unit)
        encoded = None
        after_scoring = dropwhile(lambda stage: stage != stage_making("ovrl"), history.receipts)
        for stage in islice(after_scoring, 1, None):
            receipt = history.receipts[stage]
            if rows := _rows_of(self._ledger.read_excluded(receipt), id):
                return _left_out(rows[0], encoded)
            if set(ENCODED.names) <= set(output_schema(stage).names):
                encoded = next(iter(_rows_of(self._ledger.read(receipt), id)), None)
        if history.pending:
            return ClipOutcome(PENDING, f"waits for {history.pending}", encoded)
        if left_out := self._left_out.get((unit, id)):
            return _left_out(left_out, encoded)
        if not self._placed:
            return ClipOutcome(PENDING, f"waits for {INTERLEAVE}", encoded)
        return ClipOutcome(KEPT, "", encoded)


def _left_out_of_shards(ledger: Ledger, wanted: Collection[ClipKey]) -> dict[ClipKey, Any]:
    """Find the excluded rows of those clips that have no place in the shards, batch by batch."""
    receipt = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    if receipt is None or receipt.excluded is None or not wanted:
        return {}
    ids = pa.array(sorted({id for _, id in wanted}))
    columns = ["id", "outcome", "reason", "detail", "location"]
    found = {}
    with ledger.storage.open_batches(receipt.excluded.path, columns) as batches:
        for batch in batches:
            for row in batch.filter(pc.field("id").isin(ids)).to_pylist():
                found[split_location(row["location"])[0], row["id"]] = row
    return {key: found[key] for key in wanted if key in found}


def _left_out(row: dict[str, Any], encoded: dict[str, Any] | None) -> ClipOutcome:
    return ClipOutcome(row["outcome"], f"{row['reason']}: {row['detail']}", encoded)


def _rows_of(table: pa.Table | None, id: str) -> list[dict[str, Any]]:
    return [] if table is None else table.filter(pc.field("id") == id).to_pylist()


def rows_with_id(
    storage: Storage, path: str, columns: list[str], id: str
) -> Iterator[dict[str, Any]]:
    """Yield those rows of a table that have this id, reading batch by batch."""
    with storage.open_batches(path, columns) as batches:
        for batch in batches:
            yield from batch.filter(pc.field("id") == id).to_pylist()
