"""Seconds and memory that `koe stats`, the report's survey and `koe status` need on a large run.

    python -m benchmarks.run_statistics --clips 15000000 --frames 8      some 20 GB of disk
    python -m benchmarks.run_statistics --clips 1500000                  codes of a usual length

The run is made of tables as the stages would leave them, in units of 1,000 clips, with 0.6
instruction samples per clip; a fifth of the clips lies below the threshold. Scores, lengths, codes
and ids differ from clip to clip. Its sizes are realistic except for the codes of a clip (`--frames`)
and the tokens of an instruction sample (20), neither of which decides the memory. `--root` keeps the
run for another measurement. Every figure is that of a separate process: CPU seconds, seconds, peak
resident memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from benchmarks.driver_memory import Stub, peak_bytes, planned
from koe.schema import CLIP, ENCODED, EXCLUDED, REJECTED, SAMPLE, SCORED, SPEECH, TEXT, Unit
from koe.stage import Outcome
from koe.vocabulary import CODEBOOK_SIZE
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.reading import unit_receipts
from pipeline.run_dir.storage import Storage

THRESHOLD = 2.5
SAMPLE_TOKENS = 20
PARTS = ("status", "quick", "full", "survey")
_TEXT = "この文はおよそ三十文字の長さがある読み上げ用の例文です、番号は"


def clip_columns(unit: Unit, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the columns of CLIP and the scores of a unit."""
    n, places = unit.records, range(unit.records)
    ovrl = np.clip(rng.normal(2.9, 0.45, n), 1, 4.2)
    return {
        "id": [f"{unit.source}/{unit.unit}/{k:06d}" for k in places],
        "source": [unit.source] * n,
        "text": [f"{_TEXT}{number}" for number in rng.integers(0, 10**9, n)],
        "speaker": [None] * n,
        "audio_kind": ["tar"] * n,
        "audio_path": [unit.path] * n,
        "audio_member": [f"{k:06d}.flac" for k in places],
        "audio_offset": np.arange(n) * 100_000,
        "audio_bytes": np.full(n, 99_000),
        "start_seconds": np.zeros(n),
        "seconds": rng.lognormal(1.4, 0.6, n),
        "audio_hz": np.full(n, 24_000, np.int32),
        "channels": np.ones(n, np.int32),
        "channel": [None] * n,
        "source_ovrl": [None] * n,
        "sig": ovrl + rng.normal(0.3, 0.1, n),
        "bak": ovrl + rng.normal(0.8, 0.2, n),
        "ovrl": ovrl,
        "p808": [None] * n,
        "windows": np.ones(n, np.int32),
        "ovrl_error": np.zeros(n),
        "scorer": ["dnsmos"] * n,
    }


def lists(values: np.ndarray, length: int, number: int) -> pa.ListArray:
    offsets = np.arange(number + 1, dtype=np.int32) * length
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def speech_tables(unit: Unit, number: int, frames: int) -> dict[str, tuple[pa.Table, pa.Table]]:
    """Make what every stage keeps of a unit, and what encode rejects."""
    rng = np.random.default_rng(number)
    columns = clip_columns(unit, rng)
    n = unit.records
    scored = pa.table({**columns, "codes": pa.nulls(n, pa.list_(pa.uint16()))}, schema=SCORED)
    keep = columns["ovrl"] > THRESHOLD
    kept = scored.filter(pa.array(keep))
    codes = rng.integers(0, 4096, kept.num_rows * frames * 7).astype(np.uint16)
    encoded = pa.table(
        {
            **{name: kept[name] for name in SCORED.names if name != "codes"},
            "frames": np.full(kept.num_rows, frames, np.int32),
            "codes": lists(codes, 7 * frames, kept.num_rows),
        },
        schema=ENCODED,
    )
    below = [str(id) for id, good in zip(columns["id"], keep, strict=True) if not good]
    rejected = pa.table(
        {
            "id": below,
            "source": [unit.source] * len(below),
            "stage": ["encode"] * len(below),
            "outcome": [REJECTED] * len(below),
            "reason": ["below_threshold"] * len(below),
            "detail": ["ovrl 2.1 <= 2.5"] * len(below),
            "location": [f"{unit.path}:x.flac:0"] * len(below),
        },
        schema=EXCLUDED,
    )
    none = EXCLUDED.empty_table()
    return {
        "ingest": (scored.select(CLIP.names), none),
        "score": (scored, none),
        "encode": (encoded, rejected),
        "tokenize": (sample_table(encoded["id"], unit, frames, 40 + 7 * frames), none),
    }


def sample_table(ids: Any, unit: Unit, frames: int, tokens: int) -> pa.Table:
    n = len(ids)
    return pa.table(
        {
            "id": ids,
            "source": [unit.source] * n,
            "modality": [unit.modality] * n,
            "frames": np.full(n, frames, np.int32),
            "input_ids": lists(np.zeros(n * tokens, np.int32), tokens, n),
        },
        schema=SAMPLE,
    )


def write_run(root: Path, num_clips: int, frames: int) -> None:
    """Commit every unit of every stage."""
    ledger, none = Ledger(Storage(str(root))), EXCLUDED.empty_table()
    for number, unit in enumerate(planned(root, num_clips).units):
        if unit.modality == SPEECH:
            tables = speech_tables(unit, number, frames)
        else:
            ids = [f"{unit.source}/{unit.unit}/{k:06d}" for k in range(unit.records)]
            tables = {"tokenize": (sample_table(ids, unit, 0, SAMPLE_TOKENS), none)}
        before = "0" * 64
        for stage, (kept, rejected) in tables.items():
            receipt = ledger.commit(
                Stub(stage, content={"threshold_ovrl": THRESHOLD}),
                unit.unit,
                before,
                Outcome(kept, rejected, none),
                records_in=kept.num_rows + rejected.num_rows,
                seconds=1.0,
            )
            before = receipt.output.sha256


def part_status(plan: Plan, ledger: Ledger) -> None:
    from pipeline.execution.status import StatusReader

    StatusReader(ledger).read()


def part_quick(plan: Plan, ledger: Ledger) -> None:
    from pipeline.stats import run_stats

    run_stats(plan, ledger)


def part_full(plan: Plan, ledger: Ledger) -> None:
    from pipeline.stats import full_stats

    stats = full_stats(plan, ledger)
    assert all(source.adds_up for source in stats.sources.values())
    assert stats.distributions["all"]["seconds"].count == stats.clips.records_in
    encoded = (receipts.get("encode") for _, receipts in unit_receipts(plan, ledger))
    frames = sum(receipt.measures["frames"] for receipt in encoded if receipt is not None)
    unused = math.exp(-frames / CODEBOOK_SIZE)  # the share of a codebook that random codes leave
    for slot in stats.codebooks:
        assert abs(1 - slot.share - unused) < 5 * math.sqrt((unused + 1e-3) / CODEBOOK_SIZE)


def part_survey(plan: Plan, ledger: Ledger) -> None:
    from pipeline.report.survey import survey

    assert survey(plan, ledger, THRESHOLD, 6, 2000).left_out.counts.total() > 0


def run_part(part: str, root: Path) -> None:
    """Measure one part in this process, and print the figures as JSON."""
    run: dict[str, Callable[[Plan, Ledger], None]] = {
        "status": part_status,
        "quick": part_quick,
        "full": part_full,
        "survey": part_survey,
    }
    plan, ledger = load_plan(Storage(str(root))), Ledger(Storage(str(root)))
    assert plan is not None
    cpu, begin = time.process_time(), time.perf_counter()
    run[part](plan, ledger)
    found = {
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.perf_counter() - begin, 1),
        "megabytes": round(peak_bytes() / 1e6),
    }
    print(json.dumps(found))


def measure(root: Path) -> None:
    plan = load_plan(Storage(str(root)))
    assert plan is not None
    of = {
        modality: sum(unit.records for unit in plan.units if unit.modality == modality)
        for modality in (SPEECH, TEXT)
    }
    print(f"{len(plan.units):,} units, {of[SPEECH]:,} clips, {of[TEXT]:,} samples")
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.run_statistics", "--part", part]
        run = subprocess.run(
            [*command, "--root", str(root)], stdout=subprocess.PIPE, text=True, check=True
        )
        print(f"{part:<8}{run.stdout.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1_500_000)
    parser.add_argument("--frames", type=int, default=58, help="per clip; 58 are 5 s")
    parser.add_argument(
        "--root", type=Path, help="a folder for the run, which is made there if it is empty"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or Path(folder)
        if load_plan(Storage(str(root))) is None:
            with patch.object(os, "fsync", lambda file: None):
                write_run(root, options.clips, options.frames)
        measure(root)


if __name__ == "__main__":
    main()
