"""Reading shards: memory-mapped rows, the rows of each step, and batches of them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc

from pipeline.errors import ContractError
from pipeline.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT, require_schema
from pipeline.vocabulary import PAD

IGNORED = -100  # label of a token that is not predicted; torch's own default
MODALITIES = (TEXT, SPEECH)  # Batch.modality holds indices into it
_AGAIN = "Write the shards again with `koe run --force interleave`."


@dataclass(frozen=True)
class Row:
    """One packed row. `input_ids` int32 [tokens] is a view of the mapped file."""

    index: int
    input_ids: np.ndarray
    document_lengths: np.ndarray  # int32 [documents]
    document_sources: list[str]
    document_ids: list[str]
    document_modalities: list[str]


class ShardRows:
    """The rows of one split of a shards folder, by number, in stored order.

    That order is the mixing schedule, so it is never shuffled again. Nothing is read until a row
    is asked for; `input_ids` is never copied.
    Raises: ContractError when the folder, its index or a shard is not what koe writes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        index = read_index(folder)
        entries = [entry for entry in index["shards"] if entry["split"] == split]
        self.split = split
        self.fingerprint = fingerprint(index)
        self.max_row_tokens = int(index["max_row_tokens"])
        self._batches: list[pa.RecordBatch] = []
        self._names: list[str] = []
        self._starts: list[int] = []  # number of the first row of each record batch
        self._num_rows = 0
        for entry in entries:
            self._open(folder / entry["path"], int(entry["rows"]))
        if not self._num_rows:
            raise ContractError(
                f"{folder} holds no rows of the split {split!r}",
                f"its index lists {len(index['shards'])} shards, {len(entries)} of that split",
                "Run the interleave stage on more input.",
            )

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < self._num_rows:
            raise IndexError(f"row {number} of {self._num_rows}")
        place = bisect_right(self._starts, number) - 1
        batch, at = self._batches[place], number - self._starts[place]
        row = Row(
            number,
            _list_view(batch, "input_ids", at),
            _list_view(batch, "document_lengths", at),
            batch.column("document_sources")[at].as_py(),
            batch.column("document_ids")[at].as_py(),
            batch.column("document_modalities")[at].as_py(),
        )
        self._check(row, self._names[place])
        return row

    def _open(self, path: Path, num_rows: int) -> None:
        try:
            # The mapping outlives the file handle, so a thousand shards need no open files.
            with pa.memory_map(str(path)) as source:
                reader = ipc.open_file(source)
                require_schema(reader.schema.empty_table(), ROW, f"shard {path}")
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise ContractError(f"shard {path} cannot be read", str(error), _AGAIN) from error
        found = sum(batch.num_rows for batch in batches)
        if found != num_rows:
            raise ContractError(
                f"shard {path} has {found} rows", f"index.json says {num_rows}", _AGAIN
            )
        for batch in batches:
            if batch.num_rows:
                self._batches.append(batch)
                self._names.append(str(path))
                self._starts.append(self._num_rows)
                self._num_rows += batch.num_rows

    def _check(self, row: Row, name: str) -> None:
        num_tokens, num_documents = len(row.input_ids), len(row.document_lengths)
        lengths = row.document_lengths
        described = (row.document_sources, row.document_ids, row.document_modalities)
        problem = ""
        if not 0 < num_tokens <= self.max_row_tokens:
            problem = f"it has {num_tokens} tokens, the index allows 1..{self.max_row_tokens}"
        elif int(lengths.sum()) != num_tokens or int(lengths.min()) < 1:
            problem = f"its document lengths {lengths.tolist()} do not make {num_tokens} tokens"
        elif any(len(column) != num_documents for column in described):
            problem = f"its {num_documents} documents are not all described"
        elif not set(row.document_modalities) <= set(MODALITIES):
            problem = f"it names the modalities {sorted(set(row.document_modalities))}"
        if problem:
            raise ContractError(f"row {row.index} ({name}) cannot be used", problem, _AGAIN)


def _list_view(batch: pa.RecordBatch, name: str, at: int) -> np.ndarray:
    column = batch.column(name)
    start, stop = column.offsets[at].as_py(), column.offsets[at + 1].as_py()
    return column.values.slice(start, stop - start).to_numpy(zero_copy_only=True)


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check `index.json` of a shards folder.

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
    """Hash the list of shards, which names every shard's own sha256."""
    text = json.dumps(index["shards"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch, all tensors [rows, tokens], padded to the longest row.

    `labels` are the token ids themselves (the loss shifts), `IGNORED` at padding and at the first
    token of each document, which nothing of its own document predicts. `position_ids` restart in
    each document. `document_index` counts the documents of a row, -1 at padding; `modality` is
    an index into MODALITIES, -1 at padding.
    """

    input_ids: torch.Tensor  # int64
    labels: torch.Tensor  # int64
    position_ids: torch.Tensor  # int64
    document_index: torch.Tensor  # int32
    modality: torch.Tensor  # int8

    def to(self, device: torch.device) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @cached_property
    def num_supervised(self) -> int:
        return int((self.labels != IGNORED).sum())

    @cached_property
    def num_tokens(self) -> int:
        return int((self.document_index >= 0).sum())


def collate(rows: Sequence[Row], num_embeddings: int) -> Batch:
    """Pad rows to their longest and mark their documents.

    Raises: ContractError for a token id that the model has no embedding for.
    """
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    # Padding is neither attended to nor predicted, so any id the model knows serves.
    input_ids = np.full(shape, PAD if num_embeddings > PAD else 0, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    position_ids = np.zeros(shape, np.int64)
    document_index = np.full(shape, -1, np.int32)
    modality = np.full(shape, -1, np.int8)
    for place, row in enumerate(rows):
        ids, lengths = row.input_ids, row.document_lengths
        if int(ids.min()) < 0 or int(ids.max()) >= num_embeddings:
            raise ContractError(
                f"row {row.index} holds the token ids {int(ids.min())}..{int(ids.max())}",
                f"the model has {num_embeddings} embeddings",
                "Use a model and a tokenizer of the same vocabulary.",
            )
        n, starts = len(ids), np.cumsum(lengths) - lengths
        input_ids[place, :n] = ids
        labels[place, :n] = ids
        labels[place, starts] = IGNORED
        position_ids[place, :n] = np.arange(n) - np.repeat(starts, lengths)
        document_index[place, :n] = np.repeat(np.arange(len(lengths)), lengths)
        kinds = [MODALITIES.index(name) for name in row.document_modalities]
        modality[place, :n] = np.repeat(kinds, lengths)
    return Batch(
        *(torch.from_numpy(a) for a in (input_ids, labels, position_ids, document_index, modality))
    )


def rows_of_step(step: int, rows_a_step: int, num_rows: int) -> list[int]:
    """Number the rows of optimizer step `step` (from 0): the next ones in stored order."""
    return [number % num_rows for number in range(step * rows_a_step, (step + 1) * rows_a_step)]


def split_rows(
    numbers: Sequence[int], rank: int, world: int, micro_batch_rows: int
) -> list[list[int]]:
    """Give rank `rank` its micro-batches of a step's rows.

    Micro-batch m of rank r is the (m * world + r)-th slice, so a rank's share only depends on the
    numbers given, and all ranks' micro-batches m together are consecutive rows.
    """
    slices = [
        list(numbers[start : start + micro_batch_rows])
        for start in range(0, len(numbers), micro_batch_rows)
    ]
    return slices[rank::world]


class StepLoader:
    """Builds the micro-batches of each step, one step ahead in a thread of its own."""

    def __init__(
        self,
        rows: ShardRows,
        *,
        rows_a_step: int,
        micro_batch_rows: int,
        rank: int,
        world: int,
        num_embeddings: int,
    ) -> None:
        self._rows = rows
        self._rows_a_step, self._micro_batch_rows = rows_a_step, micro_batch_rows
        self._rank, self._world, self._num_embeddings = rank, world, num_embeddings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="step-loader")
        self._ahead: dict[int, Future[list[Batch]]] = {}

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of `step`, and start on those of the next.

        Raises: ContractError from reading the rows.
        """
        now = self._ahead.pop(step, None) or self._pool.submit(self._build, step)
        batches = now.result()
        self._ahead = {step + 1: self._pool.submit(self._build, step + 1)}
        return batches

    def _build(self, step: int) -> list[Batch]:
        numbers = rows_of_step(step, self._rows_a_step, len(self._rows))
        return [
            collate([self._rows[number] for number in part], self._num_embeddings)
            for part in split_rows(numbers, self._rank, self._world, self._micro_batch_rows)
        ]
