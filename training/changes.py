"""What a resumed run does otherwise, where settings have changed since its checkpoint.

`EFFECTS` classifies every setting of `TrainConfig`. A change of some breaks the order of the rows or
lets the learning rate leap: these are refused unless `train.resume_with_changes` names them. The
others are said, but for those that decide nothing of the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import ValidationError

from koe.errors import ConfigError
from koe.renamed import with_present_names
from training.checkpoint.manifest import Progress
from training.config import RENAMED, TrainConfig, leaf_settings
from training.model.schedule import learning_rate, new_rows_factor
from training.places import Place

# A rate that rises by more at once meets moments of much smaller updates. docs/stability.md has what a
# rate that is too high does; a falling one has never done harm.
MAX_LEAP = 1.5


class Kind(Enum):
    """What follows from a change."""

    ORDER = "refused after the first epoch, or else said"
    BATCH = "refused where the number of rows changes, or else said"
    RATE = f"refused where the rate rises by more than {MAX_LEAP} times, or else said"
    SAID = "said"
    SILENT = "nothing"


@dataclass(frozen=True)
class Effect:
    """The kind of a setting, and what a change of it does, as the end of a sentence."""

    kind: Kind
    does: str = ""


_SILENT = Effect(Kind.SILENT, "nothing of the weights depends on it")
_RATE = Effect(Kind.RATE, "the learning rate of the steps to come is another")
_BATCH = Effect(Kind.BATCH, "gradients are summed in another order, and differ by their rounding")
_ROUNDING = Effect(Kind.SAID, "the same is computed in another way, and differs by its rounding")
_OTHER_LOSS = Effect(Kind.SAID, "losses before and after cannot be compared")
_OPTIMIZER = Effect(Kind.SAID, "updates are computed with it from here on; Adam's moments stay")
_GUARD = Effect(Kind.SAID, "the guard judges by it from here on; what it has seen stays")
_EVALUATION = Effect(Kind.SAID, "evaluations before and after cannot be compared")

# By the dotted path of a setting below `train.`, or of the section that it is in.
EFFECTS: dict[str, Effect] = {
    "seed": Effect(Kind.ORDER, "the rows of the present epoch would be read in another order, some "
                   "twice and some never"),
    "workers": _BATCH,
    "micro_batch_rows": _BATCH,
    "accumulation_steps": _BATCH,
    "learning_rate": _RATE,
    "max_steps": _RATE,
    "warmup_steps": _RATE,
    "warmup_share": _RATE,
    "schedule": _RATE,
    "decay_share": _RATE,
    "min_learning_rate_share": _RATE,
    "new_rows.learning_rate_factor": _RATE,
    "new_rows.warmup_steps": _RATE,
    "new_rows.init": Effect(Kind.SAID, "it has no effect: the rows are those of the checkpoint"),
    "base_model": Effect(Kind.SAID, "it has no effect: the weights are those of the checkpoint; an "
                         "adapter does not fit another model"),
    "adapter": Effect(Kind.SAID, "other settings of an adapter do not fit the checkpoint, but another "
                      "dropout does"),
    "tiny": Effect(Kind.SAID, "a model of another shape does not fit the checkpoint"),
    "master_weights": Effect(Kind.SAID, "weights of another type do not fit the checkpoint"),
    "precision": Effect(Kind.SAID, "gradients are computed in it from here on"),
    "loss_on": Effect(Kind.SAID, "other tokens are learnt from here on, and losses before and after "
                      "cannot be compared"),
    "z_loss": _OTHER_LOSS,
    "weight_decay": _OPTIMIZER,
    "beta1": _OPTIMIZER,
    "beta2": _OPTIMIZER,
    "max_gradient_norm": Effect(Kind.SAID, "gradients are clipped to it from here on"),
    "guard": _GUARD,
    "ema_decay": Effect(Kind.SAID, "the average of the weights begins, ends or moves by it here"),
    "early_stopping": Effect(Kind.SAID, "the run ends by it from here on; losses so far count"),
    "device": _ROUNDING,
    "parallel": _ROUNDING,
    "compile": _ROUNDING,
    "attention": _ROUNDING,
    "loss_kernel": _ROUNDING,
    "loss_chunk_tokens": _ROUNDING,
    "activation_checkpointing": _ROUNDING,
    "evaluation.every_steps": _SILENT,
    "evaluation": _EVALUATION,
    "rate_test": _SILENT,
    "launcher": _SILENT,
    "cpus_per_worker": _SILENT,
    "max_worker_failures": _SILENT,
    "min_workers": _SILENT,
    "max_hours": _SILENT,
    "allow": _SILENT,
    "max_epochs": _SILENT,
    "checkpoint_every_steps": _SILENT,
    "keep_checkpoints": _SILENT,
    "keep_best": _SILENT,
    "keep_every_steps": _SILENT,
    "keep_weights_only": _SILENT,
    "async_checkpoints": _SILENT,
    "log_every_steps": _SILENT,
    "monitor_every_steps": _SILENT,
    "peak_tflops": _SILENT,
    "mirror_every_seconds": _SILENT,
    "wandb_project": _SILENT,
    "shard_cache_gigabytes": _SILENT,
    "resume_on_other_shards": _SILENT,
    "resume_with_changes": _SILENT,
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A setting that differs from the checkpoint's; `refused` unless the user names it."""

    name: str
    line: str
    refused: bool


def effect_of(name: str) -> Effect:
    """Return the effect of a setting, or of the section that it is in. Raises: KeyError."""
    found = EFFECTS.get(name)
    return EFFECTS[name.partition(".")[0]] if found is None else found


def as_stored(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as a checkpoint keeps them: JSON types."""
    return config.model_dump(mode="json")


def stored_settings(saved: Any) -> TrainConfig | None:
    """Read the settings of a checkpoint; None where it has none, or ones that this koe cannot read.

    A setting that came later has its default, and one that is gone is left out.
    """
    if not isinstance(saved, dict):
        return None
    saved = with_present_names(saved, RENAMED, "the checkpoint")
    kept: dict[str, Any] = {}
    for name, _ in leaf_settings(TrainConfig):
        section, _, key = name.rpartition(".")
        there, here = (
            (saved.get(section), kept.setdefault(section, {})) if section else (saved, kept)
        )
        if isinstance(there, dict) and key in there:
            here[key] = there[key]
    try:
        return TrainConfig.model_validate(kept)
    except ValidationError:
        return None


def find_changes(
    old: TrainConfig | None, new: TrainConfig, progress: Progress, num_rows: int
) -> list[Change]:
    """Compare the settings of a checkpoint with those that it is resumed with.

    `old` is None where they are not known: of such a checkpoint, only the rows per step are.
    `num_rows`: rows of the training split, which tell the epoch.
    """
    if old is None:
        rows = new.rows_per_step
        lines = [] if rows == progress.rows_per_step else [_other_rows(progress, rows)]
        return [Change("micro_batch_rows", line, progress.data_steps > 0) for line in lines]
    before, after = dict(_values(old)), dict(_values(new))
    changed = [name for name in after if before[name] != after[name]]
    rate, leaps = _rate(old, new, progress)
    in_later_epoch = progress.data_steps * progress.rows_per_step > num_rows
    found = []
    for name in changed:
        effect = effect_of(name)
        does, refused = effect.does, False
        if effect.kind is Kind.SILENT:
            continue
        if effect.kind is Kind.RATE:
            does, refused = rate, leaps
        elif effect.kind is Kind.BATCH and new.rows_per_step != progress.rows_per_step:
            does, refused = _other_rows(progress, new.rows_per_step), progress.data_steps > 0
        elif effect.kind is Kind.ORDER:
            refused = in_later_epoch
            does = does if refused else "only the order of later epochs is another"
        line = f"train.{name}: {_json(before[name])} -> {_json(after[name])}: {does}"
        found.append(Change(name, line, refused))
    return found


def require_allowed(changes: list[Change], config: TrainConfig, checkpoint: Place) -> None:
    """Refuse changes that would break the run, except those that `train.resume_with_changes` names.

    Raises: ConfigError with each of them and its effect.
    """
    refused = [c for c in changes if c.refused and c.name not in config.resume_with_changes]
    if not refused:
        return
    names = ", ".join(change.name for change in refused)
    allowed = dict.fromkeys([*config.resume_with_changes, *(change.name for change in refused)])
    raise ConfigError(
        f"checkpoint {checkpoint} was trained with other settings ({names})",
        "; ".join(change.line for change in refused),
        "Set them back, or train into another folder. To go on with the change all the same: --set "
        f"'train.resume_with_changes=[{', '.join(allowed)}]'.",
    )


def _values(config: TrainConfig) -> list[tuple[str, Any]]:
    dumped = as_stored(config)
    found = []
    for name, _ in leaf_settings(TrainConfig):
        value: Any = dumped
        for key in name.split("."):
            value = value[key]
        found.append((name, value))
    return found


def _rate(old: TrainConfig, new: TrainConfig, progress: Progress) -> tuple[str, bool]:
    """Say how the rate of the next step changes, and tell whether it leaps."""
    step = progress.steps
    rests = [learning_rate(step, config) for config in (old, new)]
    news = [
        rate * new_rows_factor(step, config) for rate, config in zip(rests, (old, new), strict=True)
    ]
    leaps = progress.data_steps > 0 and any(
        after > MAX_LEAP * before for before, after in (rests, news)
    )
    said = f"the learning rate of step {step + 1} is {rests[1]:.3g} instead of {rests[0]:.3g}"
    if news != rests:
        said += f", that of new rows {news[1]:.3g} instead of {news[0]:.3g}"
    return said, leaps


def _other_rows(progress: Progress, rows_per_step: int) -> str:
    """Say which rows are lost or repeated, since the position in the data is counted in steps."""
    was, now = (progress.data_steps * rows for rows in (progress.rows_per_step, rows_per_step))
    lost = "read twice" if now < was else "left out"
    return (
        f"a step has {rows_per_step} rows instead of {progress.rows_per_step}, and the position in "
        f"the data is counted in steps: {abs(now - was):,} rows are {lost}"
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
