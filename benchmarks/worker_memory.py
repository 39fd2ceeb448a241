"""Peak memory of one worker of each stage, which `memory_gigabytes_per_worker` declares to Ray.

    python -m benchmarks.worker_memory
    python -m benchmarks.worker_memory --clips 1000 --samples 5000     units of the default size

The clips are the demo's recordings, and among them one of every length from 10 to 60 s (the default
`ingest.max_seconds`), as stereo FLAC of 48 kHz: the longest clip decides the memory of score and encode. Each
figure is that of an actor of Ray that takes the units through its stage, with Ray's own:

    peak      VmHWM, the most resident memory
    own       without RssFile at the end: the mapped libraries, which all workers of a machine share
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console

from benchmarks.clips import PACKAGED, real_clips
from benchmarks.driver_memory import bytes_of
from benchmarks.results import run_command, write_figures
from koe.schema import SPEECH, TEXT
from koe.stage import Resources
from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.execution.runner import DONE, Work, always
from pipeline.execution.selection import select_stages
from pipeline.execution.stage_work import StageWork
from pipeline.jobs.assembly import Assembly
from pipeline.jobs.chains import build_chains, chains_of_work
from pipeline.jobs.run import plan_run
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage

LONG_SECONDS = (10, 20, 30, 40, 50, 60)
HZ = 48_000


def write_sources(folder: Path, num_clips: int, num_samples: int) -> PipelineConfig:
    """Write the clips and samples of one unit each, and return their run's configuration."""
    (speech,) = real_clips(1, HZ, PACKAGED)
    records = []
    for number in range(num_clips):
        seconds = LONG_SECONDS[number] if number < len(LONG_SECONDS) else 2 + number % 8
        audio = np.stack([np.resize(speech, seconds * HZ)] * 2, axis=1)
        name = f"{min(number, 40)}.flac"  # the files repeat, the records do not
        if not (folder / name).exists():
            soundfile.write(folder / name, audio, HZ)
        records.append(
            {"id": f"c{number}", "audio_filepath": name, "text": "今日は良い天気です。" * 3}
        )
    write_lines(folder / "clips.jsonl", records)
    sample = {"instruction": "説明してください。" * 20, "input": "", "output": "答えです。" * 200}
    write_lines(folder / "samples.jsonl", [sample] * num_samples)
    config = {
        "run_dir": "run",
        "sources": {
            "speech": [
                {"name": "c", "kind": "manifest", "paths": ["clips.jsonl"], "fields": {"id": "id"}}
            ],
            "text": [{"name": "t", "kind": "jsonl", "paths": ["samples.jsonl"]}],
        },
        "snac": {"weights": "untrained", "sha256": None},
        "encode": {"threshold_ovrl": 0.0},
        "train": {"device": "cpu"},
    }
    (folder / "pipeline.yaml").write_text(json.dumps(config), encoding="utf-8")
    return load_config(folder / "pipeline.yaml", [])


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def works(config: PipelineConfig) -> list[tuple[StageWork, list[str]]]:
    """Plan the run; return each stage's work in the order of the data, and its units."""
    assembly = Assembly(config)
    selection = select_stages(None, "tokenize", None, [])
    plan = plan_run(config, Console(file=sys.stderr))
    built, ledger = build_chains(assembly, selection), Ledger(Storage(config.run_dir))
    planned = chains_of_work(built, plan, assembly, selection, ledger)
    return [(work, units) for chain, units in planned for work in chain]


class Worker:
    """What becomes an actor of Ray."""

    def __init__(self, work: Work) -> None:
        self._run_unit = work.open()

    def run(self, units: list[str]) -> dict[str, int]:
        for unit in units:
            result = self._run_unit(unit, always)
            assert result.status == DONE, result.error
        peak = bytes_of("VmHWM")
        return {"peak": peak, "own": peak - bytes_of("RssFile")}


def memory_of_worker(work: Work, units: list[str]) -> dict[str, int]:
    """Take the units through the work in an actor of its own; return its figures in bytes."""
    import ray

    actor: Any = ray.remote(num_cpus=1)(Worker).remote(work)
    found: dict[str, int] = ray.get(actor.run.remote(units))
    ray.kill(actor)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of one worker of each stage.")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--samples", type=int, default=5000)
    options = parser.parse_args()
    from pipeline.execution.on_ray import engine_session

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        config = write_sources(Path(folder), options.clips, options.samples)
        planned = works(config)
        with engine_session(None, None, [{"one": Resources()}]):
            for work, units in planned:
                modality = TEXT if work.units[units[0]].modality == TEXT else SPEECH
                found[f"{work.name} {modality}"] = memory = memory_of_worker(work, units)
                figures = "".join(f"{name:>6} {size / 1e9:.2f} GB" for name, size in memory.items())
                print(f"{work.name:<10}{modality:<8}{figures}")
    path = write_figures("worker_memory", **vars(options), bytes=found)
    print(path)


if __name__ == "__main__":
    run_command(main)
