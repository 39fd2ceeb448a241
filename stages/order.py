"""The order of the shards: which sample goes to which row of which shard, and which to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.schema import EXCLUDED, QUARANTINED, REJECTED, SAMPLE, TEXT, require_schema
from stages.rows import (
    DUPLICATE,
    EXHAUSTED,
    OVERLONG,
    Catalog,
    InterleaveSettings,
    Placed,
    Queue,
    fit_to_ratio,
    lay_rows,
)
from stages.shards import order_table

NAME = "interleave"

_REASONS = {
    DUPLICATE: (QUARANTINED, "duplicate_id", "an earlier sample of the plan has this id"),
    OVERLONG: (REJECTED, "overlong", "{} tokens are more than a row holds"),
    EXHAUSTED: (
        REJECTED,
        "ratio_exhausted",
        "of {} tokens: the ratio asks for more of the other modality",
    ),
}


@dataclass(frozen=True)
class UnitSamples:
    """The samples of one unit without their tokens; `index` is the unit's place in the plan."""

    index: int
    name: str
    ids: pa.ChunkedArray
    sources: pa.ChunkedArray
    is_text: np.ndarray  # bool [n]
    lengths: np.ndarray  # int32 [n], tokens
    num_frames: np.ndarray  # int32 [n], 0 for text


@dataclass(frozen=True)
class Order:
    """The plan of all shards (ORDER, sorted by shard and row) and the samples that have no place.

    `num_samples` = samples placed + rejected + quarantined.
    """

    table: pa.Table
    rejected: pa.Table
    quarantined: pa.Table
    num_samples: int

    def shards(self) -> dict[str, pa.Table]:
        """Slice the order by shard, without copying; shards in the order of their names."""
        names = self.table["shard"].combine_chunks().dictionary_encode()
        bounds = np.searchsorted(
            names.indices.to_numpy(), np.arange(len(names.dictionary) + 1)
        ).tolist()
        return {
            name: self.table.slice(begin, end - begin)
            for name, (begin, end) in zip(
                names.dictionary.to_pylist(), pairwise(bounds), strict=True
            )
        }


def unit_samples(index: int, name: str, samples: pa.Table) -> UnitSamples:
    """Take from a unit's SAMPLE table what the order needs; the tokens are not read."""
    require_schema(samples, SAMPLE, f"the samples of unit {name}")
    return UnitSamples(
        index=index,
        name=name,
        ids=samples["id"],
        sources=samples["source"],
        is_text=samples["modality"].to_numpy() == TEXT,
        lengths=np.concatenate(
            [np.empty(0, np.int32)]
            + [chunk.value_lengths().to_numpy() for chunk in samples["input_ids"].chunks]
        ),
        num_frames=samples["frames"].to_numpy().astype(np.int32),
    )


def plan_order(units: Sequence[UnitSamples], settings: InterleaveSettings) -> Order:
    """Place every sample in a row of a shard, or say why not.

    Samples of a modality are shuffled, packed, and their rows shuffled and mixed by the ratio;
    where the ratio uses up one modality, whole samples of the other are rejected. The plan order
    of the units, the settings and nothing else decide the outcome.
    Raises: ConfigError when the ratio leaves no row at all.
    """
    units = sorted(units, key=lambda unit: unit.index)
    catalog = _catalog(units)
    fate = np.zeros(len(catalog.lengths), np.uint8)
    fate[~_first_of_its_id(units)] = DUPLICATE
    queues = [Queue(catalog, fate, settings, text) for text in (True, False)]
    is_text = fit_to_ratio(queues, settings)
    for queue in queues:
        fate[queue.left_out()] = EXHAUSTED
    placed, num_rows = lay_rows(queues, is_text, settings)
    table = order_table(catalog, placed, num_rows, settings)
    order = Order(
        table,
        _excluded(units, catalog, fate, REJECTED),
        _excluded(units, catalog, fate, QUARANTINED),
        len(fate),
    )
    _require_closed(order, placed)
    return order


def _catalog(units: Sequence[UnitSamples]) -> Catalog:
    sizes = [len(unit.lengths) for unit in units]

    def joined(arrays, dtype) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)

    return Catalog(
        unit=np.repeat(np.arange(len(units), dtype=np.int32), sizes),
        unit_index=np.repeat(np.array([u.index for u in units], np.int32), sizes),
        row=joined([np.arange(size, dtype=np.int32) for size in sizes], np.int32),
        is_text=joined([unit.is_text for unit in units], bool),
        lengths=joined([unit.lengths for unit in units], np.int32),
        num_frames=joined([unit.num_frames for unit in units], np.int32),
    )


def _first_of_its_id(units: Sequence[UnitSamples]) -> np.ndarray:
    """Mark the samples whose id no earlier sample has, bool [n]."""
    chunks = [chunk for unit in units for chunk in unit.ids.chunks]
    ids = pa.chunked_array(chunks, pa.string()).cast(pa.large_string())  # may pass 2 GiB
    codes = np.concatenate(
        [np.empty(0, np.int32)]
        + [chunk.indices.to_numpy() for chunk in ids.dictionary_encode().chunks]
    )
    # The dictionary numbers ids by first appearance: a first one is above all before it.
    highest = np.maximum.accumulate(codes)
    first = np.ones(len(codes), bool)
    first[1:] = codes[1:] > highest[:-1]
    return first


def _excluded(
    units: Sequence[UnitSamples], catalog: Catalog, fate: np.ndarray, outcome: str
) -> pa.Table:
    codes = [code for code, (kind, _, _) in _REASONS.items() if kind == outcome]
    chosen = np.flatnonzero(np.isin(fate, codes))
    bounds = np.searchsorted(catalog.unit[chosen], np.arange(len(units) + 1))
    tables = [EXCLUDED.empty_table()]
    for unit, begin, end in zip(units, bounds[:-1], bounds[1:], strict=True):
        if begin == end:
            continue
        members = chosen[begin:end]
        rows = pa.array(catalog.row[members])
        reasons = [_REASONS[code] for code in fate[members].tolist()]
        lengths = catalog.lengths[members].tolist()
        columns = {
            "id": unit.ids.take(rows),
            "source": unit.sources.take(rows),
            "stage": [NAME] * len(members),
            "outcome": [outcome] * len(members),
            "reason": [reason for _, reason, _ in reasons],
            "detail": [
                detail.format(length)
                for (_, _, detail), length in zip(reasons, lengths, strict=True)
            ],
            "location": [f"{unit.name}#{row}" for row in rows.to_pylist()],
        }
        tables.append(pa.table(columns, schema=EXCLUDED))
    return pa.concat_tables(tables).combine_chunks()


def _require_closed(order: Order, placed: Placed) -> None:
    num_placed = int((placed.part == 0).sum())
    total = num_placed + order.rejected.num_rows + order.quarantined.num_rows
    if total != order.num_samples:
        raise ContractError(
            "interleave lost or invented samples",
            f"{order.num_samples} came in, {num_placed} were placed, {order.rejected.num_rows} "
            f"rejected and {order.quarantined.num_rows} quarantined",
            "This is a defect in koe, please report it with the run's configuration.",
        )
