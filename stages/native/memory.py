"""Batches that fit into the memory of a device: measured once, and halved where that was too much.

A caller gives every batch a cost in its own unit, such as samples. A `Bound` holds the most that a
batch may cost; `halving` runs one, in parts where the device has less memory than was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from koe.errors import StageError

S = TypeVar("S")
T = TypeVar("T")

_LOG = logging.getLogger(__name__)

# Of what is free, this much is planned with; the rest is for fragments and for what the libraries
# of the GPU load late.
_PLANNED_SHARE = 0.8
# Failures of the GPU's and the CPU's allocators that torch has no type for.
_OTHER_WORDS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


class Bound:
    """The most that a batch may cost: `limit`, in the caller's unit. `model` is named in messages."""

    def __init__(self, limit: float, model: str) -> None:
        self.limit, self.model = limit, model
        self._told = False

    def lower(self, cost: float) -> None:
        """Allow half of `cost`, for which there was no memory; say so the first time."""
        self.limit = min(self.limit, cost / 2)
        if not self._told:
            _LOG.warning(
                "%s found too little free memory for a batch: batches are halved from here on, "
                "which may cost speed",
                self.model,
            )
        self._told = True


def halving(
    batch: Sequence[S],
    run: Callable[[Sequence[S]], T],
    cost: Callable[[Sequence[S]], float],
    bound: Bound,
) -> list[T]:
    """Return what `run` gives for the batch or, where that is too much, for its parts, in order.

    A part that costs more than `bound` allows, or finds no memory, is halved, down to single items.
    Failures lower `bound`, also for the batches that are yet to be formed.
    Raises: StageError when a single item finds no memory; whatever else `run` raises.
    """
    results: list[T] = []
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        if len(part) < 2 or cost(part) <= bound.limit:
            try:
                results.append(run(part))
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) < 2:
                    raise _too_large(bound.model, error) from error
            # Outside of `except`, whose traceback holds the tensors of the attempt.
            bound.lower(cost(part))
            torch.cuda.empty_cache()  # does nothing where CUDA was never used
        middle = len(part) // 2
        waiting += [part[middle:], part[:middle]]
    return results


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether torch raised `error` because a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OTHER_WORDS)


def measured_limit(
    device: torch.device, run: Callable[[], object], cost: float, share: float = 1.0
) -> float:
    """Return what a batch may cost on a GPU, after a batch of `cost` that `run` computes.

    The bytes that it takes at its most are those of its cost in proportion; `share` (0 to 1) of
    the GPU's memory is the caller's, of which it plans with what is free now. 0 where memory lacks
    for that batch already. Not to be called for a CPU, whose memory nothing bounds here.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        run()
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
    taken = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return planned(free, total, share) * cost / max(1, taken)


def planned(free: int, total: int, share: float) -> float:
    """Return the bytes that one of several processes on a GPU may plan with."""
    return _PLANNED_SHARE * min(free, share * total)


def _too_large(model: str, error: Exception) -> StageError:
    return StageError(
        f"{model} found too little memory for a single clip",
        str(error).strip().split("\n")[0],
        "Give the stage's workers a larger share of the GPU (gpus_per_worker), or stop what else "
        "runs on it; the unit can be resumed.",
    )
