"""Tokens/s of the trainer's loader on one core, compared with other loaders of the same rows.

    python -m benchmarks.loader

Rows of 2,048 tokens are read in the shuffled order of a second epoch, as the trainer does, from a
warm page cache, in this process alone. koe is measured three times: `tokens` makes input_ids only,
which is all that the peers do; `batch` is what a micro-batch of the trainer takes (checked rows,
labels, positions, documents and sources); `response` is the same with loss_on: response. The peers
get the same row numbers, which are made outside the timed part. All take turns.

A peer that is not installed is named and left out. Install litdata and mosaicml-streaming into a
folder of their own, because the latter pins numpy<2.2 and transformers<5:

    pip install --no-deps --target build/peers litdata==0.2.76 mosaicml-streaming==0.13.0 \
        torchvision==0.26.0 lightning-utilities boto3==1.44.8 botocore==1.44.8 s3transfer==0.19.3 \
        jmespath tifffile obstore Brotli zstd python-snappy cramjam catalogue 'paramiko<4' six
    PYTHONPATH=build/peers python -m benchmarks.loader
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from copy import copy
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc

from benchmarks.results import write_result
from benchmarks.trainer_gpu import document
from koe.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT
from koe.vocabulary import NUM_EMBEDDINGS
from pipeline.run_dir.storage import BATCH_ROWS
from training.data.batches import collate
from training.data.loader import RowOrder
from training.data.shard_rows import ShardRows

ROW_TOKENS, SHARDS = 2048, 2
MICRO_BATCHES = (2, 16)  # rows
OURS = ("koe tokens", "koe batch", "koe response")
_DOCUMENT_TOKENS = (120, 700)  # a clip of 1.5 to 8 seconds, an exchange of a few sentences

# One epoch in micro-batches of so many rows: input_ids [rows, tokens].
Epoch = Callable[[int], Iterable[torch.Tensor]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=12 * BATCH_ROWS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loader"))
    try:
        write_shards(folder / "shards", options.rows)
        epochs = our_epochs(folder / "shards") | peer_epochs(folder)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        compare(epochs, options.repeats)
    finally:
        shutil.rmtree(folder)
    return 0


def compare(epochs: dict[str, Epoch], repeats: int) -> None:
    """Time every loader in turn, print the table and write the result."""
    require_same_rows(epochs)
    speeds = {name: {rows: [] for rows in MICRO_BATCHES} for name in epochs}
    for rows in MICRO_BATCHES * repeats:
        for name, epoch in epochs.items():
            speeds[name][rows].append(tokens_per_second(epoch, rows))
    medians = {
        name: {rows: median(of_rows) for rows, of_rows in of_loader.items()}
        for name, of_loader in speeds.items()
    }
    print(f"{'million tokens/s':36s}" + "".join(f"{rows:6d} rows" for rows in MICRO_BATCHES))
    for name, of_loader in medians.items():
        print(f"{name:36s}" + "".join(f"{speed / 1e6:11.1f}" for speed in of_loader.values()))
    rows, peers = MICRO_BATCHES[0], [name for name in epochs if name not in OURS]
    if not peers:
        return
    fastest = max(peers, key=lambda name: medians[name][rows])
    path = write_result(
        "loader",
        fastest,
        f"tokens/s of input_ids, micro-batches of {rows} rows, CPU time of one core",
        speeds[OURS[0]][rows],
        speeds[fastest][rows],
        medians=medians,
        row_tokens=ROW_TOKENS,
        versions={name: version(name) for name in {peer.split()[0] for peer in peers}},
    )
    print(f"wrote {path}")


def tokens_per_second(epoch: Epoch, rows: int) -> float:
    """Measure in CPU seconds of this process, so that other processes do not count."""
    batches = epoch(rows)
    began = time.process_time()
    tokens = sum(batch.numel() for batch in batches)
    return tokens / (time.process_time() - began)


def require_same_rows(epochs: dict[str, Epoch]) -> None:
    """Read all with every loader once: fills the page cache, and proves that the rows are ours."""
    sums = {
        name: sum(int(batch.sum(dtype=torch.int64)) for batch in epoch(MICRO_BATCHES[-1]))
        for name, epoch in epochs.items()
    }
    if len(set(sums.values())) != 1:
        raise RuntimeError(f"the loaders read different rows: {sums}")


def our_epochs(shards: Path) -> dict[str, Epoch]:
    rows = opened(shards)
    modality, sources = rows.modality, rows.sources

    def tokens(size: int) -> Iterable[torch.Tensor]:
        for part in second_epoch(modality, size):
            yield stacked([rows[number].input_ids for number in part])

    def batches(size: int, loss_on: str) -> Iterable[torch.Tensor]:
        for part in second_epoch(modality, size):
            read = [rows[number] for number in part]
            yield collate(read, NUM_EMBEDDINGS, sources, loss_on).input_ids

    batch, response = (partial(batches, loss_on=loss_on) for loss_on in ("all", "response"))
    return dict(zip(OURS, (tokens, batch, response), strict=True))


def stacked(rows: list[np.ndarray]) -> torch.Tensor:
    """Copy rows of one length into one tensor; np.stack takes twice as long."""
    return torch.from_numpy(np.concatenate(rows).reshape(len(rows), -1))


def second_epoch(modality: np.ndarray, size: int) -> Iterable[list[int]]:
    """Yield the row numbers of each micro-batch; an epoch's shuffle is drawn at its first step."""
    order = RowOrder(modality, size, seed=0)
    steps = len(modality) // size
    return (order.rows(step) for step in range(steps, 2 * steps))


def peer_epochs(folder: Path) -> dict[str, Epoch]:
    found: dict[str, Epoch] = {}
    for write_and_open in (huggingface, mosaic, litdata):
        try:
            found |= write_and_open(folder)
        except ImportError as error:
            print(f"{write_and_open.__name__} is left out: {error}")
    return found


def asked(rows: ShardRows, read: Callable[[list[int]], torch.Tensor]) -> Epoch:
    """Make an epoch of a peer that is asked for rows by number."""

    def epoch(size: int) -> Iterable[torch.Tensor]:
        parts = list(second_epoch(rows.modality, size))
        return (read(part) for part in parts)

    return epoch


def huggingface(folder: Path) -> dict[str, Epoch]:
    """`datasets`: an Arrow table of input_ids alone; asking for a list of numbers is its fastest way."""
    from datasets import Dataset, Features, List, Value, disable_progress_bars, load_from_disk

    disable_progress_bars()
    rows = opened(folder / "shards")
    features = Features({"input_ids": List(Value("int32"))})
    every_item = partial(items, folder / "shards")
    table = Dataset.from_generator(every_item, features=features, cache_dir=str(folder))
    table.save_to_disk(str(folder / "datasets"))
    stored = load_from_disk(str(folder / "datasets"))
    arrays, tensors = stored.with_format("numpy"), stored.with_format("torch")
    return {
        "datasets numpy": asked(rows, lambda part: torch.from_numpy(arrays[part]["input_ids"])),
        "datasets torch": asked(rows, lambda part: tensors[part]["input_ids"]),
    }


def mosaic(folder: Path) -> dict[str, Epoch]:
    """`mosaicml-streaming`: MDS without compression, read by number, which needs no threads."""
    from streaming import LocalDataset, MDSWriter, StreamingDataset

    rows, local = opened(folder / "shards"), str(folder / "mds")
    with MDSWriter(out=local, columns={"input_ids": f"ndarray:int32:{ROW_TOKENS}"}) as writer:
        for item in items(folder / "shards"):
            writer.write(item)

    def read(stored: Any, part: list[int]) -> torch.Tensor:
        return stacked([stored[number]["input_ids"] for number in part])

    streamed = StreamingDataset(local=local, batch_size=MICRO_BATCHES[0])
    return {
        "mosaicml-streaming LocalDataset": asked(rows, partial(read, LocalDataset(local))),
        "mosaicml-streaming StreamingDataset": asked(rows, partial(read, streamed)),
    }


def litdata(folder: Path) -> dict[str, Epoch]:
    """`litdata`: chunks of 64 MB, with its TokensLoader and as plain items; its own loader too."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    shards = folder / "shards"
    numbers = list(range(len(opened(shards))))
    found: dict[str, Epoch] = {}
    for kind in ("tokens", "items"):
        out, loader = str(folder / f"litdata_{kind}"), None
        size: dict[str, Any] = {"chunk_bytes": "64MB"}
        if kind == "tokens":
            loader = TokensLoader(block_size=ROW_TOKENS)
            size = {"chunk_size": 1 << 24, "item_loader": loader}
        read = partial(one_tensor, shards)
        optimize(read, numbers, out, num_workers=1, reorder_files=False, **size)
        stored = StreamingDataset(out, item_loader=loader)
        shuffled = StreamingDataset(out, item_loader=copy(loader), shuffle=True)
        found[f"litdata {kind}"] = asked(opened(shards), partial(gathered, stored))
        own = partial(StreamingDataLoader, dataset=shuffled, num_workers=0)
        found[f"litdata {kind}, own loader"] = lambda size, own=own: own(batch_size=size)
    return found


def gathered(stored: Any, part: list[int]) -> torch.Tensor:
    return torch.stack([stored[number] for number in part])


@lru_cache
def opened(shards: Path) -> ShardRows:
    return ShardRows(shards, "train")


def one_tensor(shards: Path, number: int) -> torch.Tensor:
    """Read a row in the process in which litdata writes."""
    return torch.from_numpy(np.array(opened(shards)[number].input_ids))


def items(shards: Path) -> Iterable[dict[str, np.ndarray]]:
    rows = opened(shards)
    return ({"input_ids": np.array(rows[number].input_ids)} for number in range(len(rows)))


def write_shards(folder: Path, num_rows: int) -> None:
    """Write rows that are full to the last token: clips of speech and exchanges in turn."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for shard in range(SHARDS):
        name = f"train-{shard:05d}.arrow"
        with ipc.new_file(str(folder / name), ROW) as writer:
            for first in range(0, num_rows // SHARDS, BATCH_ROWS):
                rows = min(BATCH_ROWS, num_rows // SHARDS - first)
                writer.write_batch(record_batch(rng, rows, f"{name}:{first}"))
        entries.append({"path": name, "split": "train", "rows": num_rows // SHARDS, "sha256": ""})
    index = {"schema_version": SCHEMA_VERSION, "max_row_tokens": ROW_TOKENS, "shards": entries}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def record_batch(rng: np.random.Generator, num_rows: int, name: str) -> pa.RecordBatch:
    tokens, lengths, kinds = [], [[] for _ in range(num_rows)], [[] for _ in range(num_rows)]
    for row in range(num_rows):
        left = ROW_TOKENS
        while left:
            kind = (TEXT, SPEECH)[len(tokens) % 2]
            ids = document(rng, kind, min(left, int(rng.integers(*_DOCUMENT_TOKENS))))
            ids = ids[:left] if left - len(ids) >= 20 else np.resize(ids, left)
            tokens.append(ids)
            lengths[row].append(len(ids))
            kinds[row].append(kind)
            left -= len(ids)
    offsets = np.arange(num_rows + 1, dtype=np.int32) * ROW_TOKENS
    ids = [[f"{name}/{row}/{place}" for place in range(len(k))] for row, k in enumerate(kinds)]
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(tokens))),
        "document_lengths": lengths,
        "document_sources": kinds,
        "document_ids": ids,
        "document_modalities": kinds,
        "document_units": kinds,
        "document_parts": [[0] * len(of_row) for of_row in lengths],
    }
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in ROW], schema=ROW)


if __name__ == "__main__":
    sys.exit(main())
