"""Writes the documents of the shards as Parquet, one a row, for trainers that want labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset

from koe.errors import StorageError
from training.data.batches import IGNORED, in_response
from training.data.shard_index import read_index
from training.data.shard_rows import ShardRows
from training.export.draft import drafted, require_free
from training.places import Place, absolute

_IDS = pa.list_(pa.int32())
DOCUMENT = pa.schema(
    [
        pa.field("input_ids", _IDS, nullable=False),
        pa.field("attention_mask", pa.list_(pa.int8()), nullable=False),
        pa.field("labels", _IDS, nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "source", "modality")),
    ]
)
_GROUP_DOCUMENTS = 1_000  # of a row group: about 2 MB
_FILE_DOCUMENTS = 200_000


def export_documents(
    shards: Place, out: Place, *, loss_on: str, cache_gigabytes: float
) -> dict[str, int]:
    """Write every document of the shards to Parquet files that the Datasets library loads by split.

    `labels` are the ids themselves (models of transformers shift them) where a token is predicted:
    never the first of a document, and with `loss_on` "response" only what follows start_of_ai. A
    sample that was split over rows stays split, as training saw it. Both places may be URLs.
    Returns the documents of each split. Raises: ConfigError when `out` is not empty; ContractError
    for shards that are not what koe writes; StorageError.
    """
    out = absolute(out)
    require_free(out)
    counts: dict[str, int] = {}
    try:
        with drafted(out) as draft:
            for split in sorted(_splits(shards)):
                rows = ShardRows(shards, split, cache_gigabytes)
                try:
                    counts[split] = _write_split(draft, split, _documents(rows, loss_on))
                finally:
                    rows.close()
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written", str(error), "Free or mount the disk and export again."
        ) from error
    return counts


def _splits(shards: Place) -> set[str]:
    return {entry["split"] for entry in read_index(shards)["shards"] if entry["rows"]}


def _write_split(folder: Path, split: str, documents: Iterator[dict[str, Any]]) -> int:
    written = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal written
        while group := list(islice(documents, _GROUP_DOCUMENTS)):
            written += len(group)
            yield pa.RecordBatch.from_pylist(group, schema=DOCUMENT)

    dataset.write_dataset(
        batches(),
        folder,
        schema=DOCUMENT,
        format="parquet",
        basename_template=f"{split}-{{i}}.parquet",
        max_rows_per_file=_FILE_DOCUMENTS,
        max_rows_per_group=_GROUP_DOCUMENTS,
        use_threads=False,  # they would not keep the order
        existing_data_behavior="overwrite_or_ignore",  # the other split's
    )
    return written


def _documents(rows: ShardRows, loss_on: str) -> Iterator[dict[str, Any]]:
    for number in range(len(rows)):
        rows.expect([number])
        row = rows[number]
        labels = row.input_ids.copy()
        if loss_on == "response":
            labels[~in_response(row.input_ids, row.document_lengths, row.document_parts)] = IGNORED
        stops = np.cumsum(row.document_lengths)
        starts = stops - row.document_lengths
        labels[starts] = IGNORED
        for place, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            yield {
                "input_ids": row.input_ids[start:stop],
                "attention_mask": np.ones(stop - start, np.int8),
                "labels": labels[start:stop],
                "id": row.document_ids[place],
                "source": row.document_sources[place],
                "modality": row.document_modalities[place],
            }
