"""The training loop: rows in, guarded optimizer steps and checkpoints out.

`train` is the whole story. `run.py` builds what lives between two steps, `step.py` computes the
gradients of one, `guard.py` judges them, and `observe.py` writes down what happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from torch.nn.utils import clip_grads_with_norm_

from koe.errors import StageError, Stopped
from training.checkpoint import folder as checkpoints
from training.checkpoint import rollback
from training.checkpoint.reader import load_checkpoint
from training.config import TrainConfig
from training.generation import SampleGenerator
from training.guard import Action, Verdict
from training.logs import EVENTS_FILE
from training.metrics import say
from training.model.distributed import Ranks, total_gradient_norm
from training.model.optim import set_learning_rate
from training.model.schedule import learning_rate, new_rows_factor
from training.observe import Observer, StepRecord
from training.places import Place, beside
from training.run import Run, open_run
from training.step import accumulate_gradients
from training.stopping import Why, never


class Exploded(StageError):
    """The guard has stopped the run; all ranks raise it together, before the update."""


def train(
    config: TrainConfig,
    shards: Place,
    out_dir: Place,
    ranks: Ranks,
    sample_generator: SampleGenerator | None = None,
    asked: Callable[[], Why] = never,
) -> int:
    """Train to `max_steps`, or until the validation loss has stopped falling, going on from the newest checkpoint in `out_dir` if there is one.

    `sample_generator`: sentences to speak at evaluations, and how to decode them. `asked` says what
    this rank was asked to do; all stop when one was. Returns the steps done.
    Raises: ConfigError, ContractError, StorageError before or between steps; Exploded when the
    guard stops the run, with weights and moments as they were before the step; Stopped, with a
    checkpoint, after the step in which it was asked for.
    """
    with open_run(config, shards, out_dir, ranks, sample_generator, asked) as run:
        observer = Observer(run)
        if is_done(run) and ranks.is_main:
            say(_nothing_to_train(run))
        elif run.progress.steps == 0 and config.guard.enabled:
            run.save()  # a spike may come before the first checkpoint, and needs one to go back to
        wanted = Why(int(ranks.maximum(asked())))  # asked while the model was loaded
        while not is_done(run) and not wanted:
            step = take_step(run)
            observer.record_step(step)
            if step.verdict.action is Action.STOP:
                raise _exploded(run, step.verdict)
            if step.verdict.action is Action.ROLL_BACK:
                roll_back(run, step.verdict)
            if step.verdict.action.applies:
                adjust_rate(run)
                save_and_evaluate(run)
            wanted = step.asked
        unfinished = bool(wanted) and not is_done(run)
        if unfinished:
            save_for_later(run, wanted)
        run.writer.finish()
    if unfinished:
        raise _stopped(run, wanted)
    return run.progress.steps


def is_done(run: Run) -> bool:
    """Return whether no step is left to take."""
    return run.progress.steps >= run.config.max_steps or bool(run.losses.reason_to_stop())


def take_step(run: Run) -> StepRecord:
    """Take the next batch: its gradients, the guard's verdict, and the update if it allows one."""
    config, guard = run.config, run.guard
    started = time.perf_counter()
    batches = run.loader.batches(run.progress.data_steps)
    data_wait_seconds = time.perf_counter() - started

    rate = learning_rate(run.progress.steps, config) * guard.rate_factor
    result = accumulate_gradients(
        run.model, batches, run.ranks, config.precision, len(run.rows.sources)
    )
    total_norm = total_gradient_norm(run.parameters)
    gradient_norm = float(total_norm)

    # The verdict comes before the update: nothing of this step has touched weights or moments yet.
    # All ranks see the same loss and norm; should one still judge harder, all follow it. The same
    # collective tells all of them of a signal that one has heard.
    verdict = guard.judge(run.progress.data_steps, result.loss, gradient_norm)
    hardest, wanted = run.ranks.maxima([verdict.action, run.asked()])
    verdict = replace(verdict, action=Action(int(hardest)))
    clip_to = min(config.max_gradient_norm, verdict.clip_to or config.max_gradient_norm)
    if verdict.action.applies:
        clip_grads_with_norm_(run.parameters, clip_to, total_norm)
        update(run, rate, new_rows_factor(run.progress.steps, config))
        if run.average:
            run.average.update(run.progress.steps + 1)
    run.optimizer.zero_grad(set_to_none=True)

    run.progress = run.progress.after(verdict.action.applies, result.tokens)
    # A step lasts from the end of the one before: a GPU is still updating the weights here.
    ended = time.perf_counter()
    seconds = ended - (run.step_ended_at or started)
    run.step_ended_at = ended
    return StepRecord(
        progress=run.progress,
        verdict=verdict,
        result=result,
        batches=batches,
        gradient_norm=gradient_norm,
        clipped_to=min(gradient_norm, clip_to),
        learning_rate=rate,
        seconds=seconds,
        data_wait_seconds=data_wait_seconds,
        asked=Why(int(wanted)),
    )


def update(run: Run, rate: float, factor: float) -> None:
    """Let the optimizer take its step, the new rows at `factor` times the rate."""
    set_learning_rate(run.optimizer, rate)
    with run.new_rows_rate.scaled(factor):
        run.optimizer.step()


def adjust_rate(run: Run) -> None:
    """Let the guard lower the learning rate after a slow climb, or take a lowering back."""
    if reason := run.guard.lower_rate_if_norm_climbed():
        run.event("climbing", reason=reason, rate_factor=run.guard.rate_factor)
    if run.guard.restore_rate_if_stable():
        run.event("restore_rate", rate_factor=run.guard.rate_factor)


def save_and_evaluate(run: Run) -> None:
    """Write a checkpoint and measure the validation loss, each when its step has come.

    The loss comes first: the checkpoint contains it, so that a resume misses no evaluation.
    """
    config, steps = run.config, run.progress.steps
    is_last = steps == config.max_steps
    every = config.evaluation.every_steps
    if every and (steps % every == 0 or is_last):
        run.evaluate()
        run.step_ended_at = None
        if (reason := run.losses.reason_to_stop()) and not is_last:
            run.event("stopped_early", reason=reason)
            is_last = True
    if is_last or any(steps % n == 0 for n in _checkpoint_steps(config)):
        run.save()
        run.step_ended_at = None
    run.writer.poll()


def save_for_later(run: Run, why: Why) -> None:
    """Write a checkpoint of the last step, unless there is one, and an event that says why.

    Batches that were skipped since the last step are judged again, to the same end.
    """
    if run.saved is None or run.saved.steps != run.progress.steps:
        run.save()
    run.writer.finish()
    run.event("stopped", reason=why.reason)


def roll_back(run: Run, verdict: Verdict) -> None:
    """Load a checkpoint at least `roll_back_steps` back, and leave out the data of the spike.

    Raises: Exploded when there is none.
    """
    run.step_ended_at = None
    run.writer.finish()
    before = run.progress
    found = None
    if run.ranks.is_main:
        wanted = max(0, before.steps - run.config.guard.roll_back_steps)
        found = checkpoints.latest(run.store, say, wanted)
    steps = run.ranks.from_main(found.progress.steps if found else -1)
    if steps < 0:
        raise _exploded(
            run, replace(verdict, reason=f"{verdict.reason}; there is no checkpoint to go back to")
        )
    found = found or checkpoints.fetched(run.store, steps, hashed=True)
    saved, _ = load_checkpoint(found.path, run.plain_model, run.optimizer, run.ranks, run.average)
    run.ranks.wait()  # those of a machine share what was downloaded
    run.store.release()
    run.guard.roll_back_to(saved["guard"])
    run.losses.load_state_dict(saved.get("validation", {}))
    data_steps = before.data_steps + run.config.guard.skip_data_steps
    done = found.progress  # its shards and rows per step may be those before a resume
    run.progress = replace(before, steps=done.steps, data_steps=data_steps, tokens=done.tokens)
    if run.ranks.is_main:
        point = rollback.Rollback(steps, data_steps, run.guard.state_dict())
        rollback.record(run.store, point)
    run.ranks.wait()
    run.saved = run.progress
    run.event(
        "rolled_back",
        reason=f"from step {before.steps} to {steps}; batches {before.data_steps} to "
        f"{data_steps - 1} are left out",
        rate_factor=run.guard.rate_factor,
    )


def _checkpoint_steps(config: TrainConfig) -> list[int]:
    """Return the numbers of steps after which a checkpoint is due."""
    return [n for n in (config.checkpoint_every_steps, config.keep_every_steps) if n]


def _nothing_to_train(run: Run) -> str:
    done, wanted = run.progress.steps, run.config.max_steps
    reason = "" if done >= wanted else run.losses.reason_to_stop()
    remedy = (
        f": {reason}; raise train.early_stopping.evaluations, or set train.early_stopping: null"
    )
    return f"nothing to train: {done} of {wanted} steps are done" + (remedy if reason else "")


def _stopped(run: Run, why: Why) -> Stopped:
    return Stopped(
        f"training was stopped after step {run.progress.steps} of {run.config.max_steps}",
        why.reason,
        f"Its checkpoint lies in {run.store.place_of(run.progress.steps)}.",
        exit_code=why.exit_code,
    )


def _exploded(run: Run, verdict: Verdict) -> Exploded:
    step = run.progress.steps + 1
    return Exploded(
        f"training was stopped at step {step}",
        verdict.reason,
        f"The step was not applied; {beside(run.place, EVENTS_FILE)} names its rows and documents, "
        "and `koe train --replay EVENT` runs it again. Lower train.learning_rate or lengthen "
        "train.warmup_steps, and resume.",
        stage="train",
        unit=f"step {step}",
    )
