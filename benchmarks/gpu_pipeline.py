"""`koe run` on files beside its models alone: how much of a GPU's speed a run keeps.

    python -m benchmarks.gpu_pipeline                    score and encode on one GPU, through Ray
    python -m benchmarks.gpu_pipeline --engine inline    in one process
    python -m benchmarks.gpu_pipeline --cpu              a few clips on a CPU: proves the script, no figure

The run reads FLAC files of a log-normal mix of lengths, scores and encodes them. The peer are the same
stages on the same units, whose clips lie decoded in memory. Both are taken when they are in full
swing: of the run, what was done after the first unit had left the last stage; of the peer, all units after
the first. `ratio` is the share of the time of the run that the models alone would have taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import soundfile
import torch
import yaml

from benchmarks.clips import add_data_option, real_clips
from benchmarks.results import run_command, write_result
from koe.dataflow import output_path, receipt_path
from koe.errors import ConfigError
from koe.schema import SPEECH
from koe.stage import Stage
from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.jobs.assembly import Assembly
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from stages.clips import load_clips

FILE_HZ, BEFORE = 24_000, {"score": "ingest", "encode": "score"}
_KOE = "from pipeline.cli import main; main()"
MEASURES = {"score": "windows", "encode": "seconds"}


@dataclass(frozen=True)
class UnitDone:
    """A unit that a run did: when it ended, in how many seconds, and how much work it held."""

    stage: str
    ended: float
    seconds: float
    work: float


def main() -> int:
    options = _options()
    if not options.cpu and not torch.cuda.is_available():
        raise ConfigError(
            "the run cannot be measured on CUDA", "torch finds no GPU", "Give --cpu for a trial."
        )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = write_corpus(Path(folder), options)
        config = load_config(path)
        subprocess.run(
            [sys.executable, "-c", _KOE, "run", "--to", "encode", "-c", str(path)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        done = units_done(config)
        alone = {name: alone_rate(config, name) for name in MEASURES}
    rates = in_full_swing(done)
    share = sum(rates[name] / alone[name] for name in MEASURES)
    path = write_result(
        f"gpu_pipeline_{options.engine}",
        peer="the models alone, on clips decoded before",
        unit="share of the time",
        ours=[share],
        theirs=[1.0],
        run_per_second={MEASURES[name]: round(rate, 2) for name, rate in rates.items()},
        alone_per_second={MEASURES[name]: round(rate, 2) for name, rate in alone.items()},
        clips=options.clips,
        unit_clips=options.unit_clips,
        cores=os.cpu_count(),
        device="cpu" if options.cpu else "cuda",
        precision=options.precision,
    )
    print(path.read_text(encoding="utf-8"))
    return 0


def write_corpus(folder: Path, options: argparse.Namespace) -> Path:
    """Write the files, each for several clips, and the configuration; return the latter's path."""
    lines = []
    for number, audio in enumerate(real_clips(options.files, FILE_HZ, options.data)):
        soundfile.write(folder / f"{number}.flac", audio, FILE_HZ)
    for number in range(options.clips):
        name = f"{number % options.files}.flac"
        lines.append(json.dumps({"id": f"c{number}", "audio_filepath": name, "text": "声"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    device = "cpu" if options.cpu else "cuda"
    source = {"name": "clips", "kind": "manifest", "paths": ["manifest.jsonl"]}
    config = {
        "run_dir": "run",
        "engine": options.engine,
        "sources": {"speech": [source | {"fields": {"id": "id"}}]},
        "plan": {"clips_per_unit": options.unit_clips},
        "score": {"provider": device, "precision": options.precision},
        "snac": {"device": device, "weights": "untrained", "sha256": None},
        "encode": {"threshold_ovrl": 0.0},  # all pass
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def units_done(config: PipelineConfig) -> list[UnitDone]:
    """Read what a run did from its receipts. Raises: RuntimeError where a unit was left undone."""
    plan, ledger, found = load_plan(Storage(config.run_dir)), Ledger(Storage(config.run_dir)), []
    assert plan is not None
    for stage, measure in MEASURES.items():
        for unit in plan.units_of(SPEECH):
            receipt = ledger.receipt(stage, unit.unit)
            if receipt is None or receipt.kept != unit.records:
                raise RuntimeError(f"the run did not {stage} all of {unit.unit}")
            ended = (Path(config.run_dir) / receipt_path(stage, unit.unit)).stat().st_mtime
            work = receipt.measures[measure]
            found.append(UnitDone(stage, ended, receipt.seconds, work))
    return found


def in_full_swing(done: list[UnitDone]) -> dict[str, float]:
    """Return the work of each stage per second, from the first unit that left the last stage on.

    A unit counts with the share of its time that lies in there, as it does in a run's own rates.
    """
    began = min(unit.ended for unit in done if unit.stage == "encode")
    elapsed = max(unit.ended for unit in done) - began
    rates = dict.fromkeys(MEASURES, 0.0)
    for unit in done:
        share = min(1.0, max(unit.ended - began, 0.0) / max(unit.seconds, 1e-9))
        rates[unit.stage] += unit.work * share / elapsed
    return rates


def alone_rate(config: PipelineConfig, name: str) -> float:
    """Return the work per second of a stage that has its clips decoded in memory."""
    assembly = Assembly(config)
    stage: Stage = assembly.speech_stage(name)
    hz = assembly.score().decoded_hz if name == "score" else FILE_HZ
    transform = stage.open()
    work = seconds = 0.0
    for place, table in enumerate(_units(config, name)):
        with _decoded(name, table, hz):
            started = time.perf_counter()
            kept = transform(table).kept
            took = time.perf_counter() - started
        if place:  # the first loads kernels and takes memory
            work += sum(kept[MEASURES[name]].to_pylist())
            seconds += took
    return work / seconds


def _units(config: PipelineConfig, name: str) -> Iterator[pa.Table]:
    plan = load_plan(Storage(config.run_dir))
    assert plan is not None
    for unit in plan.units_of(SPEECH):
        path = Path(config.run_dir) / output_path(BEFORE[name], unit.unit)
        with pa.memory_map(str(path)) as mapped:
            yield pa.ipc.open_file(mapped).read_all()


@contextmanager
def _decoded(name: str, clips: pa.Table, audio_hz: int) -> Iterator[None]:
    """Let a stage find the audio of its clips in memory."""
    audios = list(load_clips(clips, audio_hz, os.cpu_count() or 1))
    with patch(f"stages.{name}.load_clips", lambda *_, **__: iter(audios)):
        yield


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="a trial on a few clips")
    parser.add_argument("--engine", choices=("ray", "inline"), default="ray")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clips", type=int)
    parser.add_argument("--files", type=int)
    parser.add_argument("--unit-clips", type=int)
    parser.add_argument("--folder", type=Path, help="where to put files of some 100 MB")
    add_data_option(parser)
    options = parser.parse_args()
    sizes = (6, 3, 2) if options.cpu else (4000, 400, 250)
    for name, size in zip(("clips", "files", "unit_clips"), sizes, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, size)
    return options


if __name__ == "__main__":
    run_command(main)
