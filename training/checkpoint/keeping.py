"""Which checkpoints are kept: the newest, one to roll back to, the best, and some for good."""

from __future__ import annotations

from dataclasses import dataclass

from training.checkpoint.manifest import Manifest
from training.checkpoint.store import CheckpointStore


@dataclass(frozen=True)
class Keeping:
    """How many checkpoints are kept, and which.

    The newest `newest`, and always one that is at least `back_steps` steps older than the newest,
    to roll back to. With `best` also the one of the lowest validation loss. With `every_steps` also
    those whose steps are a multiple of it. With `weights_only` these two kinds are reduced to their
    weights once nothing else keeps them.
    """

    newest: int
    back_steps: int
    best: bool = False
    every_steps: int | None = None
    weights_only: bool = False

    def is_permanent(self, steps: int) -> bool:
        """Return whether the checkpoint after so many steps is kept for good."""
        return bool(steps and self.every_steps and steps % self.every_steps == 0)


def tidy(store: CheckpointStore, last: int, keeping: Keeping) -> None:
    """Delete all checkpoints up to `last` that are not kept, corrupt ones, and those later than it.

    Raises: OSError, StorageError.
    """
    found = store.steps()
    complete = {s: m for s in found if s <= last and (m := store.complete(s)) is not None}
    whole = _to_go_on_from([s for s, m in complete.items() if not m.weights_only], last, keeping)
    lasting = {steps for steps, manifest in complete.items() if manifest.permanent}
    if keeping.best:
        stay_whole = {s for s in lasting if not (keeping.weights_only or complete[s].weights_only)}
        lasting |= {steps for upto in whole | stay_whole for steps in _best(complete, upto)}
    for steps in found:
        if steps in whole:
            continue
        if steps not in lasting:
            store.discard(steps)
            continue
        manifest = complete[steps]  # already reduced: what a kill has left is deleted
        if (keeping.weights_only or manifest.weights_only) and (reduced := manifest.reduced()):
            store.reduce(steps, reduced)
    store.sweep()


def best_first(manifests: dict[int, Manifest]) -> list[int]:
    """Return the steps of the checkpoints that were evaluated, the lowest validation loss first."""
    losses = [
        (manifest.validation_loss, steps)
        for steps, manifest in manifests.items()
        if manifest.validation_loss is not None
    ]
    return [steps for _, steps in sorted(losses)]


def _to_go_on_from(complete: list[int], last: int, keeping: Keeping) -> set[int]:
    """Choose the newest, the newest that is old enough to roll back to, and the next to be that.

    The next is the oldest that is younger: it takes that place once it is old enough.
    """
    old = [steps for steps in complete if steps <= last - keeping.back_steps]
    young = [steps for steps in complete if steps > last - keeping.back_steps]
    return {*complete[-keeping.newest :], *old[-1:], *young[:1]}


def _best(complete: dict[int, Manifest], upto: int) -> list[int]:
    """Choose the best of those up to `upto`: it will be the best of all if a rollback goes there."""
    return best_first({s: manifest for s, manifest in complete.items() if s <= upto})[:1]
