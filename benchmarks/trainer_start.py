"""Seconds from the start of a training's process to the end of its first step, by launcher.

    python -m benchmarks.trainer_start                 a small model, two CPU workers
    python -m benchmarks.trainer_start --device cuda --workers 1

A process is started for each launcher of koe, and for the peer: Ray Train alone, whose workers build the
same model and take one step of the same batch size on random ids. The launchers take turns, so that a busy
machine slows all of them down.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Literal

from benchmarks.results import run_command, write_figures
from benchmarks.trainer_gpu import write_shards
from koe.errors import StageError
from koe.vocabulary import NUM_EMBEDDINGS
from training.config import EvaluationConfig, TinyModelConfig, TrainConfig
from training.logs import METRICS_FILE
from training.refusals import REFUSALS

ROWS, ROW_TOKENS = 2, 512
PEER = "Ray Train alone"
_DEADLINE_S = 300.0
TINY = TinyModelConfig(
    hidden_size=128, intermediate_size=384, num_hidden_layers=4, vocab_size=NUM_EMBEDDINGS
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="koe-start-") as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, ROW_TOKENS)
        for repeat in range(options.repeats):
            for name, command in commands(options.device, options.workers, shards).items():
                out = Path(folder) / f"{name.replace(' ', '-')}-{repeat}"
                seconds[name].append(first_step(command, out))
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    found = {name: round(median(values), 2) for name, values in seconds.items()}
    print(write_figures("trainer_start", peer=PEER, seconds=found, runs=dict(seconds)))


def commands(device: Literal["cpu", "cuda"], workers: int, shards: Path) -> dict[str, list[str]]:
    """Return the command of each launcher, without the folder that it writes to."""
    launch = [sys.executable, "-c", _LAUNCH]
    inline = [*launch, config_of("inline", device, 1), str(shards)]
    ray = [*launch, config_of("ray", device, workers), str(shards)]
    config = shards.parent / "config.json"
    config.write_text(config_of("inline", device, workers), encoding="utf-8")
    ranks = [f"--nproc-per-node={workers}", "--standalone", "-m", "training", f"--config={config}"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *ranks,
        f"--shards={shards}",
        "--out",
    ]
    peer = [sys.executable, "-m", "benchmarks.trainer_start_peer", device, str(workers)]
    return {"inline, one process": inline, "torchrun": torchrun, "Ray": ray, PEER: peer}


_LAUNCH = """
import sys
from training.config import TrainConfig
from training.launch import launch
launch(TrainConfig.model_validate_json(sys.argv[1]), *sys.argv[2:])
"""


def config_of(
    launcher: Literal["ray", "inline"], device: Literal["cpu", "cuda"], workers: int
) -> str:
    """Return a config of one step as JSON."""
    config = TrainConfig(
        launcher=launcher,
        workers=workers,
        device=device,
        base_model=None,
        tiny=TINY,
        micro_batch_rows=ROWS,
        accumulation_steps=1,
        max_steps=1,
        warmup_steps=0,
        evaluation=EvaluationConfig(every_steps=0),
        allow=list(REFUSALS),
    )
    return config.model_dump_json()


def first_step(command: list[str], out: Path) -> float:
    """Start a process and return the seconds until the first step stands in its metrics.

    Raises: StageError when it ends or nothing is heard of it before.
    """
    log = out.with_suffix(".log")
    began = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen([*command, str(out)], stdout=said, stderr=said)
        try:
            while not _steps(out):
                late = time.perf_counter() - began > _DEADLINE_S
                if late or (process.poll() is not None and not _steps(out)):
                    raise StageError(
                        f"{' '.join(command[:3])} made no step",
                        f"it {'is still at work' if late else 'ended'}; its last words: "
                        f"{log.read_text(errors='replace')[-500:]}",
                        "Run its command alone to see why.",
                    )
                time.sleep(0.005)
            taken = time.perf_counter() - began
            process.wait(_DEADLINE_S)
            return taken
        finally:
            process.kill()
            process.wait()


def _steps(out: Path) -> int:
    path = out / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    run_command(main)
