"""The learning rate of each step: a warm-up, then one of four courses down to a share of the peak."""

from __future__ import annotations

import math

from training.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step `step`, counted from 0.

    It rises linearly to `learning_rate` at step `num_warmup_steps` - 1, then follows `schedule`,
    which all but `constant` end at `min_learning_rate_share` of it in the last step.
    """
    return config.learning_rate * _warmup(step, config.num_warmup_steps) * decay(step, config)


def new_rows_factor(step: int, config: TrainConfig) -> float:
    """Return the rate of the new rows divided by that of the rest; both share the decay."""
    new = config.new_rows
    if new.warmup_steps is None:
        return new.learning_rate_factor
    own, rest = _warmup(step, new.warmup_steps), _warmup(step, config.num_warmup_steps)
    return new.learning_rate_factor * own / rest


def decay(step: int, config: TrainConfig) -> float:
    """Return what `schedule` leaves of the rate at step `step`, between the end share and 1.

    wsd (warm-up, stable, decay) is linear in its last part, as the cooldown of Hägele et al.
    (arXiv 2405.18392).
    """
    if config.schedule == "constant":
        return 1.0
    last, start = config.max_steps - 1, config.num_warmup_steps
    if config.schedule == "wsd":
        start = max(start, last - math.ceil(config.decay_share * config.max_steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, last - start)))
    left = 1 - progress
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    share = config.min_learning_rate_share
    return share + (1 - share) * left


def _warmup(step: int, warmup_steps: int) -> float:
    return 1.0 if step >= warmup_steps else (step + 1) / warmup_steps
