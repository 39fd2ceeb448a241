"""What counts as a spike, fixed before the runs, and the figures of one run.

A step has a spike when its loss on text or on speech lies more than 6 robust standard deviations
above the median of that modality's last 32 losses (at least 8). The deviation is 1.4826 times
their median absolute deviation, but at least 2 % of the median. Modalities are judged separately, as
a step of speech after one of text is no spike. It is computed from metrics.jsonl, independently of
the guard. A run is worse off when it stops, or ends with a validation loss of text or of speech above
that of the model which it started from.

Added after the runs of the first seed: the definition cannot see the first eight losses of a modality,
and that is where a run without warm-up jumps. `jump` is the largest training loss on text divided by
the largest of a control on the same shards, whose model never changes; over 1.5 it counts as a jump.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from benchmarks.stability_damage import damaged_rows
from training.metrics import EVALUATIONS_FILE, read_events, read_metrics

WINDOW, MIN_VALUES, SIGMAS, MIN_DEVIATION = 32, 8, 6.0, 0.02
JUMP = 1.5
MODALITIES = ("text", "speech")


def spike_steps(rows: list[dict[str, Any]]) -> list[int]:
    """Return the places in `rows`, objects of metrics.jsonl, whose loss is a spike."""
    found = set()
    for modality in MODALITIES:
        values = [(at, row["loss_by_modality"][modality]) for at, row in enumerate(rows)]
        found.update(_spikes([(at, float(loss)) for at, loss in values if loss is not None]))
    return sorted(found)


def gradient_spike_steps(rows: list[dict[str, Any]]) -> list[int]:
    """Return the places whose gradient norm is a spike among steps of the same modalities."""
    apart: dict[tuple[bool, ...], list[tuple[int, float]]] = {}
    for at, row in enumerate(rows):
        kind = tuple(row["loss_by_modality"][m] is None for m in MODALITIES)
        apart.setdefault(kind, []).append((at, float(row["gradient_norm"])))
    return sorted(at for values in apart.values() for at in _spikes(values))


def _spikes(values: list[tuple[int, float]]) -> list[int]:
    found, before = [], []
    for at, value in values:
        if not math.isfinite(value) or value > _limit(before):
            found.append(at)
        before = [*before[1 - WINDOW :], value]
    return found


def _limit(before: list[float]) -> float:
    finite = [value for value in before if math.isfinite(value)]
    if len(finite) < MIN_VALUES:
        return math.inf
    middle = median(finite)
    deviation = 1.4826 * median(abs(value - middle) for value in finite)
    return middle + SIGMAS * max(deviation, MIN_DEVIATION * middle)


def read_figures(folder: Path) -> dict[str, Any]:
    """Summarise the run whose logs are in `folder`."""
    path = folder / EVALUATIONS_FILE
    evaluations = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return figures(read_metrics(folder), read_events(folder), evaluations)


def figures(
    rows: list[dict[str, Any]], events: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Summarise a run from its logs; losses are the validation split's, None if never reached."""
    spikes = spike_steps(rows)
    norms = [float(row["gradient_norm"]) for row in rows]
    finite = [norm for norm in norms if math.isfinite(norm)]
    kinds = [event["event"] for event in events]
    last = evaluations[-1]["loss_by_modality"] if evaluations else {}
    applied = [row for row in rows if row["action"] in ("accept", "clip")]
    return {
        "batches": len(rows),
        "steps": rows[-1]["step"] if rows else 0,
        "spikes": len(spikes),
        "spike_share": len(spikes) / len(rows) if rows else 0.0,
        "gradient_spikes": len(gradient_spike_steps(rows)),
        "first_spike": spikes[0] + 1 if spikes else None,
        "largest_loss": {m: _largest(rows, m) for m in MODALITIES},
        "largest_gradient_norm": max(finite, default=None) if finite else None,
        "not_finite": len(norms) - len(finite),
        "median_gradient_norm": {"first": median(norms[:WINDOW]), "last": median(norms[-WINDOW:])}
        if rows
        else None,
        "train_loss": sum(float(row["loss"]) for row in applied[-WINDOW:])
        / max(1, len(applied[-WINDOW:])),
        "validation_loss": {m: last.get(m) for m in MODALITIES},
        "largest_logit": max((float(row["largest_logit"]) for row in rows), default=None),
        "guard": {kind: kinds.count(kind) for kind in sorted(set(kinds) - {"started"})},
        "seconds": sum(row["seconds"] for row in rows),
        "tokens": rows[-1]["total_tokens"] if rows else 0,
    }


def damage_figures(folder: Path, shards: Path, rows_per_step: int) -> dict[str, Any]:
    """Count batches with damaged documents: all, those whose update was applied, those with a spike."""
    damaged = damaged_rows(_train_rows(shards))
    if not damaged.any():
        return {}
    rows = read_metrics(folder)
    first = [rows_per_step * (row["data_step"] - 1) for row in rows]
    counts = [int(damaged[begin : begin + rows_per_step].sum()) for begin in first]
    applied = [row["action"] in ("accept", "clip") for row in rows]
    spikes = set(spike_steps(rows))
    return {
        "damaged_rows": int(damaged.sum()),
        "damaged_rows_seen": sum(counts),
        "damaged_rows_applied": sum(count for count, a in zip(counts, applied, strict=True) if a),
        "damaged_batches": sum(count > 0 for count in counts),
        "damaged_batches_with_spike": sum(counts[at] > 0 for at in spikes),
    }


def _train_rows(shards: Path) -> pa.Table:
    return ipc.open_file(str(shards / "train-00000.arrow")).read_all()


def _largest(rows: list[dict[str, Any]], modality: str) -> float | None:
    losses = [row["loss_by_modality"][modality] for row in rows]
    return max((float(loss) for loss in losses if loss is not None), default=None)


def is_worse_off(run: dict[str, Any], start: dict[str, float]) -> bool:
    """Say whether a run stopped, or ended worse than `start`, the untrained model's losses."""
    losses = run["validation_loss"]
    return bool(run["stopped"]) or any(
        losses[m] is None or not float(losses[m]) <= start[m] for m in MODALITIES
    )
