"""Starts `python -m training` as srun does, one process for each rank, and signals it in mid-run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.training.ranks import FORKED_WITH, free_port
from training.__main__ import main
from training.config import TrainConfig
from training.logs import METRICS_FILE

SIGNALS = (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
SECONDS = 120  # until a test gives up


@pytest.fixture
def no_signal_ignored():
    """Undo what a shell (SIGINT of a job behind it) or nohup (SIGHUP) has the tests ignore."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def steps_in(out: Path) -> int:
    """Count the rows of metrics that are complete."""
    path = out / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def until(condition: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
    """Wait for a condition; fail where what it depends on has ended."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert alive(), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclass
class Ranks:
    """The processes of a training, and the files that they write their stderr to."""

    processes: list[BaseProcess]
    out: Path
    said_in: list[Path]

    def reached(self, steps: int) -> None:
        """Wait until so many steps are done."""
        until(lambda: steps_in(self.out) >= steps, self.all_alive)

    def all_alive(self) -> bool:
        return all(process.exitcode is None for process in self.processes)

    def send(self, number: int, *ranks: int) -> None:
        """Send a signal to some of the ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank].pid or 0, number)

    def codes(self) -> list[int | None]:
        """Wait for all and return their exit codes."""
        for process in self.processes:
            process.join(SECONDS)
        return [process.exitcode for process in self.processes]

    def said(self) -> list[str]:
        return [path.read_text() for path in self.said_in]

    def kill(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()


def start_ranks(config: TrainConfig, shards: Path, out: Path, folder: Path) -> Ranks:
    """Start a training with `config.workers` ranks; `folder` is for its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"train": config.model_dump()}))
    options = ["--config", str(folder / "config.json"), "--shards", str(shards), "--out", str(out)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(FORKED_WITH)
    port, processes, files = free_port(), [], []
    for rank in range(config.workers):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": config.workers}
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in (names | places).items()}
        said = folder / f"rank-{rank}.txt"
        process = context.Process(target=_enter, args=(environment, said, options))
        process.start()
        processes.append(process)
        files.append(said)
    return Ranks(processes, out, files)


def _enter(environment: dict[str, str], said: Path, options: list[str]) -> None:
    os.environ.update(environment)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)
    sys.argv[:] = sys.orig_argv[:] = ["python", "-m", "training", *options]
    with open(said, "w", buffering=1, encoding="utf-8") as sys.stderr:
        code = main(options)
    os._exit(code)  # as a process of its own would; that of multiprocessing flushes sys.stderr
