"""What the engine costs: `koe run`'s Ray engine beside the same transforms in a bare loop.

    python -m benchmarks.engine_overhead                       the demo's recordings, 3 repetitions
    python -m benchmarks.engine_overhead --data FOLDER         recordings of your own
    python -m benchmarks.engine_overhead --units 20 --repeat 1 --no-result

Both sides take the same units through the score stage (DNSMOS on the CPU). Bare: one plain process
per core, each with its share of the units, reads the input tables and calls the transform; no Ray,
no ledger, nothing stored. Ours: `engine_session` and `run_ray` with receipts, hashes, fsync and checks,
in a process of its own. Wall time runs from the start of the interpreter to its end, so that both
pay for their imports and for loading the model once per core; the engine's fixed cost (import of
Ray, its start and its end) is included and is also reported separately. The sides alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pyarrow as pa

from benchmarks.clips import add_data_option, recordings
from benchmarks.results import run_command, write_result
from koe.schema import Unit
from pipeline.execution.plain import run_plain
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage

SOURCE = "clips"


def score_work(root: Path, units: dict[str, Unit]) -> StageWork:
    """Describe the score stage above the stored output of ingest."""
    from stages.dnsmos.scorer import find_model
    from stages.score import ScoreStage

    stage = ScoreStage(model=find_model())
    return StageWork(stage, "ingest", str(root), units)


def prepare(root: Path, data: Path, num_units: int, unit_clips: int) -> None:
    """Ingest `num_units` units of the recordings and remember the units in `units.json`."""
    from stages.ingest import IngestStage
    from stages.settings import IngestConfig
    from stages.sources.readers import speech_source
    from stages.sources.settings import SpeechSourceConfig

    files = recordings(data)
    lines = [
        json.dumps({"audio_filepath": str(files[number % len(files)].absolute()), "text": "a clip"})
        for number in range(num_units * unit_clips)
    ]
    (root / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = speech_source(
        SpeechSourceConfig(name=SOURCE, kind="manifest", paths=[str(root / "manifest.jsonl")]),
        unit_clips,
    )
    units = {unit.unit: unit for unit in source.units()}
    work = StageWork(IngestStage((source,), IngestConfig()), None, str(root), units)
    assert run_plain([work], list(units), lambda result: None)
    (root / "units.json").write_text(
        json.dumps({name: unit.to_row() for name, unit in units.items()}), encoding="utf-8"
    )


def run_bare(root: Path, part: int, parts: int) -> None:
    """Take every `parts`-th unit through the transform, in this process."""
    units = list(json.loads((root / "units.json").read_text(encoding="utf-8")))
    work = score_work(root, {})
    transform = work.stage.open()
    for unit in units[part::parts]:
        path = root / "ingest" / f"{unit}.arrow"
        with pa.memory_map(str(path)) as mapped:
            transform(pa.ipc.open_file(mapped).read_all())


def run_ours(root: Path, parts: int) -> None:
    """Run the engine over all units; print how long each part took."""
    begin = time.perf_counter()
    from pipeline.execution.on_ray import engine_session, run_ray

    rows = json.loads((root / "units.json").read_text(encoding="utf-8"))
    units = {name: Unit.from_row(row) for name, row in rows.items()}
    work = score_work(root, units)
    marks = {"import": time.perf_counter() - begin}
    done: list[float] = []
    with engine_session(None, parts, [{work.name: work.resources}]):
        started = time.perf_counter()
        marks["start"] = started - begin - marks["import"]
        assert run_ray([work], list(units), lambda result: done.append(time.perf_counter()))
        stopped = time.perf_counter()
        marks["run"] = stopped - started
        marks["to first unit"] = done[0] - started
    marks["stop"] = time.perf_counter() - stopped
    assert len(done) == len(units)
    print(json.dumps({name: round(seconds, 2) for name, seconds in marks.items()}))


def timed(root: Path, side: str, parts: int) -> tuple[float, dict[str, float]]:
    """Run one side in processes of its own; return wall seconds and the marks it printed."""
    ledger = Ledger(Storage(str(root)))
    for name in ledger.storage.names("score"):
        ledger.storage.remove(f"score/{name}")
    shares = range(parts) if side == "bare" else [0]
    command = [sys.executable, "-m", "benchmarks.engine_overhead", "--side", side]
    # Ray gives a worker of one CPU one OpenMP thread; the bare loop must not be worse off.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    children = [
        subprocess.Popen(
            [*command, "--root", str(root), "--part", str(k), "--parts", str(parts)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for k in shares
    ]
    printed = [child.communicate()[0] for child in children]
    seconds = time.perf_counter() - begin
    if any(child.returncode for child in children):
        raise SystemExit(f"{side} failed")
    return seconds, json.loads(printed[0].splitlines()[-1]) if side == "ours" else {}


def compare(options: argparse.Namespace) -> None:
    """Time both sides in turn, print the ratios and store them."""
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)  # inherited by every process of either side
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, options.data, options.units, options.clips)
        bare, ours, marks = [], [], []
        for repetition in range(options.repeat):
            seconds, mark = timed(root, "ours", len(cores))
            ours.append(seconds)
            marks.append(mark)
            bare.append(timed(root, "bare", len(cores))[0])
            print(f"{repetition}: engine {ours[-1]:.1f} s  bare {bare[-1]:.1f} s  {mark}")
    fixed = [mark["import"] + mark["start"] + mark["stop"] for mark in marks]
    ratios = [mine / other for mine, other in zip(ours, bare, strict=True)]
    without = [(m - f) / b for m, f, b in zip(ours, fixed, bare, strict=True)]
    print(
        f"{options.units} units of {options.clips} clips on {len(cores)} cores: engine "
        f"{median(ours):.1f} s, bare loop {median(bare):.1f} s: {median(ratios):.3f} times; "
        f"{median(without):.3f} without Ray's start and end of {median(fixed):.1f} s"
    )
    if options.no_result:
        return
    num_clips = options.units * options.clips
    path = write_result(
        "engine_overhead",
        peer="bare loop",
        unit="clips/s",
        ours=[num_clips / seconds for seconds in ours],
        theirs=[num_clips / seconds for seconds in bare],
        units=options.units,
        unit_clips=options.clips,
        cores=len(cores),
        seconds={"ours": ours, "theirs": bare},
        ray_seconds=fixed,
        wall_ratio=round(median(ratios), 4),
        wall_ratio_without_ray_start=round(median(without), 4),
        marks=marks,
    )
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--units", type=int, default=60)
    parser.add_argument("--clips", type=int, default=4, help="per unit")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-result", action="store_true")
    parser.add_argument("--side", choices=["bare", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "bare":
        run_bare(options.root, options.part, options.parts)
    elif options.side == "ours":
        run_ours(options.root, options.parts)
    else:
        compare(options)


if __name__ == "__main__":
    run_command(main)
