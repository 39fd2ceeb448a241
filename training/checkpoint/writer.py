"""Writes checkpoints while training goes on, by all ranks together: complete or not at all.

A checkpoint is a folder with the tensors (see `tensor_files.py`), the random state of each rank,
the caller's state, and a manifest with the hashes of all files (see `folder.py`).
Tensors are keyed by `model.<parameter>`, `optimizer.<parameter>.<exp_avg|exp_avg_sq|step>`, and
`ema.<parameter>` where the weights are averaged: a tied head is stored once, and neither FSDP nor DDP
nor the number of ranks shows in the names.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from koe.errors import KoeError, StorageError
from training.adapter import adapter_state
from training.checkpoint.keeping import Keeping, tidy
from training.checkpoint.manifest import (
    STATE,
    Manifest,
    Progress,
    mark,
    random_state_file,
    write_synced,
)
from training.checkpoint.store import CheckpointStore
from training.checkpoint.tensor_files import INDEX, StagedTensors, checkpoint_tensors
from training.model.average import WeightAverage
from training.model.distributed import Ranks
from training.places import Place

# When another rank has failed, this rank's thread learns of it a moment later.
_SECONDS_TO_LEARN_WHY = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Staged:
    """A copy of all that this rank writes of one checkpoint; later steps cannot change it."""

    draft: Path
    progress: Progress
    tensors: StagedTensors
    random_state: bytes
    state: bytes
    validation_loss: float | None


class CheckpointWriter:
    """Writes checkpoints into `store`, while the next steps run.

    All ranks must call every method except `close` in the same order. If one rank fails to write,
    all raise StorageError at the next call. After each one, those that `keeping` does not name are
    deleted. Rank 0 calls `before_commit` before a checkpoint counts, for what it relies on.
    """

    def __init__(
        self,
        store: CheckpointStore,
        ranks: Ranks,
        *,
        keeping: Keeping,
        asynchronous: bool,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._ranks, self._before_commit = store, ranks, before_commit
        self._keeping, self._asynchronous = keeping, asynchronous
        # A group of its own: the thread's collectives must not mix with those of training.
        self._group: Any = dist.new_group(backend="gloo") if ranks.world > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Place] | None = None
        self._committed: Place | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        progress: Progress,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        *,
        average: WeightAverage | None = None,
        validation_loss: float | None = None,
    ) -> None:
        """Copy everything to the CPU and begin to write it; training may go on at once.

        `state`: what else has to be resumed, as JSON types, the same on all ranks. `average`: of the
        weights, if there is one. `validation_loss`: of these weights, in nats per token, if it was
        measured. A checkpoint of the same step is replaced, and later ones, which a rollback has
        abandoned, are deleted.
        """
        state_json = json.dumps(state | adapter_state(model)).encode()
        self._complete()
        steps = progress.steps
        self._exchange(lambda: self._store.begin(steps) if self._ranks.is_main else None)
        drafts: list[Path] = []
        self._exchange(lambda: drafts.append(self._store.draft(steps)))
        tensors = StagedTensors(
            checkpoint_tensors(model, optimizer, average),
            drafts[0],
            self._ranks.rank,
            lambda plan: self._exchange(lambda: plan),
        )
        random_state = _random_state(self._ranks.device)
        staged = _Staged(drafts[0], progress, tensors, random_state, state_json, validation_loss)
        self._pending = self._thread.submit(self._write, staged)
        if not self._asynchronous:
            self._complete()

    def poll(self) -> Place | None:
        """Return the checkpoint that was committed since the last call, if there is one.

        Costs one small collective while a checkpoint is being written, and nothing otherwise.
        """
        self._collect()
        committed, self._committed = self._committed, None
        return committed

    def finish(self) -> Place | None:
        """Wait until nothing is being written; return what `poll` returns."""
        self._complete()
        return self.poll()

    def close(self) -> None:
        """Wait for the files of this rank, failed or not. A commit may still succeed."""
        self._thread.shutdown()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _complete(self) -> None:
        # Waiting for the thread itself could take forever: it waits for other ranks, which may be dead.
        while self._pending is not None:
            self._collect()
            if self._pending is not None:
                time.sleep(0.005)

    def _collect(self) -> None:
        """Take over the result of the threads of all ranks, once all have finished."""
        if self._pending is None:
            return
        done = self._pending.done()
        error = self._pending.exception() if done else None
        code = self._ranks.maximum(2 if error else 0 if done else 1)
        if code == 1:
            return
        pending, self._pending = self._pending, None
        if code == 0:
            self._committed = pending.result()
            return
        wait([pending], _SECONDS_TO_LEARN_WHY)
        error = pending.exception() if pending.done() else None
        if isinstance(error, KoeError):
            raise error
        raise _cannot_write(self._store.place, repr(error or "another rank failed")) from error

    def _exchange(self, work: Callable[[], T]) -> list[T]:
        """Call `work` on every rank and return all results; if one fails, all raise."""
        result, error = None, None
        try:
            result = work()
        # RuntimeError: what torch.save makes of a full disk.
        except (OSError, RuntimeError, KoeError) as caught:
            error = caught
        mine = (result, f"rank {self._ranks.rank}: {error}" if error else None)
        everyone: list = [mine] * self._ranks.world
        if self._group is not None:
            dist.all_gather_object(everyone, mine, group=self._group)
        failures = [failure for _, failure in everyone if failure]
        if failures:
            raise _cannot_write(self._store.place, "; ".join(failures)) from error
        return [result for result, _ in everyone]

    def _write(self, staged: _Staged) -> Place:
        """Write this rank's files, and commit those of all ranks on rank 0; runs in the thread."""
        draft, steps = staged.draft, staged.progress.steps

        def write_own():
            results = staged.tensors.write()
            name = random_state_file(self._ranks.rank)
            write_synced(draft / name, staged.random_state)
            names = {name, *(result.storage_data.relative_path for result in results)}
            self._store.put(steps, names)
            return results, {name: mark(draft / name) for name in sorted(names)}

        def commit_all() -> None:
            results = [result for own, _ in written for result in own]
            write_synced(draft / INDEX, staged.tensors.index(results))
            write_synced(draft / STATE, staged.state)
            files = {name: m for _, marks in written for name, m in marks.items()}
            files |= {name: mark(draft / name) for name in (INDEX, STATE)}
            self._store.put(steps, (INDEX, STATE))
            self._before_commit()
            permanent = self._keeping.is_permanent(steps)
            manifest = Manifest(staged.progress, files, staged.validation_loss, permanent)
            self._store.commit(steps, manifest)
            tidy(self._store, steps, self._keeping)

        try:
            written = self._exchange(write_own)
            self._exchange(commit_all if self._ranks.is_main else lambda: None)
        finally:
            self._store.end(steps)
        return self._store.place_of(steps)


def _random_state(device: torch.device) -> bytes:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _cannot_write(folder: Place, reason: str) -> StorageError:
    return StorageError(
        f"a checkpoint in {folder} cannot be written",
        reason,
        "Free or mount the disk and start again: the run resumes from the previous checkpoint.",
    )
