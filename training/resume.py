"""Goes on from the newest checkpoint: what is loaded, and what is said of settings that have changed."""

from __future__ import annotations

from dataclasses import replace

import torch

from training import changes
from training.checkpoint import folder as checkpoints
from training.checkpoint import rollback
from training.checkpoint.manifest import Progress
from training.checkpoint.reader import load_checkpoint, read_state
from training.checkpoint.store import CheckpointStore
from training.checkpoint.tensor_files import has_average
from training.config import TrainConfig
from training.data.shard_rows import ShardRows
from training.guard import Guard
from training.metrics import say
from training.model.average import WeightAverage
from training.model.distributed import Ranks
from training.model.llama import PackedLlama
from training.validation import ValidationLosses


def resume(
    config: TrainConfig,
    rows: ShardRows,
    store: CheckpointStore,
    model: PackedLlama,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    guard: Guard,
    losses: ValidationLosses,
    ranks: Ranks,
) -> tuple[Progress, list[str]]:
    """Load the newest complete checkpoint, the one that rank 0 finds, on every rank.

    Returns its progress, and what the settings that have changed since do. Raises: ConfigError for
    other shards and changes that are not allowed; ContractError; StorageError.
    """
    if ranks.is_main:
        store.sweep()
    found = rollback.resume_point(store, say) if ranks.is_main else None
    steps = ranks.from_main(found[0].progress.steps if found else -1)
    if steps < 0:
        return Progress(0, 0, 0, rows.fingerprint, config.rows_per_step), []
    checkpoint, guard_state = found or rollback.at_steps(store, steps)
    checkpoints.require_same_shards(checkpoint, rows.fingerprint, config.resume_on_other_shards)
    lines = _compare(config, checkpoint, len(rows))
    state, found_random_state = load_checkpoint(checkpoint.path, model, optimizer, ranks, average)
    guard.load_state_dict(guard_state or state["guard"])
    losses.load_state_dict(state.get("validation", {}))  # an earlier version of koe wrote none
    if ranks.is_main:
        if average and not has_average(checkpoint.path):
            say("the checkpoint has no average of the weights: it begins with them now")
        if not found_random_state:
            say("the world size has changed: random states start from the seed")
        for line in [f"resuming after step {steps} from {checkpoint.place}", *lines]:
            say(line)
    ranks.wait()  # those of a machine share what was downloaded
    store.release()
    progress = replace(
        checkpoint.progress, shards=rows.fingerprint, rows_per_step=config.rows_per_step
    )
    return progress, lines


def _compare(config: TrainConfig, checkpoint: checkpoints.Checkpoint, num_rows: int) -> list[str]:
    """Say what has changed since a checkpoint. Raises: ConfigError for what would break the run."""
    old = changes.stored_settings(read_state(checkpoint.path).get("settings"))
    found = changes.find_changes(old, config, checkpoint.progress, num_rows)
    changes.require_allowed(found, config, checkpoint.place)
    unknown = "the settings that the checkpoint was trained with are not known, and not compared"
    return [*([] if old else [unknown]), *(change.line for change in found)]
