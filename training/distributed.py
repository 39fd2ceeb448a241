"""The ranks of a run and the few collectives that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all of the run. With `world` 1 every collective is the identity."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Add each value up over all ranks, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.tolist()

    def all(self, flag: bool) -> bool:
        """Tell whether `flag` is true on every rank."""
        return self.sums([0.0 if flag else 1.0]) == [0.0]

    def from_main(self, value: int) -> int:
        """Return rank 0's `value` on every rank."""
        return round(self.sums([value if self.is_main else 0])[0])

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.sums([0.0])

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make `model` average its gradients over the ranks in every synchronised backward."""
        if self.world == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,  # the only buffers are RoPE's frequencies, equal everywhere
            gradient_as_bucket_view=True,  # saves a copy of all gradients
        )


def single(device: str) -> Ranks:
    """Describe a run of this process alone."""
    return Ranks(0, 1, torch.device(device))


def from_process_group(device: str, local_rank: int) -> Ranks:
    """Describe this process in the process group that is already there."""
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        place = torch.device("cuda", local_rank)
    else:
        place = torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), place)


def from_torchrun(device: str) -> Ranks:
    """Join the process group that torchrun's RANK, WORLD_SIZE and LOCAL_RANK describe.

    Without them the run has one rank. Raises: ConfigError when only some of them are set.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not found:
        return single(device)
    if len(found) < len(names):
        missing = ", ".join(name for name in names if name not in found)
        raise ConfigError(
            f"the environment sets {', '.join(found)} but not {missing}",
            remedy="Start the trainer with torchrun, which sets all of them.",
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return from_process_group(device, int(found["LOCAL_RANK"]))
