"""Plots of the stability experiment across sizes of the model, and on a dirty corpus."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.stability_arms import ARMS
from benchmarks.stability_plots import Run, draw_line, save
from benchmarks.stability_spikes import JUMP

_COLUMNS = 4
_GUARDS = ((False, False, "clean, guard off", "#7f8c8d"), (True, False, "damaged, guard off", "#c0392b"),
           (True, True, "damaged, guard on", "#1f4e8c"))  # fmt: skip


def jumps_by_size(found: dict[str, tuple[int, list[Run]]], path: Path) -> None:
    """Draw one panel per arm: the jump at each multiple of the rate, a line for each size of the model."""
    names = sorted(found, key=lambda name: found[name][0])
    runs = [run for _, of_size in found.values() for run in of_size]
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in runs)]
    rows = -(-len(arms) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(12, 2.7 * rows), sharex=True, sharey=True, squeeze=False
    )
    colours = dict(zip(names, plt.cm.viridis_r(np.linspace(0.15, 1, len(names))), strict=True))
    for place, panel in enumerate(axes.flat):
        panel.set_visible(place < len(arms))
        if place < len(arms):
            for name in names:
                size, of_size = found[name]
                of_arm = [run for run in of_size if run["arm"] == arms[place]]
                _jumps(panel, of_arm, color=colours[name], label=f"{size / 1e6:.2g} M parameters")
            panel.set_title(arms[place], fontsize=10)
    figure.supxlabel("learning rate, multiples of 5e-5", fontsize=9)
    figure.supylabel("largest text loss / control's", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(names), loc="upper center", frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / (2.7 * rows)))
    save(figure, path)


def _jumps(panel: Axes, runs: list[Run], **style: object) -> None:
    by_multiple: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        by_multiple[run["multiple"]].append(run["jump"])
    multiples = sorted(by_multiple)
    panel.plot(multiples, [mean(by_multiple[m]) for m in multiples], linewidth=1.2, **style)
    points = [(m, jump) for m in multiples for jump in by_multiple[m]]
    panel.scatter(*zip(*points, strict=True), s=9, color=style["color"]) if points else None
    panel.axhline(JUMP, color="#999999", linewidth=0.8, linestyle="--")
    panel.set_xscale("log", base=2)
    panel.set_xticks(multiples, [f"x{m:g}" for m in multiples])
    panel.grid(alpha=0.25)


def damage_curves(work: Path, runs: list[Run], path: Path) -> None:
    """Draw loss and gradient norm of the first seed on clean and on damaged documents."""
    first = [run for run in runs if run["seed"] == 0]
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in first)]
    figure, axes = plt.subplots(
        2, len(arms), figsize=(5.6 * len(arms), 5), sharex=True, sharey="row", squeeze=False
    )
    for arm, (above, below) in zip(arms, axes.T, strict=True):
        for is_dirty, is_guarded, label, colour in _GUARDS:
            for run in first:
                if (run["arm"], run["dirty"], run["guarded"]) == (arm, is_dirty, is_guarded):
                    draw_line(above, work, run, "text", color=colour, label=label)
                    draw_line(below, work, run, "gradient_norm", color=colour, label=label)
        below.set_yscale("log")
        above.set_title(arm, fontsize=10)
        below.set_xlabel("batch", fontsize=9)
        for panel in (above, below):
            panel.grid(alpha=0.25)
    axes[0, 0].set_ylabel("training loss on text, nats", fontsize=9)
    axes[1, 0].set_ylabel("gradient norm", fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save(figure, path)
