"""What a run costs by its size: CPU, seconds, memory, files, bytes and requests of every command.

    python -m benchmarks.scale_run                                   30 k to 1 M clips on the local disk
    python -m benchmarks.scale_run --clips 10000 30000 100000 --s3   the same on an S3 server (moto)
    python -m benchmarks.scale_run --clips 30000 --root build/scale  keeps the runs

A run of N clips and 0.6 N instruction samples is made up (`benchmarks/made_up_run.py`) in units of 1,000
clips and 5,000 samples, each a file of its source. Then every command is measured in a process of its
own, with `engine: inline`, so that a process does all the work that a run divides among workers.
From the sizes follow a line, figure = fixed + slope x clips, and an exponent; the line gives the figures
of 15 M clips and 9 M samples, and of a billion clips. `benchmarks.scale_page` prints them as tables.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.driver_memory import peak_bytes
from benchmarks.made_up_run import made_up_stages, write_corpus
from benchmarks.results import run_command, write_figures
from koe.errors import StageError
from koe.remote import file_system
from pipeline import cli
from pipeline.execution.progress import RunProgress
from pipeline.execution.runner import UnitResult
from tests.s3_server import S3Server, s3_server

FULL_CLIPS, HUGE_CLIPS = 15_000_000, 1_000_000_000
# What is measured, in this order, with the arguments of `koe`.
COMMANDS: dict[str, list[str]] = {
    "made-up stages": ["run", "--to", "tokenize"],
    "units again": ["run", "--to", "tokenize"],
    "shards": ["run", "--only", "interleave"],
    "restart": ["run", "--to", "interleave"],
    "status": ["status", "--json"],
    "stats": ["stats", "--json"],
    "verify": ["verify"],
    "plan again": ["plan", "--clips", "0"],
}
_FIGURES = ("cpu_seconds", "seconds", "megabytes", "requests")


def child(command: str, config: Path) -> None:
    """Run a command in this process, and print its figures as JSON."""
    parts: dict[str, float] = {}
    made_up = made_up_stages() if command == "made-up stages" else nullcontext()
    at_start, cpu, began = peak_bytes(), _cpu_seconds(), time.perf_counter()
    with made_up, _timed(parts), redirect_stdout(io.StringIO()):
        _koe(*COMMANDS[command], "-c", str(config))
    found = {
        "cpu_seconds": round(_cpu_seconds() - cpu, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "megabytes": round(peak_bytes() / 1e6),
        "megabytes_at_start": round(at_start / 1e6),
        "cpu_seconds_of": {name: round(seconds, 2) for name, seconds in parts.items()},
    }
    print(json.dumps(found))


def _koe(*arguments: str) -> None:
    with patch.object(sys, "argv", ["koe", *arguments]):
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                raise StageError(f"koe {' '.join(arguments)} ended with {stop.code}") from None


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@contextmanager
def _timed(parts: dict[str, float]) -> Iterator[None]:
    """Add up the CPU seconds between two results of the inline engine, by the stage of the later.

    What comes before the first result (imports, the plan, reading receipts) is called `start`.
    """
    take, last = RunProgress.take, _cpu_seconds()

    def timed(progress: RunProgress, result: UnitResult) -> None:
        nonlocal last
        name, now = result.stage if parts else "start", _cpu_seconds()
        parts[name] = parts.get(name, 0.0) + now - last
        take(progress, result)
        last = _cpu_seconds()

    with patch.object(RunProgress, "take", timed):
        yield


def measure_run(folder: Path, num_clips: int, server: S3Server | None) -> dict[str, Any]:
    """Make a run up, measure each command on it, and count its files and bytes."""
    run_dir = str(folder / "run")
    if server is not None:
        run_dir = server.make_bucket(f"clips-{num_clips}") + "/run"
    config = write_corpus(folder, num_clips, run_dir)
    found: dict[str, Any] = {"clips": num_clips, "commands": {}}
    for name in COMMANDS:
        if server is not None:
            server.clear()
        begin = [sys.executable, "-m", "benchmarks.scale_run", "--child", name]
        run = subprocess.run([*begin, "--config", str(config)], stdout=subprocess.PIPE, text=True)
        if run.returncode:
            raise StageError(f"{name} of {num_clips:,} clips ended with {run.returncode}")
        figures = json.loads(run.stdout.splitlines()[-1])
        if server is not None:
            figures["requests_of"] = dict(server.counts())
            figures["requests"] = sum(figures["requests_of"].values())
        found["commands"][name] = figures
        print(f"{num_clips:>9,}  {name:<15}{json.dumps(figures)}", flush=True)
    found["folders"] = folders_of(run_dir)
    return found


def folders_of(run_dir: str) -> dict[str, dict[str, int]]:
    """Count files and bytes of each folder of a run, by what the files are."""
    files, sizes = Counter[str](), Counter[str]()
    system, base = file_system(run_dir)
    for path, entry in system.find(base, detail=True).items():
        relative = path[len(base) :].strip("/")
        folder, _, name = relative.rpartition("/")
        kind = name.rpartition(".")[2] if folder else name
        key = f"{folder or '.'} {kind}"
        files[key] += 1
        sizes[key] += entry["size"]
    return {key: {"files": files[key], "bytes": sizes[key]} for key in sorted(files)}


def laws(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Fit the figures of all commands, and the files and bytes, to the number of clips."""
    clips = [run["clips"] for run in runs]
    figures: dict[str, list[float]] = {}
    for name in COMMANDS:
        for figure in _FIGURES:
            values = [run["commands"][name].get(figure) for run in runs]
            if None not in values:
                figures[f"{name}: {figure}"] = values
        for part in runs[-1]["commands"][name]["cpu_seconds_of"]:
            values = [run["commands"][name]["cpu_seconds_of"].get(part, 0.0) for run in runs]
            figures[f"{name}, {part}: cpu_seconds"] = values
    for what in ("files", "bytes"):
        sums = [sum(part[what] for part in run["folders"].values()) for run in runs]
        figures[f"run directory: {what}"] = sums
        for key in runs[-1]["folders"]:
            values = [run["folders"].get(key, {what: 0})[what] for run in runs]
            figures[f"{key}: {what}"] = values
    return {name: law(clips, values) for name, values in figures.items()}


def law(clips: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    """Fit fixed + slope x clips, each size weighing the same, and the exponent of what is not fixed.

    The exponent is that between the two largest sizes, after the smallest run's figure is subtracted:
    1 for what grows in a line, 2 for what grows with the square. None where nothing grows.
    """
    x, y = np.array(clips, float), np.array(values, float)
    if len(x) < 2:
        return {"values": list(values)}
    weights = 1 / np.maximum(np.abs(y), 1e-9 + 0.01 * np.abs(y).max())
    slope, fixed = np.polyfit(x, y, 1, w=weights)
    fitted = {"fixed": fixed, "per_million": slope * 1e6}
    fitted |= {
        "at_15_million": fixed + slope * FULL_CLIPS,
        "at_a_billion": fixed + slope * HUGE_CLIPS,
    }
    found: dict[str, Any] = {"values": list(values)}
    found |= {name: float(f"{value:.4g}") for name, value in fitted.items()}
    found["off_at_most"] = round(float(np.max(np.abs(fixed + slope * x - y) * weights)), 3)
    found["exponent"] = None
    if len(x) > 2 and y[-1] > y[-2] > y[0]:
        grown = (y[-1] - y[0]) / (y[-2] - y[0])
        found["exponent"] = round(float(np.log(grown) / np.log((x[-1] - x[0]) / (x[-2] - x[0]))), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [30_000, 100_000, 300_000, 1_000_000]
    parser.add_argument("--clips", type=int, nargs="+", default=sizes)
    parser.add_argument("--s3", action="store_true", help="keep the runs in an S3 server's memory")
    parser.add_argument("--root", type=Path, help="a folder to keep the runs in")
    parser.add_argument("--no-result", action="store_true")
    parser.add_argument("--child", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.config)
        return
    runs = []
    for num_clips in sorted(options.clips):
        with tempfile.TemporaryDirectory(prefix="scale") as temporary:
            folder = options.root / str(num_clips) if options.root else Path(temporary)
            with s3_server() if options.s3 else nullcontext() as server:
                runs.append(measure_run(folder, num_clips, server))
    found = laws(runs)
    for name, fitted in found.items():
        print(f"{name:<45}{json.dumps(fitted)}")
    if not options.no_result:
        where = "s3" if options.s3 else "local"
        print(write_figures(f"scale_run_{where}", runs=runs, laws=found))


if __name__ == "__main__":
    run_command(main)
