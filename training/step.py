"""One step's gradients: of the mean over all supervised tokens of all ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from koe.errors import ContractError
from training.data.batches import Batch
from training.model.attention import document_boundaries
from training.model.distributed import COMPUTE_DTYPES, Ranks, gradient_sync
from training.model.loss import Losses
from training.monitor import loss_sums


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step's passes, over all ranks except for `token_losses`."""

    loss: float  # mean over the supervised tokens
    supervised: int
    tokens: int  # without padding
    sums: torch.Tensor  # see training.monitor.loss_sums; on the CPU
    largest_logit: float
    token_losses: list[torch.Tensor]  # of this rank's micro-batches, [rows, tokens] each


def accumulate_gradients(
    model: nn.Module, batches: Sequence[Batch], ranks: Ranks, precision: str, num_sources: int
) -> StepResult:
    """Add up the gradients of one step.

    The tokens are counted before the first backward pass, so that every token weighs the same,
    however the rows are divided into micro-batches and ranks.
    Raises: ContractError when there is no token to predict.
    """
    counts = [sum(b.num_supervised for b in batches), sum(b.num_tokens for b in batches)]
    supervised, tokens = (int(value) for value in ranks.sums(counts))
    if not supervised:
        raise ContractError(
            "a step has no token to predict",
            "its documents have one token each, or none holds a response",
            "Check the shards with `koe inspect`, and train.loss_on.",
        )
    # FSDP and DDP divide the sum of the ranks' gradients by their number; this undoes it.
    scale = ranks.world / supervised
    parts: list[Losses] = []
    sums: list[torch.Tensor] = []
    for place, batch in enumerate(batches):
        boundaries = document_boundaries(batch.document_index)  # while the GPU is still busy
        batch = batch.to(ranks.device)
        with gradient_sync(model, place == len(batches) - 1):
            losses = forward(model, batch, precision, boundaries)
            (losses.total * scale).backward()
        parts.append(losses)
        sums.append(loss_sums(losses.token_losses, batch.labels, batch.source, num_sources))
    total = ranks.sum_tensor(reduce(torch.add, sums))
    largest = max(float(losses.largest_logit) for losses in parts)
    return StepResult(
        loss=float(total[:num_sources, 0].sum()) / supervised,
        supervised=supervised,
        tokens=tokens,
        sums=total,
        largest_logit=ranks.maximum(largest),
        token_losses=[losses.token_losses for losses in parts],
    )


def forward(
    model: nn.Module, batch: Batch, precision: str, boundaries: Sequence[int] | None = None
) -> Losses:
    """Run a batch that is on the model's device; for `boundaries` see `attention_inputs`."""
    with compute_precision(model, batch.input_ids.device.type, precision):
        return model(
            input_ids=batch.input_ids,
            labels=batch.labels,
            position_ids=batch.position_ids,
            document_index=batch.document_index,
            document_boundaries=boundaries,
        )


def compute_precision(
    model: nn.Module, device_type: str, precision: str
) -> AbstractContextManager[Any]:
    """Return the autocast for `precision`; FSDP casts by its own policy instead."""
    if precision == "fp32" or isinstance(model, FSDPModule):
        return nullcontext()
    return torch.autocast(device_type, dtype=COMPUTE_DTYPES[precision])
