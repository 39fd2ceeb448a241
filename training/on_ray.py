"""Trains on the workers of Ray Train, which restart after a failure and stop when the driver says so."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import ray
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from koe.errors import ConfigError, KoeError, StageError, Stopped
from koe.ray_session import ray_session
from training import loop
from training.config import TrainConfig
from training.elastic import Trainer
from training.generation import SampleGenerator
from training.meeting import meeting
from training.metrics import say
from training.model.distributed import BACKENDS, from_process_group
from training.needs import require_cpus, require_gpus
from training.places import Place, RemoteFolder, beside, local_folder
from training.stopping import Request, Why, listening, never
from training.work import Work

RAY_FOLDER = "ray"


class _Desk:
    """An actor beside the driver, where the run's first rank waits for what it is asked to do."""

    def __init__(self) -> None:
        self._request, self._changed = Request(), asyncio.Condition()

    async def ask(self, why: Why) -> None:
        async with self._changed:
            self._request.ask(why)
            self._changed.notify_all()

    async def wait(self, known: Why) -> Why:
        """Return what is asked for once it is more than what is `known`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._request.read() > known)
        return self._request.read()


def session(address: str | None, num_cpus: int | None) -> AbstractContextManager[None]:
    """Join the Ray at `address`, or start one here; see `koe.ray_session`."""
    # Below ERROR, Ray Train's helper actor complains every second that there is no dashboard
    # (2.60, placement_group_cleaner.py). A cluster logs as it was configured.
    quiet = None if address else ray.LoggingConfig(log_level="ERROR")
    # Nothing takes this machine's node away, and Ray's core prints an error for the actor that
    # waits for it (ray issue 53727).
    environment = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    return ray_session(address, num_cpus, environment, logging_config=quiet)


def running_address() -> str | None:
    """Return the address of the Ray that this process is connected to already, if any."""
    return ray.get_runtime_context().gcs_address if ray.is_initialized() else None


def launch(
    config: TrainConfig,
    shards: Place,
    out_dir: Place,
    sample_generator: SampleGenerator | None,
    work: Work,
    address: str | None,
    num_cpus: int | None,
) -> int:
    """Train on the Ray that runs already, on that at `address`, or on one of `num_cpus` for this run.

    Returns the steps done. Raises: the errors of `training.loop.train`, and StageError when workers
    keep dying.
    """
    with ExitStack() as joined:
        joined.enter_context(session(address, num_cpus))
        desk = _open_desk()
        # Signals are heard until Ray has ended, whose own handlers end the process with other codes.
        with listening(config.max_hours, desk.ask.remote, say, ray.shutdown), joined.pop_all():
            outcome = _train(config, shards, out_dir, sample_generator, work, desk)
    if isinstance(outcome, KoeError):
        raise outcome
    assert isinstance(outcome, int)
    return outcome


def _open_desk() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk: Any = ray.remote(num_cpus=0)(_Desk)
    return desk.options(scheduling_strategy=here).remote()


def _train(
    config: TrainConfig,
    shards: Place,
    out_dir: Place,
    sample_generator: SampleGenerator | None,
    work: Work,
    desk: Any,
) -> Any:
    """Return what the first rank does: the steps done, or the error that all ranks met."""
    has = ray.cluster_resources()
    require_gpus(config, int(has.get("GPU", 0)), "the Ray cluster")
    require_cpus(config, has.get("CPU", 0), "the Ray cluster")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    threads = _cpus_per_worker(config, [node["Resources"] for node in nodes])
    settings = {
        "config": config.model_dump(),
        "shards": str(shards),
        "out_dir": str(out_dir),
        "threads": threads,
        "sample_generator": sample_generator,
        "work": work,
        "desk": desk,
    }
    with (
        meeting(BACKENDS[config.device], nodes) as group,
        ThreadPoolExecutor(1, "ray-train") as elsewhere,
    ):
        trainer = Trainer(
            _work,
            config=config,
            train_loop_config=settings,
            torch_config=group,
            scaling_config=_scaling(config, threads),
            run_config=_run_config(config, out_dir),
        )
        # In the main thread Ray Train would answer Ctrl-C by ending the workers in mid-step.
        return elsewhere.submit(_fit, trainer, config).result()


def _fit(trainer: Trainer, config: TrainConfig) -> Any:
    try:
        return trainer.fit().return_value
    except (TrainingFailedError, RayActorError) as error:
        raise _explain(error, config) from error


def _scaling(config: TrainConfig, threads: int) -> ScalingConfig:
    resources = {"CPU": threads, **({"GPU": 1} if config.device == "cuda" else {})}
    fixed = config.worlds == (config.workers,)
    return ScalingConfig(
        num_workers=config.workers if fixed else (config.worlds[0], config.workers),
        use_gpu=config.device == "cuda",
        resources_per_worker=resources,
    )


def _run_config(config: TrainConfig, out_dir: Place) -> RunConfig:
    path, files = _storage(beside(out_dir, RAY_FOLDER))
    return RunConfig(
        name="train",
        storage_path=path,
        storage_filesystem=files,
        failure_config=FailureConfig(max_failures=config.max_worker_failures),
        logging_config=LoggingConfig(log_level="WARNING"),
    )


def _storage(place: Place) -> tuple[str, Any]:
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


def _work(settings: dict[str, Any]) -> int | KoeError:
    """Train as one of the Ray workers.

    An error that all ranks meet alike is returned: if it were raised, Ray would restart the
    workers only to meet it again. An error of one rank alone is raised, which ends the others too.
    """
    # Ray Train shows what any library logs from INFO on, as that of S3 where its credentials are from
    logging.getLogger().setLevel(logging.WARNING)
    config = TrainConfig.model_validate(settings["config"])
    if config.device == "cpu":
        torch.set_num_threads(settings["threads"])
    local_rank = get_device().index or 0 if config.device == "cuda" else 0
    ranks = from_process_group(config.device, local_rank)
    asked = _heard_at(settings["desk"]) if ranks.is_main else never
    places = settings["shards"], settings["out_dir"]
    try:
        return settings["work"](config, *places, ranks, settings["sample_generator"], asked)
    except KoeError as error:
        shared = isinstance(error, ConfigError | Stopped | loop.Exploded)
        if shared or ranks.world == 1:
            return error
        raise


def _heard_at(desk: Any) -> Callable[[], Why]:
    """Wait at the desk in a thread, so that no step does; return what tells the newest request."""
    request = Request()

    def wait() -> None:
        with suppress(RayError):  # the desk has ended with the driver, as this worker will
            while request.read() < max(Why):
                request.ask(ray.get(desk.wait.remote(request.read())))

    threading.Thread(target=wait, daemon=True).start()
    return request.read


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
