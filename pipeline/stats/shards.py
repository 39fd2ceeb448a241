"""The shards: what they hold together, file by file, and in the order of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import SHARDS
from koe.schema import SPEECH, TEXT
from pipeline.run_dir.storage import Output, Storage
from pipeline.run_dir.vouched import open_vouched
from pipeline.stats.model import MixPart, ShardFile, ShardStats, SplitStats

_BUCKETS = 50
_TRAIN = "train"


def shard_stats(index: dict[str, Any] | None) -> ShardStats:
    """Sum up the index; zeros while there is none."""
    if index is None:
        return ShardStats()
    shards = index["shards"]
    rows, tokens, documents = (_total(shards, key) for key in ("rows", "tokens", "documents"))
    splits: dict[str, list[dict[str, Any]]] = {}
    for shard in sorted(shards, key=itemgetter("split")):
        splits.setdefault(shard["split"], []).append(shard)
    return ShardStats(
        num_shards=len(shards),
        rows=rows,
        tokens=tokens,
        fill=_fill(tokens, rows, index),
        max_row_tokens=max((shard["longest_row_tokens"] for shard in shards), default=0),
        row_capacity=index["max_row_tokens"],
        documents=documents,
        tokens_by_modality={
            modality: sum(shard["tokens_by_modality"].get(modality, 0) for shard in shards)
            for modality in (SPEECH, TEXT)
        },
        splits={
            name: SplitStats(_total(split, "rows"), _total(split, "tokens"))
            for name, split in splits.items()
        },
    )


def _total(shards: list[dict[str, Any]], key: str) -> int:
    return sum(shard[key] for shard in shards)


def shard_files(index: dict[str, Any] | None) -> list[ShardFile]:
    """List the shards with their sizes and hashes."""
    return [
        ShardFile(
            path=shard["path"],
            split=shard["split"],
            rows=shard["rows"],
            tokens=shard["tokens"],
            bytes=shard["num_bytes"],
            sha256=shard["sha256"],
            fill=_fill(shard["tokens"], shard["rows"], index),
        )
        for shard in (index["shards"] if index else [])
    ]


def shard_mix(index: dict[str, Any] | None, storage: Storage) -> list[MixPart]:
    """Describe the training rows in stored order, in 50 parts, or one per row where there are fewer.

    Of a local shard two columns are read, and proved sound. One of an object store is fetched whole,
    so it is also proved to be the one that the index names. Raises: ContractError.
    """
    shards = [shard for shard in index["shards"] if shard["split"] == _TRAIN] if index else []
    num_rows = _total(shards, "rows")
    if index is None or not num_rows:
        return []
    num_buckets = min(_BUCKETS, num_rows)
    sums = {name: np.zeros(num_buckets) for name in (SPEECH, TEXT, "rows", "documents")}
    first_row = 0
    for shard in shards:
        with _open_shard(storage, shard) as batches:
            for batch in batches:
                rows = first_row + np.arange(batch.num_rows)
                _add_rows(sums, batch, rows * num_buckets // num_rows)
                first_row += batch.num_rows
    return [
        MixPart(
            progress=round((k + 0.5) / num_buckets, 6),
            speech_tokens=int(sums[SPEECH][k]),
            text_tokens=int(sums[TEXT][k]),
            rows=int(sums["rows"][k]),
            fill=_fill(sums[SPEECH][k] + sums[TEXT][k], sums["rows"][k], index),
            documents_per_row=round(float(sums["documents"][k] / sums["rows"][k]), 4),
        )
        for k in range(num_buckets)
    ]


def _open_shard(
    storage: Storage, shard: dict[str, Any]
) -> AbstractContextManager[Iterator[pa.RecordBatch]]:
    # the tokens are not read: the lengths of a row's documents add up to its own
    columns = ["document_lengths", "document_modalities"]
    path = f"{SHARDS}/{shard['path']}"
    if storage.is_local:
        return storage.open_batches(path, columns)
    output = Output(
        path=path, sha256=shard["sha256"], num_bytes=shard["num_bytes"], rows=shard["rows"]
    )
    return open_vouched(storage, output, columns)


def _add_rows(sums: dict[str, np.ndarray], batch: pa.RecordBatch, bucket: np.ndarray) -> None:
    """Add rows to the sums of their buckets (`bucket`: int64 [rows])."""
    lengths = batch["document_lengths"]
    tokens = lengths.flatten().to_numpy()
    documents = lengths.value_lengths().to_numpy()
    num_buckets = len(sums["rows"])
    sums["rows"] += np.bincount(bucket, minlength=num_buckets)
    sums["documents"] += np.bincount(bucket, weights=documents, minlength=num_buckets)
    bucket_of_document = np.repeat(bucket, documents)
    names = batch["document_modalities"].flatten().dictionary_encode()
    for number, name in enumerate(names.dictionary.to_pylist()):
        weights = tokens * (names.indices.to_numpy() == number)
        sums[name] += np.bincount(bucket_of_document, weights=weights, minlength=num_buckets)


def _fill(tokens: float, rows: float, index: dict[str, Any] | None) -> float:
    capacity = rows * index["max_row_tokens"] if index else 0
    return round(float(tokens / capacity), 6) if capacity else 0.0
