"""Rich renderings of the plan and of what it will cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from koe.numbers import duration, file_size, not_readable, short
from koe.schema import Unit
from pipeline.estimate import StageEstimate
from pipeline.run_dir.plan import Plan, lost_in
from pipeline.terminal.tables import grid, titled


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """Sum up the plan, one dictionary per source."""
    rows = []
    for source, modality in plan.modalities.items():
        units = [unit for unit in plan.units if unit.source == source]
        lost = lost_in(units)
        rows.append(
            {
                "source": source,
                "modality": modality,
                "units": len(units),
                "records": sum(unit.records for unit in units),
                "files": len({unit.path for unit in units}),
                "faults": _faults(units),
                "lost_records": lost.records,
                "lost_bytes": lost.num_bytes,
            }
        )
    return rows


def _faults(units: Iterable[Unit]) -> list[str]:
    """Say of each file how much of it cannot be read."""
    by_path: dict[str, list[Unit]] = {}
    for unit in units:
        by_path.setdefault(unit.path, []).append(unit)
    lost = {path: lost_in(units) for path, units in by_path.items()}
    return [
        f"{path}: {not_readable(found.records, found.num_bytes)}"
        for path, found in lost.items()
        if found.gaps
    ]


def plan_view(plan: Plan) -> RenderableType:
    """Render the units of `koe plan`, and below them the files that cannot be read completely."""
    rows = plan_rows(plan)
    table = grid("Plan", "source", "units", "records", "files", "faults")
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("units", "records", "files"))
        table.add_row(f"{row['source']} ({row['modality']})", *counts, f"{len(row['faults']):,}")
    faults = [Text(f"fault: {fault}", "yellow") for row in rows for fault in row["faults"]]
    return Group(titled(table), *faults, Text(""))


def estimate_view(estimates: Sequence[StageEstimate]) -> RenderableType:
    """Render what `koe plan` measured."""
    table = grid("Estimate", "stage", "of the corpus", "per worker", "CPU time", "GPU time", "disk")
    for item in estimates:
        # The last total is what the work is counted in: windows, audio seconds or tokens.
        totals = {name: total for name, total in item.totals.items() if total}
        *_, (name, total) = {"records": item.records, **totals}.items()
        rate = item.rates().get(name)
        error = f" ± {item.error:.0%}" if item.error and item.cpu_hours else ""
        table.add_row(
            item.stage,
            f"{short(total)} {name}",
            f"{short(rate)}/s" if rate else "",
            f"{_work_time(item.cpu_hours)}{error}",
            _work_time(item.gpu_hours),
            file_size(item.disk_bytes),
        )
    data = [item for item in estimates if item.measured]
    cpu = sum(item.cpu_hours or 0.0 for item in data)
    gpu = sum(item.gpu_hours or 0.0 for item in data)
    sampled = ", ".join(
        f"{item.stage} {item.measured:,} of {item.records:,.0f} in {duration(item.seconds)}"
        for item in data
    )
    lines = [
        f"Records sampled by one worker: {sampled}.",
        f"Up to the shards {_work_time(cpu)} of a CPU, {_work_time(gpu)} of a GPU and "
        f"{file_size(sum(item.disk_bytes for item in data))}.",
        *(f"{item.stage.capitalize()}: {item.note}." for item in estimates if item.note),
    ]
    return Group(titled(table), Text(""), Text("\n".join(lines)))


def _work_time(hours: float | None) -> str:
    return duration(None if hours is None else 3600 * hours)
