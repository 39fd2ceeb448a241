"""Runs one logged step again, to see which document made it what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from koe.errors import ConfigError
from training.checkpoint import writer as checkpoints
from training.config import TrainConfig
from training.data.batches import collate
from training.data.shard_rows import ShardRows
from training.metrics import read_events, say
from training.model.distributed import single, total_gradient_norm
from training.model.llama import build_model
from training.monitor import document_losses
from training.run import CHECKPOINT_FOLDER
from training.step import accumulate_gradients


@dataclass(frozen=True)
class ReplayedDocument:
    """`loss` is the mean over the document's supervised tokens, None where it has none."""

    row: int
    id: str
    source: str
    modality: str
    tokens: int
    loss: float | None


@dataclass(frozen=True)
class Replay:
    """A logged step, run again. `weights_step` is the step of the weights that were at hand."""

    event: dict[str, Any]
    weights_step: int
    loss: float
    gradient_norm: float
    row_gradient_norms: dict[int, float]  # of each row alone, as its part of the step's mean
    documents: list[ReplayedDocument]  # the highest loss first


def replay(config: TrainConfig, shards: Path, out_dir: Path, event_id: str) -> Replay:
    """Run the rows of an event through the newest checkpoint before it, in this process.

    The weights are those of that checkpoint, so the numbers equal the logged ones only where the
    event came right after it. Nothing is updated or written.
    Raises: ConfigError for an event that is not there or has no rows, or without a checkpoint.
    """
    event = _find_event(out_dir, event_id)
    rows = ShardRows(shards, "train")
    before = event["step"] - (event["event"] == "clip")  # a clipped step has been applied
    found = checkpoints.latest_before(out_dir / CHECKPOINT_FOLDER, before, say)
    if found is None:
        raise ConfigError(
            f"there is no whole checkpoint at or before step {before}",
            f"{out_dir / CHECKPOINT_FOLDER} holds none",
            "Only events after a kept checkpoint can be run again; train.keep_checkpoints says how "
            "many are kept.",
        )
    checkpoints.require_same_data(found, rows.fingerprint, config.rows_per_step, False)
    ranks = single(config.device)
    model = build_model(config)
    checkpoints.load_weights(found.path, model)
    model = model.to(ranks.device).train()  # pyright: ignore[reportArgumentType]

    documents: list[ReplayedDocument] = []
    norms: dict[int, float] = {}
    total, supervised = 0.0, 0
    gradients: list[torch.Tensor] | None = None
    parameters = list(model.parameters())
    for number in event["rows"]:
        row = rows[number]
        batch = collate([row], model.num_embeddings, rows.sources, config.loss_on)
        if not batch.num_supervised:
            continue
        result = accumulate_gradients(model, [batch], ranks, config.precision, len(rows.sources))
        # The step's gradient is the mean over all its tokens: undo the row's own mean.
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(result.supervised)
        norms[number] = float(total_gradient_norm(parameters))
        gradients = _add(gradients, parameters)
        model.zero_grad(set_to_none=True)
        total += result.loss * result.supervised
        supervised += result.supervised
        per_document = document_losses(
            result.token_losses[0].cpu(), batch.labels, batch.document_index
        )[0]
        for place, (loss, tokens) in enumerate(per_document):
            documents.append(
                ReplayedDocument(
                    number,
                    row.document_ids[place],
                    row.document_sources[place],
                    row.document_modalities[place],
                    int(row.document_lengths[place]),
                    loss if tokens else None,
                )
            )
    supervised = max(supervised, 1)
    gradient_norm = float(torch.nn.utils.get_total_norm(gradients or [])) / supervised
    documents.sort(key=lambda d: -math.inf if d.loss != d.loss else -(d.loss or 0.0))
    return Replay(
        event,
        found.progress.steps,
        total / supervised,
        gradient_norm,
        {number: norm / supervised for number, norm in norms.items()},
        documents,
    )


def _find_event(out_dir: Path, event_id: str) -> dict[str, Any]:
    events = read_events(out_dir)
    found = [event for event in events if event["id"] == event_id]
    if not found:
        known = [event["id"] for event in events if event.get("rows")]
        raise ConfigError(
            f"{out_dir / 'events.jsonl'} has no event {event_id}",
            f"events with rows: {', '.join(known[-20:]) or 'none'}",
        )
    if not found[-1].get("rows"):
        raise ConfigError(
            f"event {event_id} ({found[-1]['event']}) has no rows", "it is not about one step"
        )
    return found[-1]


def _add(
    total: list[torch.Tensor] | None, parameters: list[torch.nn.Parameter]
) -> list[torch.Tensor]:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
    if total is None:
        return parts
    for left, right in zip(total, parts, strict=True):
        left.add_(right)
    return total
