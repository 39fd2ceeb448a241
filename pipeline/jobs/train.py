"""Training on a run's shards, and repeating a step of it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console

from koe.dataflow import INDEX, INTERLEAVE, SHARDS, TRAIN
from koe.errors import ConfigError, ContractError
from pipeline.config.models import PipelineConfig
from pipeline.run_dir.lock import run_lock
from pipeline.run_dir.storage import Storage

if TYPE_CHECKING:  # training imports torch, which most commands do not need
    from training.launch import TrainResult
    from training.replay import Replay


def check_training(config: PipelineConfig) -> None:
    """Refuse, before any work, settings that training cannot start with on this machine.

    Raises: ConfigError.
    """
    from training.launch import check
    from training.preflight import require_length

    check(
        config.train,
        ray_address=config.ray.address,
        num_cpus=config.ray.num_cpus,
        place=training_place(config),
    )
    if Storage(config.run_dir).size(INDEX) is not None:
        with suppress(ContractError):  # an index of another version: the run writes it again
            require_length(f"{config.run_dir}/{SHARDS}", config.train)


def run_training(config: PipelineConfig, console: Console, resume: bool = True) -> TrainResult:
    """Train on the run's shards, resuming from the newest checkpoint.

    Raises: ConfigError when there are no shards, when the hardware that the configuration asks for
    is missing, or when another process is using the run directory.
    """
    shards_folder(config)  # first, because the lock would create a missing run directory
    with run_lock(Storage(config.run_dir)):
        return train_shards(config, console, resume)


def train_shards(config: PipelineConfig, console: Console, resume: bool) -> TrainResult:
    """Train as `run_training` does; the caller holds the lock of the run directory."""
    from pipeline.jobs.speech_samples import sample_generator
    from training.launch import launch

    shards = shards_folder(config)
    console.print(f"{TRAIN:<11} up to step {config.train.max_steps}", markup=False)
    return launch(
        config.train,
        shards,
        training_place(config),
        resume=resume,
        ray_address=config.ray.address,
        num_cpus=config.ray.num_cpus,
        sample_generator=sample_generator(config),
    )


def find_rate(config: PipelineConfig, console: Console) -> tuple[dict[str, Any], str]:
    """Run a learning-rate range test where training would go on; return its findings and its page.

    Raises: ConfigError as `run_training`.
    """
    from training import find_rate
    from training.launch import launch
    from training.report.find_rate import write_rate_page

    shards, place = shards_folder(config), training_place(config)
    with run_lock(Storage(config.run_dir)):
        test = config.train.rate_test
        console.print(
            f"{TRAIN:<11} {test.steps} steps at rates from {test.lowest_rate:.2e} on, of which nothing "
            "is kept",
            markup=False,
        )
        launch(
            config.train,
            shards,
            place,
            ray_address=config.ray.address,
            num_cpus=config.ray.num_cpus,
            work=find_rate.find_rate,
        )
        findings = find_rate.read_findings(place)
        return findings, str(write_rate_page(place, findings))


def replay_event(config: PipelineConfig, event: str) -> Replay:
    """Repeat the step of an event of the run's training, in this process.

    Raises: ConfigError.
    """
    from training.replay import replay

    return replay(config.train, shards_folder(config), training_place(config), event)


def training_place(config: PipelineConfig) -> str:
    """Return the folder or URL of checkpoints and logs."""
    return f"{config.run_dir}/{TRAIN}"


def shards_folder(config: PipelineConfig) -> str:
    """Return the folder or URL of the run's shards. Raises: ConfigError when there are none."""
    storage = Storage(config.run_dir)
    if storage.size(INDEX) is None:
        raise ConfigError(
            f"{config.run_dir} has no shards", remedy=f"Make them with `koe run --to {INTERLEAVE}`."
        )
    return f"{config.run_dir}/{SHARDS}"
