"""Judges each step by its loss and gradient norm, before weights or moments are touched.

A spike is measured against the median of the last accepted steps and their median absolute
deviation, which a rare bad step does not move; rejected values never enter the window. The answers
form a ladder: clip, skip, lower the rate, roll back and leave the data out (as PaLM did, arXiv
2204.02311, section 5.1), stop. OLMo-core's skip-step optimizer (6 sigma over 128 steps) is off
until its window is full, and again after each resume. Here absolute limits hold until the window is
full, the window is part of the checkpoint, and nothing that is not finite reaches the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from statistics import median
from typing import Any

from training.config import GuardConfig

# The standard deviation of a normal distribution, in median absolute deviations.
_DEVIATIONS = 1.4826


class Action(IntEnum):
    """What to do with a step, each more drastic than the last; ranks agree on the most drastic."""

    ACCEPT = 0
    CLIP = 1
    SKIP = 2
    LOWER_RATE = 3  # and skip
    ROLL_BACK = 4
    STOP = 5

    @property
    def label(self) -> str:
        """The name of the action in metrics and events."""
        return self.name.lower()

    @property
    def applies(self) -> bool:
        """Whether the update is applied."""
        return self <= Action.CLIP


@dataclass(frozen=True)
class Limits:
    """A step above `loss` or `gradient_norm` is not applied; a norm above `clip` is clipped."""

    loss: float
    gradient_norm: float
    clip: float


@dataclass(frozen=True)
class Verdict:
    """What to do with a step and why. `clip_to`: the gradient norm that it is scaled down to."""

    action: Action
    reason: str
    limits: Limits
    clip_to: float | None = None


@dataclass
class _State:
    """Everything that the next verdict depends on; JSON in the checkpoint."""

    losses: list[float]
    gradient_norms: list[float]
    skips: list[int]  # batches skipped within the last `within_steps`
    skips_since_lowering: list[int]
    lowerings: int = 0
    accepted_in_a_row: int = 0
    rollbacks: int = 0
    lowest_median: float | None = None
    learning_rate: float | None = None  # the setting that the lowerings are counted from


class Guard:
    """The ladder and its memory; the same on all ranks, because all see the same numbers.

    `learning_rate`: the setting, of which a lowering takes a share. Whoever lowers the setting itself
    after a stop does the guard's work, so that a resume does not lower the rate a second time.
    """

    def __init__(self, config: GuardConfig, learning_rate: float) -> None:
        self.config, self._learning_rate = config, learning_rate
        self._state = _State([], [], [], [], learning_rate=learning_rate)

    @property
    def rate_factor(self) -> float:
        """The factor by which the learning rate is multiplied at present."""
        return min(1.0, self._ceiling() / self._learning_rate)

    def _ceiling(self) -> float:
        """Return the highest rate that the lowerings allow."""
        base = self._state.learning_rate or self._learning_rate
        return base * self.config.rate_factor**self._state.lowerings

    def judge(self, data_step: int, loss: float, gradient_norm: float) -> Verdict:
        """Judge the step that consumed batch `data_step`, and remember the verdict.

        `loss`: mean over all supervised tokens of the step; `gradient_norm`: of all parameters,
        before clipping. Either may be NaN or infinite.
        """
        limits = self.limits()
        reason = _violation(loss, gradient_norm, limits)
        if not self.config.enabled:
            finite = math.isfinite(loss) and math.isfinite(gradient_norm)
            return Verdict(
                Action.ACCEPT if finite else Action.STOP, "" if finite else reason, limits
            )
        if reason:
            return self._reject(data_step, reason, limits)
        verdict = Verdict(Action.ACCEPT, "", limits)
        if gradient_norm > limits.clip:
            clip_to = median(self._state.gradient_norms)
            why = f"gradient norm {gradient_norm:.4g} is above {limits.clip:.4g}"
            # The window gets the clipped value: a series of clipped steps must not lift the limit.
            gradient_norm = limits.clip
            verdict = Verdict(Action.CLIP, why, limits, clip_to)
        self._accept(loss, gradient_norm)
        return verdict

    def limits(self) -> Limits:
        """Return the limits for the next step: absolute ones until the window is full."""
        c, s = self.config, self._state
        if len(s.losses) < c.window_steps:
            return Limits(c.max_loss, c.max_gradient_norm, math.inf)
        loss, loss_deviation = _centre(s.losses, c.min_deviation)
        norm, norm_deviation = _centre(s.gradient_norms, c.min_deviation)
        return Limits(
            loss + c.skip_sigmas * loss_deviation,
            norm + c.skip_sigmas * norm_deviation,
            norm + c.clip_sigmas * norm_deviation,
        )

    def lower_rate_if_norm_climbed(self) -> str:
        """Lower the rate when the gradient norm has climbed, and return why; "" when it has not.

        The limits follow a slow climb, so the median is compared with the lowest that it has been
        since the window first filled.
        """
        s, c = self._state, self.config
        if not c.enabled or len(s.gradient_norms) < c.window_steps:
            return ""
        now = median(s.gradient_norms)
        if s.lowest_median is None or now < s.lowest_median:
            s.lowest_median = now
        if now <= c.climb_factor * s.lowest_median:
            return ""
        why = (
            f"the median gradient norm is {now:.4g}, {now / s.lowest_median:.1f} times its lowest "
            f"{s.lowest_median:.4g}"
        )
        s.lowest_median = now  # another lowering needs another climb
        self._lower()
        return why

    def restore_rate_if_stable(self) -> bool:
        """Take one lowering of the rate back after enough accepted steps; return whether it was."""
        s = self._state
        if not s.lowerings or s.accepted_in_a_row < self.config.restore_rate_after_steps:
            return False
        s.lowerings -= 1
        s.accepted_in_a_row = 0
        self._count_from_present_rate()
        return True

    def roll_back_to(self, saved: dict[str, Any]) -> None:
        """Restore the window that belongs to the checkpoint's weights, and count the rollback."""
        before, ceiling = self._state, self._ceiling()
        self.load_state_dict(saved)
        s = self._state
        s.rollbacks = max(before.rollbacks + 1, s.rollbacks)
        if ceiling < self._ceiling():
            s.lowerings, s.learning_rate = before.lowerings, before.learning_rate
        s.skips, s.skips_since_lowering, s.accepted_in_a_row = [], [], 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._state)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._state = _State(**saved)
        keep = self.config.window_steps
        self._state.losses = self._state.losses[-keep:]
        self._state.gradient_norms = self._state.gradient_norms[-keep:]
        self._count_from_present_rate()

    def _count_from_present_rate(self) -> None:
        """Count lowerings from the present setting, unless they hold the rate below it.

        Those of a higher setting count no more where this one is as low as they made the rate.
        """
        s, now = self._state, self._learning_rate
        was_higher = s.learning_rate is not None and s.learning_rate > now
        if was_higher and self._ceiling() < now:
            return
        if was_higher:
            s.lowerings = 0
        s.learning_rate = now

    def _accept(self, loss: float, gradient_norm: float) -> None:
        s = self._state
        s.losses = [*s.losses[1 - self.config.window_steps :], loss]
        s.gradient_norms = [*s.gradient_norms[1 - self.config.window_steps :], gradient_norm]
        s.accepted_in_a_row += 1

    def _reject(self, data_step: int, reason: str, limits: Limits) -> Verdict:
        s, c = self._state, self.config
        s.accepted_in_a_row = 0
        s.skips = _recent([*s.skips, data_step], data_step, c.within_steps)
        s.skips_since_lowering = _recent(
            [*s.skips_since_lowering, data_step], data_step, c.within_steps
        )
        if len(s.skips) >= c.roll_back_after_skips:
            counted = f"{reason}; {len(s.skips)} of the last {c.within_steps} steps were skipped"
            if s.rollbacks >= c.max_rollbacks:
                return Verdict(Action.STOP, f"{counted}, after {s.rollbacks} rollbacks", limits)
            return Verdict(Action.ROLL_BACK, counted, limits)
        if len(s.skips_since_lowering) >= c.lower_rate_after_skips:
            number = len(s.skips_since_lowering)
            self._lower()
            counted = f"{reason}; {number} of the last {c.within_steps} steps were skipped"
            return Verdict(Action.LOWER_RATE, counted, limits)
        return Verdict(Action.SKIP, reason, limits)

    def _lower(self) -> None:
        self._state.lowerings += 1
        self._state.skips_since_lowering = []
        self._state.accepted_in_a_row = 0


def _violation(loss: float, gradient_norm: float, limits: Limits) -> str:
    """Return which limit a step breaks, or "". NaN breaks every limit."""
    for name, value, limit in (
        ("loss", loss, limits.loss),
        ("gradient norm", gradient_norm, limits.gradient_norm),
    ):
        if not math.isfinite(value):
            return f"{name} is {value}"
        if value > limit:
            return f"{name} {value:.4g} is above {limit:.4g}"
    return ""


def _centre(values: Sequence[float], min_deviation: float) -> tuple[float, float]:
    """Return the median and a robust standard deviation."""
    middle = median(values)
    deviation = _DEVIATIONS * median(abs(value - middle) for value in values)
    return middle, max(deviation, min_deviation * abs(middle))


def _recent(steps: list[int], now: int, within: int) -> list[int]:
    return [step for step in steps if step > now - within]
