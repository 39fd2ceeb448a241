"""Memory of the processes that see an entire run, by its size: plan, engine, statistics, order.

    python -m benchmarks.driver_memory                     10 k, 100 k and 1 M clips
    python -m benchmarks.driver_memory --clips 10000 100000
    python -m benchmarks.driver_memory --full              the order of 15 M clips and 9 M samples

Each figure is the peak resident memory (VmHWM, mapped files included) of a separate process:

    plan      units of every file planned, saved and loaded again
    run       the process that runs Ray: its workers score every clip with its source's score
    receipts  status, quarantine check and `koe stats` on the receipts of every stage
    order     the worker that reads all samples and writes the order (no part of the driver)

Clips are metadata, in units of 1,000; there are 0.6 instruction samples per clip, in units of 5,000.
The slope is that between the smallest and the largest run, per clip with its 0.6 samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from koe.schema import CLIP, ENCODED, EXCLUDED, SAMPLE, SCORED, SPEECH, TEXT, Unit
from koe.stage import Outcome
from pipeline.execution.runner import FAILED, always
from pipeline.execution.stage_work import StageWork
from pipeline.jobs.order import OrderWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan, make_plan
from pipeline.run_dir.storage import Storage
from stages.interleave import OrderStage

UNIT_CLIPS, UNIT_SAMPLES, SAMPLES_PER_CLIP = 1000, 5000, 0.6
FULL_CLIPS = 15_000_000
PARTS = ("plan", "run", "receipts", "order")


@dataclasses.dataclass(frozen=True)
class Clips:
    """A source of planned units without files."""

    name: str
    modality: str
    num_units: int
    unit_records: int

    def units(self, known: Any = None) -> Iterator[Unit]:
        for k in range(self.num_units):
            path = f"/data/{self.name}/{self.name}-B{k:06d}.tar"
            name = f"{self.name}-{k:012x}-00000"
            stamp = "120000000:1700000000000000000"
            yield Unit(name, self.name, self.modality, path, stamp, 0, 10**8, self.unit_records)

    def remarks(self, units: Sequence[Unit]) -> dict[str, int]:
        return {}


@dataclasses.dataclass(frozen=True)
class Stub:
    """A stage of which only the receipts are wanted."""

    name: str
    version: int = 1
    content: Any = dataclasses.field(default_factory=lambda: {"settings": ["as long"] * 8})


def sources(num_clips: int) -> list[Clips]:
    num_samples = round(num_clips * SAMPLES_PER_CLIP)
    return [
        Clips("clips", SPEECH, num_clips // UNIT_CLIPS, UNIT_CLIPS),
        Clips("text", TEXT, max(1, num_samples // UNIT_SAMPLES), UNIT_SAMPLES),
    ]


def planned(root: Path, num_clips: int) -> Plan:
    return make_plan([(source, {}) for source in sources(num_clips)], Storage(str(root)))


def lengths_of(modality: str, number: int, seed: int) -> np.ndarray:
    """Draw token counts: clips of 5 s on average at 82 tokens per second, and instructions."""
    rng = np.random.default_rng(seed)
    if modality == TEXT:
        return np.clip(rng.lognormal(np.log(250), 0.9, number), 30, 4000).astype(np.int32)
    frames = np.clip(rng.lognormal(np.log(5) - 0.18, 0.6, number) * 11.72, 4, 700).astype(np.int32)
    return 40 + 7 * frames


def samples(unit: Unit, number: int) -> pa.Table:
    """Make the SAMPLE table of a unit; every token is zero."""
    lengths = lengths_of(unit.modality, unit.records, number)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    frames = (lengths - 40) // 7 if unit.modality == SPEECH else np.zeros(len(lengths))
    columns = [
        pa.array(f"{unit.unit}/{k:06d}" for k in range(unit.records)),
        pa.array([unit.source] * unit.records),
        pa.array([unit.modality] * unit.records),
        pa.array(frames, pa.int32()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1], np.int32))),
    ]
    return pa.Table.from_arrays(columns, schema=SAMPLE)


def clips(unit: Unit, schema: pa.Schema) -> pa.Table:
    """Make the clips of a unit as a stage would leave them, with all fields filled."""
    rows: dict[str, Any] = {}
    for field in schema:
        if pa.types.is_string(field.type):
            rows[field.name] = [f"{unit.unit}/{field.name}/{k:06d}" for k in range(unit.records)]
        elif pa.types.is_list(field.type):
            rows[field.name] = [[]] * unit.records
        else:
            rows[field.name] = np.linspace(1, 5, unit.records).astype(field.type.to_pandas_dtype())
    rows |= {"source": [unit.source] * unit.records}
    rows |= {"scorer": ["source"] * unit.records} if "scorer" in rows else {}
    return pa.table(rows, schema=schema)


def write_stages(root: Path, num_clips: int) -> None:
    """Commit what ingest, score, encode and tokenize would leave; score under `score_before` too."""
    ledger, none = Ledger(Storage(str(root))), EXCLUDED.empty_table()
    plan = planned(root, num_clips)
    for number, unit in enumerate(plan.units):
        tables: dict[str, pa.Table] = {}
        if unit.modality == SPEECH:
            tables = {"ingest": clips(unit, CLIP)}
            tables |= {"score": clips(unit, SCORED), "encode": clips(unit, ENCODED)}
        tables["tokenize"] = samples(unit, number)
        before = "0" * 64
        for stage, table in tables.items():
            receipt = ledger.commit(
                Stub(stage),
                unit.unit,
                before,
                Outcome(table, none, none),
                records_in=table.num_rows,
                seconds=1.0,
            )
            before = receipt.output.sha256


def part_plan(root: Path, num_clips: int) -> None:
    planned(root, num_clips)
    load_plan(Storage(str(root)))


def part_receipts(root: Path, num_clips: int) -> None:
    from pipeline.execution.status import StatusReader
    from pipeline.jobs.run import _check_quarantine
    from pipeline.stats import count_units, shown_stats

    plan, ledger = planned(root, num_clips), Ledger(Storage(str(root)))
    units = count_units(plan, ledger)
    assert shown_stats(units, ledger).clips.records_in == num_clips
    StatusReader(ledger).read()
    _check_quarantine(plan, units, 0.05)


def part_run(root: Path, num_clips: int) -> None:
    from rich.console import Console

    from pipeline.execution.on_ray import engine_session, run_ray
    from pipeline.execution.progress import RunProgress
    from stages.score import ScoreStage
    from stages.settings import ScoreConfig

    plan = planned(root, num_clips)
    units = {unit.unit: unit for unit in plan.units_of(SPEECH)}
    stage = ScoreStage(ScoreConfig(scorer="source"))
    work = StageWork(stage, "ingest", str(root), units, force=True)
    with (
        engine_session(None, None, [{stage.name: stage.resources}]),
        RunProgress(Console(file=sys.stderr, quiet=True)) as progress,
    ):
        progress.expect([work], len(units))
        assert run_ray([work], list(units), progress.take)
    assert not progress.failures


def order_work(root: Path, plan: Plan) -> OrderWork:
    from stages.settings import InterleaveSettings

    names, owners = zip(*((unit.unit, unit.source) for unit in plan.units), strict=True)
    return OrderWork(
        OrderStage(InterleaveSettings(seed=0), {}), str(root), names, owners, force=True
    )


def part_order(root: Path, num_clips: int) -> None:
    work = order_work(root, planned(root, num_clips))
    result = work.open()("order", always)
    assert result.status != FAILED, result.error


def full_order(root: Path) -> None:
    """Make and write the order of the full run from samples that are never stored."""
    from koe.schema import ORDER
    from stages.packing.order import plan_order, unit_samples
    from stages.settings import InterleaveSettings

    units = [unit for source in sources(FULL_CLIPS) for unit in source.units()]
    begin = time.perf_counter()
    described = (
        unit_samples(k, unit.unit, partial(samples, unit, k)) for k, unit in enumerate(units)
    )
    order = plan_order(described, InterleaveSettings(seed=0))
    middle = time.perf_counter()
    written = Storage(str(root)).write_tables("order.arrow", ORDER, order.tables())
    end = time.perf_counter()
    peak = peak_bytes()
    print(
        f"{order.num_samples:,} samples: order in {middle - begin:.0f} s (most of it making them), "
        f"written in {end - middle:.0f} s, {written.num_bytes / 1e9:.2f} GB; "
        f"peak {peak / 1e6:.0f} MB, {peak / order.num_samples:.1f} bytes per sample"
    )


def peak_bytes() -> int:
    """Return VmHWM: unlike ru_maxrss, it starts again with each program."""
    return bytes_of("VmHWM")


def bytes_of(key: str) -> int:
    """Return what the kernel says of this process's memory under a key of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def measure(part: str, root: Path, num_clips: int) -> tuple[float, float]:
    """Run a part in a process of its own; return its peak in MB and its seconds."""
    command = [sys.executable, "-m", "benchmarks.driver_memory", "--part", part]
    command += ["--root", str(root), "--clips", str(num_clips)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    return found["bytes"] / 1e6, found["seconds"]


def compare(sizes: list[int]) -> None:
    """Print the peak of each part by size, and what the slope predicts for 15 M clips."""
    peaks: dict[str, list[float]] = {part: [] for part in PARTS}
    for num_clips in sizes:
        with tempfile.TemporaryDirectory() as folder:
            with patch.object(os, "fsync", lambda file: None):
                write_stages(Path(folder), num_clips)
            for part in PARTS:
                megabytes, seconds = measure(part, Path(folder), num_clips)
                peaks[part].append(megabytes)
                print(f"{num_clips:>9,} clips  {part:<9}{megabytes:7.0f} MB {seconds:7.1f} s")
    for part, found in peaks.items():
        slope = (found[-1] - found[0]) / max(sizes[-1] - sizes[0], 1)
        full = found[-1] + slope * (FULL_CLIPS - sizes[-1])
        print(
            f"{part:<9}{slope * 1e6:6.1f} bytes per clip: {full:6.0f} MB at 15 M clips + 9 M samples"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.full:
        with tempfile.TemporaryDirectory() as folder:
            full_order(Path(folder))
    elif options.part:
        run: dict[str, Callable[[Path, int], None]] = {
            "plan": part_plan,
            "run": part_run,
            "receipts": part_receipts,
            "order": part_order,
        }
        begin = time.perf_counter()
        run[options.part](options.root, options.clips[0])
        print(json.dumps({"bytes": peak_bytes(), "seconds": time.perf_counter() - begin}))
    else:
        compare(options.clips)


if __name__ == "__main__":
    main()
