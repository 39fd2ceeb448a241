"""AdamW, and a learning rate of their own for the embedding rows which the base model lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from koe.errors import ContractError
from koe.vocabulary import NUM_BASE
from training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build an AdamW that decays only the matrices between the layers.

    Norms and biases are scales, which decay would only shrink. An embedding row gets a gradient
    only when its token occurs, but would shrink at every step, and small embeddings make the
    gradients of the early layers large: OLMo 2 (arXiv 2501.00656) dropped their decay to end
    spikes. A tied head is the same weight. Weights that an adapter leaves as they are get no update.
    """
    embeddings = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    decayed, plain = [], []
    for parameter in trainable(model):
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained: all of them, unless there is an adapter."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in the next step, in all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class NewRowsRate:
    """Gives the rows of the tied embedding from `first_new_row` on a learning rate of their own.

    The embedding is one parameter, so the optimizer has one rate for it. Adam's moments do not
    depend on the rate, and embeddings are not decayed. So the update of the new rows is computed
    from the moments after `optimizer.step()`, exactly as if the rows were a group of their own.
    Scaling the change that the step made would be shorter, but that change is rounded to the
    weight's last bit. Early in a warm-up of 10,000 steps (5e-9) it is about one such bit or lost,
    and a factor above 1 would scale the error as well.

    `weight`: the parameter that `optimizer` updates, that is, after sharding; plain or a DTensor.
    One that is not trained has no rate, and `scaled` then does nothing.
    Raises: ContractError when the optimizer does not update it, or decays it.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, weight: torch.Tensor, first_new_row: int = NUM_BASE
    ) -> None:
        self._optimizer, self._weight = optimizer, weight
        self._group = _undecayed_group(optimizer, weight) if weight.requires_grad else None
        self._start = local_new_rows(weight, first_new_row)

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Let the `optimizer.step()` inside update new rows at `factor` times their group's rate.

        A factor of 1 changes nothing.
        """
        rows = local(self._weight)[self._start :]
        if factor == 1 or not len(rows) or self._group is None:
            yield
            return
        before = rows.clone()
        yield
        if self._weight.grad is None:  # the step did not update it
            return
        state = self._optimizer.state[self._weight]
        direction = adam_direction(state, self._group, slice(self._start, None))
        rows.copy_(before.add_(direction, alpha=-factor * self._group["lr"]))


def _undecayed_group(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(parameter is weight for parameter in group["params"]):
            break
    else:
        raise ContractError(
            "the embedding is not among the optimizer's parameters",
            "sharding replaces parameters",
            "Build the optimizer after sharding, and take the embedding from the sharded model.",
        )
    if group["weight_decay"]:
        raise ContractError(
            "the optimizer decays the embedding", "a rate of its own is exact only without decay"
        )
    return group


@torch.no_grad()
def adam_direction(state: dict[str, Any], group: dict[str, Any], part: slice) -> torch.Tensor:
    """Return what Adam's last step subtracted from a parameter, before rate and decay.

    It is computed from the moments in `state` after the step, for the rows `part` of the local
    shard: m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) (arXiv 1412.6980).
    """
    steps = float(state["step"])
    beta1, beta2 = group["betas"]
    denominator = local(state["exp_avg_sq"])[part].sqrt()
    denominator.div_(math.sqrt(1 - beta2**steps)).add_(group["eps"])
    return local(state["exp_avg"])[part].div(1 - beta1**steps).div_(denominator)


@torch.no_grad()
def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of `tensor` that this rank holds, sharing memory; all of a plain tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def local_new_rows(weight: torch.Tensor, first_new_row: int) -> int:
    """Return where the new rows start among this rank's rows of `weight`; their end if none do."""
    first_row = 0
    if isinstance(weight, DTensor):
        _, offsets = compute_local_shape_and_global_offset(
            weight.shape, weight.device_mesh, weight.placements
        )
        first_row = offsets[0]
    return min(max(0, first_new_row - first_row), len(local(weight)))
