"""The order of all samples as a unit of the ledger, and the names of the shards that it makes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import pyarrow as pa

from koe.dataflow import CARD, INDEX, INTERLEAVE, ORDER_UNIT, is_shard, last_stage_with
from koe.errors import StageError
from koe.fingerprint import sha256_json
from koe.schema import ORDER, QUARANTINED, REJECTED, split_location
from koe.stage import Resources
from pipeline.execution.runner import UnitOutput, UnitTask, Work
from pipeline.run_dir.ledger import Ledger, Receipt, Streamed
from pipeline.run_dir.storage import Output, Storage
from pipeline.stats import encoded_seconds
from pipeline.stats.accounts import clips_of_samples
from stages.interleave import OrderStage
from stages.packing.leaving import wants_clips
from stages.packing.order import Order, plan_order, unit_samples
from stages.packing.shards import SPLITS
from stages.packing.shards import shard_names as names_of
from stages.sources.files.source_index import index_folder


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

    @property
    def resources(self) -> Resources:
        return self.stage.holding_all

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
            sha256 = sha256_json(made_from)
            return sha256, lambda: self._make(ledger, outputs, clips, sha256)

        return task

    def _clips(self, ledger: Ledger) -> list[Output | None]:
        """List the clips that the samples of each unit were made of; None where none is looked at."""
        if not wants_clips(self.stage.settings):
            return [None] * len(self.units)
        receipts = ledger.receipts((last_stage_with("codes"), unit) for unit in self.units)
        return [None if receipt is None else receipt.output for receipt in receipts]

    def _make(
        self,
        ledger: Ledger,
        outputs: Sequence[Output],
        clips: Sequence[Output | None],
        made_from: str,
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
        _forget_shards(ledger, made_from)
        rejected, quarantined = order.reasons(REJECTED), order.reasons(QUARANTINED)
        seconds: dict[str, float] = {}
        left_out = chain(order.excluded(REJECTED), order.excluded(QUARANTINED))
        return UnitOutput(
            Streamed(
                ORDER,
                order.tables(),
                _summed(left_out, ledger, seconds),
                rejected,
                quarantined,
                measured=seconds,
            ),
            records_in=order.num_samples,
            kept=order.num_samples - sum(rejected.values()) - sum(quarantined.values()),
            measures=self._placed(order),
        )

    def _placed(self, order: Order) -> dict[str, float]:
        """Count the samples placed, by source, and the shards."""
        placed: Counter[str] = Counter()
        for unit, count in order.placed_by_unit():
            placed[self.sources[unit]] += count
        measures: dict[str, float] = {
            f"placed.{name}": placed[name] for name in dict.fromkeys(self.sources)
        }
        names = order.shard_names()
        shards: dict[str, float] = {"shards": len(names)}
        for split in SPLITS:
            shards[f"shards.{split}"] = sum(name.startswith(f"{split}-") for name in names)
        return shards | measures


def _summed(
    left_out: Iterable[pa.Table], ledger: Ledger, seconds: dict[str, float]
) -> Iterator[pa.Table]:
    """Pass on the samples without a place, and sum the seconds of their clips by source.

    On the way, because each table of them takes a reading of the samples.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    for table in left_out:
        location, source = (table[name][0].as_py() for name in ("location", "source"))
        unit, _ = split_location(location)  # of all rows of the table
        sums[source] += encoded_seconds(ledger, unit, table["id"])
        seconds[f"seconds_left_out.{source}"] = round(sums[source], 3)
        yield table


def _forget_shards(ledger: Ledger, made_from: str) -> None:
    """Remove what describes the shards of the previous order; and where it was made of other samples,
    the receipts of the shards: samples of the same lengths have the same order, but other tokens."""
    for path in (INDEX, CARD):
        ledger.storage.remove(path)
    before = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    if before is None or before.input_sha256 != made_from:
        for name in ledger.storage.names(INTERLEAVE):
            if name.endswith(".json") and is_shard(name.removesuffix(".json")):
                ledger.storage.remove(f"{INTERLEAVE}/{name}")


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


def shard_names(ledger: Ledger, order: Receipt) -> list[str]:
    """List the shards of an order, in their order; from the receipt, since the order itself is large."""
    numbers = {split: int(order.measures.get(f"shards.{split}", 0)) for split in SPLITS}
    if sum(numbers.values()) != order.measures.get("shards"):
        return list(
            shard_places(ledger.storage, order)
        )  # an earlier version stored it, and did not count them
    return [name for split, number in numbers.items() for name in names_of(split, number)]


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
