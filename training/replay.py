"""Runs one logged step again, to see which documents caused its loss and gradient norm."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from koe.errors import ConfigError
from training.checkpoint import folder as checkpoints
from training.checkpoint.reader import load_weights
from training.checkpoint.store import CheckpointStore
from training.config import TrainConfig
from training.data.batches import collate
from training.data.shard_rows import TRAIN, Row, ShardRows
from training.logs import EVENTS_FILE
from training.metrics import read_events, say
from training.model.distributed import Ranks, single, total_gradient_norm
from training.model.llama import PackedLlama, build_model
from training.monitor import DocumentLoss, describe_documents, worst_first
from training.places import Place, beside
from training.run import CHECKPOINT_FOLDER
from training.step import StepResult, accumulate_gradients


@dataclass(frozen=True)
class Replay:
    """A logged step, run again. `weights_step` is the step of the weights that it was run with."""

    event: dict[str, Any]
    weights_step: int
    loss: float
    gradient_norm: float
    row_gradient_norms: dict[int, float]  # of each row alone, as its part of the step's mean
    documents: list[DocumentLoss]  # the highest loss first


def replay(config: TrainConfig, shards: Place, out_dir: Place, event_id: str) -> Replay:
    """Run the rows of an event through the newest checkpoint before it, in this process.

    The weights are those of that checkpoint, so the numbers equal the logged ones only where the
    event came right after it. Nothing is updated or written.
    Raises: ConfigError when there is no such event, it has no rows, or no checkpoint precedes it.
    """
    event = _find_event(out_dir, event_id)
    with closing(ShardRows(shards, TRAIN, config.shard_cache_gigabytes)) as rows:
        with closing(checkpoints.open_store(beside(out_dir, CHECKPOINT_FOLDER))) as store:
            checkpoint = _checkpoint_before(store, event)
            checkpoints.require_same_shards(checkpoint, rows.fingerprint, False)
            model = build_model(config)
            load_weights(checkpoint.path, model)
        return _run_again(config, event, rows, model, checkpoint.progress.steps)


def _run_again(
    config: TrainConfig, event: dict[str, Any], rows: ShardRows, model: PackedLlama, steps: int
) -> Replay:
    """Run the rows of an event one by one through the weights of step `steps`."""
    ranks = single(config.device)
    model = model.to(ranks.device).train()  # pyright: ignore[reportArgumentType]
    parameters = list(model.parameters())
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    norms: dict[int, float] = {}
    documents: list[DocumentLoss] = []
    loss, supervised = 0.0, 0
    for number in event["rows"]:
        result, of_row = _run_row(model, rows[number], rows.sources, config, ranks)
        if result is None:
            continue
        norms[number] = float(total_gradient_norm(parameters))
        for gradient, parameter in zip(gradients, parameters, strict=True):
            if parameter.grad is not None:
                gradient.add_(parameter.grad)
        model.zero_grad(set_to_none=True)
        loss += result.loss * result.supervised
        supervised += result.supervised
        documents += of_row
    supervised = max(supervised, 1)
    return Replay(
        event,
        steps,
        loss / supervised,
        float(torch.nn.utils.get_total_norm(gradients)) / supervised,
        {number: norm / supervised for number, norm in norms.items()},
        worst_first(documents),
    )


def _run_row(
    model: PackedLlama, row: Row, sources: list[str], config: TrainConfig, ranks: Ranks
) -> tuple[StepResult | None, list[DocumentLoss]]:
    """Compute one row's losses, and the gradients of their sum; None without a supervised token."""
    batch = collate([row], model.num_embeddings, sources, config.loss_on)
    if not batch.num_supervised:
        return None, []
    result = accumulate_gradients(model, [batch], ranks, config.precision, len(sources))
    for parameter in model.parameters():
        if parameter.grad is not None:
            # The step took the mean over all of its tokens, so the row's own mean is undone.
            parameter.grad.mul_(result.supervised)
    return result, describe_documents([row], batch, result.token_losses[0])


def _find_event(out_dir: Place, event_id: str) -> dict[str, Any]:
    events = read_events(out_dir)
    found = [event for event in events if event.get("id") == event_id]
    if not found:
        known = [str(event.get("id")) for event in events if event.get("rows")]
        raise ConfigError(
            f"{beside(out_dir, EVENTS_FILE)} has no event {event_id}",
            f"events with rows: {', '.join(known[-20:]) or 'none'}",
        )
    if not found[-1].get("rows"):
        raise ConfigError(
            f"event {event_id} ({found[-1]['event']}) has no rows", "it is not about one step"
        )
    return found[-1]


def _checkpoint_before(store: CheckpointStore, event: dict[str, Any]) -> checkpoints.Checkpoint:
    """Find the newest checkpoint whose weights the event's step could have started from."""
    before = event["step"] - (event["event"] == "clip")  # a clipped step has been applied
    found = checkpoints.latest(store, say, before, weights_only=True)
    if found is None:
        raise ConfigError(
            f"there is no complete checkpoint at or before step {before}",
            f"{store.place} holds none",
            "Only events after a kept checkpoint can be run again; train.keep_checkpoints says how "
            "many are kept.",
        )
    return found
