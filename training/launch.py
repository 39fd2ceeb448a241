"""Starts the trainer: in this process, or on Ray workers that restart after a failure."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from koe.errors import ConfigError, KoeError, StageError
from koe.ray_session import ray_session
from training import loop, preflight
from training.adapter import require_peft
from training.checkpoint import folder as checkpoints
from training.config import TrainConfig
from training.generation import SampleGenerator
from training.metrics import read_metrics, require_wandb
from training.model.distributed import BACKENDS, Ranks, from_process_group, single
from training.places import Place, RemoteFolder, absolute, beside, local_folder
from training.run import CHECKPOINT_FOLDER
from training.work_folder import work_room

RAY_FOLDER = "ray"
_NO_GPU_REMEDY = (
    "Set train.device: cpu with a small model, or stop before training with "
    "`koe run --to interleave`."
)


# What every rank does: `loop.train`, or `find_rate.find_rate`. It returns the steps done.
Work = Callable[[TrainConfig, Place, Place, Ranks, SampleGenerator | None], int]


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
        _require_gpus(config, torch.cuda.device_count(), "this machine")
        _require_cpus(config, num_cpus or os.cpu_count() or 1, "this machine")
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
    folders at these paths. Raises: the errors of `training.loop.train`, and StageError when workers keep dying.
    """
    shards, out_dir = absolute(shards), absolute(out_dir)
    ray_address = ray_address or _running_ray(config)
    check(config, ray_address=ray_address, num_cpus=num_cpus, place=out_dir)
    preflight.require_length(shards, config)
    store = checkpoints.open_store(beside(out_dir, CHECKPOINT_FOLDER))
    if not resume and store.steps():
        raise ConfigError(
            f"{store.place} holds checkpoints, but the run was started without resuming",
            remedy="Resume, train into another folder, or delete that one.",
        )
    if config.launcher == "inline":
        steps = work(config, shards, out_dir, single(config.device), sample_generator)
    else:
        with _ray(ray_address, num_cpus):
            steps = _train_on_ray(config, shards, out_dir, sample_generator, work)
    return TrainResult(steps, read_metrics(out_dir, last_rows))


def _require_gpus(config: TrainConfig, found: int, where: str) -> None:
    if config.device != "cuda" or found >= config.workers:
        return
    if not found:
        raise ConfigError("train.device is cuda", f"{where} has no usable GPU", _NO_GPU_REMEDY)
    raise ConfigError(
        f"train.workers is {config.workers}",
        f"{where} has {found} GPUs, and every worker needs one",
        f"Set train.workers: {found}, and train.accumulation_steps so that workers x "
        f"micro_batch_rows x accumulation_steps stays {config.rows_per_step}.",
    )


def _require_cpus(config: TrainConfig, found: float, where: str) -> None:
    needed = config.workers * (config.cpus_per_worker or 1)
    if found < needed:
        raise ConfigError(
            f"{config.workers} workers need {needed} CPUs",
            f"{where} has {found:g}",
            "Lower train.workers or train.cpus_per_worker (or raise ray.num_cpus): Ray would "
            "wait forever.",
        )


def _running_ray(config: TrainConfig) -> str | None:
    """Return the address of the Ray that this process is connected to already, if any."""
    if config.launcher != "ray":
        return None
    import ray

    return ray.get_runtime_context().gcs_address if ray.is_initialized() else None


def _ray(address: str | None, num_cpus: int | None) -> AbstractContextManager[None]:
    import ray

    # Below ERROR, Ray Train's helper actor complains every second that there is no dashboard
    # (2.60, placement_group_cleaner.py). A cluster logs as it was configured.
    quiet = None if address else ray.LoggingConfig(log_level="ERROR")
    # Nothing takes this machine's node away, and Ray's core prints an error for the actor that
    # waits for it (ray issue 53727).
    environment = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    return ray_session(address, num_cpus, environment, logging_config=quiet)


def _train_on_ray(
    config: TrainConfig,
    shards: Place,
    out_dir: Place,
    sample_generator: SampleGenerator | None,
    work: Work,
) -> int:
    import ray
    from ray.exceptions import RayActorError
    from ray.train import (
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    from training.meeting import meeting

    has = ray.cluster_resources()
    _require_gpus(config, int(has.get("GPU", 0)), "the Ray cluster")
    _require_cpus(config, has.get("CPU", 0), "the Ray cluster")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    threads = _cpus_per_worker(config, [node["Resources"] for node in nodes])
    resources = {"CPU": threads, **({"GPU": 1} if config.device == "cuda" else {})}
    ray_path, ray_files = _ray_storage(beside(out_dir, RAY_FOLDER))
    settings = {
        "config": config.model_dump(),
        "shards": str(shards),
        "out_dir": str(out_dir),
        "threads": threads,
        "sample_generator": sample_generator,
        "work": work,
    }
    scaling = ScalingConfig(
        num_workers=config.workers, use_gpu=config.device == "cuda", resources_per_worker=resources
    )
    run = RunConfig(
        name="train",
        storage_path=ray_path,
        storage_filesystem=ray_files,
        failure_config=FailureConfig(max_failures=config.max_worker_failures),
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    try:
        with meeting(BACKENDS[config.device], nodes) as group, _own_interrupt_handler():
            trainer = TorchTrainer(
                _ray_worker,
                train_loop_config=settings,
                torch_config=group,
                scaling_config=scaling,
                run_config=run,
            )
            outcome = trainer.fit().return_value
    except (TrainingFailedError, RayActorError) as error:
        raise _explain(error, config) from error
    except SystemExit as error:  # Ray Train's answer to Ctrl-C, with the exit code 0
        raise KeyboardInterrupt from error
    if isinstance(outcome, KoeError):
        raise outcome
    assert isinstance(outcome, int)
    return outcome


def _ray_storage(place: Place) -> tuple[str, Any]:
    """Return where Ray keeps what it knows of the run: a path, and the file system of a URL."""
    if local_folder(place) is not None:
        return str(place), None
    remote = RemoteFolder(str(place))
    return remote.base, PyFileSystem(FSSpecHandler(remote.system))


def _cpus_per_worker(config: TrainConfig, nodes: list[dict[str, float]]) -> int:
    """Return each worker's share of its node's CPUs, so that PyTorch uses all of them."""
    if config.cpus_per_worker:
        return config.cpus_per_worker
    if config.device == "cuda" or len(nodes) != 1:
        return 1
    return max(1, int(nodes[0].get("CPU", 1)) // config.workers)


def _ray_worker(settings: dict[str, Any]) -> int | KoeError:
    """Train as one of the Ray workers.

    An error that all ranks meet alike is returned: if it were raised, Ray would restart the
    workers only to meet it again. An error of one rank alone is raised, which ends the others too.
    """
    from ray.train.torch import get_device

    # Ray Train shows what any library logs from INFO on, as that of S3 where its credentials are from
    logging.getLogger().setLevel(logging.WARNING)
    config = TrainConfig.model_validate(settings["config"])
    if config.device == "cpu":
        torch.set_num_threads(settings["threads"])
    local_rank = get_device().index or 0 if config.device == "cuda" else 0
    ranks = from_process_group(config.device, local_rank)
    try:
        return settings["work"](
            config, settings["shards"], settings["out_dir"], ranks, settings["sample_generator"]
        )
    except KoeError as error:
        shared = isinstance(error, ConfigError | loop.Exploded)
        if shared or ranks.world == 1:
            return error
        raise


def _explain(error: Exception, config: TrainConfig) -> KoeError:
    """Return the error that a worker raised, or one that quotes Ray's report."""
    failures = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, KoeError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return StageError(
        f"training workers failed more than {config.max_worker_failures} times",
        str(error).strip().splitlines()[-1],
        "Look at the workers' messages above, then start again: the run resumes from the last "
        "checkpoint.",
        stage="train",
    )


@contextmanager
def _own_interrupt_handler() -> Iterator[None]:
    """Restore the handler of Ctrl-C, which Ray Train replaces and does not restore."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
