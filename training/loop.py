"""The training loop: rows in, guarded optimizer steps, checkpoints out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from koe.errors import StageError
from training.checkpoint import rollback
from training.checkpoint import writer as checkpoints
from training.config import TrainConfig
from training.generation import SampleGenerator
from training.guard import Action, Verdict
from training.metrics import say
from training.model.distributed import Ranks, clip_gradients_, total_gradient_norm
from training.model.optim import learning_rate, new_rows_factor, set_learning_rate
from training.run import Run, open_run
from training.step import accumulate_gradients


class Exploded(StageError):
    """The guard has stopped the run; all ranks raise it together, before the update."""


def train(
    config: TrainConfig,
    shards: Path,
    out_dir: Path,
    ranks: Ranks,
    speaking: SampleGenerator | None = None,
) -> int:
    """Train to `max_steps`, going on from the newest checkpoint in `out_dir` if there is one.

    `speaking`: sentences to speak at evaluations and how to decode them. Returns the steps done.
    Raises: ConfigError, ContractError, StorageError before or between steps; Exploded when the
    guard stops, with weights and moments as before the step.
    """
    with open_run(config, shards, out_dir, ranks, speaking) as run:
        if run.progress.steps >= config.max_steps and ranks.is_main:
            say(f"nothing to train: {run.progress.steps} of {config.max_steps} steps are done")
        elif run.progress.steps == 0 and config.guard.enabled:
            run.save()  # a run that explodes before its first checkpoint can go back to its start
        while run.progress.steps < config.max_steps:
            verdict = take_step(run)
            if verdict.action is Action.STOP:
                raise _exploded(run, verdict)
            if verdict.action is Action.ROLL_BACK:
                roll_back(run, verdict)
            if verdict.action.applies:
                after_step(run)
        run.writer.finish()
    return run.progress.steps


def take_step(run: Run) -> Verdict:
    """Consume the next batch: gradients, the guard's verdict, and the update if it allows one."""
    config, guard = run.config, run.guard
    started = time.perf_counter()
    batches = run.loader.batches(run.progress.data_steps)
    waited = time.perf_counter() - started

    rate = learning_rate(run.progress.steps, config) * guard.rate_factor
    result = accumulate_gradients(
        run.model, batches, run.ranks, config.precision, len(run.rows.sources)
    )
    gradient_norm = total_gradient_norm(run.parameters)

    # Nothing of the step has touched weights or moments yet, and all ranks see the same numbers.
    verdict = guard.judge(run.progress.data_steps, result.loss, float(gradient_norm))
    verdict = replace(verdict, action=Action(run.ranks.decide(verdict.action)))
    if verdict.action.applies:
        most = min(config.max_gradient_norm, verdict.clip_to or config.max_gradient_norm)
        clip_gradients_(run.parameters, most, gradient_norm)
        set_learning_rate(run.optimizer, rate)
        with run.new_rows_rate.scaled(new_rows_factor(run.progress.steps, config)):
            run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)

    run.progress = run.progress.after(verdict.action.applies, result.tokens)
    # From end to end: a GPU is still updating the weights when this process has come here.
    ended = time.perf_counter()
    seconds = ended - (run.step_ended_at or started)
    run.step_ended_at = ended
    run.observer.took(
        run.progress, verdict, result, batches, float(gradient_norm), rate, seconds, waited
    )
    return verdict


def after_step(run: Run) -> None:
    """Do what follows an applied step: the rate's long memory, checkpoint, evaluation."""
    config, steps = run.config, run.progress.steps
    if why := run.guard.climbing():
        run.observer.event("climbing", run.progress, reason=why, rate_factor=run.guard.rate_factor)
    if run.guard.restored():
        run.observer.event("restore_rate", run.progress, rate_factor=run.guard.rate_factor)
    is_last = steps == config.max_steps
    if steps % config.checkpoint_every_steps == 0 or is_last:
        run.save()
        run.step_ended_at = None
    run.writer.poll()
    every = config.evaluation.every_steps
    if every and (steps % every == 0 or is_last):
        run.evaluate()
        run.step_ended_at = None


def roll_back(run: Run, verdict: Verdict) -> None:
    """Take up a checkpoint at least `roll_back_steps` back, and leave the data of the spike out.

    Raises: Exploded when there is none.
    """
    run.step_ended_at = None
    run.writer.finish()
    wanted = run.progress.steps - run.config.guard.roll_back_steps
    found = None
    if run.ranks.is_main:
        found = checkpoints.latest_before(run.folder, max(wanted, 0), say)
    steps = run.ranks.from_main(found.progress.steps if found else -1)
    if steps < 0:
        raise _exploded(run, replace(verdict, reason=f"{verdict.reason}; no checkpoint to go to"))
    before = run.progress
    path = checkpoints.step_folder(run.folder, steps)
    saved, _ = checkpoints.load(path, run.plain_model, run.optimizer, run.ranks)
    run.guard.roll_back_to(saved["guard"])
    run.progress = replace(
        checkpoints.read(path).progress,
        data_steps=before.data_steps + run.config.guard.skip_data_steps,
    )
    if run.ranks.is_main:
        point = rollback.Rollback(steps, run.progress.data_steps, run.guard.state_dict())
        rollback.record(run.folder, point)
    run.ranks.wait()
    run.observer.event(
        "rolled_back",
        run.progress,
        reason=f"from step {before.steps} to {steps}; batches {before.data_steps} to "
        f"{run.progress.data_steps - 1} are left out",
        rate_factor=run.guard.rate_factor,
    )


def _exploded(run: Run, verdict: Verdict) -> Exploded:
    step = run.progress.steps + 1
    return Exploded(
        f"training was stopped at step {step}",
        verdict.reason,
        f"No update of it was applied; {run.out_dir / 'events.jsonl'} names its rows and documents, "
        "and `koe train --replay EVENT` runs it again. Lower train.learning_rate or lengthen "
        "train.warmup_steps, and resume.",
        stage="train",
        unit=f"step {step}",
    )
