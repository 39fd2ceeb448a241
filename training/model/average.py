"""An exponential moving average of the weights, which every rank keeps of its own shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from training.model.optim import local


class WeightAverage:
    """Averages the weights of `model`, in FP32: 4 bytes per parameter that this rank holds.

    An update moves the average by 1 - d of the way to the weights. d is `decay`, but (1 + n) / (10 +
    n) in the first steps n, as in TensorFlow's ExponentialMovingAverage: otherwise the average would
    consist of the first weights for a long time. It is made after sharding, because its tensors are
    sharded like the weights. `tensors`: the average of each parameter that is trained, by name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {
            name: weight.detach().to(torch.float32, copy=True)
            for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` applied steps."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for name, weight in self._weights.items():  # a single copy, should weights have fewer bits
            local(self.tensors[name]).lerp_(local(weight).float(), 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the present weights."""
        for name, weight in self._weights.items():
            local(self.tensors[name]).copy_(local(weight))

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Let the model have the average as its weights inside; they come back bit by bit.

        Their copy takes no more memory than the gradients, which do not exist between two steps.
        """
        weights = [local(weight) for weight in self._weights.values()]
        with torch.no_grad():
            held = [weight.clone() for weight in weights]
            for weight, average in zip(weights, self.tensors.values(), strict=True):
                weight.copy_(local(average))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, before in zip(weights, held, strict=True):
                    weight.copy_(before)
