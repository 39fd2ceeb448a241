"""Reads shards: the rows of memory-mapped files."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from koe.errors import ContractError
from koe.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT, require_schema

MODALITIES = (TEXT, SPEECH)
MODALITY_BIT = {TEXT: 1, SPEECH: 2}  # of ShardRows.modality
_AGAIN = "Write the shards again with `koe run --force interleave`."


@dataclass(frozen=True)
class Row:
    """One packed row. `input_ids`, int32 [tokens], is a view of the mapped file."""

    index: int
    input_ids: np.ndarray
    document_lengths: np.ndarray  # int32 [documents]
    document_sources: list[str]
    document_modalities: list[str]
    document_parts: np.ndarray  # int32 [documents]; above 0 in later parts of a split sample
    stored_ids: pa.Array  # strings [documents], of the mapped file

    @cached_property
    def document_ids(self) -> list[str]:
        """The ids of the samples; converted on demand, because batches do not need them."""
        return self.stored_ids.to_pylist()


class _Lists:
    """A column of lists: `lists[row]` is a slice of `values`."""

    def __init__(self, offsets: np.ndarray, values: Any) -> None:
        self.offsets, self.values = offsets, values
        self._at = offsets.data  # yields Python integers in half of NumPy's time

    def __getitem__(self, row: int) -> Any:
        return self.values[self._at[row] : self._at[row + 1]]


class _Stored:
    """A record batch as arrays: views of the mapped file, except for 3 bytes per document.

    Read row by row, Arrow makes a Python object of every offset and string: a row of five
    documents took 27 us that way, and takes 7 us this way.
    """

    def __init__(self, path: str, batch: pa.RecordBatch) -> None:
        self.path, self._batch = path, batch
        self.input_ids = self._numbers("input_ids")
        self.lengths = self._numbers("document_lengths")
        self.parts = self._numbers("document_parts")
        self.ids = _Lists(self._offsets("document_ids"), batch.column("document_ids").values)

    @cached_property
    def sources(self) -> tuple[_Lists, list[str]]:
        """Indices into the names (int16), and the names."""
        return self._names("document_sources", np.int16)

    @cached_property
    def modalities(self) -> tuple[_Lists, list[str]]:
        """Indices into the names (uint8), and the names."""
        return self._names("document_modalities", np.uint8)

    def _offsets(self, name: str) -> np.ndarray:
        return self._batch.column(name).offsets.to_numpy()

    def _numbers(self, name: str) -> _Lists:
        values = self._batch.column(name).values
        return _Lists(self._offsets(name), values.to_numpy(zero_copy_only=True))

    def _names(self, name: str, dtype: type[np.integer]) -> tuple[_Lists, list[str]]:
        coded = self._batch.column(name).values.dictionary_encode()
        codes = coded.indices.to_numpy().astype(dtype)
        return _Lists(self._offsets(name), codes), coded.dictionary.to_pylist()


class ShardRows:
    """The rows of one split of a shards folder, by number, in stored order.

    That order is the mixing schedule. Tokens are read when a row is requested, and never copied;
    `source_modality` and `modality` take one pass over two narrow columns.
    Raises: ContractError when the folder, its index or a shard is not what koe writes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        index = read_index(folder)
        entries = [entry for entry in index["shards"] if entry["split"] == split]
        self.folder, self.split = folder, split
        self.splits = {entry["split"] for entry in index["shards"] if entry["rows"]}
        self.fingerprint = fingerprint(index)
        self.max_row_tokens = int(index["max_row_tokens"])
        self._stored: list[_Stored] = []
        self._starts: list[int] = []  # number of the first row of each record batch
        self._num_rows = 0
        for entry in entries:
            self._open(folder / entry["path"], int(entry["rows"]))
        if not self._num_rows:
            raise ContractError(
                f"{folder} has no rows in the split {split!r}",
                f"its index lists {len(index['shards'])} shards, {len(entries)} of them in that split",
                "Run the interleave stage on more input.",
            )

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < self._num_rows:
            raise IndexError(f"row {number} of {self._num_rows}")
        place = bisect_right(self._starts, number) - 1
        stored, at = self._stored[place], number - self._starts[place]
        (sources, source_names), (modalities, modality_names) = stored.sources, stored.modalities
        row = Row(
            number,
            stored.input_ids[at],
            stored.lengths[at],
            [source_names[code] for code in sources[at].tolist()],
            [modality_names[code] for code in modalities[at].tolist()],
            stored.parts[at],
            stored.ids[at],
        )
        self._check(row, stored.path)
        return row

    @cached_property
    def source_modality(self) -> dict[str, str]:
        """The modality of every source, ordered by the sources' names."""
        found: dict[str, str] = {}
        for stored in self._stored:
            sources, source_names = stored.sources
            modalities, modality_names = stored.modalities
            codes, first = np.unique(sources.values, return_index=True)
            for code, modality in zip(codes, modalities.values[first], strict=True):
                found[source_names[code]] = modality_names[modality]
        return dict(sorted(found.items()))

    @property
    def sources(self) -> list[str]:
        """The names of all sources; `Batch.source` holds indices into this list."""
        return list(self.source_modality)

    @cached_property
    def modality(self) -> np.ndarray:
        """The modalities of each row as a sum of MODALITY_BIT, uint8 [rows]."""
        bits = [np.zeros(0, np.uint8)]
        for stored in self._stored:
            modalities, names = stored.modalities
            of_name = [MODALITY_BIT[TEXT if name == TEXT else SPEECH] for name in names]
            of_document = np.array(of_name, np.uint8)[modalities.values]
            bits.append(np.bitwise_or.reduceat(of_document, modalities.offsets[:-1]))
        return np.concatenate(bits)

    def _open(self, path: Path, num_rows: int) -> None:
        try:
            # The mapping outlives the file handle, so a thousand shards keep no files open.
            with pa.memory_map(str(path)) as source:
                reader = ipc.open_file(source)
                require_schema(reader.schema.empty_table(), ROW, f"shard {path}")
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise ContractError(f"shard {path} cannot be read", str(error), _AGAIN) from error
        if any(column.null_count or column.values.null_count for b in batches for column in b):
            raise ContractError(f"shard {path} contains nulls", "koe writes none", _AGAIN)
        found = sum(batch.num_rows for batch in batches)
        if found != num_rows:
            raise ContractError(
                f"shard {path} has {found} rows", f"index.json says {num_rows}", _AGAIN
            )
        for batch in batches:
            if batch.num_rows:
                self._stored.append(_Stored(str(path), batch))
                self._starts.append(self._num_rows)
                self._num_rows += batch.num_rows

    def _check(self, row: Row, name: str) -> None:
        num_tokens, num_documents = len(row.input_ids), len(row.document_lengths)
        lengths = row.document_lengths.tolist()
        sources, modalities = row.document_sources, row.document_modalities
        problem = ""
        if not 0 < num_tokens <= self.max_row_tokens:
            problem = f"it has {num_tokens} tokens; the index allows 1 to {self.max_row_tokens}"
        elif sum(lengths) != num_tokens or min(lengths) < 1:
            problem = f"its document lengths {lengths} do not add up to {num_tokens} tokens"
        elif {len(sources), len(modalities), len(row.document_parts), len(row.stored_ids)} != {
            num_documents
        }:
            problem = f"a column does not describe all of its {num_documents} documents"
        elif not set(modalities) <= set(MODALITIES):
            problem = f"its modalities are {sorted(set(modalities))}"
        if problem:
            raise ContractError(f"row {row.index} ({name}) cannot be used", problem, _AGAIN)


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check the `index.json` of a shards folder.

    Raises: ContractError.
    """
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["schema_version"]
        numbers = [index["max_row_tokens"], *(entry["rows"] for entry in index["shards"])]
        texts = [entry[key] for entry in index["shards"] for key in ("path", "split", "sha256")]
        if not all(type(number) is int for number in numbers):
            raise TypeError("rows and max_row_tokens must be integers")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("path, split and sha256 must be strings")
    except FileNotFoundError:
        raise ContractError(
            f"{folder} is not a folder of shards",
            "it has no index.json",
            "Write the shards with `koe run --to interleave`.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{path} cannot be read", repr(error), _AGAIN) from error
    if version != SCHEMA_VERSION:
        raise ContractError(
            f"{path} has schema version {version}", f"this koe reads {SCHEMA_VERSION}", _AGAIN
        )
    return index


def fingerprint(index: dict[str, Any]) -> str:
    """Hash the list of shards, which contains the sha256 of every shard."""
    text = json.dumps(index["shards"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
