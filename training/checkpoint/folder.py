"""Which checkpoint is loaded, which are kept, and whether one fits the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from koe.errors import ConfigError, ContractError
from training.checkpoint.keeping import best_first
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.manifest import Manifest, Progress, step_name
from training.checkpoint.remote import RemoteCheckpoints
from training.checkpoint.store import CheckpointStore
from training.places import Place, local_folder


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `path` is a local folder of its files, which match their hashes."""

    place: Place
    path: Path
    progress: Progress


def open_store(place: Place) -> CheckpointStore:
    """Open the checkpoints in a local folder, or at a URL."""
    folder = local_folder(place)
    return RemoteCheckpoints(str(place)) if folder is None else LocalCheckpoints(folder)


def latest(
    store: CheckpointStore,
    warn: Callable[[str], None],
    at_most: float = math.inf,
    weights_only: bool = False,
) -> Checkpoint | None:
    """Find the newest complete checkpoint of `at_most` steps; `warn` is told of corrupt ones.

    One that holds weights only counts where `weights_only` says so, and is passed over otherwise.
    """
    for steps in reversed(store.steps()):
        if steps > at_most:
            continue
        try:
            if weights_only or not store.manifest(steps).weights_only:
                return fetched(store, steps)
            warn(f"passing over {store.place_of(steps)}: it holds weights only")
        except ContractError as error:
            warn(f"skipping a corrupt checkpoint: {error}")
    return None


def best(store: CheckpointStore, warn: Callable[[str], None]) -> Checkpoint | None:
    """Find the complete checkpoint of the lowest validation loss; `warn` is told of corrupt ones.

    None where no checkpoint was evaluated.
    """
    manifests: dict[int, Manifest] = {}
    for steps in store.steps():
        try:
            manifests[steps] = store.manifest(steps)
        except ContractError as error:
            warn(f"skipping a corrupt checkpoint: {error}")
    for steps in best_first(manifests):
        try:
            return fetched(store, steps)
        except ContractError as error:
            warn(f"skipping a corrupt checkpoint: {error}")
    return None


def chosen(
    store: CheckpointStore, warn: Callable[[str], None], steps: int | None, of_best: bool
) -> Checkpoint:
    """Find the checkpoint to export: that of step `steps`, the best, or the newest to go on from.

    Raises: ConfigError when there is no such one.
    """
    if of_best and steps is not None:
        raise ConfigError("--best and --step exclude each other", remedy="Give one of them.")
    if of_best:
        found = best(store, warn)
        missing = "whose validation loss was measured"
        remedy = (
            "Let train.evaluation.every_steps and train.checkpoint_every_steps meet at a step, "
        )
        remedy += "or choose a checkpoint with --step."
    else:
        at_most = math.inf if steps is None else steps
        found = latest(store, warn, at_most, weights_only=steps is not None)
        missing = "to go on from" if steps is None else f"of step {steps}"
        remedy = "Train first with `koe train`, or name another step with --step."
    if found is None or steps not in (None, found.progress.steps):
        names = [step_name(of) for of in store.steps()]
        raise ConfigError(
            f"{store.place} has no complete checkpoint {missing}",
            f"it has {', '.join(names)}" if names else "it is empty",
            remedy,
        )
    return found


def fetched(store: CheckpointStore, steps: int, hashed: bool = False) -> Checkpoint:
    """Return a checkpoint with its files on this machine; `hashed` if another rank has checked them.

    Raises: ContractError.
    """
    path = store.fetch(steps, hashed)
    return Checkpoint(store.place_of(steps), path, store.manifest(steps).progress)


def require_same_shards(checkpoint: Checkpoint, shards: str, other: bool) -> None:
    """Refuse to continue on other shards than those of the checkpoint, unless `other` allows it.

    Raises: ConfigError.
    """
    found = checkpoint.progress
    if found.shards != shards and not other:
        raise ConfigError(
            f"checkpoint {checkpoint.place} was trained on other shards",
            f"their fingerprint was {found.shards[:12]}, that of these shards is {shards[:12]}",
            "Set train.resume_on_other_shards: true to go on with them, or train into another "
            "folder.",
        )
