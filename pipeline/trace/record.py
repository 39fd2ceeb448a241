"""What became of one record: what each stage did with it, and where it is in the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from koe.dataflow import INTERLEAVE, ORDER_UNIT, last_stage_with, stage_chain
from koe.errors import ConfigError
from koe.printable import shorten_list
from koe.schema import SPEECH, Unit, sample_location
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.reading import unit_history
from pipeline.run_dir.set_aside import read_set_aside, set_aside_units
from pipeline.run_dir.storage import Storage
from pipeline.trace.document import Document, document_json, num_frames
from pipeline.trace.outcomes import KEPT, PENDING, rows_with_id


@dataclass(frozen=True)
class StageOutcome:
    """What a stage did with a record; `location` says where a record that was left out lies.

    `outcome` is kept, rejected, quarantined, or pending where the stage has not seen the unit, or
    not as it is now.
    """

    stage: str
    outcome: str
    reason: str = ""
    detail: str = ""
    location: str = ""


@dataclass(frozen=True)
class ShardPlace:
    """A piece of a record in the shards; `document` counts the documents of the row."""

    shard: str
    row: int
    document: int
    part: int


@dataclass(frozen=True)
class RecordTrace:
    """A record of one unit. `clip` is the row of the last stage that kept it, without codes.

    `codes`: uint16 [7 frames], `input_ids`: int32 [tokens]; None where no stage made them.
    """

    id: str
    source: str
    modality: str
    unit: str
    stages: tuple[StageOutcome, ...]
    clip: dict[str, Any] | None = None
    codes: np.ndarray | None = None
    input_ids: np.ndarray | None = None
    places: tuple[ShardPlace, ...] = ()

    @property
    def document(self) -> Document:
        """The record as if it were one uncut document."""
        ids = np.empty(0, np.int32) if self.input_ids is None else self.input_ids
        return Document(
            self.id, self.source, self.modality, self.unit, 0, ids, self.codes, self.clip
        )


def find_records(
    plan: Plan,
    ledger: Ledger,
    id: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[RecordTrace]:
    """Find the records with this id; several where units, or one unit, repeat it.

    `id`: also UNIT#ROW, as what interleave left out names its samples.
    Reads all ids of its source, with whose name it begins, but of other columns only its own rows.
    `progress` is called with the number of units searched, and that of all.
    Raises: ConfigError for an id that no unit holds, or a row that a unit does not have.
    """
    if any(unit.unit == id.rpartition("#")[0] for unit in plan.units):
        id = _id_at(ledger, id)
    source = id.partition("/")[0]
    if source not in plan.modalities:
        raise ConfigError(
            f"{id} is neither a shard nor the id of a record",
            f"the run's sources are {shorten_list(plan.modalities, source)}",
            "Write SHARD:ROW, as in train-00000:12 (the path of a shard ends in .arrow), or the "
            "complete id of a record, SOURCE/..., or UNIT#ROW.",
        )
    units = [(k, unit) for k, unit in enumerate(plan.units) if unit.source == source]
    found: list[RecordTrace] = []
    num_searched = 0
    for done, (index, unit) in enumerate(units, 1):
        receipt = ledger.receipt(stage_chain(unit.modality)[0], unit.unit)
        if receipt is not None:
            num_searched += 1
            found += _of_unit(ledger, index, unit, receipt, id)
        progress(done, len(units))
    if not found:
        aside = {why.unit for why in set_aside_units(ledger.storage)} & {u.unit for _, u in units}
        others = f"; set aside: {', '.join(sorted(aside))}" if aside else ""
        raise ConfigError(
            f"there is no record {id}",
            f"none of the {num_searched:,} units of {source} read so far (of {len(units):,}) holds it{others}",
            "Copy an id from `koe stats`, or name a shard as in train-00000:12.",
        )
    return found


def _id_at(ledger: Ledger, location: str) -> str:
    """Return the id of the sample in a row of a unit. Raises: ConfigError where there is none."""
    unit, _, row = location.rpartition("#")
    receipt = ledger.receipt(last_stage_with("input_ids"), unit)
    if receipt is None or not row.isdecimal() or int(row) >= receipt.output.rows:
        has = "no samples yet" if receipt is None else f"{receipt.output.rows:,} samples"
        raise ConfigError(
            f"there is no sample {location}",
            f"the unit has {has}, numbered from 0",
            "Copy a place from `koe stats` or `koe inspect`.",
        )
    return ledger.storage.read_table(receipt.output.path)["id"][int(row)].as_py()


def _of_unit(
    ledger: Ledger, index: int, unit: Unit, receipt: Receipt, id: str
) -> Iterator[RecordTrace]:
    """Yield the record that the unit's first stage kept, and those that it left out."""
    if _row_of(ledger.storage, receipt.output.path, id) is not None:
        yield _followed(ledger, index, unit, id)
    for outcome in _left_out(ledger.storage, receipt, id):
        yield RecordTrace(id, unit.source, unit.modality, unit.unit, (outcome,))


def _followed(ledger: Ledger, index: int, unit: Unit, id: str) -> RecordTrace:
    """Follow a record from stage to stage as far as it came."""
    record = RecordTrace(id, unit.source, unit.modality, unit.unit, ())
    history, row = unit_history(ledger, unit.modality, unit.unit), None
    for stage, receipt in history.receipts.items():
        row = _row_of(ledger.storage, receipt.output.path, id)
        if row is None:
            return _after(record, *_left_out(ledger.storage, receipt, id))
        record = _after(_filled(ledger.storage, receipt, row, record), StageOutcome(stage, KEPT))
    if history.pending:
        why = f"since {history.replaced_by} ran again" if history.replaced_by else ""
        if aside := read_set_aside(ledger.storage, history.pending, unit.unit):
            why = f"its unit {unit.unit} is set aside: {aside.describe()}"
        return _after(record, StageOutcome(history.pending, PENDING, detail=why))
    assert row is not None
    return _placed(ledger, index, row, record)


def _after(record: RecordTrace, *outcomes: StageOutcome) -> RecordTrace:
    return replace(record, stages=(*record.stages, *outcomes))


def _filled(storage: Storage, receipt: Receipt, row: int, record: RecordTrace) -> RecordTrace:
    """Add what the stage knows of the record: its clip, codes or tokens."""
    (values,) = storage.read_table(receipt.output.path).slice(row, 1).to_pylist()
    if "input_ids" in values:
        return replace(record, input_ids=np.array(values["input_ids"], np.int32))
    codes = values.pop("codes", None)
    codes = record.codes if codes is None else np.array(codes, np.uint16)
    return replace(record, clip=values, codes=codes)


def _placed(ledger: Ledger, index: int, row: int, record: RecordTrace) -> RecordTrace:
    """Find the sample in the stored order, or among what interleave left out."""
    order = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    if order is None:
        return _after(record, StageOutcome(INTERLEAVE, PENDING))
    left_out = _left_out(ledger.storage, order, record.id, sample_location(record.unit, row))
    if left_out:
        return _after(record, *left_out)
    places = tuple(_places(ledger.storage, order.output.path, index, row))
    if not places or not all(_holds(ledger.storage, place, record.id) for place in places):
        return _after(record, StageOutcome(INTERLEAVE, PENDING, detail="since the samples changed"))
    return replace(_after(record, StageOutcome(INTERLEAVE, KEPT)), places=places)


def _places(storage: Storage, path: str, unit: int, sample: int) -> Iterator[ShardPlace]:
    """Search the order for a sample, and count the documents before it in its row."""
    last, num_before = None, 0  # the row that the batch before ended in, and its documents so far
    with storage.open_batches(path, ["shard", "row", "unit", "sample", "part"]) as batches:
        for batch in batches:
            if not batch.num_rows:
                continue
            shards, parts = batch["shard"], batch["part"]
            rows, units, samples = (batch[k].to_numpy() for k in ("row", "unit", "sample"))
            indices = shards.dictionary_encode().indices.to_numpy()
            new = np.diff(rows, prepend=rows[0]) != 0
            new |= np.diff(indices, prepend=indices[0]) != 0
            starts = np.concatenate([[0], np.flatnonzero(new)])
            if last != (shards[0].as_py(), int(rows[0])):
                num_before = 0
            for hit in np.flatnonzero((units == unit) & (samples == sample)).tolist():
                start = int(starts[np.searchsorted(starts, hit, side="right") - 1])
                document = hit - start + (num_before if start == 0 else 0)
                yield ShardPlace(shards[hit].as_py(), int(rows[hit]), document, parts[hit].as_py())
            start = int(starts[-1])
            num_before = batch.num_rows - start + (num_before if start == 0 else 0)
            last = (shards[-1].as_py(), int(rows[-1]))


def _holds(storage: Storage, place: ShardPlace, id: str) -> bool:
    """Tell whether a shard has the record where the order says, or does not exist yet."""
    path = f"shards/{place.shard}.arrow"
    if storage.size(path) is None:
        return True
    rows = storage.read_table(path).select(["document_ids"]).slice(place.row, 1).to_pylist()
    return bool(rows) and rows[0]["document_ids"][place.document :][:1] == [id]


def _row_of(storage: Storage, path: str, id: str) -> int | None:
    """Find the row of an id in a table."""
    begin = 0
    with storage.open_batches(path, ["id"]) as batches:
        for batch in batches:
            row = pc.index(batch["id"], pa.scalar(id, pa.string())).as_py()
            if row >= 0:
                return begin + row
            begin += batch.num_rows
    return None


def _left_out(
    storage: Storage, receipt: Receipt, id: str, location: str | None = None
) -> list[StageOutcome]:
    """Find what a stage left out under this id, at this `location` if one is given."""
    if receipt.excluded is None or _row_of(storage, receipt.excluded.path, id) is None:
        return []
    fields = ["id", "stage", "outcome", "reason", "detail", "location"]
    return [
        StageOutcome(**{name: row[name] for name in fields[1:]})
        for row in rows_with_id(storage, receipt.excluded.path, fields, id)
        if location is None or row["location"] == location
    ]


def record_json(record: RecordTrace, decode_text: Callable[[list[int]], str]) -> dict[str, Any]:
    """Describe a record for `koe inspect --json`; null for what no stage made."""
    document = document_json(record.document, decode_text, raw=False)
    clip = record.clip or {}
    ids, codes = record.input_ids, record.codes
    text = clip.get("text") if record.modality == SPEECH else document["text"]
    return {
        "id": record.id,
        "source": record.source,
        "modality": record.modality,
        "unit": record.unit,
        "stages": [asdict(outcome) for outcome in record.stages],
        "text": text if record.stages[0].outcome == KEPT else None,
        "seconds": clip.get("seconds"),
        "scores": {name: clip.get(name) for name in ("sig", "bak", "ovrl", "p808")},
        "clip": record.clip,
        "frames": None if codes is None else num_frames(codes),
        "tokens": None if ids is None else len(ids),
        "places": [asdict(place) for place in record.places],
    }
