"""Micro-batches: rows padded to one length, with the document of each token marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch

from koe.errors import ContractError
from koe.vocabulary import END_OF_AI, PAD, START_OF_AI, START_OF_HUMAN
from training.data.shard_rows import Row

IGNORED = -100  # label of a token that is not predicted; torch's own default
_NUM_CONTROLS = END_OF_AI - START_OF_HUMAN + 1  # start and end of human, start and end of ai


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch, all tensors [rows, tokens], padded to the longest row.

    `labels` are the token ids themselves (the loss shifts them), `IGNORED` at padding and at the
    first token of each document, which nothing in its own document predicts. `position_ids` restart
    in each document. `document_index` counts the documents of a row and `source` is an index into
    `ShardRows.sources`; both are -1 at padding.
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
        """Copy to page-locked memory, from which a GPU can copy while it computes."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    @cached_property
    def num_supervised(self) -> int:
        return int((self.labels != IGNORED).sum())

    @cached_property
    def num_tokens(self) -> int:
        return int((self.document_index >= 0).sum())


def collate(
    rows: Sequence[Row],
    num_embeddings: int,
    sources: Sequence[str],
    loss_on: str = "all",
    min_width: int = 0,
) -> Batch:
    """Pad rows to their longest, or to `min_width` tokens, and mark their documents.

    `loss_on`: "all", or "response" for labels only where start_of_ai precedes. With the capacity of
    a row as `min_width`, compiled layers see a single shape, and 0.1 % of the tokens are padding.
    Raises: ContractError for a token id that the model has no embedding for.
    """
    num_tokens = [len(row.input_ids) for row in rows]
    shape = (len(rows), max(*num_tokens, min_width))
    input_ids = np.empty(shape, np.int64)
    # Padding is neither attended to nor predicted, so any id that the model has will do.
    padding = PAD if num_embeddings > PAD else 0
    for row, n, of_row in zip(rows, num_tokens, input_ids, strict=True):
        of_row[:n], of_row[n:] = row.input_ids, padding
    # As an unsigned number a negative id is a large one, so one pass checks both bounds.
    if int(input_ids.view(np.uint64).max()) >= num_embeddings:
        raise _without_embedding(rows, num_embeddings)

    # From here on all rows are one sequence of documents; the padding of a row is a document too.
    lengths, parts, index, source = _documents(rows, shape[1], sources)
    starts = np.cumsum(lengths) - lengths
    labels = input_ids.copy()
    if loss_on == "response":
        kept = in_response(input_ids.reshape(-1), lengths, parts).reshape(shape)
        np.copyto(labels, IGNORED, where=~kept)
    labels.reshape(-1)[starts] = IGNORED
    position_ids = np.arange(input_ids.size).reshape(shape)
    position_ids -= np.repeat(starts, lengths).reshape(shape)
    for place, n in enumerate(num_tokens):
        labels[place, n:], position_ids[place, n:] = IGNORED, 0
    document_index = np.repeat(index, lengths).reshape(shape)
    source_index = np.repeat(source, lengths).reshape(shape)
    arrays = (input_ids, labels, position_ids, document_index, source_index)
    return Batch(*(torch.from_numpy(array) for array in arrays))


def _documents(
    rows: Sequence[Row], width: int, sources: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """List all documents of the rows: lengths, parts, index in their row (int32), source (int16).

    Rows that are shorter than `width` end in a document of padding: part 0, index and source -1.
    """
    index_of = {name: index for index, name in enumerate(sources)}
    lengths: list[int] = []
    parts: list[int] = []
    index: list[int] = []
    source: list[int] = []
    for row in rows:
        lengths += row.document_lengths.tolist()
        parts += row.document_parts.tolist()
        index += range(len(row.document_lengths))
        source += [index_of[name] for name in row.document_sources]
        if len(row.input_ids) < width:
            lengths.append(width - len(row.input_ids))
            parts.append(0)
            index.append(-1)
            source.append(-1)
    return (
        np.array(lengths),
        np.array(parts),
        np.array(index, np.int32),
        np.array(source, np.int16),
    )


def _without_embedding(rows: Sequence[Row], num_embeddings: int) -> ContractError:
    for row in rows:
        lowest, highest = int(row.input_ids.min()), int(row.input_ids.max())
        if lowest < 0 or highest >= num_embeddings:
            return ContractError(
                f"row {row.index} holds token ids from {lowest} to {highest}",
                f"the model has {num_embeddings} embeddings",
                "Use a model and a tokenizer of the same vocabulary.",
            )
    raise AssertionError("every id has an embedding")


def in_response(ids: np.ndarray, lengths: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Mark the tokens between start_of_ai and end_of_ai, the latter included, bool [tokens].

    The later part of a split document begins inside an answer when the first control id in it is
    end_of_ai. A part without any control id belongs to a sample longer than a row; it is the answer
    that makes such samples long, so the part counts as answer.
    """
    # The four control ids are consecutive, so one unsigned comparison finds them. The rest is
    # computed at those few places: sums over all tokens would double the time of making a batch.
    controls = np.flatnonzero((ids - START_OF_HUMAN).view(f"u{ids.itemsize}") < _NUM_CONTROLS)
    kinds = np.append(ids[controls], END_OF_AI)  # one more at the end, for a document without any
    steps = (kinds == START_OF_AI).astype(np.int64) - (kinds == END_OF_AI)
    opened = steps.cumsum()  # after each control id, over all documents
    stops = lengths.cumsum()
    starts = stops - lengths
    first, stop = controls.searchsorted(starts), controls.searchsorted(stops)
    begins_inside = (parts > 0) & ((first == stop) | (steps[first] < 0))
    # Between two edges an answer is open if more are open there than before the document began.
    before = (opened[first] - steps[first] - begins_inside).repeat(stop - first)
    is_open = np.concatenate([opened[:-1] > before, begins_inside])
    edges = np.concatenate([controls + 1, starts, [len(ids)]])
    # Where a document ends in a control id, the start of the next comes later, and so prevails.
    order = edges.argsort(kind="stable")
    edges = edges[order]
    return is_open[order[:-1]].repeat(edges[1:] - edges[:-1])
