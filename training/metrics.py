"""The logs of a run: metrics.jsonl, events.jsonl, evaluations.jsonl, TensorBoard, W&B, console.

metrics.jsonl and TensorBoard are ordered by batches (`data_step`), whose number only ever grows;
`step` counts optimizer steps, and decreases when the guard rolls back.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from koe.atomic import atomically
from koe.errors import ConfigError
from koe.printable import escape_control_characters, shorten
from training.checkpoint.manifest import Progress
from training.config import TrainConfig
from training.logs import (
    COUNTS,
    EVALUATIONS_FILE,
    EVENTS_FILE,
    LOGS,
    METRICS_FILE,
    flatten,
    is_number,
    read_lines,
)
from training.mirror import Mirror, local_copy
from training.places import Place

TENSORBOARD_FOLDER = "tensorboard"
_MAX_TAG = 200  # characters
# events of the process, not of a batch: a resume does not remove them
_LASTING = ("started", "stopped")
_EVENT = "E"  # begins an event's id


class RunLog:
    """Appends to the logs of a run in `out_dir`; used by rank 0 only.

    Opening it after `data_steps` batches removes what was written about later batches, so that the
    files of a resumed run are those of a run that was never interrupted, and lines that are damaged. `mirror` copies them to a
    URL, where it is given: after events, evaluations, and every so often.
    Raises: ConfigError when W&B is asked for and is not installed.
    """

    def __init__(
        self, out_dir: Path, data_steps: int, config: TrainConfig, mirror: Mirror | None = None
    ) -> None:
        require_wandb(config)
        self._mirror = mirror
        out_dir.mkdir(parents=True, exist_ok=True)
        self._every, self._max_steps = config.log_every_steps, config.max_steps
        self._files: dict[str, TextIO] = {}
        for name in LOGS:
            _keep(out_dir / name, data_steps)
            self._files[name] = open(out_dir / name, "a", encoding="utf-8")  # noqa: SIM115 - close()
        self._last_event = max(map(_number_of, read_events(out_dir)), default=0)
        self.board = SummaryWriter(
            str(out_dir / TENSORBOARD_FOLDER), purge_step=data_steps + 1 if data_steps else None
        )
        self._wandb = _open_wandb(out_dir, mirror.url if mirror else str(out_dir.resolve()), config)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self.board.close()
        if self._wandb:
            self._wandb.finish()
        if self._mirror:
            self._mirror.close()

    def step(self, row: dict[str, Any]) -> None:
        """Write one batch's row to the file, and every `log_every_steps` to console and boards."""
        self._append(METRICS_FILE, row)
        applied = row["action"] in ("accept", "clip")
        if applied and row["step"] % self._every and row["step"] != self._max_steps:
            return
        say(_line(row, self._max_steps))
        self._plot("train", row)
        if self._mirror:
            self._mirror.sometimes()

    def event(self, kind: str, progress: Progress, **details: Any) -> str:
        """Write an event and force it to disk; return its id."""
        self._last_event += 1
        id = f"{_EVENT}{self._last_event:04d}"
        head = {
            "id": id,
            "event": kind,
            "step": progress.steps,
            "data_step": progress.data_steps,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._append(EVENTS_FILE, head | details)
        self.sync()
        if self._mirror:
            self._mirror.soon()
        if kind not in _LASTING:
            reason = f": {details['reason']}" if details.get("reason") else ""
            say(f"{id} {kind} at step {progress.steps}{reason}")
        return id

    def evaluation(self, progress: Progress, row: dict[str, Any]) -> None:
        """Write what was measured on the validation split and about the spoken prompts."""
        row = {"step": progress.steps, "data_step": progress.data_steps, **row}
        self._append(EVALUATIONS_FILE, row)
        self._plot("validation", row)
        if self._mirror:
            self._mirror.soon()
        say(_evaluation_line(row))

    def sync(self) -> None:
        """Force all logs to disk; called before each checkpoint, which relies on them."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.board.flush()

    def _plot(self, prefix: str, row: dict[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in flatten(row, prefix)
            if is_number(value) and name.rpartition("/")[2] not in ("step", "data_step")
        }
        for name, value in numbers.items():
            self.board.add_scalar(_tag(name), value, row["data_step"])
        if self._wandb:
            self._wandb.log(numbers, step=row["data_step"])

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self._files[name].write(_as_line(row))
        self._files[name].flush()


def say(message: str) -> None:
    """Write a line to the console; Ray Train patches print() so that a line appears twice."""
    # a terminal that was closed must not end the training before its checkpoint
    with suppress(OSError):
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def read_metrics(out_dir: Place, last: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl, or only the `last` ones; `read_lines` says what is left out."""
    with local_copy(out_dir, [METRICS_FILE]) as folder:
        rows = list(read_lines(folder / METRICS_FILE, say))
    return rows if last is None else rows[max(0, len(rows) - last) :]


def read_events(out_dir: Place) -> list[dict[str, Any]]:
    """Read events.jsonl; `read_lines` says what is left out."""
    with local_copy(out_dir, [EVENTS_FILE]) as folder:
        return list(read_lines(folder / EVENTS_FILE, say))


def require_wandb(config: TrainConfig) -> None:
    """Raise ConfigError when W&B is asked for and is not installed."""
    if config.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"train.wandb_project is {config.wandb_project}",
            "the package wandb is not installed",
            "Run `pip install wandb`, or set train.wandb_project: null.",
        )


def _open_wandb(out_dir: Path, place: str, config: TrainConfig) -> Any:
    if not config.wandb_project:
        return None
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(
        project=config.wandb_project,
        dir=str(out_dir),
        name=place.rpartition("/")[0].rpartition("/")[2],
        id=hashlib.sha256(place.encode()).hexdigest()[:16],  # a resume continues the same run
        resume="allow",
        config=config.model_dump(),
    )


def _keep(path: Path, data_steps: int) -> None:
    """Remove what a log says of batches after `data_steps`, and lines that are damaged."""
    kept = [
        row
        for row in read_lines(path, say, COUNTS)
        if row["data_step"] <= data_steps or row.get("event") in _LASTING
    ]
    if path.exists():
        with atomically(path) as file:
            file.writelines(_as_line(row).encode() for row in kept)


def _number_of(event: dict[str, Any]) -> int:
    """Return the number in an event's id; 0 for one that has none."""
    number = str(event.get("id")).removeprefix(_EVENT)
    return int(number) if number.isascii() and number.isdigit() else 0


def _tag(name: str) -> str:
    """Name a curve, in which the names of sources stand, so that no page can be turned or flooded.

    TensorBoard shows tags as they are; descriptions and texts, which it reads as Markdown, are never
    written.
    """
    return shorten(escape_control_characters(name), _MAX_TAG)


def _as_line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _evaluation_line(row: dict[str, Any]) -> str:
    average = f", of the averaged weights {row['ema_loss']:.4f}" if "ema_loss" in row else ""
    lowest = row["lowest"]
    best = (
        "" if lowest["loss"] is None else f"; lowest {lowest['loss']:.4f} at step {lowest['step']}"
    )
    return f"validation at step {row['step']}: loss {row['loss']:.4f}{average}{best}"


def _line(row: dict[str, Any], max_steps: int) -> str:
    text, speech = (
        "-" if row["loss_by_modality"].get(name) is None else f"{row['loss_by_modality'][name]:.4f}"
        for name in ("text", "speech")
    )
    mfu = "" if row["mfu_causal"] is None else f"  MFU {row['mfu_causal']:.1%}"
    action = "" if row["action"] == "accept" else f"  [{row['action']}]"
    return (
        f"step {row['step']}/{max_steps}  loss {row['loss']:.4f} (text {text}, speech {speech})  "
        f"gradient norm {row['gradient_norm']:.3f}  learning rate {row['learning_rate']:.2e}  "
        f"{row['tokens_per_second']:,.0f} tokens/s{mfu}  {row['seconds']:.2f} s "
        f"(data {row['data_wait_seconds']:.3f} s){action}"
    )
