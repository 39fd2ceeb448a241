"""Remembers the validation losses of a run: the lowest, and whether they still fall."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from training.config import EarlyStoppingConfig


@dataclass
class _State:
    """JSON in the checkpoint. Losses are in nats per token."""

    step: int | None = None  # of the last evaluation
    loss: float | None = None  # measured then; None: not finite
    lowest: float | None = None
    lowest_step: int | None = None
    improved: float | None = None  # the loss of the last improvement that was large enough
    without_improvement: int = 0  # evaluations since


class ValidationLosses:
    """The losses on the validation shards so far; the same on all ranks, which see the same ones."""

    def __init__(self, config: EarlyStoppingConfig | None) -> None:
        self._config = config
        self._state = _State()

    def add(self, step: int, loss: float) -> None:
        """Take in the loss of the weights after `step` steps; one that is not finite never improves."""
        s = self._state
        s.step, s.loss = step, loss if math.isfinite(loss) else None
        if s.loss is not None and (s.lowest is None or s.loss < s.lowest):
            s.lowest, s.lowest_step = s.loss, step
        enough = self._config.min_improvement if self._config else 0.0
        if s.loss is not None and (s.improved is None or s.loss < s.improved - enough):
            s.improved, s.without_improvement = s.loss, 0
        else:
            s.without_improvement += 1

    def at(self, step: int) -> float | None:
        """Return the loss of the weights after `step` steps, if it was the last one measured."""
        return self._state.loss if self._state.step == step else None

    @property
    def lowest(self) -> dict[str, float | None]:
        """The lowest loss so far, and its step; None before there is one."""
        return {"step": self._state.lowest_step, "loss": self._state.lowest}

    def reason_to_stop(self) -> str:
        """Say why the run ends early; "" while it goes on."""
        s, c = self._state, self._config
        if c is None or s.without_improvement < c.evaluations:
            return ""
        since = "" if s.improved is None else f" since {s.improved:.4f}"
        by = f" by {c.min_improvement:g}" if c.min_improvement else ""
        return (
            f"the validation loss has not fallen{by} in {s.without_improvement} evaluations{since}"
        )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._state)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._state = _State(**saved)
