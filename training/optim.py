"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW that decays the matrices between the layers only.

    Norms and biases are scales, which decay would only shrink. Embeddings are left alone because
    a row gets a gradient only when its token occurs, but would shrink at every step, and small
    embeddings make the gradients of the early layers large: OLMo 2 (arXiv 2501.00656) drops it to
    end spikes. A tied head shares that weight.
    """
    embeddings = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    decayed, plain = [], []
    for parameter in model.parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of step `step`, counted from 0.

    It rises linearly to `learning_rate` at step `warmup_steps` - 1, then follows a cosine down to
    `min_learning_rate_share` of it at the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, config.max_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    share = config.min_learning_rate_share
    return config.learning_rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in the next step, in all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
