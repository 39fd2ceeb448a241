"""Examples of records that were left out, a few for each source, stage and reason."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

from koe.dataflow import INTERLEAVE, ORDER_UNIT
from koe.schema import EXCLUDED, QUARANTINED, REJECTED, Unit
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.reading import Receipts
from pipeline.stats.model import ExcludedRecord

_MAX_EXAMPLES = {QUARANTINED: 5, REJECTED: 2}


class Examples:
    """The first records of each source, stage, outcome and reason that were not kept."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._found: list[ExcludedRecord] = []
        self._number: Counter[tuple[str, ...]] = Counter()

    def add(self, unit: Unit, receipts: Receipts) -> None:
        for stage, receipt in receipts.items():
            counts = {REJECTED: receipt.rejected, QUARANTINED: receipt.quarantined}
            # Most units only repeat reasons that have examples enough: their tables are not read.
            if any(
                self._wants((unit.source, stage, outcome, reason))
                for outcome, reasons in counts.items()
                for reason in reasons
            ):
                self._read(receipt)

    def sorted(self) -> list[ExcludedRecord]:
        """Return the examples, quarantined before rejected ones, by source, stage and reason."""
        order = self._ledger.receipt(INTERLEAVE, ORDER_UNIT)
        if order is not None:
            self._read(order)
        return sorted(self._found, key=attrgetter("outcome", "source", "stage", "reason"))

    def _wants(self, key: tuple[str, ...]) -> bool:
        return self._number[key] < _MAX_EXAMPLES[key[2]]

    def _read(self, receipt: Receipt) -> None:
        if receipt.excluded is None:
            return
        with self._ledger.storage.open_batches(receipt.excluded.path, EXCLUDED.names) as batches:
            for batch in batches:
                names = (batch[key].to_pylist() for key in ("source", "stage", "outcome", "reason"))
                for row, key in enumerate(zip(*names, strict=True)):
                    if self._wants(key):
                        self._number[key] += 1
                        (values,) = batch.slice(row, 1).to_pylist()
                        self._found.append(ExcludedRecord(**values))
