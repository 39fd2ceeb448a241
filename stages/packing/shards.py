"""Interleave, second half: rows are split into training and validation, and cut into shards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from koe.schema import ORDER
from stages.packing.layout import RowLayout
from stages.packing.queue import Catalog
from stages.settings import InterleaveSettings

SPLITS = TRAIN, VALIDATION = "train", "validation"

# Bytes of a document in a shard beside its tokens: five list entries and three strings.
_DOCUMENT_BYTES = 120
_TOKEN_BYTES = 4
_MIN_ROWS_TO_VALIDATE = 20


def shard_names(split: str, number: int) -> list[str]:
    """Name the shards of a split."""
    return [f"{split}-{shard:05d}" for shard in range(number)]


class Shards:
    """Which shard each row goes to; `names` are those of the shards, in order."""

    def __init__(self, catalog: Catalog, layout: RowLayout, settings: InterleaveSettings) -> None:
        self._catalog, self._layout = catalog, layout
        is_validation = _validation_rows(layout, settings.validation_share)
        row_bytes = _row_bytes(layout)
        self.names: list[str] = []
        self._shard = np.zeros(layout.num_rows, np.int32)  # of each row
        self._row = np.zeros(layout.num_rows, np.int32)  # of each row, within its shard
        for split, chosen in ((TRAIN, ~is_validation), (VALIDATION, is_validation)):
            rows = np.flatnonzero(chosen)
            shard = _even_shards(row_bytes[rows], settings.shard_megabytes * 1e6)
            self._shard[rows] = shard + len(self.names)
            self._row[rows] = np.arange(len(rows)) - np.searchsorted(shard, shard)
            self.names += shard_names(split, int(shard[-1]) + 1 if len(rows) else 0)
        validates = is_validation[layout.row]
        # training rows, then validation rows, each in the order of the layout
        self._entries = np.concatenate(
            [np.flatnonzero(mask).astype(np.uint32) for mask in (~validates, validates)]
        )

    def tables(self) -> Iterator[pa.Table]:
        """Yield the order (ORDER), sorted by shard and row, in tables of about 100,000 pieces."""
        names = pa.array(self.names, pa.string())
        for row, pieces in self._layout.pieces(self._entries):
            unit = self._catalog.unit_of(pieces.sample)
            columns = [
                names.take(pa.array(self._shard[row])),
                pa.array(self._row[row], pa.int64()),
                pa.array(self._catalog.unit_index[unit]),
                pa.array((pieces.sample - self._catalog.bounds[unit]).astype(np.int32)),
                pa.array(pieces.start),
                pa.array(pieces.stop),
                pa.array(pieces.part),
            ]
            yield pa.Table.from_arrays(columns, schema=ORDER)


def _row_bytes(layout: RowLayout) -> np.ndarray:
    """Estimate the bytes of each row in a shard, float64 [rows]."""
    sizes = [
        _TOKEN_BYTES * queue.num_tokens + _DOCUMENT_BYTES * queue.pieces_per_row()
        for queue in (layout.text, layout.speech)
    ]
    row_bytes = np.zeros(layout.num_rows)
    # not by assignment: one row may have two entries, which add up
    np.add.at(row_bytes, layout.row, layout.of_entries(*sizes))
    return row_bytes


def _validation_rows(layout: RowLayout, share: float) -> np.ndarray:
    """Choose rows of each modality for validation, evenly spread, bool [rows].

    Rows with a piece of a cut sample are chosen last, because the rest of that sample would be
    trained on. The row that holds both modalities is never chosen.
    """
    chosen = np.zeros(layout.num_rows, bool)
    has_text, has_speech, has_cut = (np.zeros(layout.num_rows, bool) for _ in range(3))
    has_text[layout.row[layout.is_text]] = True
    has_speech[layout.row[~layout.is_text]] = True
    has_cut[layout.row[layout.of_entries(layout.text.has_cut, layout.speech.has_cut)]] = True
    for modality in (has_text & ~has_speech, has_speech & ~has_text):
        num_candidates = int(modality.sum())
        wanted = round(share * num_candidates)
        if share > 0 and num_candidates >= _MIN_ROWS_TO_VALIDATE:
            wanted = max(wanted, 1)
        whole, cut = np.flatnonzero(modality & ~has_cut), np.flatnonzero(modality & has_cut)
        from_whole = min(wanted, len(whole))
        for rows, number in ((whole, from_whole), (cut, wanted - from_whole)):
            chosen[rows[(2 * np.arange(number) + 1) * len(rows) // max(2 * number, 1)]] = True
    return chosen


def _even_shards(row_bytes: np.ndarray, shard_bytes: float) -> np.ndarray:
    """Cut a sequence of rows into shards of about equal size, int32 [rows], ascending from 0.

    Overwrites `row_bytes`.
    """
    ends = np.cumsum(row_bytes)
    if not len(ends):
        return np.zeros(0, np.int32)
    total = ends[-1]
    number = min(max(1, round(total / shard_bytes)), len(ends))
    row_bytes *= -0.5  # in place from here: the arrays of 5 M rows would add up
    ends += row_bytes
    ends *= number
    ends /= total
    shard = ends.astype(np.int32)
    return np.cumsum(np.diff(shard, prepend=shard[:1]) != 0, dtype=np.int32)
