"""Reads columns of lists as flat arrays, without copying more than is needed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def flat(column: pa.ChunkedArray) -> pa.Array:
    """Join the values of all lists of a column; a null list has none."""
    parts = [chunk.flatten() for chunk in column.chunks]
    if len(parts) == 1:
        return parts[0]
    return pa.chunked_array(parts, type=column.type.value_type).combine_chunks()


def lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Count the values of each list, int64 [rows]; 0 for a null list."""
    parts = [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
             for chunk in column.chunks]  # fmt: skip
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def places_in(values: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Find each value in `known`, int64 [values]; -1 where it is not there."""
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(known))
    return found.fill_null(-1).to_numpy().astype(np.int64)


def first(marks: np.ndarray) -> int | None:
    """Return the first place that is marked (bool [n]); None where none is."""
    return int(np.argmax(marks)) if marks.any() else None


def differ(some: pa.ChunkedArray | pa.Array, others: Any) -> np.ndarray:
    """Mark the places where two arrays, or an array and one value, are not equal."""
    return pc.call_function("not_equal", [some, others]).to_numpy(zero_copy_only=False)


def offsets(sizes: np.ndarray) -> np.ndarray:
    """Return where each of several adjacent ranges begins, and where the last ends, int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class TokenLists:
    """A column of token lists that is not copied: pieces of any row are views of it."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.lengths = lengths(column)
        self._bounds = offsets(np.array([len(chunk) for chunk in column.chunks], np.int64))
        self._values = [chunk.flatten().to_numpy() for chunk in column.chunks]
        begins = [offsets(self.lengths[a:b])[:-1] for a, b in pairwise(self._bounds.tolist())]
        self._begin = np.concatenate([np.empty(0, np.int64), *begins])  # within the chunk

    def __len__(self) -> int:
        return len(self.lengths)

    def all(self) -> list[np.ndarray]:
        """View the tokens of each row."""
        return self.cut(np.arange(len(self)), np.zeros(len(self), np.int64), self.lengths)

    def cut(self, rows: np.ndarray, start: np.ndarray, stop: np.ndarray) -> list[np.ndarray]:
        """View the tokens start..stop of each of `rows`; all three int [pieces]."""
        chunk = np.searchsorted(self._bounds, rows, side="right") - 1
        begin = self._begin[rows]
        places = zip(chunk.tolist(), (begin + start).tolist(), (begin + stop).tolist(), strict=True)
        return [self._values[c][a:b] for c, a, b in places]
