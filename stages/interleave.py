"""Interleave: samples of both modalities become the rows of training shards.

`plan_order` (`stages/packing/order.py`) decides by the samples' lengths alone, so it is cheap to
repeat. `gather_rows` then makes one shard from its slice of the order, so that shards can be made in
parallel, and each of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE
from koe.errors import ContractError
from koe.schema import ORDER, ROW, SAMPLE, require_schema
from koe.stage import Resources
from stages.settings import InterleaveSettings

VERSION = 2  # of the order and of the rows made from it; 2 counts the seconds it leaves out

_MAX_TOKENS = 2**31 - 1  # a list column of Arrow counts its values with 32 bits
_LABELS = ["id", "source", "modality"]


@dataclass(frozen=True)
class OrderStage:
    """What decides the order and the shards, for their receipts."""

    settings: InterleaveSettings
    identity: Mapping[str, Any]  # of codec and tokenizer, which the shards' metadata name
    name: str = INTERLEAVE
    version: int = VERSION

    @property
    def content(self) -> dict[str, Any]:
        return self.settings.content() | dict(self.identity)

    @property
    def resources(self) -> Resources:
        return self.settings.resources


def gather_rows(
    order_slice: pa.Table, read_samples: Callable[[int], pa.Table], unit_names: Sequence[str]
) -> pa.Table:
    """Make the rows of one shard (ROW) from its slice of the order (ORDER).

    `read_samples` returns the SAMPLE table of a unit by its index in the plan, ideally
    memory-mapped: only the pieces that the order names are copied. `unit_names` holds the units'
    names by that index.
    Raises: ContractError when order and samples do not fit each other.
    """
    require_schema(order_slice, ORDER, "the order of a shard")
    row, unit, sample, start, stop = (
        order_slice[name].to_numpy() for name in ("row", "unit", "sample", "start", "stop")
    )
    documents = _row_bounds(row)
    lengths = stop - start
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if ends[-1] > _MAX_TOKENS:
        raise ContractError(
            f"a shard of {ends[-1]} tokens cannot be stored",
            f"Arrow lists hold at most {_MAX_TOKENS}",
            "Lower interleave.shard_megabytes.",
        )
    tokens = np.empty(int(ends[-1]), np.int32)
    by_unit = np.argsort(unit, kind="stable")
    labels = [SAMPLE.empty_table().select(_LABELS)]
    cuts = np.flatnonzero(np.diff(unit[by_unit])) + 1
    for members in np.split(by_unit, cuts) if len(by_unit) else []:
        index = int(unit[members[0]])
        samples = require_schema(read_samples(index), SAMPLE, f"unit {unit_names[index]}")
        wanted = sample[members]
        lists = _as_one(samples["input_ids"])
        _require_pieces(lists, wanted, stop[members], unit_names[index])
        _copy(lists, wanted, start[members], lengths[members], tokens, ends[members])
        labels.append(samples.select(_LABELS).take(pa.array(wanted)))
    back = np.empty(len(by_unit), np.int64)
    back[by_unit] = np.arange(len(by_unit))
    label = pa.concat_tables(labels).take(pa.array(back))
    names = pa.array(unit_names, pa.string()).take(pa.array(unit))
    values = [
        pa.array(lengths, pa.int32()),
        label["source"],
        label["id"],
        label["modality"],
        names,
        order_slice["part"],
    ]
    columns = [_lists(ends[documents], pa.array(tokens)), *(_lists(documents, v) for v in values)]
    return pa.Table.from_arrays(columns, schema=ROW)


def _row_bounds(row: np.ndarray) -> np.ndarray:
    """Return where the documents of each row begin, int64 [rows + 1]."""
    steps = np.diff(row, prepend=-1)
    if len(row) and (steps[0] != 1 or steps.min() < 0 or steps.max() > 1):
        raise ContractError(
            "the order of a shard is not sorted by row, or leaves rows out",
            "rows must be numbered from 0 without gaps",
            "Run interleave again with --force interleave.",
        )
    return np.append(np.flatnonzero(steps), len(row))


def _require_pieces(lists: pa.ListArray, wanted: np.ndarray, stop: np.ndarray, unit: str) -> None:
    if int(wanted.max()) < len(lists):
        lengths = lists.value_lengths().to_numpy()
        if (stop <= lengths[wanted]).all():
            return
    raise ContractError(
        f"the order names tokens that the samples of unit {unit} do not have",
        "tokenize ran again after the order was made",
        "Run interleave again with --force interleave.",
    )


def _copy(
    lists: pa.ListArray,
    wanted: np.ndarray,
    start: np.ndarray,
    lengths: np.ndarray,
    tokens: np.ndarray,
    places: np.ndarray,
) -> None:
    """Copy pieces of a unit's samples to their `places` in `tokens`."""
    values = lists.values.to_numpy()
    begin = lists.offsets.to_numpy()[wanted] + start
    for source, place, length in zip(
        begin.tolist(), places.tolist(), lengths.tolist(), strict=True
    ):
        tokens[place : place + length] = values[source : source + length]


def _lists(offsets: np.ndarray, values: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    if isinstance(values, pa.ChunkedArray):
        values = _as_one(values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _as_one(column: pa.ChunkedArray) -> pa.Array:
    # combine_chunks copies even a single chunk, and would read a memory-mapped unit completely
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
