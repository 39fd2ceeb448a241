"""The record batches of a shard as arrays: views of the memory-mapped file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from koe.arrow_files import ArrowFile
from koe.errors import ContractError
from koe.schema import ROW

AGAIN = "Write the shards again with `koe run --force interleave`."


class Lists:
    """A column of lists: `lists[row]` is a slice of `values`."""

    def __init__(self, offsets: np.ndarray, values: Any) -> None:
        self.offsets, self.values = offsets, values
        self._at = offsets.data  # yields Python integers in half of NumPy's time

    def __getitem__(self, row: int) -> Any:
        return self.values[self._at[row] : self._at[row + 1]]


def named_lists(
    batch: pa.RecordBatch, column: str, dtype: type[np.integer]
) -> tuple[Lists, list[str]]:
    """Return a column of lists of names as indices into the names, and the names."""
    lists = batch.column(column)
    coded = lists.values.dictionary_encode()
    codes = coded.indices.to_numpy().astype(dtype)
    return Lists(lists.offsets.to_numpy(), codes), coded.dictionary.to_pylist()


class Stored:
    """A record batch as arrays: views of the mapped file, except for 3 bytes per document.

    Read row by row, Arrow makes a Python object of every offset and string: a row of five
    documents took 27 us that way, and takes 7 us this way.
    """

    def __init__(self, path: str, batch: pa.RecordBatch) -> None:
        self.path, self.num_rows, self._batch = path, batch.num_rows, batch
        self.input_ids = self._numbers("input_ids")
        self.lengths = self._numbers("document_lengths")
        self.parts = self._numbers("document_parts")
        ids = batch.column("document_ids")
        self.ids = Lists(ids.offsets.to_numpy(), ids.values)

    @cached_property
    def sources(self) -> tuple[Lists, list[str]]:
        """Indices into the names (int16), and the names."""
        return named_lists(self._batch, "document_sources", np.int16)

    @cached_property
    def modalities(self) -> tuple[Lists, list[str]]:
        """Indices into the names (uint8), and the names."""
        return named_lists(self._batch, "document_modalities", np.uint8)

    def _numbers(self, name: str) -> Lists:
        column = self._batch.column(name)
        return Lists(column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True))


def open_shard(path: Path, num_rows: int, name: str = "") -> list[Stored]:
    """Map a shard's file; its record batches that have rows, `num_rows` together.

    Each is proved to be sound first: one that is not would end the process when it is read. `name`
    is what messages call it. Raises: ContractError when it is not what koe writes.
    """
    name = f"shard {name or path}"
    try:
        # The mapping outlives the file handle, so a thousand shards keep no files open.
        with pa.memory_map(str(path)) as source:
            batches = list(ArrowFile(source, name, schema=ROW, remedy=AGAIN).batches())
    except OSError as error:
        raise ContractError(f"{name} cannot be read", str(error), AGAIN) from error
    found = sum(batch.num_rows for batch in batches)
    if found != num_rows:
        raise ContractError(f"{name} has {found} rows", f"index.json says {num_rows}", AGAIN)
    return [Stored(name, batch) for batch in batches if batch.num_rows]
