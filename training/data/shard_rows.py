"""The rows of a split of the shards, by number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from koe.cache import cache_folder
from koe.errors import ContractError
from training.data.remote_shards import RemoteShards
from training.data.shard_cache import ShardCache
from training.data.shard_index import ShardEntry, entries_of, fingerprint, read_index
from training.data.shard_summary import MODALITIES, ShardSummary, of_batches
from training.data.stored import AGAIN, Stored, open_shard
from training.places import Place, RemoteFolder, local_folder

CACHE_FOLDER = "shards"
TRAIN, VALIDATION = "train", "validation"  # the splits


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


class LocalShards:
    """The record batches of a split on a local disk, by place; all are mapped from the start."""

    def __init__(self, folder: Path, entries: Sequence[ShardEntry]) -> None:
        self._shards = [open_shard(folder / entry.path, entry.rows) for entry in entries]
        self._parts = [part for parts in self._shards for part in parts]

    def __getitem__(self, place: int) -> Stored:
        return self._parts[place]

    @cached_property
    def summaries(self) -> list[ShardSummary]:
        return [of_batches(parts) for parts in self._shards]

    @property
    def batch_rows(self) -> list[int]:
        return [part.num_rows for part in self._parts]

    def expect(self, rows: Sequence[int]) -> None:
        """Do nothing: all rows are here."""

    def require_room(self, rows_per_step: int, num_rows: int) -> None:
        """Do nothing: there is no cache."""

    def close(self) -> None:
        """Do nothing: a file is unmapped when nothing refers to it."""


class ShardRows:
    """The rows of one split of a folder of shards, by number, in stored order.

    That order is the mixing schedule. Tokens are read when a row is requested, and never copied;
    `source_modality` and `modality` take one pass over two narrow columns. Shards at a URL come
    through this machine's cache, which is used up to `cache_gigabytes`; of each, two columns are
    read at once (1 byte per row is kept).
    Raises: ContractError when the folder, its index or a shard is not what koe writes; StorageError.
    """

    def __init__(self, place: Place, split: str, cache_gigabytes: float = 0.0) -> None:
        index = read_index(place)
        self.place, self.split = place, split
        self.splits = {entry["split"] for entry in index["shards"] if entry["rows"]}
        self.fingerprint = fingerprint(index)
        self.max_row_tokens = int(index["max_row_tokens"])
        self.entries = entries_of(index, place, split)
        self._num_rows = sum(entry.rows for entry in self.entries)
        if not self._num_rows:
            raise ContractError(
                f"{place} has no rows in the split {split!r}",
                f"its index lists {len(index['shards'])} shards, {len(self.entries)} of them in "
                "that split",
                "Run the interleave stage on more input.",
            )
        folder = local_folder(place)
        if folder is None:
            others = [entry for name in self.splits for entry in entries_of(index, place, name)]
            self._stored = _remote(str(place), split, self.entries, others, cache_gigabytes)
        else:
            self._stored = LocalShards(folder, self.entries)
        # Number of the first row of each record batch.
        self._starts = [0, *accumulate(self._stored.batch_rows)][:-1]

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
        for summary in self._stored.summaries:
            found |= summary.source_modality
        return dict(sorted(found.items()))

    @property
    def sources(self) -> list[str]:
        """The names of all sources; `Batch.source` holds indices into this list."""
        return list(self.source_modality)

    @cached_property
    def modality(self) -> np.ndarray:
        """The modalities of each row as a sum of MODALITY_BIT, uint8 [rows]."""
        return np.concatenate([summary.modality for summary in self._stored.summaries])

    def expect(self, numbers: Sequence[int]) -> None:
        """Say which rows are read next, so that their shards and those after them are fetched.

        Raises: ConfigError for rows out of stored order, if there is no room for all shards.
        """
        self._stored.expect(numbers)

    def require_room(self, rows_per_step: int, max_steps: int) -> None:
        """Refuse a run whose shards come through a cache that is too small for it.

        Raises: ConfigError with the size that is needed.
        """
        self._stored.require_room(rows_per_step, rows_per_step * max_steps)

    def close(self) -> None:
        """Stop fetching shards."""
        self._stored.close()

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
            raise ContractError(f"row {row.index} ({name}) cannot be used", problem, AGAIN)


def _remote(
    url: str,
    split: str,
    entries: Sequence[ShardEntry],
    all_entries: Sequence[ShardEntry],
    gigabytes: float,
) -> RemoteShards:
    """Open shards at a URL; the split of training has all of the cache but one shard of another."""
    remote, limit = RemoteFolder(url), int(gigabytes * 1e9)
    cache = ShardCache(remote, cache_folder() / CACHE_FOLDER, limit)
    reserved = max((e.num_bytes for e in all_entries if e.split != TRAIN), default=0)
    return RemoteShards(remote, entries, cache, limit - reserved if split == TRAIN else reserved)
