"""Packing, ordering and writing of shards, compared with best-fit packing sample by sample.

    python -m benchmarks.packing                 1 M and 10 M samples, 3 repetitions
    python -m benchmarks.packing --samples 100000 --no-result

Lengths are those of clips (5 s on average at 82 tokens per second) and instructions, 5 to 3; samples
longer than a row are left out. `pack` lays rows out on the histogram of lengths. The peer is best-fit
decreasing as trainers have it: samples sorted by length go one by one into the fullest row that has
room, found in a segment tree of the room left (as in trl's `data_utils`). Both give the same rows.
One core; the peer packs the smaller number only, in turn with koe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.driver_memory import (
    UNIT_CLIPS,
    lengths_of,
    order_work,
    peak_bytes,
    planned,
    samples,
)
from koe.schema import EXCLUDED, SPEECH, TEXT
from koe.stage import Outcome
from pipeline.execution.runner import DONE, UnitResult, Work, always
from pipeline.jobs.interleave import Shards
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from stages.packing.order import UnitSamples, plan_order
from stages.packing.pack import pack, row_sums
from stages.settings import InterleaveSettings

CAPACITY = 2048
SHARD_CLIPS = 100_000  # of the run whose shards are written: 60 M tokens, 250 MB


def mixed_lengths(number: int) -> np.ndarray:
    speech = lengths_of(SPEECH, number * 5 // 8, 0)
    lengths = np.concatenate([speech, lengths_of(TEXT, number - len(speech), 1)])
    lengths = lengths[lengths <= CAPACITY]
    return lengths[np.random.default_rng(2).permutation(len(lengths))]


class SegmentTree:
    """The room that open rows have left, to find the smallest that is large enough."""

    def __init__(self, largest: int) -> None:
        self.size = 1 << (largest - 1).bit_length()
        self.tree = [0] * (2 * self.size)

    def put(self, room: int, value: int) -> None:
        tree, place = self.tree, self.size + room - 1
        tree[place] = value
        while place > 1:
            place >>= 1
            left, right = tree[2 * place], tree[2 * place + 1]
            tree[place] = left if left >= right else right

    def search(self, length: int) -> int:
        tree, place = self.tree, 1
        while place < self.size:
            place = 2 * place if tree[2 * place] >= length else 2 * place + 1
        return tree[place]


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack sample by sample, longest first; return rows of indexes."""
    tree = SegmentTree(capacity)
    tree.put(capacity, capacity)
    by_room: dict[int, deque[list[int]]] = defaultdict(deque)
    rows: list[list[int]] = []
    order = np.argsort(-lengths, kind="stable").tolist()
    for index, length in zip(order, lengths[order].tolist(), strict=True):
        room = tree.search(length)
        if room < capacity:
            row = by_room[room].popleft()
            if not by_room[room]:
                tree.put(room, 0)
        else:
            row = []
            rows.append(row)
        row.append(index)
        room -= length
        if room:
            by_room[room].append(row)
            tree.put(room, room)
    return rows


def pack_speed(lengths: np.ndarray) -> float:
    """Return tokens per second."""
    begin = time.perf_counter()
    pack(lengths, CAPACITY)
    return int(lengths.sum()) / (time.perf_counter() - begin)


def peer_speed(lengths: np.ndarray) -> float:
    begin = time.perf_counter()
    rows = best_fit(lengths, CAPACITY)
    seconds = time.perf_counter() - begin
    sums = sorted(int(lengths[row].sum()) for row in rows)
    assert sums == sorted(row_sums(pack(lengths, CAPACITY), lengths).tolist())
    return int(lengths.sum()) / seconds


def order_once(number: int) -> dict[str, float]:
    """Make the order of `number` samples whose ids are already hashed; nothing is written."""
    counts = {SPEECH: number * 5 // 8, TEXT: number - number * 5 // 8}
    units, tokens = [], 0
    for modality, total in counts.items():
        for first in range(0, total, UNIT_CLIPS):
            size = min(UNIT_CLIPS, total - first)
            lengths = lengths_of(modality, size, first)
            frames = np.maximum(lengths - 40, 0) // 7 * (modality == SPEECH)
            ids = np.arange(len(units) * UNIT_CLIPS, len(units) * UNIT_CLIPS + size)
            text = np.full(size, modality == TEXT)
            name = f"{modality}-{first}"
            units.append(UnitSamples(len(units), name, _unread, ids, text, lengths, frames))
            tokens += int(lengths.sum())
    before, begin = peak_bytes(), time.perf_counter()
    order = plan_order(iter(units), InterleaveSettings(seed=0))
    pieces = sum(table.num_rows for table in order.tables())
    seconds = time.perf_counter() - begin
    found = {"seconds": round(seconds, 2), "tokens_per_second": tokens / seconds, "pieces": pieces}
    return found | {"peak_megabytes": peak_bytes() / 1e6, "before_megabytes": before / 1e6}


def _unread():
    raise AssertionError("no sample of this benchmark shares its id, or is left out")


def order_apart(number: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.packing", "--order", str(number)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def write_shards(folder: Path, repeat: int) -> list[float]:
    """Store tokenized samples, and return the tokens per second of writing their shards."""
    ledger, none = Ledger(Storage(str(folder))), EXCLUDED.empty_table()
    plan = planned(folder, SHARD_CLIPS)
    for number, unit in enumerate(plan.units):
        table = samples(unit, number)
        outcome = Outcome(table, none, none)
        ledger.commit(_Tokenize(), unit.unit, "", outcome, records_in=table.num_rows, seconds=0)
    order = order_work(folder, plan)
    assert order.open()("order", always).status == DONE
    tokens = 0

    def run(work: Work, units: Sequence[str], _: Sequence[UnitResult]) -> bool:
        nonlocal tokens
        results = list(map(work.open(), units))
        tokens = int(
            sum(result.measures.get("tokens", 0) for result in results)
        )  # of the last pass
        return all(result.status == DONE for result in results)

    speeds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        assert Shards(order.stage, ledger, order.units, run, force=True).make() is not None
        speeds.append(tokens / (time.perf_counter() - begin))
    return speeds


class _Tokenize:
    name, version = "tokenize", 1
    content: dict[str, str] = {}  # noqa: RUF012


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-result", action="store_true")
    parser.add_argument("--order", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.order:
        print(json.dumps(order_once(options.order)))
        return
    small = mixed_lengths(options.samples[0])
    ours, theirs = [], []
    for _ in range(options.repeat):
        ours.append(pack_speed(small))
        theirs.append(peer_speed(small))
        print(f"pack {ours[-1] / 1e6:,.0f} M tokens/s, sample by sample {theirs[-1] / 1e6:,.1f} M")
    sizes = {}
    for number in options.samples:
        lengths = mixed_lengths(number)
        speeds = [pack_speed(lengths) for _ in range(options.repeat)]
        rows = pack(lengths, CAPACITY)
        fill = int(lengths.sum()) / (CAPACITY * (len(rows.offsets) - 1))
        sizes[number] = {"pack": median(speeds), "fill": round(fill, 5), **order_apart(number)}
        print(f"{number:>10,} samples: {sizes[number]}")
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), options.repeat)
    print(
        f"shards written: {median(shards) / 1e6:.1f} M tokens/s, including reading, hashes and fsync"
    )
    if not options.no_result:
        from benchmarks.results import write_result

        peer = "best-fit decreasing with a segment tree, sample by sample"
        more = {"sizes": sizes, "shard_tokens_per_second": shards}
        print(write_result("packing", peer, "tokens/s", ours, theirs, **more))


if __name__ == "__main__":
    main()
