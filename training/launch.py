"""Starts the trainer: in this process, or on Ray workers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from fsspec.implementations.memory import MemoryFileSystem

from koe.errors import ConfigError
from training import loop, preflight
from training.adapter import require_peft
from training.checkpoint import folder as checkpoints
from training.config import TrainConfig
from training.generation import SampleGenerator
from training.lock import training_lock
from training.metrics import read_metrics, require_wandb, say
from training.model.distributed import single
from training.needs import require_cpus, require_gpus
from training.places import Place, RemoteFolder, absolute, beside, local_folder
from training.run import CHECKPOINT_FOLDER
from training.stopping import listening
from training.work import Work
from training.work_folder import work_room


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a finished run."""

    steps: int  # in total, including those before a resume
    last_rows: list[dict[str, Any]]  # of metrics.jsonl


def check(
    config: TrainConfig,
    *,
    ray_address: str | None = None,
    num_cpus: int | None = None,
    place: Place | None = None,
) -> None:
    """Refuse, before any work, a config that cannot start on this machine.

    With `ray_address` the workers run elsewhere, and `launch` checks the cluster instead. `place`:
    where checkpoints and logs will be.
    Raises: ConfigError.
    """
    preflight.require(preflight.refused_settings(config), config)
    require_wandb(config)
    require_peft(config)
    if config.launcher == "inline" and config.workers != 1:
        raise ConfigError(
            f"train.launcher: inline cannot run {config.workers} workers",
            "it trains in the calling process only",
            "Set train.launcher: ray, or train.workers: 1.",
        )
    if config.launcher == "inline" or ray_address is None:
        require_gpus(config, torch.cuda.device_count(), "this machine")
        require_cpus(config, num_cpus or os.cpu_count() or 1, "this machine")
    if place is not None and local_folder(place) is None:
        _require_reachable(config, str(place))


def _require_reachable(config: TrainConfig, url: str) -> None:
    """Refuse a URL that the workers cannot use, or a machine that cannot keep copies of its files."""
    remote = RemoteFolder(url)
    if config.launcher == "ray" and isinstance(remote.system, MemoryFileSystem):
        raise ConfigError(
            f"{url} lies in the memory of this process",
            "train.launcher: ray starts others, which do not see it",
            "Set train.launcher: inline, or choose another run directory.",
        )
    work_room()


def launch(
    config: TrainConfig,
    shards: Place,
    out_dir: Place,
    resume: bool = True,
    *,
    ray_address: str | None = None,
    num_cpus: int | None = None,
    last_rows: int = 20,
    sample_generator: SampleGenerator | None = None,
    work: Work = loop.train,
) -> TrainResult:
    """Train on the folder `shards` and keep checkpoints and logs in `out_dir`.

    With `resume` training continues from the newest checkpoint there; without, there must be none.
    `sample_generator`, which must be picklable, holds what evaluations generate and how to decode
    it. A Ray that is already running is used as it is; otherwise one is started at `ray_address`,
    or here with `num_cpus`, and shut down at the end. Both places may be URLs; all workers must see
    folders at these paths. Where this is the main thread, signals stop the training (`stopping.py`).
    Raises: the errors of `training.loop.train`, ConfigError where another process trains there, and
    StageError when workers keep dying.
    """
    shards, out_dir = absolute(shards), absolute(out_dir)
    if config.launcher == "ray":
        from training import on_ray  # seconds of import

        ray_address = ray_address or on_ray.running_address()
    check(config, ray_address=ray_address, num_cpus=num_cpus, place=out_dir)
    preflight.require_length(shards, config)
    with training_lock(out_dir, say):
        _require_fresh(out_dir, resume)
        if config.launcher == "inline":
            with listening(config.max_hours, say=say) as asked:
                ranks = single(config.device)
                steps = work(config, shards, out_dir, ranks, sample_generator, asked)
        else:
            from training import on_ray

            steps = on_ray.launch(
                config, shards, out_dir, sample_generator, work, ray_address, num_cpus
            )
    return TrainResult(steps, read_metrics(out_dir, last_rows))


def _require_fresh(out_dir: Place, resume: bool) -> None:
    store = checkpoints.open_store(beside(out_dir, CHECKPOINT_FOLDER))
    if not resume and store.steps():
        raise ConfigError(
            f"{store.place} holds checkpoints, but the run was started without resuming",
            remedy="Resume, train into another folder, or delete that one.",
        )
