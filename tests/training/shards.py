"""Writes small folders of shards in the layout of the interleave stage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from koe.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT
from koe.vocabulary import CODEBOOK_SIZE, SLOTS, conversation_ids, speech_ids


def document(
    rng: np.random.Generator, modality: str, max_tokens: int, vocabulary: int | None
) -> np.ndarray:
    """Draw one document; `vocabulary` folds the ids into so many, for small models."""
    if modality == SPEECH:
        frames = max(1, (max_tokens - 30) // SLOTS)
        codes = rng.integers(0, CODEBOOK_SIZE, frames * SLOTS).astype(np.uint16)
        ids = speech_ids(rng.integers(0, 128_000, 5), codes)
    else:
        words = max(2, max_tokens - 20)
        user, answer = rng.integers(0, 128_000, words // 2), rng.integers(0, 128_000, words // 2)
        ids = conversation_ids([(user, answer)])
    return ids if vocabulary is None else (ids % vocabulary).astype(np.int32)


def packed_row(
    rng: np.random.Generator,
    name: str,
    row_tokens: int,
    num_documents: int,
    vocabulary: int | None,
    only: str | None = None,
) -> dict:
    documents, modalities = [], []
    for place in range(num_documents):
        modality = only or (TEXT, SPEECH)[(place + int(rng.integers(2))) % 2]
        share = int(row_tokens / num_documents * rng.uniform(0.6, 1.0))
        documents.append(document(rng, modality, share, vocabulary))
        modalities.append(modality)
    return {
        "input_ids": np.concatenate(documents),
        "document_lengths": [len(ids) for ids in documents],
        "document_sources": [f"{kind}-source" for kind in modalities],
        "document_ids": [f"{name}/{place}" for place in range(num_documents)],
        "document_modalities": modalities,
        "document_units": [f"{kind}-unit" for kind in modalities],
        "document_parts": [0] * num_documents,
    }


def write_shards(
    folder: Path,
    *,
    num_rows: int = 12,
    row_tokens: int = 128,
    num_documents: int = 3,
    vocabulary: int | None = None,
    num_shards: int = 2,
    batch_rows: int = 4,
    seed: int = 0,
    modality_runs: int | None = None,
) -> Path:
    """Write `num_rows` train rows over `num_shards` shards, and two validation rows.

    `modality_runs`: so many rows of text, then as many of speech, and so on; None mixes in rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    parts = [
        (f"train-{i:05d}.arrow", "train", len(part))
        for i, part in enumerate(np.array_split(np.arange(num_rows), num_shards))
    ]
    entries = []
    for name, split, rows in [*parts, ("validation-00000.arrow", "validation", 2)]:
        table = pa.Table.from_pylist(
            [
                packed_row(
                    rng,
                    f"{name}:{row}",
                    row_tokens,
                    num_documents,
                    vocabulary,
                    (TEXT, SPEECH)[row // modality_runs % 2] if modality_runs else None,
                )
                for row in range(rows)
            ],
            schema=ROW,
        )
        with ipc.new_file(str(folder / name), ROW) as writer:
            writer.write_table(table, max_chunksize=batch_rows)
        entries.append(
            {
                "path": name,
                "split": split,
                "rows": rows,
                "tokens": sum(len(ids) for ids in table["input_ids"]),
                "num_bytes": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
        )
    index = {"schema_version": SCHEMA_VERSION, "max_row_tokens": 2048, "shards": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return folder
