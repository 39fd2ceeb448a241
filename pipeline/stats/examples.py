"""Examples of records that were left out, a few for each source, stage and reason."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

import pyarrow as pa

from koe.schema import EXCLUDED, QUARANTINED, REJECTED, Unit
from pipeline.run_dir.reading import Receipts
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats.model import ExcludedRecord

_MAX_EXAMPLES = {QUARANTINED: 5, REJECTED: 2}


class Examples:
    """The first records of each source, stage, outcome and reason that were not kept."""

    def __init__(self, files: UnitFiles) -> None:
        self._files = files
        self._found: list[ExcludedRecord] = []
        self._number: Counter[tuple[str, ...]] = Counter()

    def add(self, unit: Unit, receipts: Receipts) -> None:
        for stage, receipt in receipts.items():
            counts = {REJECTED: receipt.rejected, QUARANTINED: receipt.quarantined}
            # Most units only repeat reasons that have examples enough: their tables are not read.
            if receipt.excluded is not None and any(
                self._wants((unit.source, stage, outcome, reason))
                for outcome, reasons in counts.items()
                for reason in reasons
            ):
                for batch in self._files.batches(receipt.excluded, EXCLUDED.names):
                    self.take(batch)

    def sorted(self) -> list[ExcludedRecord]:
        """Return the examples, quarantined before rejected ones, by source, stage and reason."""
        return sorted(self._found, key=attrgetter("outcome", "source", "stage", "reason"))

    def _wants(self, key: tuple[str, ...]) -> bool:
        return self._number[key] < _MAX_EXAMPLES[key[2]]

    def take(self, excluded: pa.RecordBatch) -> None:
        """Keep those of a batch of EXCLUDED that there are not examples enough of."""
        names = (excluded[key].to_pylist() for key in ("source", "stage", "outcome", "reason"))
        for row, key in enumerate(zip(*names, strict=True)):
            if self._wants(key):
                self._number[key] += 1
                (values,) = excluded.slice(row, 1).to_pylist()
                self._found.append(ExcludedRecord(**values))
