"""Goes back to an earlier checkpoint in a way that a kill at any moment cannot undo.

A record is written first. From then on the checkpoints that it abandons count as deleted, and the
checkpoint that it names continues with the record's position in the data and the guard's state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from koe.errors import ConfigError, ContractError, StorageError
from training.checkpoint import folder as checkpoints
from training.checkpoint.manifest import Progress
from training.checkpoint.store import CheckpointStore
from training.places import beside

RECORD = "rollback.json"


@dataclass(frozen=True)
class Rollback:
    """The `steps` of the checkpoint gone back to, the next batch, and the guard's state."""

    steps: int
    data_steps: int
    guard: dict[str, Any]

    def abandons(self, progress: Progress) -> bool:
        """Return whether a checkpoint belongs to the part of the run that was given up."""
        return progress.steps > self.steps and progress.data_steps < self.data_steps


def record(store: CheckpointStore, rollback: Rollback) -> None:
    """Write the record, then delete what it abandons; on rank 0 only. Raises: StorageError."""
    try:
        # there before anything that it abandons is deleted
        store.write(RECORD, json.dumps(asdict(rollback)).encode())
        _remove_abandoned(store, rollback)
    except OSError as error:
        raise StorageError(
            f"the rollback cannot be recorded in {store.place}",
            str(error),
            "Free or mount the disk and start again: the run resumes from its last checkpoint.",
        ) from error


def resume_point(
    store: CheckpointStore, warn: Callable[[str], None]
) -> tuple[checkpoints.Checkpoint, dict[str, Any] | None] | None:
    """Find the newest complete checkpoint that is not abandoned, for rank 0.

    Returns it with the progress to go on from, and the guard's state where a rollback overrides
    the checkpoint's own; None when there is no checkpoint.
    """
    rollback = read_record(store)
    if rollback:
        _remove_abandoned(store, rollback)
    found = checkpoints.latest(store, warn)
    if found is None:
        _require_no_weights(store)
    if rollback and (found is None or found.progress.steps < rollback.steps):
        # Its checkpoint is gone: training goes on from an older one, and the next resume would take
        # what is trained from here for abandoned.
        store.remove(RECORD)
        rollback = None
    return None if found is None else _overridden(found, rollback)


def at_steps(
    store: CheckpointStore, steps: int
) -> tuple[checkpoints.Checkpoint, dict[str, Any] | None]:
    """Read the checkpoint that rank 0 has found and verified, for the other ranks."""
    return _overridden(checkpoints.fetched(store, steps, hashed=True), read_record(store))


def read_record(store: CheckpointStore) -> Rollback | None:
    """Read the record of the last rollback. Raises: ContractError when it is not readable."""
    try:
        text = store.read(RECORD)
        return None if text is None else Rollback(**json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        raise ContractError(
            f"{beside(store.place, RECORD)} cannot be read",
            repr(error),
            "It holds which data a rollback left out. Delete it to go on from the newest checkpoint.",
        ) from error


def _overridden(
    found: checkpoints.Checkpoint, rollback: Rollback | None
) -> tuple[checkpoints.Checkpoint, dict[str, Any] | None]:
    if (
        rollback is None
        or found.progress.steps != rollback.steps
        or found.progress.data_steps >= rollback.data_steps
    ):
        return found, None
    progress = replace(found.progress, data_steps=rollback.data_steps)
    return replace(found, progress=progress), rollback.guard


def _require_no_weights(store: CheckpointStore) -> None:
    """Refuse to begin anew beside checkpoints that a run has left of itself."""
    manifests = [store.complete(steps) for steps in store.steps()]
    if left := [manifest for manifest in manifests if manifest and manifest.weights_only]:
        raise ConfigError(
            f"{store.place_of(left[-1].progress.steps)} holds weights only, and no other checkpoint "
            "is here to go on from",
            "train.keep_weights_only has deleted its moments and random states",
            "Export it with `koe export --step`, name that folder in train.base_model, and train "
            "into another folder.",
        )


def _remove_abandoned(store: CheckpointStore, rollback: Rollback) -> None:
    for steps in store.steps():
        try:
            progress = store.manifest(steps).progress
        except ContractError:
            continue  # corrupt, so never loaded anyway
        if rollback.abandons(progress):
            store.discard(steps)
    store.sweep()
