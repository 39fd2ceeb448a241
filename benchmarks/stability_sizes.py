"""Which learning rates the arms survive at each size of the model, and what damaged documents do.

    python -m benchmarks.stability_sizes sizes --work DIR      DIR/size-0.3M, DIR/size-1M, DIR/size-10M
    python -m benchmarks.stability_sizes dirty --work DIR      DIR/dirty

Reads the runs that `python -m benchmarks.stability run --scale ... --work DIR/...` has finished, however
many these are, and prints Markdown. The figures go into one JSON file each.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

from safetensors import safe_open

from benchmarks.results import run_command, write_figures
from benchmarks.stability_arms import ARMS, BASE_RATE, NO_TRAINING, SCALES, shards_name
from benchmarks.stability_spikes import JUMP, MODALITIES
from koe.errors import ConfigError

Run = dict[str, Any]
TARGET = 3.3e9  # parameters of the published model


def read_runs(work: Path) -> list[Run]:
    """Read the figures of the finished runs of a scale.

    `jump` is the largest training loss on text divided by that of the control on the same shards, over as many
    batches as the control has. Raises: ConfigError without runs, or without their control.
    """
    paths = sorted((work / "runs").glob("*/figures.json"))
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    still = {_shards(run): run["largest_loss"]["text"] for run in runs if _is_control(run)}
    trained = [run for run in runs if not _is_control(run)]
    missing = {_shards(run) for run in trained} - set(still)
    if not trained or missing:
        why = (
            f"those of {', '.join(sorted(missing))} have no control"
            if missing
            else "there are none"
        )
        raise ConfigError(
            f"the runs in {work} cannot be compared", why, "Run the whole plan of the scale first."
        )
    return [run | {"jump": run["largest_loss"]["text"] / still[_shards(run)]} for run in trained]


def _is_control(run: Run) -> bool:
    return run["multiple"] == NO_TRAINING


def _shards(run: Run) -> str:
    return shards_name(ARMS[run["arm"]], 0)


def num_parameters(base: Path) -> int:
    """Count the parameters of a saved model, a tied head once."""
    with safe_open(str(base / "model.safetensors"), "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def crossings(runs: Sequence[Run]) -> list[float]:
    """Return for each seed of an arm the multiple of the base rate at which the loss begins to jump.

    It is interpolated, in logarithms, between the multiples that were tried. 0: the smallest jumps already;
    infinity: none does.
    """
    jumps: dict[int, dict[float, float]] = defaultdict(dict)
    for run in runs:
        jumps[run["seed"]][run["multiple"]] = math.inf if run["stopped"] else run["jump"]
    return [_crossing(sorted(found.items())) for _, found in sorted(jumps.items())]


def _crossing(points: list[tuple[float, float]]) -> float:
    for place, (multiple, jump) in enumerate(points):
        if jump > JUMP:
            return _between(points[place - 1], (multiple, jump)) if place else 0.0
    return math.inf


def _between(below: tuple[float, float], above: tuple[float, float]) -> float:
    (low, quiet), (high, jump) = below, above
    share = 0.5 if math.isinf(jump) else math.log(JUMP / quiet) / math.log(jump / quiet)
    return low * (high / low) ** share


def power_law(sizes: Sequence[float], rates: Sequence[float]) -> tuple[float, float]:
    """Fit rate = factor x size^exponent by least squares of the logarithms; return both."""
    x, y = [math.log(size) for size in sizes], [math.log(rate) for rate in rates]
    spread = sum((value - mean(x)) ** 2 for value in x)
    exponent = sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / spread
    return math.exp(mean(y) - exponent * mean(x)), exponent


def sizes_table(found: dict[str, tuple[int, list[Run]]]) -> Iterator[str]:
    """Yield the lines of a table: by arm, where the loss begins to jump at each size, and the line through it."""
    names = sorted(found, key=lambda name: found[name][0])
    heads = [f"{found[name][0] / 1e6:.2g} M" for name in names]
    yield f"| arm | {' | '.join(heads)} | line | at 3.3 B |"
    yield "|---" * (len(names) + 3) + "|"
    for arm in ARMS:
        of_arm = {n: [run for run in found[n][1] if run["arm"] == arm] for n in names}
        if not any(of_arm.values()):
            continue
        cells = [_edge_cell(of_arm[name]) for name in names]
        sizes = {name: found[name][0] for name in names}
        yield f"| {arm} | {' | '.join(cells)} | {_line_cells(sizes, of_arm)} |"


def _edge_cell(runs: list[Run]) -> str:
    if not runs:
        return "not run"
    tried = sorted({run["multiple"] for run in runs})
    edges = crossings(runs)
    low, high = (_edge(edge, tried) for edge in (min(edges), max(edges)))
    seeds = f"{len(edges)} seed{'s' * (len(edges) != 1)}"
    return f"{low if low == high else f'{low} to {high}'} ({seeds})"


def _edge(edge: float, tried: list[float]) -> str:
    if edge == 0:
        return f"below x{tried[0]:g}"
    return f"above x{tried[-1]:g}" if math.isinf(edge) else f"x{edge:.0f}"


def _line_cells(sizes: dict[str, int], of_arm: dict[str, list[Run]]) -> str:
    """Fit a line where every seed's edge lies inside of what was tried, at two sizes at least."""
    edges = {name: crossings(runs) for name, runs in of_arm.items() if runs}
    inside = {n: e for n, e in edges.items() if all(0 < edge < math.inf for edge in e)}
    if len(inside) < 2:
        return "– | –"
    rates = [BASE_RATE * geometric_mean(found) for found in inside.values()]
    factor, exponent = power_law([sizes[name] for name in inside], rates)
    return f"size^{exponent:.2f} | {factor * TARGET**exponent:.1e}"


def dirty_table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the lines of a table: clean and damaged documents, with the guard and without."""
    yield (
        "| arm | documents | guard | seeds | steps with a spike | of these on damaged rows | "
        "damaged rows applied | final loss, clean text / speech | the guard's actions |"
    )
    yield "|---" * 9 + "|"
    groups: dict[tuple[str, bool, bool], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["arm"], run["dirty"], run["guarded"]].append(run)
    for (arm, is_dirty, is_guarded), group in sorted(groups.items()):
        cells = [
            f"{arm}, x{group[0]['multiple']:g}",
            "1 % damaged" if is_dirty else "clean",
            "on" if is_guarded else "off",
            str(len(group)),
            str(_sum(group, "spikes")),
            str(_sum(group, "damaged_batches_with_spike")) if is_dirty else "",
            f"{_sum(group, 'damaged_rows_applied'):,} of {_sum(group, 'damaged_rows_seen'):,}"
            if is_dirty
            else "",
            " / ".join(_losses(group, modality) for modality in MODALITIES),
            _actions(group),
        ]
        yield f"| {' | '.join(cells)} |"


def _sum(runs: Sequence[Run], key: str) -> int:
    return sum(run.get(key, 0) for run in runs)


def _losses(runs: Sequence[Run], modality: str) -> str:
    values = [float(run["validation_loss"][modality]) for run in runs]
    low, high = min(values), max(values)
    return f"{mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if len(values) > 1 else "")


def _actions(runs: Sequence[Run]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        for kind, number in run["guard"].items():
            counts[kind] += number
    return ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items())) or "none"


def report_sizes(work: Path, plots: Path | None) -> dict[str, Any]:
    folders = {name: work / name for name in SCALES if name.startswith("size-")}
    found = {
        name: (num_parameters(folder / "base"), read_runs(folder))
        for name, folder in folders.items()
        if (folder / "runs").exists()
    }
    print(*sizes_table(found), sep="\n")
    if plots:
        from benchmarks.stability_sizes_plots import (
            jumps_by_size,  # matplotlib is needed for it alone
        )

        jumps_by_size(found, plots / "sizes.png")
    return {name: {"parameters": size, "runs": runs} for name, (size, runs) in found.items()}


def report_dirt(work: Path, plots: Path | None) -> dict[str, Any]:
    runs = read_runs(work / "dirty")
    print(*dirty_table(runs), sep="\n")
    if plots:
        from benchmarks.stability_sizes_plots import damage_curves

        damage_curves(work / "dirty", runs, plots / "dirty.png")
    return {"runs": runs}


_REPORTS: dict[str, Callable[[Path, Path | None], dict[str, Any]]] = {
    "sizes": report_sizes,
    "dirty": report_dirt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", choices=list(_REPORTS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--plots", type=Path, help="folder to draw into, as docs/stability")
    options = parser.parse_args()
    found = _REPORTS[options.report](options.work, options.plots)
    print(write_figures(f"stability_{options.report}", **found))


if __name__ == "__main__":
    run_command(main)
