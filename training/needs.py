"""The GPUs and CPUs that the workers of a training need."""

from __future__ import annotations

from koe.errors import ConfigError
from training.config import TrainConfig

_NO_GPU_REMEDY = (
    "Set train.device: cpu with a small model, or stop before training with "
    "`koe run --to interleave`."
)


def require_gpus(config: TrainConfig, found: int, where: str) -> None:
    """Refuse a place with fewer GPUs than the fewest workers that may train. Raises: ConfigError."""
    if config.device != "cuda" or found >= config.worlds[0]:
        return
    if not found:
        raise ConfigError("train.device is cuda", f"{where} has no usable GPU", _NO_GPU_REMEDY)
    raise ConfigError(
        f"train.workers is {config.workers}",
        f"{where} has {found} GPUs, and every worker needs one",
        f"Set train.workers: {found}, and train.accumulation_steps so that workers x "
        f"micro_batch_rows x accumulation_steps stays {config.rows_per_step}.",
    )


def require_cpus(config: TrainConfig, found: float, where: str) -> None:
    """Refuse a place with fewer CPUs than the fewest workers reserve. Raises: ConfigError."""
    needed = config.worlds[0] * (config.cpus_per_worker or 1)
    if found < needed:
        raise ConfigError(
            f"{config.worlds[0]} workers need {needed} CPUs",
            f"{where} has {found:g}",
            "Lower train.workers or train.cpus_per_worker (or raise ray.num_cpus): Ray would "
            "wait forever.",
        )
