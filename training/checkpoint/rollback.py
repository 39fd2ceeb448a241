"""Goes back to an earlier checkpoint in a way that a kill at any moment cannot undo.

A record is written first. From then on the checkpoints that it abandons count as deleted, and the
checkpoint that it names continues with the record's position in the data and the guard's state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from koe.atomic import atomically
from koe.errors import ContractError, StorageError
from training.checkpoint import folder as checkpoints
from training.checkpoint.folder import discard, sweep

RECORD = "rollback.json"


@dataclass(frozen=True)
class Rollback:
    """The `steps` of the checkpoint gone back to, the next batch, and the guard's state."""

    steps: int
    data_steps: int
    guard: dict[str, Any]

    def abandons(self, progress: checkpoints.Progress) -> bool:
        """Return whether a checkpoint belongs to the part of the run that was given up."""
        return progress.steps > self.steps and progress.data_steps < self.data_steps


def record(folder: Path, rollback: Rollback) -> None:
    """Write the record, then delete what it abandons; on rank 0 only. Raises: StorageError."""
    try:
        # on disk before anything that it abandons is deleted
        with atomically(folder / RECORD) as file:
            file.write(json.dumps(asdict(rollback)).encode())
        _remove_abandoned(folder, rollback)
    except OSError as error:
        raise StorageError(
            f"the rollback cannot be recorded in {folder}",
            str(error),
            "Free or mount the disk and start again: the run resumes from its last checkpoint.",
        ) from error


def resume_point(
    folder: Path, warn: Callable[[str], None]
) -> tuple[checkpoints.Checkpoint, dict[str, Any] | None] | None:
    """Find the newest complete checkpoint that is not abandoned, for rank 0.

    Returns it with the progress to go on from, and the guard's state where a rollback overrides
    the checkpoint's own; None when there is no checkpoint.
    """
    rollback = read_record(folder)
    if rollback:
        _remove_abandoned(folder, rollback)
    found = checkpoints.latest(folder, warn)
    if rollback and (found is None or found.progress.steps < rollback.steps):
        # Its checkpoint is gone: training goes on from an older one, and the next resume would take
        # what is trained from here for abandoned.
        (folder / RECORD).unlink()
        rollback = None
    return None if found is None else _overridden(found, rollback)


def at_steps(folder: Path, steps: int) -> tuple[checkpoints.Checkpoint, dict[str, Any] | None]:
    """Read the checkpoint that rank 0 has found and verified, for the other ranks."""
    found = checkpoints.read(checkpoints.step_folder(folder, steps))
    return _overridden(found, read_record(folder))


def read_record(folder: Path) -> Rollback | None:
    """Read the record of the last rollback. Raises: ContractError when it is not readable."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Rollback(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ContractError(
            f"{path} cannot be read",
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


def _remove_abandoned(folder: Path, rollback: Rollback) -> None:
    for path in folder.glob("step-*"):
        try:
            progress = checkpoints.read(path).progress
        except ContractError:
            continue  # corrupt, so never loaded anyway
        if rollback.abandons(progress):
            discard(path)
    sweep(folder)
