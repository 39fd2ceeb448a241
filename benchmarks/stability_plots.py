"""Plots of the stability experiment, drawn from the runs' own metrics.jsonl."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.stability_arms import ARMS, EXPLODING, RunSpec
from training.metrics import read_metrics

Run = dict[str, Any]
_COLUMNS = 3
_SEED = 0  # of the curves; the tables show all seeds
_NOT_DRAWN = {0.12, 1.2}  # multiples that only one arm has, too near to x1 to tell apart
_GAP = 8  # batches between two steps, above which a curve is broken
_TOP = {"text": 20.0, "gradient_norm": 1e4}  # beyond it a curve is cut off


def curves(work: Path, runs: list[Run], path: Path, key: str, label: str) -> None:
    """Draw one panel per arm, with one line per multiple of the rate, for the first seed."""
    chosen = [r for r in runs if r["seed"] == _SEED and r["multiple"] not in _NOT_DRAWN]
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in chosen)]
    multiples = sorted({run["multiple"] for run in chosen})
    shades = plt.cm.viridis_r(np.linspace(0.05, 1, len(multiples)))
    colours = dict(zip(multiples, shades, strict=True))
    num_rows = math.ceil(len(arms) / _COLUMNS)
    figure, axes = plt.subplots(
        num_rows, _COLUMNS, figsize=(11, 2.6 * num_rows), sharex=True, sharey=True, squeeze=False
    )
    for place, panel in enumerate(axes.flat):
        panel.set_visible(place < len(arms))
        if place >= len(arms):
            continue
        of_arm = sorted((r for r in chosen if r["arm"] == arms[place]), key=lambda r: r["multiple"])
        for run in of_arm:
            name = f"x{run['multiple']:g}"
            draw_line(panel, work, run, key, color=colours[run["multiple"]], label=name)
        panel.set_title(arms[place], fontsize=10)
        panel.grid(alpha=0.25)
        if key == "gradient_norm":
            panel.set_yscale("log")
    for panel in axes[:, 0]:
        panel.set_ylabel(label, fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("batch", fontsize=9)
    lines = {line.get_label(): line for panel in axes.flat for line in panel.get_lines()}
    names = [f"x{multiple:g}" for multiple in multiples]
    figure.legend(
        [lines[name] for name in names],
        names,
        title="multiples of 5e-5",
        ncols=len(names),
        loc="upper center",
        frameon=False,
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.75 / (2.6 * num_rows)))
    save(figure, path)


def draw_line(panel: Axes, work: Path, run: Run, key: str, **style: Any) -> None:
    """Draw the loss on text, or the gradient norm, of each batch of a run."""
    spec = RunSpec(
        ARMS[run["arm"]],
        run["multiple"],
        run["seed"],
        run["guarded"],
        dirty=run.get("dirty", False),
    )
    rows = read_metrics(work / "runs" / spec.name)
    if key == "text":
        rows = [row | row["loss_by_modality"] for row in rows]
        rows = [row for row in rows if row["text"] is not None]
    values = np.array([float(row[key]) for row in rows])
    values[~np.isfinite(values)] = np.nan
    steps = np.array([row["data_step"] for row in rows])
    gaps = np.flatnonzero(np.diff(steps) > _GAP) + 1  # where the guard left data out
    steps, values = np.insert(steps, gaps, steps[gaps]), np.insert(values, gaps, np.nan)
    panel.plot(steps, np.minimum(values, _TOP[key]), linewidth=0.8, **style)


def heat_map(runs: list[Run], path: Path) -> None:
    """Show the largest jump of every arm and multiple, and the share of spikes."""
    by_cell: dict[tuple[str, float], list[Run]] = defaultdict(list)
    for run in runs:
        by_cell[run["arm"], run["multiple"]].append(run)
    arms = [arm for arm in ARMS if any(name == arm for name, _ in by_cell)]
    multiples = sorted({multiple for _, multiple in by_cell})
    jumps = np.full((len(arms), len(multiples)), np.nan)
    figure, axes = plt.subplots(figsize=(3.4 + 0.95 * len(multiples), 1.2 + 0.44 * len(arms)))
    for y, arm in enumerate(arms):
        for x, multiple in enumerate(multiples):
            of_cell = by_cell.get((arm, multiple), [])
            if not of_cell:
                continue
            jumps[y, x] = max(run["jump"] for run in of_cell)
            spikes = 100 * sum(r["spikes"] for r in of_cell) / sum(r["batches"] for r in of_cell)
            text = f"{jumps[y, x]:.2f}" + (f"\n{spikes:.1f} % spikes" if spikes else "")
            colour = "white" if jumps[y, x] > 2.4 else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    image = axes.imshow(jumps, cmap="Reds", vmin=1, vmax=3, aspect="auto")
    axes.set_xticks(range(len(multiples)), [f"x{multiple:g}" for multiple in multiples])
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xlabel("learning rate, multiples of 5e-5")
    figure.colorbar(image, label="largest text loss / control's", extend="max")
    figure.tight_layout()
    save(figure, path)


def guard_curves(work: Path, runs: list[Run], path: Path) -> None:
    """Draw loss and gradient norm of each guarded arm and multiple, with and without the guard."""
    key = ("arm", "multiple", "seed")
    pairs = defaultdict(dict)
    for run in runs:
        if run["seed"] == _SEED and run["arm"] == EXPLODING.name:
            pairs[tuple(run[k] for k in key)][run["guarded"]] = run
    chosen = [(name, pair) for name, pair in sorted(pairs.items()) if len(pair) == 2]
    if not chosen:
        return
    figure, axes = plt.subplots(
        2, len(chosen), figsize=(3.7 * len(chosen), 5), sharex="col", sharey="row", squeeze=False
    )
    for (name, pair), (above, below) in zip(chosen, axes.T, strict=True):
        for guard, colour, label in (
            (False, "#c0392b", "guard off"),
            (True, "#1f4e8c", "guard on"),
        ):
            draw_line(above, work, pair[guard], "text", color=colour, label=label)
            draw_line(below, work, pair[guard], "gradient_norm", color=colour, label=label)
        below.set_yscale("log")
        above.set_title(f"{name[0]}, x{name[1]:g}", fontsize=10)
        below.set_xlabel("batch", fontsize=9)
        for panel in (above, below):
            panel.grid(alpha=0.25)
    for panel, label in zip(
        axes[:, 0], ("training loss on text, nats", "gradient norm"), strict=True
    ):
        panel.set_ylabel(label, fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Close a figure and write a PNG of 64 colours, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=85)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)
