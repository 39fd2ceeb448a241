"""Interleave: the packed rows of both modalities, put into the order of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.packing.pack import pack, ranges, row_sums
from stages.packing.queue import Described, Queue
from stages.settings import InterleaveSettings

_CHUNK_ROWS = 1 << 14  # rows described at once: about 100,000 pieces


class PackedQueue:
    """The rows of one modality, in the order in which packing made them.

    `num_tokens` int32 and `has_cut` (holds a piece of a cut sample) bool, both [rows].
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        lengths = queue.lengths[: queue.num_pieces(queue.num_samples)]
        self._rows = pack(lengths, queue.capacity)
        self.num_samples = queue.num_samples
        self.num_tokens = row_sums(self._rows, lengths).astype(np.int32)
        self.has_cut = row_sums(self._rows, queue.is_cut()).astype(bool)

    def __len__(self) -> int:
        return len(self._rows.offsets) - 1

    def num_pieces(self, rows: np.ndarray) -> np.ndarray:
        return self._rows.offsets[rows + 1] - self._rows.offsets[rows]

    def pieces_per_row(self) -> np.ndarray:
        """Count the pieces of every row, int32 [rows]."""
        return np.diff(self._rows.offsets).astype(np.int32)

    def describe(self, rows: np.ndarray) -> Described:
        """Describe the pieces of the given rows, row by row."""
        places = ranges(self._rows.offsets[rows], self.num_pieces(rows))
        return self._queue.describe(self._rows.items[places].astype(np.int64))

    def shuffled(self) -> np.ndarray:
        """Return the rows' places in random order, uint32 [rows]: the k-th is that of row k."""
        places = np.arange(len(self), dtype=np.uint32)
        self._queue.rng.shuffle(places)
        return places


class RowLayout(NamedTuple):
    """The rows in order; a row that holds both modalities has two entries. Arrays [entries]."""

    text: PackedQueue
    speech: PackedQueue
    num_rows: int
    row: np.ndarray  # uint32, ascending
    is_text: np.ndarray  # bool: which of the two queues the entry comes from
    packed: np.ndarray  # uint32: its row in that queue

    def of_entries(self, text_values: np.ndarray, speech_values: np.ndarray) -> np.ndarray:
        """Gather values of packed rows in the order of entries."""
        values = np.empty(len(self.packed), text_values.dtype)
        for is_text, source in ((True, text_values), (False, speech_values)):
            mine = self.is_text == is_text
            values[mine] = source[self.packed[mine]]
        return values

    def pieces(self, entries: np.ndarray) -> Iterator[tuple[np.ndarray, Described]]:
        """Yield the rows and pieces of entries, in the order given, chunk by chunk."""
        for begin in range(0, len(entries), _CHUNK_ROWS):
            chunk = entries[begin : begin + _CHUNK_ROWS]
            packed, is_text = self.packed[chunk].astype(np.int64), self.is_text[chunk]
            number = np.empty(len(chunk), np.int64)
            queues = ((is_text, self.text), (~is_text, self.speech))
            for mine, queue in queues:
                number[mine] = queue.num_pieces(packed[mine])
            places = np.cumsum(number) - number
            pieces = Described(
                *(np.empty(int(number.sum()), dtype) for dtype in (np.int64, *[np.int32] * 3))
            )
            for mine, queue in queues:
                at = ranges(places[mine], number[mine])
                for target, values in zip(pieces, queue.describe(packed[mine]), strict=True):
                    target[at] = values
            yield np.repeat(self.row[chunk], number), pieces


def lay_rows(queues: list[Queue], is_text: np.ndarray, settings: InterleaveSettings) -> RowLayout:
    """Pack both queues and place their rows where `is_text` (bool [rows]) wants that modality.

    The emptiest row of each modality are joined into one row where they fit.
    """
    text, speech = (PackedQueue(queue) for queue in queues)
    packed = np.empty(len(is_text), np.uint32)
    loosest = []
    for queue, wanted in ((text, True), (speech, False)):
        places = np.flatnonzero(is_text == wanted)[queue.shuffled()]
        packed[places] = np.arange(len(queue), dtype=np.uint32)
        if len(queue):
            least = int(np.argmin(queue.num_tokens))
            loosest.append((int(places[least]), int(queue.num_tokens[least])))
    row = np.arange(len(is_text), dtype=np.uint32)
    if len(loosest) < 2 or sum(tokens for _, tokens in loosest) > settings.max_row_tokens:
        return RowLayout(text, speech, len(row), row, is_text, packed)
    # The earlier of the two rows moves into the later, the only row to hold both modalities.
    earlier, later = sorted(place for place, _ in loosest)
    place = later - 1 if is_text[earlier] else later  # text comes first
    entries = np.insert(np.delete(row, earlier), place, earlier)
    row[later:] -= 1
    return RowLayout(text, speech, len(row) - 1, row, is_text[entries], packed[entries])
