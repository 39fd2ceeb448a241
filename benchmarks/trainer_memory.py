"""Peak memory of one rank of koe's trainer, computed without a GPU.

    python -m benchmarks.trainer_memory                 Orpheus-3B, 8 ranks, 2 rows of 2048 tokens
    python -m benchmarks.trainer_memory --micro-batch-rows 4 --json FILE

Two steps of the trainer's own model, FSDP2 wrapping, loss and optimizer run on tensors that have a
shape but no data (FakeTensorMode), on a process group that exchanges nothing. PyTorch's memory
trackers count every storage alive in the second step, which has Adam's moments from its start, up to
the fused update, which works in place. A sum worked out on paper stands beside it.

The tensors are CPU tensors, because autograd on GPU tensors needs a GPU. Where the trainer computes
differently on a CPU, stand-ins with the GPU's shapes and dtypes take its place: the flash kernel,
and the products of the loss. DDP's reducer is C++ and needs data: its buckets, which are as large as
the FP32 gradients and exist throughout the run, are added to a run without it.

A step has two micro-batches here: later ones repeat the second, which finds the gradients of the
first. Cards are compared by the gigabytes of their data sheets.

Not counted: the CUDA context and the buffers of NCCL (1 to 2 GB together), those of cuBLAS, gaps
between blocks of the allocator, and what a compiled layer saves or keeps differently.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.trainer_gpu import ORPHEUS_3B
from training.config import TrainConfig
from training.model import loss
from training.model.distributed import Ranks, gradient_sync, parallelise, total_gradient_norm
from training.model.llama import build_model
from training.model.optim import build_optimizer
from training.step import compute_precision

WORLD, ROW_TOKENS, MICRO_BATCHES = 8, 2048, 2
CARDS_GB = {"H200": 141, "80 GB card": 80}  # of 10^9 bytes, as the data sheets count


@dataclass(frozen=True)
class Setting:
    """A way to train: `parallel` is fsdp, ddp, or single for one rank that wraps nothing."""

    parallel: str
    activation_checkpointing: bool

    @property
    def name(self) -> str:
        ranks = "1 rank" if self.parallel == "single" else f"{self.parallel}, {WORLD} ranks"
        return ranks + (", activation checkpointing" if self.activation_checkpointing else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--micro-batch-rows", type=int, default=2)
    parser.add_argument("--layers", type=int, default=ORPHEUS_3B.num_hidden_layers)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    found = {}
    for parallel in ("fsdp", "ddp", "single"):
        for activation_checkpointing in (False, True):
            setting = Setting(parallel, activation_checkpointing)
            config = config_of(setting, options)
            found[setting.name] = figures(setting, config)
            show(setting.name, found[setting.name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    dist.destroy_process_group()
    return 0


def config_of(setting: Setting, options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        device="cpu",
        base_model=None,
        tiny=ORPHEUS_3B.model_copy(update={"num_hidden_layers": options.layers}),
        attention="varlen",
        micro_batch_rows=options.micro_batch_rows,
        accumulation_steps=MICRO_BATCHES,
        activation_checkpointing=setting.activation_checkpointing,
    )


def figures(setting: Setting, config: TrainConfig) -> dict[str, Any]:
    """Return the tracked peak and its parts, and those worked out on paper, in bytes."""
    parts, num_parameters = track(setting, config)
    if setting.parallel == "ddp":
        parts["DDP's buckets"] = 4 * num_parameters
    return {
        "tracked": sum(parts.values()),
        "tracked_parts": parts,
        "on_paper": sum(on_paper(setting, config).values()),
        "on_paper_parts": on_paper(setting, config),
        "parameters": num_parameters,
    }


def show(name: str, found: dict[str, Any]) -> None:
    tracked = found["tracked"] / 1e9
    room = ", ".join(
        f"{card} {size}: {'fits' if tracked < size else 'TOO SMALL'}, {tracked / size:.0%}"
        for card, size in CARDS_GB.items()
    )
    print(f"{name}: {tracked:.1f} GB tracked, {found['on_paper'] / 1e9:.1f} on paper ({room})")
    for kind in ("tracked", "on_paper"):
        parts = [f"{part} {size / 1e9:.1f}" for part, size in found[f"{kind}_parts"].items()]
        print(f"    {kind.replace('_', ' ')}: {', '.join(parts)}", flush=True)


def track(setting: Setting, config: TrainConfig) -> tuple[dict[str, int], int]:
    """Run steps on fake tensors; return the bytes alive at the peak by kind, and the parameters."""
    world = 1 if setting.parallel == "single" else WORLD
    ranks = Ranks(0, world, torch.device("cpu"))
    mesh = init_device_mesh(
        "cpu", (WORLD,)
    )  # reads its own ranks, which a fake tensor does not have
    with (
        FakeTensorMode(),
        on_a_gpu(),
        patch("training.model.distributed.init_device_mesh", lambda *_: mesh),
    ):
        plain = build_model(config)
        num_parameters = sum(p.numel() for p in plain.parameters())
        model = parallelise(
            plain,
            ranks if setting.parallel == "fsdp" else Ranks(0, 1, ranks.device),
            "fsdp",
            config.precision,
            compile=False,
            activation_checkpointing=config.activation_checkpointing,
        ).train()
        optimizer = build_optimizer(plain, config)
        # Neither the first step nor any update is tracked: DTensor works out what an operation
        # returns on fake tensors of the full size, which the tracker would take for memory.
        add_gradients(model, config)
        clip(plain, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if setting.parallel == "fsdp":
            tracker = FSDPMemTracker(model, optimizer)
        else:
            tracker = MemTracker()
            tracker.track_external(model, optimizer)
        with tracker:
            add_gradients(model, config, tracker)
            clip(plain, config)
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    parts = {getattr(kind, "value", kind): size for kind, size in peak.items()}
    del parts["Total"]
    return {str(kind).lower(): size for kind, size in parts.items() if size > 1e6}, num_parameters


def add_gradients(model: nn.Module, config: TrainConfig, tracker: MemTracker | None = None) -> None:
    """Do what `training.step.accumulate_gradients` does, except for reading values."""
    rows = config.micro_batch_rows
    boundaries = [row * ROW_TOKENS for row in range(rows + 1)]
    kept = []  # a step's losses stay until its end
    for place in range(config.accumulation_steps):
        ids = torch.zeros(rows, ROW_TOKENS, dtype=torch.int64)
        with gradient_sync(model, place == config.accumulation_steps - 1):
            with compute_precision(model, "cpu", config.precision):
                losses = model(
                    input_ids=ids,
                    labels=ids.clone(),
                    position_ids=ids.clone(),
                    document_index=ids.int(),
                    document_boundaries=boundaries,
                )
            losses.total.backward()
        kept.append(losses)
        if tracker:
            tracker.reset_mod_stats()


def clip(plain: nn.Module, config: TrainConfig) -> None:
    parameters = list(plain.parameters())
    torch.nn.utils.clip_grads_with_norm_(
        parameters, config.max_gradient_norm, total_gradient_norm(parameters)
    )


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Give the tensors of attention and loss the shapes and dtypes that they have on a GPU."""
    in_bf16 = _forced_dtype(loss.next_token_losses)
    with (
        patch("training.model.attention._each_document", _flash),
        patch("training.model.llama.next_token_losses", in_bf16),
        patch("training.model.loss._operand", lambda tensor, dtype: tensor.to(dtype)),
        patch("training.model.loss._multiply", lambda left, right, out: out.zero_()),
        patch("training.model.loss._add_product_", lambda total, left, right: total.zero_()),
    ):
        yield


def _forced_dtype(function: Any) -> Any:
    def forced(*arguments: Any, compute_dtype: torch.dtype, **others: Any) -> Any:
        return function(*arguments, compute_dtype=torch.bfloat16, **others)

    return forced


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: Any, scaling: Any
) -> torch.Tensor:
    return _FlashShapes.apply(query, key, value)  # pyright: ignore[reportReturnType]


class _FlashShapes(torch.autograd.Function):
    """What flash attention allocates and saves: its inputs, its output, one log-sum per head."""

    @staticmethod
    def forward(ctx: Any, *states: torch.Tensor) -> torch.Tensor:
        query = states[0]
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
        ctx.save_for_backward(*states, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        # Sums of the query's gradient in FP32 (FlashAttention-2) and of upstream times output.
        _work = torch.empty_like(query, dtype=torch.float32), torch.empty_like(sums)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def on_paper(setting: Setting, config: TrainConfig) -> dict[str, int]:
    """Add up what must be alive when a later backward pass begins, in bytes."""
    shape = config.tiny
    width, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    kv_width = width * shape.num_key_value_heads // shape.num_attention_heads
    vocabulary = 156_992
    embedding = vocabulary * width
    layer = 2 * width * (width + kv_width) + 3 * width * inner + 2 * width
    parameters = embedding + layers * layer + width
    tokens = config.micro_batch_rows * ROW_TOKENS
    sharded = setting.parallel == "fsdp"
    shards = WORLD if sharded else 1
    parts = {
        "weights": 4 * parameters // shards,
        "moments": 8 * parameters // shards,
        # Between micro-batches FSDP keeps the unsharded gradients in FP32 and does not reduce them.
        "gradients": 4 * parameters,
        # FSDP has the root's and two layers' at a time; autocast remembers every cast of a pass.
        "BF16 weights": 2 * (embedding + 2 * layer) if sharded else 2 * (parameters - embedding),
        # The head's gradient in FP32, and a BF16 copy: of it under FSDP, else of the head.
        "loss": (4 + 2) * embedding,
        "activations": tokens * layers * _layer_bytes(width, kv_width, inner, sharded),
    }
    if setting.activation_checkpointing:
        of_layer = tokens * _layer_bytes(width, kv_width, inner, sharded)
        parts["activations"] = layers * tokens * (2 if sharded else 4) * width + of_layer
    if not sharded:  # FSDP's copy is made after the chunk of logits and its gradient have gone
        parts["loss"] += (4 + 2) * config.loss_chunk_tokens * vocabulary
    if setting.parallel == "ddp":
        parts["DDP's buckets"] = 4 * parameters
    return parts


def _layer_bytes(width: int, kv_width: int, inner: int, sharded: bool) -> int:
    """Return the bytes that a token's pass through a decoder layer saves for the backward pass.

    Under FSDP the stream between layers is BF16 and each norm saves it in FP32, normalised, and
    scaled; under autocast it is FP32, and each linear layer saves a BF16 copy of its input.
    """
    norms = 2 * (4 + 2 + 2) if sharded else (4 + 4 + 3 * 2) + (4 + 4 + 2 * 2)
    attention = 2 * (2 * width + 2 * kv_width)  # query, key, value, output
    return norms * width + attention + 4 * 2 * inner  # gate, its SiLU, up, their product


if __name__ == "__main__":
    sys.exit(main())
