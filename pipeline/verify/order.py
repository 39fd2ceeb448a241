"""The stored order: which samples it leaves out and why, and the pieces that it gives each shard."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE, ORDER_UNIT, excluded_path, output_path, receipt_path
from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.repeats import repeated
from koe.schema import EXCLUDED, ORDER, split_location
from pipeline.run_dir.ledger import Receipt
from pipeline.run_dir.storage import Output, Storage
from pipeline.verify.files import vouched_batches
from pipeline.verify.lists import first
from pipeline.verify.receipts import (
    STALE,
    agree,
    contradiction,
    reasons_of,
    require_counts,
    require_receipt,
    setting,
)
from pipeline.verify.samples import DUPLICATE, LEFT_OUT, OPEN, SampleTable

RECEIPT = receipt_path(INTERLEAVE, ORDER_UNIT)
_EXCLUDED = excluded_path(INTERLEAVE, ORDER_UNIT)
_DIGEST_BYTES = 16


def order_error(what: str, why: str) -> ContractError:
    """Return an error whose remedy is to interleave again."""
    return contradiction(INTERLEAVE, what, why)


@dataclass(frozen=True)
class Pieces:
    """What the order places in one shard, row by row; arrays [pieces]."""

    shard: str
    row: np.ndarray  # within the shard
    unit: np.ndarray  # index into the plan's units
    sample: np.ndarray  # row in the unit's samples
    start: np.ndarray  # token range of the sample
    stop: np.ndarray
    part: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


def prove_order_receipt(receipt: Receipt | None, samples: SampleTable) -> Receipt | None:
    """Prove that the order was made from the samples as they are; None while there is no order."""
    if receipt is None:
        return None
    outputs = list(zip(samples.units, samples.outputs, strict=True))
    if missing := [unit for unit, sha256 in outputs if sha256 is None]:
        raise ContractError(
            f"{RECEIPT} vouches for an order of samples that do not exist",
            f"unit {missing[0]} is not tokenized",
            STALE,
        )
    path, made_from = (output_path(INTERLEAVE, ORDER_UNIT), sha256_json(_inputs(receipt, samples)))
    require_receipt(receipt, INTERLEAVE, ORDER_UNIT, path, made_from)
    return receipt


def _inputs(receipt: Receipt, samples: SampleTable) -> list[list[str | None]]:
    """List what an order is made from: the samples, and the clips where its settings look at them."""
    looks = bool({"duplicates", "transcripts"} & set(receipt.content))
    found: list[list[str | None]] = []
    for unit, sha256, clips in zip(samples.units, samples.outputs, samples.clips, strict=True):
        found.append([unit, sha256, *([clips] if looks and clips else [])])
    return found


def prove_left_out(receipt: Receipt, storage: Storage, samples: SampleTable) -> dict[str, float]:
    """Prove each excluded sample of the order, and note its outcome.

    Returns the seconds of the clips among them, by source.
    """
    found: Counter[tuple[str, str]] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    numbers = {unit: number for number, unit in enumerate(samples.units)}
    if receipt.excluded:
        with vouched_batches(storage, receipt.excluded, EXCLUDED) as batches:
            first_row = 0
            for batch in batches:
                found += reasons_of(batch)
                samples.note_left_out(batch)
                for unit, begin, rows in _by_location(batch["location"], first_row):
                    place = first_row + begin
                    if unit not in numbers:
                        what = f"{_EXCLUDED}:{place} lies in unit {unit!r}"
                        raise order_error(what, "the plan has no unit of this name")
                    part, number = batch.slice(begin, len(rows)), numbers[unit]
                    _leave_out(part, rows, number, receipt, samples, place)
                    seconds[samples.sources[number]] += samples.seconds_of(number, rows)
                first_row += batch.num_rows
    require_counts(receipt, len(samples), found)
    return seconds


def _by_location(locations: pa.Array, first_row: int) -> Iterator[tuple[str, int, list[int]]]:
    """Group the rows of a batch by unit: its name, the first row, and the rows of its samples."""
    numbered = enumerate(locations.to_pylist(), first_row)
    places = [_place(location, row) for row, location in numbered]
    begin = 0
    for unit, group in groupby(places, key=lambda place: place[0]):
        rows = [row for _, row in group]
        yield unit, begin, rows
        begin += len(rows)


def _place(location: str, row: int) -> tuple[str, int]:
    try:
        return split_location(location)
    except ContractError as error:
        what = f"{_EXCLUDED}:{row} does not say where its sample lies"
        raise order_error(what, f"the location is {location}, not UNIT#ROW") from error


def _leave_out(
    part: pa.RecordBatch,
    rows: list[int],
    unit: int,
    receipt: Receipt,
    samples: SampleTable,
    first_row: int,
) -> None:
    """Prove that excluded records name samples of one unit, each for the first time."""
    capacity = setting(receipt, "max_row_tokens")
    begin, end = samples.bounds[unit : unit + 2].tolist()
    columns = (part[name].to_pylist() for name in ("id", "stage", "source", "reason"))
    expected = (INTERLEAVE, samples.sources[unit])
    for place, (row, id, stage, source, reason) in enumerate(zip(rows, *columns, strict=True)):
        number = begin + row
        if number >= end or samples.id_hashes[number] != hash(id):
            why = f"row {row} of unit {samples.units[unit]} is another sample"
        elif (stage, source) != expected:
            why = f"its stage and source are {stage} and {source}, not {' and '.join(expected)}"
        elif reason not in LEFT_OUT:
            why = f"an order has no reason {reason!r}"
        elif reason == "overlong" and samples.lengths[number] <= capacity:
            why = f"its {samples.lengths[number]} tokens are not too long for a row"
        elif samples.outcome[number] != OPEN:
            why = "it is excluded twice"
        else:
            samples.outcome[number] = LEFT_OUT[reason]
            continue
        raise order_error(f"{_EXCLUDED}:{first_row + place} must not leave out {id}", why)


def prove_distinct(samples: SampleTable) -> None:
    """Prove that of all samples with one id, only the first in plan order stays."""
    suspects = repeated(samples.take_hashes())
    wrong = samples.outcome == DUPLICATE
    wrong[suspects[~_is_first(samples, suspects)]] ^= True
    if (number := first(wrong)) is not None:
        name = samples.name(number)
        if samples.outcome[number] == DUPLICATE:
            raise order_error(f"{name} is excluded as a duplicate", "no earlier sample has its id")
        what = f"{name} has the id of an earlier sample"
        raise order_error(what, f"{_EXCLUDED} does not leave it out")


def _is_first(samples: SampleTable, suspects: np.ndarray) -> np.ndarray:
    """Mark those of `suspects` (numbers, ascending) that no other with their id precedes."""
    digests = np.empty((len(suspects), _DIGEST_BYTES), np.uint8)
    cuts = np.searchsorted(suspects, samples.bounds)
    for unit in np.flatnonzero(np.diff(cuts)).tolist():
        begin, end = cuts[unit], cuts[unit + 1]
        rows = pa.array(suspects[begin:end] - samples.bounds[unit])
        for place, name in enumerate(samples.open(unit).ids.take(rows).to_pylist(), int(begin)):
            digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
            digests[place] = np.frombuffer(digest, np.uint8)
    _, firsts = np.unique(digests.view(f"V{_DIGEST_BYTES}").ravel(), return_index=True)
    is_first = np.zeros(len(suspects), bool)
    is_first[firsts] = True
    return is_first


def shard_pieces(storage: Storage, order: Output, num_units: int) -> Iterator[Pieces]:
    """Yield the stored order shard by shard, holding one shard's pieces at a time.

    Raises: ContractError when a shard comes twice or a unit is unknown.
    """
    done: set[str] = set()
    waiting: list[pa.RecordBatch] = []
    name, first_row = "", 0
    with vouched_batches(storage, order, ORDER) as batches:
        for batch in batches:
            unit = batch["unit"].to_numpy()
            if (row := first((unit < 0) | (unit >= num_units))) is not None:
                what = f"{order.path}:{first_row + row} names unit {unit[row]}"
                raise order_error(what, f"the plan has {num_units}")
            for shard, begin, end in _runs(batch["shard"]):
                if shard != name and waiting:
                    yield _pieces(name, waiting)
                    done.add(name)
                    waiting = []
                if shard in done:
                    what = f"{order.path}:{first_row + begin} returns to {shard}"
                    raise order_error(what, "the order is sorted by shard")
                name = shard
                waiting.append(batch.slice(begin, end - begin))
            first_row += batch.num_rows
    if waiting:
        yield _pieces(name, waiting)


def _runs(names: pa.Array) -> Iterator[tuple[str, int, int]]:
    coded = names.dictionary_encode()
    codes = coded.indices.to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for begin, end in pairwise(cuts):
        if end > begin:
            yield coded.dictionary[int(codes[begin])].as_py(), begin, end


def _pieces(shard: str, batches: list[pa.RecordBatch]) -> Pieces:
    """Join the pieces of a shard, and prove that its rows are numbered from 0 without a gap."""
    table = pa.Table.from_batches(batches)
    pieces = Pieces(shard, *(table[name].to_numpy() for name in ORDER.names if name != "shard"))
    step = np.diff(pieces.row, prepend=0)
    wrong = (step < 0) | (step > 1)
    wrong[0] = pieces.row[0] != 0
    if (place := first(wrong)) is not None:
        raise order_error(
            f"the order of {shard} has row {pieces.row[place]} at piece {place}",
            "the rows of a shard are numbered from 0 without a gap",
        )
    return pieces


def prove_order_measures(
    receipt: Receipt, shards: Sequence[str], samples: SampleTable, seconds: dict[str, float]
) -> None:
    """Prove the counts by source that the receipt's statistics are made of."""
    expected: dict[str, float] = {"shards": len(shards)}
    splits = Counter(f"shards.{shard.rsplit('-', 1)[0]}" for shard in shards)
    expected |= {name: splits[name] for name in receipt.measures if name.startswith("shards.")}
    expected |= {f"placed.{name}": count for name, count in samples.placed_by_source().items()}
    expected |= {f"seconds_left_out.{name}": value for name, value in seconds.items()}
    for name in sorted({*expected, *receipt.measures}):
        said, found = receipt.measures.get(name, 0.0), expected.get(name, 0.0)
        if not agree(said, found):
            raise order_error(f"{RECEIPT} counts {said:g} {name}", f"there are {found:g}")
