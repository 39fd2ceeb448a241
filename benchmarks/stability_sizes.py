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
from statistics import mean
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


def largest_survived(runs: Sequence[Run]) -> float | None:
    """Return the largest multiple up to which no run of any seed jumped or stopped; None if none."""
    by_multiple = defaultdict(list)
    for run in runs:
        by_multiple[run["multiple"]].append(run["jump"] <= JUMP and not run["stopped"])
    edge = None
    for multiple in sorted(by_multiple):
        if not all(by_multiple[multiple]):
            break
        edge = multiple
    return edge


def power_law(sizes: Sequence[float], rates: Sequence[float]) -> tuple[float, float]:
    """Fit rate = factor x size^exponent by least squares of the logarithms; return both."""
    x, y = [math.log(size) for size in sizes], [math.log(rate) for rate in rates]
    spread = sum((value - mean(x)) ** 2 for value in x)
    exponent = sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / spread
    return math.exp(mean(y) - exponent * mean(x)), exponent


def sizes_table(found: dict[str, tuple[int, list[Run]]]) -> Iterator[str]:
    """Yield the lines of a table: by arm, the largest rate survived at each size, and the line through them."""
    names = sorted(found, key=lambda name: found[name][0])
    heads = [f"{found[name][0] / 1e6:.2g} M" for name in names]
    yield f"| arm | {' | '.join(heads)} | line | at 3.3 B |"
    yield "|---" * (len(names) + 3) + "|"
    for arm in ARMS:
        of_arm = {n: [run for run in found[n][1] if run["arm"] == arm] for n in names}
        if not any(of_arm.values()):
            continue
        edges = {name: largest_survived(runs) for name, runs in of_arm.items() if runs}
        cells = [_edge_cell(of_arm[name], edges.get(name)) for name in names]
        yield f"| {arm} | {' | '.join(cells)} | {_line_cells(found, of_arm, edges)} |"


def _edge_cell(runs: list[Run], edge: float | None) -> str:
    if not runs:
        return "not run"
    multiples = sorted({run["multiple"] for run in runs})
    seeds = len({run["seed"] for run in runs})
    of_seeds = f" ({seeds} seed{'s' * (seeds != 1)})"
    if edge is None:
        return f"below x{multiples[0]:g}{of_seeds}"
    return f"x{edge:g}{' and more' if edge == multiples[-1] else ''}{of_seeds}"


def _line_cells(
    found: dict[str, tuple[int, list[Run]]],
    of_arm: dict[str, list[Run]],
    edges: dict[str, float | None],
) -> str:
    """Fit a line where the edge lies inside of what was tried, at two sizes at least."""
    inside = {
        name: edge
        for name, edge in edges.items()
        if edge is not None and edge < max(run["multiple"] for run in of_arm[name])
    }
    if len(inside) < 2:
        return "– | –"
    sizes = [found[name][0] for name in inside]
    factor, exponent = power_law(sizes, [BASE_RATE * edge for edge in inside.values()])
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


def report_sizes(work: Path) -> dict[str, Any]:
    folders = {name: work / name for name in SCALES if name.startswith("size-")}
    found = {
        name: (num_parameters(folder / "base"), read_runs(folder))
        for name, folder in folders.items()
        if (folder / "runs").exists()
    }
    print(*sizes_table(found), sep="\n")
    return {name: {"parameters": size, "runs": runs} for name, (size, runs) in found.items()}


def report_dirt(work: Path) -> dict[str, Any]:
    runs = read_runs(work / "dirty")
    print(*dirty_table(runs), sep="\n")
    return {"runs": runs}


_REPORTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "sizes": report_sizes,
    "dirty": report_dirt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", choices=list(_REPORTS))
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    found = _REPORTS[options.report](options.work)
    print(write_figures(f"stability_{options.report}", **found))


if __name__ == "__main__":
    run_command(main)
