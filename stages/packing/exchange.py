"""The stored order turned around: where the samples of each unit go, in groups of units.

The order is sorted by shard. The first pass over the tokens reads unit by unit, so it needs the same
by unit. A group is as many consecutive units as one worker takes at a time: the number of groups, and
with it that of the reads of the second pass (groups times shards), depends on the tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
import pyarrow as pa

from koe.errors import ContractError
from koe.schema import ORDER, PLACEMENT

# A worker holds the tokens of the pieces of a group, 4 bytes each. Where few shards are missing it
# reads much more than it holds: the second bound keeps work for several workers.
GROUP_TOKENS = 1 << 26
_READ_TOKENS = 1 << 29

_STORED = ("unit", "sample", "start", "stop")


class Placements:
    """Takes the order in, one shard after another; 28 bytes per piece while it is turned around."""

    def __init__(self, shards: Sequence[str], group_tokens: int = GROUP_TOKENS) -> None:
        """`shards`: those that are to be made, in the order of their names in the stored order."""
        self._shards, self._group_tokens = shards, group_tokens
        self._columns = {name: bytearray() for name in _STORED}  # grow in place
        self._sizes: list[int] = []  # pieces of each shard
        self._read = np.zeros(0, np.int64)  # tokens of each unit, of all shards

    def slices(self, order: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Take in the order (ORDER) of all shards, and yield that of each shard to be made."""
        wanted = set(self._shards)
        for name, part in by_shard(order):
            unit, start, stop = (part[column].to_numpy() for column in ("unit", "start", "stop"))
            tokens = np.bincount(unit, weights=stop - start).astype(np.int64)
            longer = np.zeros(max(len(tokens), len(self._read)), np.int64)
            longer[: len(self._read)] = self._read
            longer[: len(tokens)] += tokens
            self._read = longer
            if name in wanted:
                for column, values in self._columns.items():
                    values += part[column].to_numpy().tobytes()
                self._sizes.append(part.num_rows)
                yield part

    def groups(self) -> Iterator[pa.Table]:
        """Yield the placements (PLACEMENT) of each group of units, sorted by unit.

        Raises: ContractError when the order does not have all shards to be made.
        """
        if len(self._sizes) != len(self._shards):
            raise ContractError(
                f"the order has {len(self._sizes)} of {len(self._shards)} shards to be made",
                "another order was stored since",
                "Run interleave again with --force interleave.",
            )
        columns = {name: np.frombuffer(self._columns[name], np.int32) for name in _STORED}
        by_unit = np.argsort(columns["unit"], kind="stable")
        held = np.zeros(len(self._read), np.int64)  # tokens of each unit, of the shards to be made
        np.add.at(held, columns["unit"], columns["stop"] - columns["start"])
        ends = np.cumsum(np.bincount(columns["unit"], minlength=len(held)))
        shard_ends = np.cumsum(self._sizes)
        begin = 0
        for last in group_units(held, self._read, self._group_tokens):
            members = by_unit[begin : ends[last]]
            begin = int(ends[last])
            shard = np.searchsorted(shard_ends, members, side="right")
            place = members - np.concatenate([[0], shard_ends])[shard]
            table = [columns[name][members] for name in _STORED]
            table += [shard.astype(np.int32), place.astype(np.int32)]
            yield pa.Table.from_arrays([pa.array(column) for column in table], schema=PLACEMENT)


def group_units(held: np.ndarray, read: np.ndarray, most: int) -> list[int]:
    """Return the last unit of each group, ascending; a group without a piece is none.

    `held`: the tokens of each unit that go to the shards to be made, `read`: those that go to any
    shard, both int64 [units]. A group holds at most `most` tokens, unless it is one unit.
    """
    lasts: list[int] = []
    num_held = num_read = 0
    for unit in np.flatnonzero(held).tolist():
        num_held += int(held[unit])
        num_read += int(read[unit])
        if lasts and num_held <= most and num_read <= max(_READ_TOKENS, most):
            lasts[-1] = unit
        else:
            lasts.append(unit)
            num_held, num_read = int(held[unit]), int(read[unit])
    return lasts


def by_shard(order: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[tuple[str, pa.Table]]:
    """Yield each shard's name and slice of an order that is sorted by shard, holding one at a time."""
    parts = (part for batch in order for part in _runs(batch))
    for name, group in groupby(parts, key=lambda part: part[0]):
        tables = [table for _, table in group]
        yield name, pa.concat_tables([ORDER.empty_table(), *tables]).combine_chunks()


def _runs(batch: pa.Table | pa.RecordBatch) -> Iterator[tuple[str, pa.Table]]:
    table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
    if not table.num_rows:
        return
    coded = table["shard"].combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for begin, end in pairwise(bounds):
        yield coded.dictionary[int(codes[begin])].as_py(), table.slice(begin, end - begin)
