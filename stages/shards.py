"""Interleave, second half: rows are split into training and validation, and cut into shards."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.schema import ORDER
from stages.rows import Catalog, InterleaveSettings, Placed

TRAIN, VALIDATION = "train", "validation"

# Bytes of a document in a shard besides its tokens: five list entries and three strings.
_DOCUMENT_BYTES = 120
_TOKEN_BYTES = 4
_LEAST_ROWS_TO_VALIDATE = 20


def order_table(
    catalog: Catalog, placed: Placed, num_rows: int, settings: InterleaveSettings
) -> pa.Table:
    row_is_validation = _validation_rows(catalog, placed, num_rows, settings.validation_share)
    size = _TOKEN_BYTES * (placed.stop - placed.start) + _DOCUMENT_BYTES
    row_bytes = np.bincount(placed.row, weights=size, minlength=num_rows)
    names: list[str] = []
    shard_of_row = np.zeros(num_rows, np.int64)
    row_in_shard = np.zeros(num_rows, np.int64)
    for split, chosen in ((TRAIN, ~row_is_validation), (VALIDATION, row_is_validation)):
        rows = np.flatnonzero(chosen)
        shard = _even_shards(row_bytes[rows], settings.shard_megabytes * 1e6)
        shard_of_row[rows] = shard + len(names)
        starts = np.searchsorted(shard, shard)
        row_in_shard[rows] = np.arange(len(rows)) - starts
        names += [f"{split}-{k:05d}" for k in range(int(shard[-1]) + 1 if len(rows) else 0)]
    shard = shard_of_row[placed.row]
    sort = np.argsort(shard, kind="stable")  # rows are in order already
    placed = Placed(*(array[sort] for array in placed))
    return pa.Table.from_arrays(
        [
            pa.array(names, pa.string()).take(pa.array(shard[sort])),
            pa.array(row_in_shard[placed.row]),
            pa.array(catalog.unit_index[placed.sample]),
            pa.array(catalog.row[placed.sample]),
            pa.array(placed.start),
            pa.array(placed.stop),
            pa.array(placed.part),
        ],
        schema=ORDER,
    )


def _validation_rows(catalog: Catalog, placed: Placed, num_rows: int, share: float) -> np.ndarray:
    """Choose rows of each modality for validation, evenly spread, bool [rows].

    Rows with a piece of a cut sample are spared while there are others: the rest of that sample
    would be trained on. The row of both modalities is never chosen.
    """
    chosen = np.zeros(num_rows, bool)
    is_text = catalog.is_text[placed.sample]
    has_text = np.bincount(placed.row, weights=is_text, minlength=num_rows) > 0
    has_speech = np.bincount(placed.row, weights=~is_text, minlength=num_rows) > 0
    has_cut = np.bincount(placed.row, weights=placed.is_cut, minlength=num_rows) > 0
    for modality in (has_text & ~has_speech, has_speech & ~has_text):
        num_candidates = int(modality.sum())
        wanted = round(share * num_candidates)
        if share > 0 and num_candidates >= _LEAST_ROWS_TO_VALIDATE:
            wanted = max(wanted, 1)
        whole, cut = np.flatnonzero(modality & ~has_cut), np.flatnonzero(modality & has_cut)
        from_whole = min(wanted, len(whole))
        for rows, number in ((whole, from_whole), (cut, wanted - from_whole)):
            chosen[rows[(2 * np.arange(number) + 1) * len(rows) // max(2 * number, 1)]] = True
    return chosen


def _even_shards(row_bytes: np.ndarray, shard_bytes: float) -> np.ndarray:
    """Cut a sequence of rows into shards of about equal size, int64 [rows], ascending from 0."""
    ends = np.cumsum(row_bytes)
    if not len(ends):
        return np.zeros(0, np.int64)
    number = min(max(1, round(ends[-1] / shard_bytes)), len(ends))
    shard = ((ends - row_bytes / 2) * number / ends[-1]).astype(np.int64)
    return np.unique(shard, return_inverse=True)[1].astype(np.int64)
