"""What a run writes down: metrics.jsonl, events.jsonl, TensorBoard, and a line on the console."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step. `step` counts from 1: it is the number of steps done after it.

    Losses are means over the supervised tokens of all ranks, None where a step has no token of
    the modality. `tokens` are all but padding.
    """

    step: int
    loss: float
    loss_text: float | None
    loss_speech: float | None
    gradient_norm: float  # before clipping
    learning_rate: float
    tokens: int
    total_tokens: int
    tokens_per_second: float
    seconds: float
    data_wait_seconds: float  # of `seconds`, on rank 0


class MetricsLog:
    """Appends to the logs of a run in `out_dir`; used by rank 0 only.

    Opening it after `steps_done` steps removes later steps from metrics.jsonl and TensorBoard,
    so that a resumed run's files are those of a run never interrupted.
    """

    def __init__(self, out_dir: Path, steps_done: int, max_steps: int, every: int) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        self._every, self._max_steps = every, max_steps
        path = out_dir / METRICS_FILE
        _keep_steps(path, steps_done)
        self._metrics = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._events = open(out_dir / EVENTS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(out_dir / TENSORBOARD_FOLDER), purge_step=steps_done + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._events.close()
        self._board.close()

    def step(self, metrics: StepMetrics) -> None:
        """Write one step to the file, and every so often to console and TensorBoard."""
        _append(self._metrics, asdict(metrics))
        if metrics.step % self._every and metrics.step != self._max_steps:
            return
        say(_line(metrics, self._max_steps))
        for name, value in asdict(metrics).items():
            if name != "step" and value is not None:
                self._board.add_scalar(f"train/{name}", value, metrics.step)

    def event(self, kind: str, **details: Any) -> None:
        """Write down something out of the ordinary at once and to stay."""
        _append(self._events, {"event": kind, **details})
        self.sync()

    def sync(self) -> None:
        """Force all logs to disk; called before each checkpoint that counts on them."""
        for file in (self._metrics, self._events):
            file.flush()
            os.fsync(file.fileno())
        self._board.flush()


def say(message: str) -> None:
    """Write a line to the console. Not by print(), which Ray Train patches to show it twice."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def read_metrics(out_dir: Path, last: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl, or only the `last` ones; a torn last line is left out."""
    path = out_dir / METRICS_FILE
    if not path.exists():
        return []
    rows = [json.loads(line) for line in _whole_lines(path)]
    return rows if last is None else rows[max(0, len(rows) - last) :]


def _keep_steps(path: Path, steps_done: int) -> None:
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= steps_done]
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("".join(kept), encoding="utf-8")
    draft.replace(path)


def _whole_lines(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]


def _append(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
    file.flush()


def _finite(value: Any) -> Any:
    """Spell NaN and infinities as strings, for which JSON has no numbers."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _line(m: StepMetrics, max_steps: int) -> str:
    text, speech = ("-" if v is None else f"{v:.4f}" for v in (m.loss_text, m.loss_speech))
    return (
        f"step {m.step}/{max_steps}  loss {m.loss:.4f} (text {text}, speech {speech})  "
        f"gradient norm {m.gradient_norm:.3f}  learning rate {m.learning_rate:.2e}  "
        f"{m.tokens_per_second:,.0f} tokens/s  {m.seconds:.2f} s (data {m.data_wait_seconds:.3f} s)"
    )
