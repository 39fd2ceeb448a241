"""The pieces of samples, on their way from the units that hold them to the rows of the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from koe.errors import ContractError
from koe.schema import ORDER, PIECE, PLACEMENT, ROW, SAMPLE, require_schema

ReadSamples = Callable[[int], pa.Table]  # SAMPLE of a unit, by its index in the plan

_MAX_TOKENS = 2**31 - 1  # a list column of Arrow counts its values with 32 bits
_LABELS = ["id", "source", "modality"]
_AGAIN = "Run interleave again with --force interleave."


def gather_pieces(
    placements: pa.Table, num_shards: int, read_samples: ReadSamples, unit_names: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the pieces (PIECE) of each of `num_shards` shards that `placements` (PLACEMENT) names.

    Each unit's samples are read once, from the first to the last, and all pieces are held at once.
    Those of a shard are in the order of their places. `unit_names` holds the units' names by their
    index in the plan. Raises: ContractError when placements and samples do not fit each other.
    """
    require_schema(placements, PLACEMENT, "the placements of samples")
    unit, sample, start, stop, shard, place = (
        placements[name].to_numpy() for name in PLACEMENT.names
    )
    by_place = np.lexsort((place, shard))
    target = np.empty(len(by_place), np.int64)  # of each placement
    target[by_place] = np.arange(len(by_place))
    lengths = stop - start
    ends = _ends(lengths[by_place], "a group of units", "Lower plan.samples_per_unit.")
    tokens = np.empty(int(ends[-1]), np.int32)
    labels, targets = [SAMPLE.empty_table().select(_LABELS)], [np.empty(0, np.int64)]
    for index, members in _by_unit(unit, sample):
        samples = require_schema(read_samples(index), SAMPLE, f"unit {unit_names[index]}")
        wanted = sample[members]
        lists = _as_one(samples["input_ids"])
        _require_pieces(lists, wanted, stop[members], unit_names[index])
        begin = lists.offsets.to_numpy()[wanted] + start[members]
        _copy(lists.values.to_numpy(), begin, tokens, ends[target[members]], lengths[members])
        labels.append(samples.select(_LABELS).take(pa.array(wanted)))
        targets.append(target[members])
    label = pa.concat_tables(labels).take(_inverse(np.concatenate(targets)))
    columns = [pa.array(place[by_place]), *label.columns, _lists(ends, pa.array(tokens))]
    pieces = pa.Table.from_arrays(columns, schema=PIECE)
    bounds = np.searchsorted(shard[by_place], np.arange(num_shards + 1)).tolist()
    for first, last in pairwise(bounds):
        yield pieces.slice(first, last - first)


def lay_pieces(
    order_slice: pa.Table, parts: Iterable[pa.Table], unit_names: Sequence[str]
) -> pa.Table:
    """Make the rows of one shard (ROW) from its slice of the order (ORDER) and all of its pieces.

    `parts` (PIECE) come in any order, and one of them is held at a time beside the rows.
    Raises: ContractError when a piece is missing, comes twice, or is not as long as the order says.
    """
    require_schema(order_slice, ORDER, "the order of a shard")
    row, unit, start, stop = (
        order_slice[name].to_numpy() for name in ("row", "unit", "start", "stop")
    )
    documents = _row_bounds(row)
    lengths = stop - start
    ends = _ends(lengths, "a shard", "Lower interleave.shard_megabytes.")
    tokens = np.empty(int(ends[-1]), np.int32)
    labels, places = [SAMPLE.empty_table().select(_LABELS)], [np.empty(0, np.int32)]
    for part in parts:
        place = require_schema(part, PIECE, "the pieces of a shard")["place"].to_numpy()
        lists = _as_one(part["input_ids"])
        known = len(place) and place.min() >= 0 and place.max() < len(lengths)
        if not known or (lists.value_lengths().to_numpy() != lengths[place]).any():
            raise _unfit("there is a piece that it does not name, or of another length")
        begin = lists.offsets.to_numpy()[:-1]
        _copy(lists.values.to_numpy(), begin, tokens, ends[place], lengths[place])
        labels.append(part.select(_LABELS))
        places.append(place)
    found = np.concatenate(places)
    if not np.array_equal(np.bincount(found, minlength=len(row)), np.ones(len(row))):
        raise _unfit(f"of {len(row)} pieces {len(np.unique(found))} are there, {len(found)} in all")
    label = pa.concat_tables(labels).take(_inverse(found))
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


def _unfit(why: str) -> ContractError:
    return ContractError("the pieces of a shard do not fit its order", why, _AGAIN)


def _ends(lengths: np.ndarray, what: str, remedy: str) -> np.ndarray:
    """Return where each piece begins and the last ends among all tokens, int64 [pieces + 1]."""
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if ends[-1] > _MAX_TOKENS:
        why = f"Arrow lists hold at most {_MAX_TOKENS}"
        raise ContractError(f"{what} of {ends[-1]} tokens cannot be stored", why, remedy)
    return ends


def _by_unit(unit: np.ndarray, sample: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Group pieces by unit; within it they are in the order of the samples, as they lie on disk."""
    if len(unit):
        by_unit = np.lexsort((sample, unit))
        cuts = np.flatnonzero(np.diff(unit[by_unit])) + 1
        for members in np.split(by_unit, cuts):
            yield int(unit[members[0]]), members


def _inverse(places: np.ndarray) -> pa.Array:
    """Return which entry has each place; `places` are a permutation."""
    entries = np.empty(len(places), np.int64)
    entries[places] = np.arange(len(places))
    return pa.array(entries)


def _row_bounds(row: np.ndarray) -> np.ndarray:
    """Return where the documents of each row begin, int64 [rows + 1]."""
    steps = np.diff(row, prepend=-1)
    if len(row) and (steps[0] != 1 or steps.min() < 0 or steps.max() > 1):
        raise ContractError(
            "the order of a shard is not sorted by row, or leaves rows out",
            "rows must be numbered from 0 without gaps",
            _AGAIN,
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
        _AGAIN,
    )


def _copy(
    values: np.ndarray, begin: np.ndarray, tokens: np.ndarray, place: np.ndarray, length: np.ndarray
) -> None:
    """Copy pieces, which begin in `values` at `begin`, to their places in `tokens`."""
    for source, target, number in zip(begin.tolist(), place.tolist(), length.tolist(), strict=True):
        tokens[target : target + number] = values[source : source + number]


def _lists(offsets: np.ndarray, values: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    if isinstance(values, pa.ChunkedArray):
        values = _as_one(values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _as_one(column: pa.ChunkedArray) -> pa.Array:
    # combine_chunks copies even a single chunk, and would read a memory-mapped unit completely
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
