"""The loss on the validation split, by source, modality and codebook slot, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from training.config import TrainConfig
from training.data.batches import IGNORED, collate
from training.data.loader import split_rows
from training.data.shard_rows import ShardRows
from training.model.distributed import Ranks
from training.model.llama import PackedLlama
from training.monitor import loss_sums, split_by_modality, split_losses
from training.step import forward


@dataclass(frozen=True)
class Evaluation:
    """Mean losses over the supervised tokens of some rows, None where there are none."""

    loss: float  # NaN without any token
    loss_by_source: dict[str, float | None]
    loss_by_modality: dict[str, float | None]
    loss_by_slot: list[float | None]  # of the 7 tokens of a frame
    rows: int
    tokens: int  # supervised


def evaluate(model: nn.Module, rows: ShardRows, ranks: Ranks, config: TrainConfig) -> Evaluation:
    """Measure the loss on up to `evaluation.max_rows` rows, spread evenly; every rank must call it.

    The rows form the same micro-batches at any number of ranks, and every rank runs the model
    equally often, because the passes of a sharded model are collective. Weights, gradients, random
    states and the model's mode do not change.
    """
    numbers = chosen_rows(len(rows), config.evaluation.max_rows)
    share = split_rows(numbers, ranks.rank, ranks.world, config.micro_batch_rows)
    num_passes = math.ceil(len(numbers) / (config.micro_batch_rows * ranks.world))
    parts: list[torch.Tensor] = []
    with eval_mode(model, ranks.device) as plain:
        for turn in range(num_passes):
            # A rank without rows of its own in the last turn runs along and counts nothing.
            part = share[turn] if turn < len(share) else numbers[:1]
            batch = collate(
                [rows[number] for number in part],
                plain.num_embeddings,
                rows.sources,
                config.loss_on,
            )
            if turn >= len(share):
                batch = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
            batch = batch.to(ranks.device)
            losses = forward(plain, batch, config.precision).token_losses
            parts.append(loss_sums(losses, batch.labels, batch.source, len(rows.sources)))
    sums = ranks.sum_tensor(reduce(torch.add, parts))
    by_source, by_slot = split_losses(sums, rows.sources)
    total, count = sums[: len(rows.sources)].sum(0).tolist()
    return Evaluation(
        loss=total / count if count else math.nan,
        loss_by_source=by_source,
        loss_by_modality=split_by_modality(sums, rows.source_modality),
        loss_by_slot=by_slot,
        rows=len(numbers),
        tokens=int(count),
    )


def chosen_rows(num_rows: int, max_rows: int) -> list[int]:
    """Spread `max_rows` numbers evenly over the rows, so that the mix is represented."""
    count = min(num_rows, max_rows)
    return [place * num_rows // count for place in range(count)]


@contextmanager
def eval_mode(model: nn.Module, device: torch.device) -> Iterator[PackedLlama]:
    """Give the model below DDP for passes without gradients, and leave no trace of them.

    Random states and the training mode are restored. FSDP leaves its root gathered after a forward
    pass that no backward pass follows, and whoever then reads or loads weights would meet a copy:
    the model is sharded again.
    """
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(plain, PackedLlama)
    was_training = plain.training
    plain.eval()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
        ):
            yield plain
    finally:
        plain.train(was_training)
        for module in plain.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
