"""Samples per second and peak memory of `koe verify` on a large run.

    python -m benchmarks.verifying --clips 1000000 --frames 8

The run of `benchmarks.run_statistics`, but with tokens that follow the layout and hold the codes of
encode, and with the order, shards, index and card that koe makes of them. Nothing is synced to disk
while it is made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from benchmarks.driver_memory import Stub, peak_bytes, planned
from benchmarks.run_statistics import THRESHOLD, lists, speech_tables
from koe.dataflow import ORDER_UNIT
from koe.schema import EXCLUDED, SAMPLE, SPEECH, Unit
from koe.stage import Outcome
from koe.vocabulary import (
    CODEBOOK_SIZE,
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_SPEECH,
    END_OF_TEXT,
    FIRST_AUDIO,
    NUM_BASE_TEXT,
    SLOTS,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_SPEECH,
    START_OF_TEXT,
)
from pipeline.execution.runner import DONE, UnitResult, Work, always
from pipeline.jobs.interleave import Shards
from pipeline.jobs.order import OrderWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import run_stats
from pipeline.stats.dataset_card import write_card
from pipeline.verify import verify_run
from stages.interleave import OrderStage
from stages.settings import InterleaveSettings

_CODEC = {"label": "made up", "trained": True, "sha256": "a" * 64, "device": "cpu"}
_TOKENIZER = {"name": "made up", "sha256": "b" * 64}
_CONTENT: dict[str, dict[str, Any]] = {
    "encode": {"threshold_ovrl": THRESHOLD, "codec": _CODEC},
    "tokenize": {"tokenizer_sha256": _TOKENIZER["sha256"]},
}
_SLOT_OFFSETS = FIRST_AUDIO + CODEBOOK_SIZE * np.arange(SLOTS)
_PROMPT_TOKENS, _USER_TOKENS, _ANSWER_TOKENS = 30, 60, 180


def speech_samples(unit: Unit, encoded: pa.Table, frames: int, rng: np.random.Generator):
    n = encoded.num_rows
    codes = encoded["codes"].combine_chunks().flatten().to_numpy().reshape(n, frames, SLOTS)
    text = rng.integers(0, NUM_BASE_TEXT, (n, _PROMPT_TOKENS))
    head, middle = [START_OF_HUMAN, START_OF_TEXT], [END_OF_TEXT, END_OF_HUMAN, START_OF_AI]
    audio = (codes.astype(np.int64) + _SLOT_OFFSETS).reshape(n, -1)
    parts = [head, text, [*middle, START_OF_SPEECH], audio, [END_OF_SPEECH, END_OF_AI]]
    return _samples(unit, encoded["id"], frames, parts)


def text_samples(unit: Unit, rng: np.random.Generator) -> pa.Table:
    n = unit.records
    user, answer = (
        rng.integers(0, NUM_BASE_TEXT, (n, size)) for size in (_USER_TOKENS, _ANSWER_TOKENS)
    )
    middle = [END_OF_TEXT, END_OF_HUMAN, START_OF_AI]
    parts = [[START_OF_HUMAN, START_OF_TEXT], user, middle, answer, [END_OF_TEXT, END_OF_AI]]
    return _samples(unit, [f"{unit.source}/{unit.unit}/{k:06d}" for k in range(n)], 0, parts)


def _samples(unit: Unit, ids: Any, frames: int, parts: list[Any]) -> pa.Table:
    """Join columns of tokens, [n, width] or equal in all rows, into a SAMPLE table."""
    n = len(ids)
    wide = [np.broadcast_to(np.asarray(part), (n, np.shape(part)[-1])) for part in parts]
    tokens = np.concatenate(wide, axis=1).astype(np.int32)
    columns = {
        "id": ids,
        "source": [unit.source] * n,
        "modality": [unit.modality] * n,
        "frames": np.full(n, frames, np.int32),
        "input_ids": lists(tokens.ravel(), tokens.shape[1], n),
    }
    return pa.table(columns, schema=SAMPLE)


def write_run(root: Path, num_clips: int, frames: int) -> None:
    """Commit every unit of every stage, then order, shards, index and card."""
    storage = Storage(str(root))
    ledger, none = Ledger(storage), EXCLUDED.empty_table()
    plan = planned(root, num_clips)
    for number, unit in enumerate(plan.units):
        rng = np.random.default_rng([number, 1])
        tables = {}
        if unit.modality == SPEECH:
            tables = speech_tables(unit, number, frames)
            tables["tokenize"] = speech_samples(unit, tables["encode"][0], frames, rng), none
        else:
            tables["tokenize"] = text_samples(unit, rng), none
        before = "0" * 64
        for stage, (kept, rejected) in tables.items():
            before = ledger.commit(
                Stub(stage, content=_CONTENT.get(stage, {})),
                unit.unit,
                before,
                Outcome(kept, rejected, none),
                records_in=kept.num_rows + rejected.num_rows,
                seconds=1.0,
            ).output.sha256
    write_shards(plan, ledger)


def done_here(work: Work, units: Sequence[str], before: Sequence[UnitResult]) -> bool:
    """Do work in this process; fails where a unit was done before."""
    run = work.open()
    return not before and all(run(unit, always).status == DONE for unit in units)


def write_shards(plan: Plan, ledger: Ledger) -> None:
    storage = ledger.storage
    stage = OrderStage(
        InterleaveSettings(seed=0, shard_megabytes=256), {"codec": _CODEC, "tokenizer": _TOKENIZER}
    )
    units = tuple(unit.unit for unit in plan.units)
    order = OrderWork(stage, storage.root, units, tuple(unit.source for unit in plan.units))
    assert order.open()(ORDER_UNIT, always).status == DONE
    assert Shards(stage, ledger, units, done_here).make() is not None
    write_card(ledger, run_stats(plan, ledger))


def verify(root: Path) -> None:
    """Verify the run in this process, and print the figures as JSON."""
    storage = Storage(str(root))
    plan = load_plan(storage)
    assert plan is not None
    at_start, cpu, began = peak_bytes(), time.process_time(), time.perf_counter()
    proofs = verify_run(plan, Ledger(storage))
    seconds = time.perf_counter() - began
    samples = next(proof.count for proof in proofs if proof.what.startswith("every sample"))
    found = {
        "proofs": len(proofs),
        "samples": samples,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "samples_per_second": round(samples / seconds),
        "megabytes": round(peak_bytes() / 1e6),
        "megabytes_at_start": round(at_start / 1e6),
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--frames", type=int, default=29, help="per clip")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)  # in the process that verifies
    options = parser.parse_args()
    if options.root:
        verify(options.root)
        return
    with tempfile.TemporaryDirectory(prefix="verifying") as folder:
        with patch.object(os, "fsync", lambda file: None):
            write_run(Path(folder), options.clips, options.frames)
        command = [sys.executable, "-m", "benchmarks.verifying", "--root", folder]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
