"""The ranks of a run, the collectives that training needs, and how a model is distributed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from shutil import which
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from koe.errors import ConfigError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

T = TypeVar("T")

# Backends of the process group, by device: gloo for objects, NCCL for tensors on GPUs.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run. With a `world` of 1 every collective is the identity."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all ranks, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.tolist()

    def sum_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks, in float64 on the CPU."""
        summed = self.sums(values.flatten().tolist())
        return torch.tensor(summed, dtype=torch.float64).view(values.shape)

    def maximum(self, value: float) -> float:
        """Return the largest value of any rank."""
        return self.maxima([value])[0]

    def maxima(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each value over all ranks, by one collective."""
        if self.world == 1:
            return [float(value) for value in values]
        largest = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def from_main(self, value: int) -> int:
        """Return rank 0's `value` on every rank."""
        return round(self.sums([value if self.is_main else 0])[0])

    def gather_objects(self, value: T) -> list[T] | None:
        """Return the values of all ranks, in order, on rank 0; None on the others."""
        if self.world == 1:
            return [value]
        values: list | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, values, dst=0)
        return values

    def wait(self) -> None:
        """Return once every rank has called this."""
        self.sums([0.0])


def choose_compile(wanted: bool | None, device: str) -> bool:
    """Return whether layers are compiled: by default on CUDA only.

    Measured on one H200 with Orpheus-3B's shape: 22.2 k tokens/s instead of 16.7 k.
    Raises: ConfigError where Triton, which compiles for a GPU, would not find a C compiler.
    """
    compiled = device == "cuda" if wanted is None else wanted
    named = os.environ.get("CC", "").split()[:1]
    if compiled and device == "cuda" and not any(map(which, [*named, "gcc", "clang"])):
        raise ConfigError(
            "layers cannot be compiled",
            "Triton needs a C compiler, and neither $CC nor gcc nor clang was found",
            "Install one (Debian's package gcc), or set train.compile: false, which trains at "
            "three quarters of the speed.",
        )
    return compiled


def parallelise(
    model: LlamaForCausalLM,
    ranks: Ranks,
    parallel: Literal["fsdp", "ddp"],
    precision: Literal["bf16", "fp32", "fp16"],
    *,
    compile: bool,
    activation_checkpointing: bool,
) -> nn.Module:
    """Make `model` average its gradients over the ranks in every synchronised backward.

    It must be called before the optimizer is built, because FSDP replaces the parameters by shards
    of them; their names stay. FSDP computes in `precision` and reduces gradients in FP32. With DDP,
    and at world 1, where nothing is wrapped, `precision` is up to the caller's autocast.
    """
    layers = model.model.layers
    if activation_checkpointing:
        # PyTorch's checkpoint_wrapper would become part of the parameters' names.
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    if compile:
        for layer in layers:
            layer.compile()
    if ranks.world == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(
            model,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            broadcast_buffers=False,  # the only buffers are RoPE's frequencies, equal everywhere
            gradient_as_bucket_view=True,  # saves a copy of all gradients
        )
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(COMPUTE_DTYPES[precision], reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # Embedding and head are one weight, needed first and last, so the root keeps it gathered.
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextmanager
def gradient_sync(model: nn.Module, last: bool) -> Iterator[None]:
    """Reduce gradients over the ranks only in the `last` micro-batch of a step.

    It encloses forward and backward pass. After the last one every rank holds the mean over the
    ranks (with FSDP its shard of it) of the sums over the micro-batches; multiplying the loss by
    the world size gives the sum.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        # otherwise every backward pass waits for its communication
        model.set_is_last_backward(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def total_gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return the L2 norm of all gradients as an FP32 scalar, the same on all ranks."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()  # of all ranks' shards
    return norm.float()


def single(device: str) -> Ranks:
    """Return the ranks of a run of this process alone."""
    return Ranks(0, 1, torch.device(device))


def from_process_group(device: str, local_rank: int) -> Ranks:
    """Return this process as a rank of the process group that exists already."""
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
        dist.init_process_group(BACKENDS[device])
    return from_process_group(device, int(found["LOCAL_RANK"]))
