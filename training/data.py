"""Reading shards: memory-mapped rows and their batches."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import ipc

from pipeline.errors import ContractError
from pipeline.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT, require_schema
from pipeline.vocabulary import END_OF_AI, END_OF_HUMAN, PAD, START_OF_AI, START_OF_HUMAN

IGNORED = -100  # label of a token that is not predicted; torch's own default
MODALITIES = (TEXT, SPEECH)
MODALITY_BIT = {TEXT: 1, SPEECH: 2}  # of ShardRows.modality
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
    document_parts: np.ndarray  # int32 [documents]; over 0 where a sample was split


class ShardRows:
    """The rows of one split of a shards folder, by number, in stored order.

    That order is the mixing schedule. Tokens are not read until a row is asked for, and never
    copied; `source_modality` and `modality` take one pass over two narrow columns.
    Raises: ContractError when the folder, its index or a shard is not what koe writes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        index = read_index(folder)
        entries = [entry for entry in index["shards"] if entry["split"] == split]
        self.folder, self.split = folder, split
        self.splits = {entry["split"] for entry in index["shards"] if entry["rows"]}
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
            _list_view(batch, "document_parts", at),
        )
        self._check(row, self._names[place])
        return row

    @cached_property
    def source_modality(self) -> dict[str, str]:
        """The modality of every source, by name, in the order of names."""
        found: dict[str, str] = {}
        for batch in self._batches:
            columns = {
                name: batch.column(f"document_{name}").flatten()
                for name in ("sources", "modalities")
            }
            pairs = pa.table(columns).group_by(list(columns)).aggregate([])
            found |= {row["sources"]: row["modalities"] for row in pairs.to_pylist()}
        return dict(sorted(found.items()))

    @property
    def sources(self) -> list[str]:
        """The names of all sources; Batch.source holds indices into it."""
        return list(self.source_modality)

    @cached_property
    def modality(self) -> np.ndarray:
        """The modalities of each row as a sum of MODALITY_BIT, uint8 [rows]."""
        bits = [np.zeros(0, np.uint8)]
        for batch in self._batches:
            column = batch.column("document_modalities")
            is_text = pc.call_function("equal", [column.flatten(), TEXT]).to_numpy(False)
            of_document = np.where(is_text, MODALITY_BIT[TEXT], MODALITY_BIT[SPEECH])
            starts = column.offsets.to_numpy()[:-1] - column.offsets[0].as_py()
            bits.append(np.bitwise_or.reduceat(of_document.astype(np.uint8), starts))
        return np.concatenate(bits)

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
        described = (
            row.document_sources,
            row.document_ids,
            row.document_modalities,
            row.document_parts,
        )
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
    each document. `document_index` counts the documents of a row, -1 at padding; `source` is an
    index into `ShardRows.sources`, -1 at padding.
    """

    input_ids: torch.Tensor  # int64
    labels: torch.Tensor  # int64
    position_ids: torch.Tensor  # int64
    document_index: torch.Tensor  # int32
    source: torch.Tensor  # int16

    def to(self, device: torch.device) -> Batch:
        return Batch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )

    def pin_memory(self) -> Batch:
        """Move to page-locked memory, from which a GPU copies while it computes."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    @cached_property
    def num_supervised(self) -> int:
        return int((self.labels != IGNORED).sum())

    @cached_property
    def num_tokens(self) -> int:
        return int((self.document_index >= 0).sum())


def collate(
    rows: Sequence[Row], num_embeddings: int, sources: Sequence[str], loss_on: str = "all"
) -> Batch:
    """Pad rows to their longest and mark their documents.

    `loss_on`: "all", or "response" for labels of what follows start_of_ai only.
    Raises: ContractError for a token id that the model has no embedding for.
    """
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    # Padding is neither attended to nor predicted, so any id the model knows serves.
    input_ids = np.full(shape, PAD if num_embeddings > PAD else 0, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    position_ids = np.zeros(shape, np.int64)
    document_index = np.full(shape, -1, np.int32)
    source = np.full(shape, -1, np.int16)
    index_of = {name: index for index, name in enumerate(sources)}
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
        if loss_on == "response":
            labels[place, :n][~in_response(ids, lengths, row.document_parts)] = IGNORED
        position_ids[place, :n] = np.arange(n) - np.repeat(starts, lengths)
        document_index[place, :n] = np.repeat(np.arange(len(lengths)), lengths)
        source[place, :n] = np.repeat([index_of[name] for name in row.document_sources], lengths)
    return Batch(
        *(torch.from_numpy(a) for a in (input_ids, labels, position_ids, document_index, source))
    )


def in_response(ids: np.ndarray, lengths: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Mark the tokens between start_of_ai and end_of_ai, the latter included, bool [tokens].

    The later part of a split document may begin inside an answer: it does when the first control
    id that it holds is end_of_ai. A part without any belongs to a sample that is longer than a
    row, and such samples are long by their answer, so it counts as one.
    """
    starts = np.cumsum(lengths) - lengths
    begins, ends = ids == START_OF_AI, ids == END_OF_AI
    # How many answers are open before each token: of the whole row, then of its document alone.
    open_before = np.cumsum(begins) - begins - np.cumsum(ends) + ends
    open_before = open_before - np.repeat(open_before[starts], lengths)
    for start, length, part in zip(starts, lengths, parts, strict=True):
        if part == 0:
            continue
        document = ids[start : start + length]
        control = document[
            np.isin(document, (START_OF_AI, END_OF_AI, START_OF_HUMAN, END_OF_HUMAN))
        ]
        if not len(control) or control[0] == END_OF_AI:
            open_before[start : start + length] += 1
    return open_before > 0
