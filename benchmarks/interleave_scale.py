"""Cost of a token in the shard step, from few units to many: it must not grow with their number.

    python -m benchmarks.interleave_scale                    400 to 6,400 units, some 4 GB of disk
    python -m benchmarks.interleave_scale --units 100 400 --no-result

Units of made-up samples are stored; then their shards are made in the two passes of koe, and directly:
each shard opens every unit that it takes a sample from, as koe did before. Shards and groups are small, so
that their numbers at the most units are those of a large run. `ratio` is the CPU time of a token at the
least units over that at the most, the worse of cached files and of files that are not (dropped from the
cache before each pass); the same of the direct way is `ratio_direct`. Opens and bytes are
those of the shard step alone, with the order made before. Requests are counted by the S3 server of the
tests, for few units; for 15 M clips and 9 M instructions they are computed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from benchmarks.driver_memory import UNIT_CLIPS, UNIT_SAMPLES, Stub, lengths_of
from benchmarks.results import run_command, write_figures
from koe.dataflow import ORDER_UNIT, output_path
from koe.schema import EXCLUDED, SAMPLE, SPEECH, TEXT
from koe.stage import Outcome
from pipeline.execution.runner import DONE, UnitResult, Work, always
from pipeline.jobs.interleave import Shards
from pipeline.jobs.order import OrderWork, shard_names, shard_places
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.storage import Storage
from pipeline.run_dir.storage.local import LocalFiles
from stages.interleave import OrderStage, gather_rows
from stages.packing.exchange import GROUP_TOKENS
from stages.settings import InterleaveSettings
from tests.s3_server import s3_server

SAMPLES = 100  # of a unit: a tenth of a usual one
SHARD_MEGABYTES = 16.0
SMALL_GROUP = 1 << 22  # tokens
_OPEN_UNITS = 256  # that a worker of the direct way keeps open
_DOCUMENT_BYTES = 120  # of a document beside its tokens, in a shard or on its way
PAPER = {SPEECH: (15_000_000, UNIT_CLIPS), TEXT: (9_000_000, UNIT_SAMPLES)}


def sample_table(unit: int) -> pa.Table:
    """Make up a unit of speech (five of eight units) or text; lengths as in `driver_memory`."""
    modality = SPEECH if unit % 8 < 5 else TEXT
    lengths = lengths_of(modality, SAMPLES, unit)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.random.default_rng(unit).integers(0, 128_000, ends[-1], np.int32)
    columns = [
        pa.array([f"{modality}/{unit:06d}/{row:06d}" for row in range(SAMPLES)]),
        pa.array([modality] * SAMPLES),
        pa.array([modality] * SAMPLES),
        pa.array((lengths - 40) // 7 * (modality == SPEECH), pa.int32()),
        pa.ListArray.from_arrays(pa.array(ends), pa.array(tokens)),
    ]
    return pa.Table.from_arrays(columns, schema=SAMPLE)


class MadeUp:
    """A run whose samples and order are stored."""

    def __init__(self, root: str, num_units: int) -> None:
        self.storage = Storage(root)
        self.ledger = Ledger(self.storage)
        self.units = tuple(f"unit-{unit:06d}" for unit in range(num_units))
        none, self.sample_bytes = EXCLUDED.empty_table(), 0
        for number, name in enumerate(self.units):
            outcome = Outcome(sample_table(number), none, none)
            receipt = self.ledger.commit(
                Stub("tokenize", content={}), name, "", outcome, records_in=SAMPLES, seconds=0
            )
            self.sample_bytes += receipt.output.num_bytes
        settings = InterleaveSettings(seed=0, shard_megabytes=SHARD_MEGABYTES)
        self.stage = OrderStage(settings, {})
        sources = tuple(SPEECH if unit % 8 < 5 else TEXT for unit in range(num_units))
        order = OrderWork(self.stage, root, self.units, sources)
        assert order.open()(ORDER_UNIT, always).status == DONE
        self.order: Receipt | None = self.ledger.receipt("interleave", ORDER_UNIT)
        assert self.order is not None
        self.shards = shard_names(self.ledger, self.order)

    def two_passes(self) -> tuple[int, int]:
        """Make the shards as koe does; return their tokens and the number of groups."""
        tokens = groups = 0

        def run(work: Work, units: Sequence[str], _: Sequence[UnitResult]) -> bool:
            nonlocal tokens, groups
            results = list(map(work.open(), units))
            tokens += int(sum(result.measures.get("tokens", 0) for result in results))
            groups += len(units) if work.name == "exchange" else 0
            return all(result.status == DONE for result in results)

        shards = Shards(self.stage, self.ledger, self.units, run, True, SMALL_GROUP)
        assert shards.make() is not None
        return tokens, groups

    def directly(self) -> tuple[int, int]:
        """Make the shards one after the other, each from all units; return their tokens."""
        assert self.order is not None
        table = self.storage.read_table(self.order.output.path)
        tokens = 0

        @lru_cache(maxsize=_OPEN_UNITS)
        def samples(unit: int) -> pa.Table:
            return self.storage.read_table(output_path("tokenize", self.units[unit]))

        for shard, (begin, end) in shard_places(self.storage, self.order).items():
            rows = gather_rows(table.slice(begin, end - begin), samples, self.units)
            self.storage.write_table(output_path("interleave", shard), rows)
            tokens += sum(len(chunk.flatten()) for chunk in rows["input_ids"].chunks)
        return tokens, 0

    def drop_from_cache(self) -> None:
        """Ask the kernel to forget the files of this run."""
        for path in Path(self.storage.root).rglob("*.*"):
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Count the opens of files and the bytes that are read or mapped of them."""
    counts: Counter[str] = Counter()
    reads = {
        "read": LocalFiles.read,
        "source": LocalFiles.source,
        "read_range": LocalFiles.read_range,
    }

    def counting(name: str) -> Any:
        def read(self: LocalFiles, path: str, *more: Any, **options: Any) -> Any:
            size = more[1] - more[0] if name == "read_range" else self.size(path)
            counts.update(opens=1, bytes=size)
            return reads[name](self, path, *more, **options)

        return read

    with ExitStack() as stack:
        for name in reads:
            stack.enter_context(patch.object(LocalFiles, name, counting(name)))
        yield counts


def measure(run: MadeUp, direct: bool, cold: bool) -> dict[str, float]:
    """Make the shards once; CPU and wall microseconds are those of a thousand tokens."""
    if cold:
        run.drop_from_cache()
    make = run.directly if direct else run.two_passes
    with counted_reads() as counts:
        cpu, began = time.process_time(), time.perf_counter()
        tokens, groups = make()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    found = {"cpu_us": cpu / tokens * 1e9, "wall_us": wall / tokens * 1e9}
    return {name: round(value, 1) for name, value in found.items()} | {
        "groups": groups,
        "opens": counts["opens"],
        "bytes_over_samples": round(counts["bytes"] / run.sample_bytes, 2),
    }


def measure_size(num_units: int, repeat: int, direct: bool) -> dict[str, Any]:
    """Measure one number of units; the middle of the repetitions by CPU time."""
    with (
        tempfile.TemporaryDirectory(prefix="interleave_scale") as root,
        patch.object(os, "fsync", lambda file: None),
    ):
        run = MadeUp(root, num_units)
        found: dict[str, Any] = {"shards": len(run.shards), "sample_bytes": run.sample_bytes}
        for way in (False, True) if direct else (False,):
            for cold in (False, True):
                name = f"{'direct' if way else 'passes'}_{'cold' if cold else 'hot'}"
                times = [measure(run, way, cold) for _ in range(repeat)]
                found[name] = sorted(times, key=lambda each: each["cpu_us"])[len(times) // 2]
                print(f"{num_units:>6,} units  {name:<12} {found[name]}", flush=True)
        return found


def requests_on_s3(num_units: int) -> dict[str, int]:
    """Count the requests of the shard step for a few units."""
    with s3_server() as server, patch.dict(os.environ, server.environment):
        run = MadeUp(f"{server.make_bucket('scale')}/run", num_units)
        with patch(f"{__name__}.SMALL_GROUP", 1 << 20):
            server.clear()
            _, groups = run.two_passes()
        reads: Counter[str] = Counter()
        for method, path, query in server.log():
            kind = "samples" if "/tokenize/" in path else "exchange" if "exchange-" in path else ""
            if method == "GET" and "list-type" not in query and not path.endswith(".json"):
                reads[kind or "other"] += 1
        counts = server.counts()
    bound = groups * len(run.shards) + num_units
    print(f"S3: {num_units} units, {groups} groups, {len(run.shards)} shards: {dict(counts)}")
    return {
        "units": num_units, "groups": groups, "shards": len(run.shards), "bound": bound,
        "sample_reads": reads["samples"], "exchange_reads": reads["exchange"],
        "other_reads": reads["other"], "all": counts.total(),
    }  # fmt: skip


def on_paper() -> dict[str, float]:
    """Compute groups, bytes and requests of the largest run; its lengths as in `driver_memory`."""
    units = samples = tokens = 0
    for modality, (number, size) in PAPER.items():
        units += -(-number // size)
        samples += number
        tokens += number * float(lengths_of(modality, 1_000_000, 0).mean())
    sample_bytes = 4 * tokens + _DOCUMENT_BYTES * samples
    groups = -(-tokens // GROUP_TOKENS)
    shards = round(sample_bytes / (InterleaveSettings(seed=0).shard_megabytes * 1e6))
    order = 40 * samples
    read = order + 2 * order + 2 * sample_bytes  # the order, its placements, samples and exchange
    return {
        "units": units,
        "shards": shards,
        "groups": int(groups),
        "terabytes_read": round(read / 1e12, 3),
        "terabytes_written": round((2 * order + 2 * sample_bytes) / 1e12, 3),
        # a read of each sample table, of placements, pieces and slices; outputs and receipts
        "requests": int(units + groups * (shards + 1) + shards + 1 + 3 * (groups + shards + 1)),
        "requests_directly": units * shards,
        "terabytes_directly": round(shards * sample_bytes / 1e12, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[400, 1600, 6400])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--direct-units", type=int, default=6400, help="the most for the direct way"
    )
    parser.add_argument("--s3-units", type=int, default=48, help="0: no requests are counted")
    parser.add_argument("--no-result", action="store_true")
    options = parser.parse_args()
    sizes = {
        units: measure_size(units, options.repeat, units <= options.direct_units)
        for units in options.units
    }
    least, most = min(sizes), max(sizes)
    compared = max(units for units in sizes if "direct_hot" in sizes[units])

    def ratio(way: str, units: int) -> float:
        costs = (
            sizes[least][f"{way}_{state}"]["cpu_us"] / sizes[units][f"{way}_{state}"]["cpu_us"]
            for state in ("hot", "cold")
        )
        return round(min(costs), 4)

    figures = {
        "peer": f"each shard opens every unit, up to {compared} units",
        "ratio": ratio("passes", most),
        "ratio_direct": ratio("direct", compared),
        "unit": "CPU microseconds per thousand tokens, at the most units that both did",
        "ours": median(sizes[compared][f"passes_{state}"]["cpu_us"] for state in ("hot", "cold")),
        "theirs": median(sizes[compared][f"direct_{state}"]["cpu_us"] for state in ("hot", "cold")),
        "sizes": sizes,
        "paper": on_paper(),
        "s3": requests_on_s3(options.s3_units) if options.s3_units else None,
    }
    print(json.dumps(figures, indent=1))
    if not options.no_result:
        print(write_figures("interleave_scale", **figures))


if __name__ == "__main__":
    run_command(main)
