"""Reads the logs of a run into columns, and thins them without losing a spike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from koe.errors import ConfigError
from training.logs import (
    EVALUATIONS_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    SAMPLES_FOLDER,
    flatten,
    is_number,
    read_lines,
)
from training.places import Place

APPLIED = ("accept", "clip")

# The guard's actions, hardest first: where events are too many to show, the hardest stay.
_SEVERITY = ("stop", "roll_back", "rolled_back", "lower_rate", "climbing", "restore_rate", "skip")
_MILDEST = "clip"


@dataclass(frozen=True)
class Curve:
    """Finite points in ascending order of `steps`."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass
class Table:
    """Rows of a JSON-lines file by column: nested keys are joined by "/", lists by their index.

    A value that is missing is NaN; one that is not finite is NaN too, and listed in `not_finite`
    as (column, row, its spelling).
    """

    num_rows: int
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    not_finite: list[tuple[str, int, str]] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        found = self.columns.get(name)
        return np.full(self.num_rows, np.nan) if found is None else found

    def names(self, prefix: str) -> list[str]:
        """List the columns under `prefix`/, in the order in which they first occur."""
        return [name for name in self.columns if name.startswith(f"{prefix}/")]

    def curve(self, name: str, rows: np.ndarray) -> Curve:
        """Take the finite values of a column at the rows numbered."""
        values, steps = self.column(name)[rows], self.column("step")[rows]
        good = np.isfinite(values) & np.isfinite(steps)
        return Curve(steps[good].astype(np.int64), values[good])


@dataclass(frozen=True)
class GeneratedSamples:
    """Generated speech; `codec` is the decoder's label, which says so where it is UNTRAINED."""

    folder: Path
    codec: str
    samples: list[dict[str, Any]]  # of samples.json: text, wav, grammar


@dataclass(frozen=True)
class Run:
    """What the logs of a run hold. Row numbers are those of `metrics`, in the order written.

    `main`: applied steps that led to the last weights; `abandoned`: steps that rollbacks undid;
    `skipped`: steps whose gradient was not used, which do not raise the step number.
    """

    metrics: Table
    main: np.ndarray
    abandoned: list[np.ndarray]
    skipped: np.ndarray
    evaluations: Table
    events: list[dict[str, Any]]
    samples: GeneratedSamples
    damage: list[str]  # what of the logs is left out, being damaged


def read_run(out_dir: Path, place: Place | None = None) -> Run:
    """Read the logs of a training folder; any of them may be missing. `place` is what
    messages call the folder, where it is a copy.

    Raises: ConfigError when there is none of them.
    """
    logs = [out_dir / name for name in (METRICS_FILE, EVENTS_FILE, EVALUATIONS_FILE)]
    if not any(path.is_file() and path.stat().st_size for path in logs):
        raise ConfigError(
            f"{place or out_dir} holds no training run",
            f"it has none of {METRICS_FILE}, {EVENTS_FILE}, {EVALUATIONS_FILE}",
            "Name the folder that `koe train` writes its checkpoints and logs to, or train first.",
        )
    damage: list[str] = []
    metrics = read_table(logs[0], damage.append)
    events = list(read_lines(logs[1], damage.append))
    main, abandoned, skipped = follow(metrics, events)
    evaluations, samples = read_table(logs[2], damage.append), _newest(out_dir, damage.append)
    return Run(metrics, main, abandoned, skipped, evaluations, events, samples, damage)


def read_table(path: Path, tell: Callable[[str], None]) -> Table:
    """Read the numbers of a JSON-lines file without keeping its objects; `tell`: as `read_lines`."""
    if not path.is_file():
        return Table(0)
    with open(path, "rb") as file:
        table = Table(sum(line.endswith(b"\n") for line in file))
    # the file may have grown in between
    for row, place in zip(read_lines(path, tell, ("step",)), range(table.num_rows), strict=False):
        table.actions.append(str(row.get("action", APPLIED[0])))
        for name, value in flatten(row, ""):
            if not is_number(value) and value not in ("nan", "inf", "-inf"):
                continue
            if name not in table.columns:
                table.columns[name] = np.full(table.num_rows, np.nan)
            found = number(value)
            if math.isfinite(found):
                table.columns[name][place] = found
            else:
                table.not_finite.append((name, place, str(value)))
    table.num_rows = len(table.actions)  # without the lines that are left out
    table.columns = {name: values[: table.num_rows] for name, values in table.columns.items()}
    return table


def follow(
    metrics: Table, events: list[dict[str, Any]]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Split the rows into (main, abandoned pieces, skipped).

    Where an applied step does not come after the one before it, the run was rolled back: all from
    that step on is abandoned. A rollback that no step has followed yet shows in its event.
    """
    main: list[int] = []
    abandoned: list[np.ndarray] = []
    skipped: list[int] = []
    steps, data_steps = metrics.column("step"), metrics.column("data_step")

    def abandon(keep: int) -> None:
        if keep < len(main):
            abandoned.append(np.array(main[keep:]))
            del main[keep:]

    for row, action in enumerate(metrics.actions):
        if action not in APPLIED:
            skipped.append(row)
            continue
        keep = len(main)
        while keep and steps[main[keep - 1]] >= steps[row]:
            keep -= 1
        abandon(keep)
        main.append(row)
    for event in events[-1:]:
        if event.get("event") == "rolled_back":
            step, data_step = number(event.get("step")), number(event.get("data_step"))
            undone = [steps[row] > step and data_steps[row] <= data_step for row in main]
            abandon(undone.index(True) if True in undone else len(main))
    return np.array(main, np.int64), abandoned, np.array(skipped, np.int64)


def thin(curve: Curve, buckets: int) -> Curve:
    """Keep the first, last, smallest and largest point of each of `buckets` pieces.

    At most 4 points per bucket remain, each as it was measured: no spike is averaged away.
    """
    if len(curve) <= 4 * buckets:
        return curve
    kept = set()
    for part in np.array_split(np.arange(len(curve)), buckets):
        values = curve.values[part]
        kept |= {part[0], part[-1], part[values.argmin()], part[values.argmax()]}
    places = np.array(sorted(kept))
    return Curve(curve.steps[places], curve.values[places])


def medians(curve: Curve, buckets: int) -> Curve:
    """Take the median of each of `buckets` groups of neighbouring points, at its middle step."""
    parts = np.array_split(np.arange(len(curve)), min(buckets, len(curve)))
    return Curve(
        np.array([curve.steps[part[len(part) // 2]] for part in parts], np.int64),
        np.array([np.median(curve.values[part]) for part in parts]),
    )


def hardest(events: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Choose at most `limit` events, those of the hardest kinds, in the order written."""
    late = len(_SEVERITY)  # kinds that are not the guard's, but before the mildest
    ranks = {kind: rank for rank, kind in enumerate(_SEVERITY)} | {_MILDEST: late + 1}
    kinds = [str(event.get("event")) for event in events]
    ranked = sorted(range(len(events)), key=lambda place: (ranks.get(kinds[place], late), place))
    return [events[place] for place in sorted(ranked[:limit])]


def number(value: Any) -> float:
    """Read a number of the logs, where NaN and infinities are strings; NaN for anything else."""
    try:
        return float(value) if is_number(value) or isinstance(value, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _newest(out_dir: Path, tell: Callable[[str], None]) -> GeneratedSamples:
    """Read the newest folder of generated speech that has a list of its samples; `tell` of others."""
    for path in sorted((out_dir / SAMPLES_FOLDER).glob(f"step-*/{SAMPLES_FILE}"), reverse=True):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            samples = [dict(sample) for sample in found["samples"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            tell(f"{path.parent.name}/{path.name} left out, which cannot be read: {error!r}")
            continue
        return GeneratedSamples(path.parent, str(found.get("codec") or ""), samples)
    return GeneratedSamples(out_dir, "", [])
