"""Settings that made the published run explode, refused by name before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from koe.errors import ConfigError

if TYPE_CHECKING:
    from training.config import TrainConfig

MIN_SEQUENCES = 64
MAX_ROW_TOKENS = 2048
# Where one source runs out before the other, the last steps have one modality whatever the mix.
MAX_SINGLE_MODALITY_SHARE = 0.05

# name: (the reason, the remedy). Source of the case: canopyai/Orpheus-TTS issue 78.
REFUSALS: dict[str, tuple[str, str]] = {
    "no_warmup": (
        "at the full rate from the first step, Adam's moments of the new audio rows are still "
        "noise: the published run diverged after some hundred steps",
        "Set train.warmup_steps (10,000 in the cure).",
    ),
    "few_sequences": (
        f"a step of fewer than {MIN_SEQUENCES} sequences has a gradient too noisy for this rate: "
        "the published run had 2 and its gradient norm climbed",
        "Raise train.workers, micro_batch_rows or accumulation_steps: their product counts.",
    ),
    "long_rows": (
        f"rows of more than {MAX_ROW_TOKENS} tokens were part of the run that exploded; bounding "
        "them was part of the cure",
        f"Set interleave.max_row_tokens to {MAX_ROW_TOKENS} and write the shards again.",
    ),
    "fp16": (
        "its largest number is 65,504, and gradients and attention scores of this mix of text and "
        "speech pass it; no loss scaling is done here",
        "Set train.precision: bf16, which has the range of FP32, or fp32.",
    ),
    "bf16_master_weights": (
        "at a learning rate of 5e-5 an update is often smaller than half a BF16 step and is lost",
        "Set train.master_weights: fp32.",
    ),
    "single_modality_steps": (
        "a step of text alone or of speech alone pulls the shared weights one way and the next "
        "the other, as in the recipe that mixes whole batches",
        "Set interleave.ratio so that each step holds both, or raise the sequences a step.",
    ),
}


def refused_settings(config: TrainConfig) -> list[str]:
    """Name what the settings alone give away."""
    found = {
        "no_warmup": config.warmup_steps == 0,
        "few_sequences": config.rows_per_step < MIN_SEQUENCES,
        "fp16": config.precision == "fp16",
        "bf16_master_weights": config.master_weights == "bf16",
    }
    return [name for name, is_so in found.items() if is_so]


def refused_shards(
    max_row_tokens: int, row_modality: np.ndarray, rows_per_step: int, max_steps: int
) -> list[str]:
    """Name what only the shards give away.

    `row_modality`: bit 1 for text, bit 2 for speech, of each row in stored order. Steps of one
    modality are counted where the shards hold both; a corpus of one cannot be mixed.
    """
    names = ["long_rows"] if max_row_tokens > MAX_ROW_TOKENS else []
    if single_modality_share(row_modality, rows_per_step, max_steps) > MAX_SINGLE_MODALITY_SHARE:
        names.append("single_modality_steps")
    return names


def single_modality_share(row_modality: np.ndarray, rows_per_step: int, max_steps: int) -> float:
    """Return the share of steps in the first pass over the rows that see one modality only."""
    if not {1, 2} <= {bit for value in np.unique(row_modality) for bit in (1, 2) if value & bit}:
        return 0.0
    num_steps = min(max_steps, len(row_modality) // rows_per_step)
    if not num_steps:
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
        f"train has settings that explode ({', '.join(refused)})",
        what,
        f"{remedies} To train with them all the same: "
        f"--set 'train.allow=[{', '.join(dict.fromkeys([*config.allow, *refused]))}]'.",
    )
