"""Cross-entropy from hidden states, with the logits of a few tokens at a time.

FP32 logits of 156,992 ids take 628 kB per token: 2.4 GiB for two rows of 2048. Their gradient is
known as soon as they are, so the gradients of hidden states and head are computed at once, as in
Liger (linkedin/Liger-Kernel, `fused_linear_cross_entropy.py`); nothing is computed twice.

Liger's own kernel is not offered: it does not return the largest logit, an early sign of
divergence, and for a loss per token (`reduction="none"`) it computes all logits again in the
backward pass, where older releases scaled the gradient wrongly. It saves no more than this one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from training.data.batches import IGNORED


class Losses(NamedTuple):
    """Losses of a batch of rows; only `total` has a gradient."""

    total: torch.Tensor  # scalar: cross-entropies + z_loss * squared log normalisers, summed
    token_losses: torch.Tensor  # FP32 [rows, tokens]: cross-entropies at their labels' places
    largest_logit: torch.Tensor  # scalar: over the supervised positions; -inf without any


def next_token_losses(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    *,
    chunk_tokens: int,
    compute_dtype: torch.dtype,
    z_loss: float = 0.0,
    kernel: str = "chunked",
) -> Losses:
    """Sum the cross-entropy of each label given the hidden state of the token before it.

    `hidden` [rows, tokens, width], `head` [vocabulary, width], `labels` [rows, tokens]. Products
    take operands of `compute_dtype` and accumulate in FP32, including the head's gradient over all
    chunks; `z_loss` is the weight of the squared log normaliser (PaLM, arXiv 2204.02311, section 5).
    `plain` holds all logits at once and is the oracle of `chunked`. The loss of an ignored label
    is 0.
    """
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    flat = hidden.flatten(0, 1), head, targets.flatten()
    if kernel == "plain":
        total, losses, largest = _plain(*flat, compute_dtype, z_loss)
    else:
        total, losses, largest = _ChunkedCrossEntropy.apply(
            *flat, chunk_tokens, compute_dtype, z_loss, torch.is_grad_enabled()
        )  # pyright: ignore[reportGeneralTypeIssues]
    losses = functional.pad(losses.view_as(targets)[:, :-1], (1, 0))
    return Losses(total, losses, largest)


def _plain(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    compute_dtype: torch.dtype,
    z_loss: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = (_operand(hidden, compute_dtype) @ _operand(head, compute_dtype).T).float()
        losses = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        supervised = targets != IGNORED
        squares = torch.where(supervised, logits.logsumexp(1).square(), 0.0)
        largest = torch.where(supervised, logits.detach().amax(1), -torch.inf).amax()
        return losses.sum() + z_loss * squares.sum(), losses.detach(), largest


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
        z_loss: float,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        facts = torch.empty(3, len(targets), dtype=torch.float32, device=hidden.device)
        gradients = None
        if with_gradients:
            of_head = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
            gradients = torch.empty_like(hidden), of_head
        with torch.autocast(hidden.device.type, enabled=False):  # the casts are explicit here
            head_cast = _operand(head, compute_dtype)
            # One buffer for all chunks: on a CPU the page faults of a fresh one cost more than the
            # product that fills it (measured: 222 instead of 85 ms for 256 tokens).
            shape = min(chunk_tokens, len(targets)), len(head)
            all_logits = head_cast.new_empty(shape, dtype=torch.float32)
            is_low = gradients is not None and head_cast.dtype != torch.float32
            all_slopes = head_cast.new_empty(shape) if is_low else all_logits
            for start in range(0, len(targets), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                hidden_cast = _operand(hidden[part], compute_dtype)
                logits, slopes = all_logits[: len(hidden_cast)], all_slopes[: len(hidden_cast)]
                _multiply(hidden_cast, head_cast.T, logits)
                facts[:, part] = _facts_and_slopes_(
                    logits, targets[part], z_loss, slopes if gradients else None
                )
                if gradients is not None:
                    _multiply(slopes, head_cast, gradients[0][part])
                    if gradients[1] is not None:  # a head that is not trained saves a third
                        _add_product_(gradients[1], slopes.T, hidden_cast)
        losses, normalisers, largest = facts
        largest_logit = largest.amax()
        ctx.gradients, ctx.head_dtype = gradients, head.dtype
        ctx.mark_non_differentiable(losses, largest_logit)
        return losses.sum() + z_loss * normalisers.square().sum(), losses, largest_logit

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("this loss can only be differentiated once")
        hidden, head = ctx.gradients
        ctx.gradients = None  # scaled in place, because the head's gradient is as large as the head
        scale = upstream[0]
        if head is not None:
            head = head.mul_(scale).to(ctx.head_dtype)
        return hidden.mul_(scale), head, *[None] * 5


def _facts_and_slopes_(
    logits: torch.Tensor, targets: torch.Tensor, z_loss: float, slopes: torch.Tensor | None
) -> torch.Tensor:
    """Return losses, log normalisers and largest logits, [3, tokens], neutral where ignored.

    Fills `slopes`, if given, with the total's derivative by the logits. `logits` are overwritten;
    both may be the same tensor.
    """
    supervised = targets != IGNORED
    index = targets.clamp(min=0).unsqueeze(1)
    largest = logits.amax(1)
    below = logits.gather(1, index).squeeze(1) - largest  # the label's logit
    exponentials = logits.sub_(largest.unsqueeze(1)).exp_()
    total = exponentials.sum(1)
    logarithm = total.log()
    normalisers = torch.where(supervised, logarithm + largest, 0.0)
    if slopes is not None:
        factor = supervised * (1 + 2 * z_loss * normalisers) / total
        wanted = below.exp() * factor - supervised.to(factor.dtype)  # before any rounding to BF16
        torch.mul(exponentials, factor.unsqueeze(1), out=slopes)
        slopes.scatter_(1, index, wanted.unsqueeze(1).to(slopes.dtype))
    losses = torch.where(supervised, logarithm - below, 0.0)
    return torch.stack([losses, normalisers, torch.where(supervised, largest, -torch.inf)])


def _operand(tensor: torch.Tensor, compute_dtype: torch.dtype) -> torch.Tensor:
    """Round to `compute_dtype`. On a CPU the rounded values stay in FP32, where products are exact,
    and 10 to 100 times faster than in BF16 without AVX512-BF16.
    """
    rounded = tensor.to(compute_dtype)
    return rounded.float() if tensor.device.type == "cpu" else rounded


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif (
        out.dtype == torch.float32
    ):  # not rounded to the operands' BF16; torch offers it on GPUs only
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    else:
        out.copy_(left @ right)


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add to the FP32 `total`; partial sums in BF16 would lose the small chunks' share."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
