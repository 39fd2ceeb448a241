"""Results of the stability experiment as JSON and as Markdown tables."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.results import commit, hardware
from benchmarks.stability_arms import ARMS, BASE_RATE, NO_TRAINING, SCALES, shards_name
from benchmarks.stability_data import CodeSource
from benchmarks.stability_plots import curves, guard_curves, heat_map
from benchmarks.stability_spikes import JUMP, MODALITIES, is_worse_off, read_figures
from koe.errors import ConfigError

Run = dict[str, Any]


def report_on(work: Path, scale_name: str, results: Path, plots: Path) -> int:
    """Collect the figures of the runs in `work`, print the tables, write plots and JSON."""
    scale = SCALES[scale_name]
    runs = [
        json.loads(path.read_text(encoding="utf-8")) | read_figures(path.parent)
        for path in sorted((work / "runs").glob("*/figures.json"))
    ]
    start = start_losses(runs)
    still = {
        shards_name(ARMS[run["arm"]], 0): run["largest_loss"]["text"]
        for run in runs
        if run["multiple"] == NO_TRAINING
    }
    for run in runs:
        run["worse_off"] = is_worse_off(run, start)
        run["jump"] = run["largest_loss"]["text"] / still[shards_name(ARMS[run["arm"]], 0)]
    trained = [run for run in runs if run["multiple"] > NO_TRAINING]
    plots.mkdir(parents=True, exist_ok=True)
    plain = [run for run in trained if not run["guarded"]]
    print(f"Start: text {start['text']:.3f}, speech {start['speech']:.3f}\n")
    for title, cell in _CELLS.items():
        print(f"{title}\n\n{table(plain, cell)}\n")
    print(f"Largest multiple\n\n{edge_table(edges(plain))}\n")
    print(f"Control, nothing moves\n\n{control_table(runs)}\n")
    print(f"Guard\n\n{guard_table(trained)}\n")
    heat_map(plain, plots / "jumps.png")
    curves(work, plain, plots / "loss.png", "text", "training loss on text, nats")
    curves(work, plain, plots / "gradient_norm.png", "gradient_norm", "gradient norm")
    guard_curves(work, trained, plots / "guard.png")
    found = {
        "name": "stability",
        "scale": scale_name,
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
        "settings": asdict(scale)
        | {"code_entropy_nats": CodeSource(scale.num_codes).entropy}
        | {"base_learning_rate": BASE_RATE},
        "start_validation_loss": start,
        "largest_multiple": edges(plain),
        "runs": runs,
    }
    short = re.sub(r"[^a-z0-9]+", "-", found["hardware"].lower()).strip("-")
    scale_part = "" if scale_name == "small" else f"_{scale_name}"
    path = results / f"stability{scale_part}_{short}_{found['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_json(found), encoding="utf-8")
    print(f"written: {path}")
    return 0


def _json(found: dict[str, Any]) -> str:
    """Write one line per run, so that differences between two files are readable."""
    runs = ",\n".join("  " + json.dumps(run) for run in found["runs"])
    head = json.dumps(found | {"runs": []}, indent=1)
    return head.replace('"runs": []', f'"runs": [\n{runs}\n ]') + "\n"


def start_losses(runs: list[Run]) -> dict[str, float]:
    """Return the validation losses of the untrained model, which are those of the control."""
    still = [run["validation_loss"] for run in runs if run["multiple"] == NO_TRAINING]
    if not still:
        raise ConfigError(
            "there is nothing to compare the runs with",
            "the control, whose weights never change, was not run",
            f"Run an arm with --multiples {NO_TRAINING:g}.",
        )
    return {m: mean(losses[m] for losses in still) for m in MODALITIES}


def cells(runs: list[Run]) -> dict[tuple[str, float], list[Run]]:
    found = defaultdict(list)
    for run in runs:
        found[run["arm"], run["multiple"]].append(run)
    return found


def edges(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Return, of each arm, the largest multiple up to which no run had a spike, a jump, or both."""
    found: dict[str, dict[str, Any]] = {}
    by_cell = cells(runs)
    for arm in ARMS:
        multiples = sorted(multiple for name, multiple in by_cell if name == arm)
        if not multiples:
            continue
        of_arm = {multiple: by_cell[arm, multiple] for multiple in multiples}
        found[arm] = {
            "tried": multiples,
            "no_spike": _edge(of_arm, lambda run: run["spikes"] == 0),
            "no_jump": _edge(of_arm, lambda run: run["jump"] <= JUMP),
            "not_worse_off": _edge(of_arm, lambda run: not run["worse_off"]),
        }
    return found


def _edge(runs: dict[float, list[Run]], is_well: Callable[[Run], bool]) -> float | None:
    edge = None
    for multiple, of_multiple in runs.items():
        if not all(is_well(run) for run in of_multiple):
            break
        edge = multiple
    return edge


def _spikes(runs: list[Run]) -> str:
    share = sum(run["spikes"] for run in runs) / sum(run["batches"] for run in runs)
    return f"{share:.1%}"


def _gradient_spikes(runs: list[Run]) -> str:
    share = sum(run["gradient_spikes"] for run in runs) / sum(run["batches"] for run in runs)
    return f"{share:.1%}"


def _jumps(runs: list[Run]) -> str:
    return f"{max(run['jump'] for run in runs):.2f}"


def _norm(runs: list[Run]) -> str:
    return f"{max(run['largest_gradient_norm'] or 0 for run in runs):.3g}"


def _final(runs: list[Run]) -> str:
    known = [run["validation_loss"] for run in runs if None not in run["validation_loss"].values()]
    if not known:
        return "stopped"
    losses = " / ".join(f"{mean(float(of[m]) for of in known):.2f}" for m in MODALITIES)
    worse = sum(run["worse_off"] for run in runs)
    return losses + (f" ({worse} of {len(runs)} worse off)" if worse else "")


def _count(runs: list[Run]) -> str:
    return str(len(runs))


_CELLS = {
    "Share of steps with a spike, over all seeds": _spikes,
    "Share of steps whose gradient norm has a spike by the same rule": _gradient_spikes,
    "Largest gradient norm of any seed": _norm,
    "Largest jump of any seed: largest training loss on text over the control's": _jumps,
    "Validation loss at the end, text / speech, mean over seeds": _final,
    "Seeds": _count,
}


def table(runs: list[Run], cell: Callable[[list[Run]], str]) -> str:
    by_cell = cells(runs)
    multiples = sorted({multiple for _, multiple in by_cell})
    lines = ["| arm | " + " | ".join(f"x{m:g}" for m in multiples) + " |"]
    lines.append("|---" * (len(multiples) + 1) + "|")
    for arm in ARMS:
        if any(name == arm for name, _ in by_cell):
            row = [cell(by_cell[arm, m]) if (arm, m) in by_cell else "" for m in multiples]
            lines.append(f"| {arm} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def edge_table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| arm | tried | no spike | no jump | not worse off |", "|---|---|---|---|---|"]
    for arm, of_arm in found.items():
        low, high = of_arm["tried"][0], of_arm["tried"][-1]
        values = (of_arm[key] for key in ("no_spike", "no_jump", "not_worse_off"))
        edges_ = (f"below x{low:g}" if value is None else f"x{value:g}" for value in values)
        lines.append(f"| {arm} | x{low:g} to x{high:g} | {' | '.join(edges_)} |")
    return "\n".join(lines)


def control_table(runs: list[Run]) -> str:
    lines = [
        "| arm | spikes | gradient spikes | steps | largest loss on text | largest gradient norm |",
        "|---|---|---|---|---|---|",
    ]
    for (arm, multiple), of_cell in cells(runs).items():
        if multiple == NO_TRAINING:
            keys = ("spikes", "gradient_spikes", "batches")
            counts = " | ".join(str(sum(run[key] for run in of_cell)) for key in keys)
            largest = max(run["largest_loss"]["text"] for run in of_cell)
            lines.append(f"| {arm} | {counts} | {largest:.2f} | {_norm(of_cell)} |")
    return "\n".join(lines)


def guard_table(runs: list[Run]) -> str:
    """Compare guarded runs with those of the same arm, multiple and seed without the guard."""
    key = ("arm", "multiple", "seed")
    plain = {tuple(run[k] for k in key): run for run in runs if not run["guarded"]}
    lines = [
        "| arm | multiple | seed | spikes off | spikes on | largest gradient norm off / on | "
        "validation off | validation on | actions of the guard |",
        "|---" * 9 + "|",
    ]
    for run in sorted((r for r in runs if r["guarded"]), key=lambda r: [r[k] for k in key]):
        off = plain.get(tuple(run[k] for k in key))
        if not off:
            continue
        did = ", ".join(f"{kind} {count}" for kind, count in run["guard"].items()) or "nothing"
        lines.append(
            f"| {run['arm']} | x{run['multiple']:g} | {run['seed']} | {off['spike_share']:.1%} | "
            f"{run['spike_share']:.1%} | {_norm([off])} / {_norm([run])} | {_final([off])} | "
            f"{_final([run])} | {did}{'; stopped' if run['stopped'] else ''} |"
        )
    return "\n".join(lines)
