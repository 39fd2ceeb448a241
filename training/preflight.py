"""Settings that made the published run explode, refused by name before the first step."""

from __future__ import annotations

import numpy as np

from koe.errors import ConfigError
from training.config import TrainConfig
from training.data.shard_index import entries_of, read_index
from training.data.shard_rows import TRAIN
from training.places import Place
from training.refusals import MAX_ROW_TOKENS, MIN_SEQUENCES, REFUSALS

# Where one source runs out before the other, the last steps see one modality whatever the mix.
MAX_SINGLE_MODALITY_SHARE = 0.05


def refused_settings(config: TrainConfig) -> list[str]:
    """Name the refused settings that the config alone reveals."""
    found = {
        "no_warmup": config.num_warmup_steps == 0,
        "warmup_longer_than_run": config.num_warmup_steps > config.max_steps,
        "few_sequences": config.rows_per_step < MIN_SEQUENCES,
        "fp16": config.precision == "fp16",
        "bf16_master_weights": config.master_weights == "bf16",
    }
    return [name for name, is_so in found.items() if is_so]


def refused_shards(max_row_tokens: int, row_modality: np.ndarray, config: TrainConfig) -> list[str]:
    """Name the refused settings that only the shards reveal.

    `row_modality`: bit 1 for text, bit 2 for speech, of each row in stored order. Steps of one
    modality are counted where the shards hold both; a corpus of one cannot be mixed.
    """
    names = ["long_rows"] if max_row_tokens > MAX_ROW_TOKENS else []
    share = single_modality_share(row_modality, config.rows_per_step, config.max_steps)
    if share > MAX_SINGLE_MODALITY_SHARE:
        names.append("single_modality_steps")
    return names + refused_length(len(row_modality), config)


def refused_length(num_rows: float, config: TrainConfig) -> list[str]:
    """Name what is refused of a run that reads `num_rows` rows over and over."""
    is_long = num_rows and epochs(num_rows, config) > config.max_epochs
    return ["many_epochs"] if is_long else []


def epochs(num_rows: float, config: TrainConfig) -> float:
    """Return how often a run reads each of `num_rows` rows."""
    return config.max_steps * config.rows_per_step / num_rows


def require_length(shards: Place, config: TrainConfig) -> None:
    """Refuse a run that reads the rows of these shards too often; their index alone is read.

    Raises: ConfigError; ContractError when the index cannot be read.
    """
    entries = entries_of(read_index(shards), shards, TRAIN)
    require(refused_length(sum(entry.rows for entry in entries), config), config)


def single_modality_share(row_modality: np.ndarray, rows_per_step: int, max_steps: int) -> float:
    """Return the share of steps in the first pass over the rows that see one modality only."""
    num_steps = min(max_steps, len(row_modality) // rows_per_step)
    if not num_steps or np.bitwise_or.reduce(row_modality) != 3:
        return 0.0
    steps = row_modality[: num_steps * rows_per_step].reshape(num_steps, rows_per_step)
    return float((np.bitwise_or.reduce(steps, axis=1) != 3).mean())


def require(names: list[str], config: TrainConfig) -> None:
    """Refuse the settings named, except those that `train.allow` names.

    Raises: ConfigError with the reason and the remedy of each.
    """
    refused = [name for name in names if name not in config.allow]
    if not refused:
        return
    what = "; ".join(f"{name}: {REFUSALS[name][0]}" for name in refused)
    remedies = " ".join(REFUSALS[name][1] for name in refused)
    raise ConfigError(
        f"train has settings that explode or waste the run ({', '.join(refused)})",
        what,
        f"{remedies} To train with them all the same: "
        f"--set 'train.allow=[{', '.join(dict.fromkeys([*config.allow, *refused]))}]'.",
    )
