"""Cross-entropy from hidden states, with logits for a few tokens at a time only.

Logits of 156,992 rows in FP32 are 628 kB a token: 2.4 GiB for two rows of 2048. Their gradient is
known as soon as they are, so it is turned into that of the hidden states and of the head at once,
as Liger does (linkedin/Liger-Kernel, `fused_linear_cross_entropy.py`); nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from training.data import IGNORED


def next_token_losses(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    *,
    chunk_tokens: int,
    compute_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the cross-entropy of each label given the hidden state of the token before it.

    `hidden` [rows, tokens, width], `head` [vocabulary, width] FP32, `labels` [rows, tokens].
    Returns the differentiable sum, a scalar, and the losses it adds up, FP32 [rows, tokens]
    without a gradient, each at the place of its label, 0 where that is ignored.
    """
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    total, losses = _ChunkedCrossEntropy.apply(
        hidden.flatten(0, 1),
        head,
        targets.flatten(),
        chunk_tokens,
        compute_dtype,
        torch.is_grad_enabled(),
    )  # pyright: ignore[reportGeneralTypeIssues]
    losses = functional.pad(losses.view_as(targets)[:, :-1], (1, 0))
    return total, losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        ctx.gradients = None
        if with_gradients:
            ctx.gradients = (torch.empty_like(hidden), torch.zeros_like(head))
        with torch.autocast(hidden.device.type, enabled=False):  # the casts are chosen here
            head_cast = head.to(compute_dtype)
            # One buffer for all chunks: a fresh one costs a CPU as much in page faults as the
            # product that fills it (measured: 222 against 85 ms for 256 tokens).
            buffer = head_cast.new_empty(min(chunk_tokens, len(targets)), len(head))
            for start in range(0, len(targets), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                hidden_cast = hidden[part].to(compute_dtype)
                logits = torch.mm(hidden_cast, head_cast.T, out=buffer[: len(hidden_cast)]).float()
                losses[part] = _losses_then_gradient_(logits, targets[part])
                if ctx.gradients is not None:
                    gradient = logits.to(compute_dtype)
                    ctx.gradients[0][part] = (gradient @ head_cast).to(hidden.dtype)
                    _add_product_(ctx.gradients[1], gradient.T, hidden_cast)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss have been used up")
        hidden, head = ctx.gradients
        ctx.gradients = None  # scaled in place: the head's gradient is as large as the head
        return hidden.mul_(upstream[0]), head.mul_(upstream[0]), None, None, None, None


def _losses_then_gradient_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the losses [tokens] and overwrite `logits` by the gradient of their sum."""
    supervised = targets != IGNORED
    index = targets.clamp(min=0).unsqueeze(1)
    wanted = logits.gather(1, index).squeeze(1)
    largest = logits.amax(1)
    exponentials = logits.sub_(largest.unsqueeze(1)).exp_()
    total = exponentials.sum(1)
    losses = torch.where(supervised, total.log() + largest - wanted, 0.0)
    exponentials.mul_((supervised / total).unsqueeze(1))
    exponentials.scatter_add_(1, index, -supervised.to(logits.dtype).unsqueeze(1))
    return losses


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
