"""Rich renderings of the plan and of what it will cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.estimate import StageEstimate
from pipeline.plan import Plan
from pipeline.views import grid


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """Sum the plan up, a dictionary a source."""
    rows = []
    for source, modality in plan.modalities.items():
        units = [unit for unit in plan.units if unit.source == source]
        rows.append(
            {
                "source": source,
                "modality": modality,
                "units": len(units),
                "records": sum(unit.records for unit in units),
                "files": len({unit.path for unit in units}),
                "faults": [f"{unit.path}: {unit.fault}" for unit in units if unit.fault],
            }
        )
    return rows


def plan_view(plan: Plan) -> RenderableType:
    """Render the units of `koe plan`."""
    table = grid("Plan", "source", "units", "records", "files", "faults")
    for row in plan_rows(plan):
        counts = (f"{row[key]:,}" for key in ("units", "records", "files"))
        faults = "\n".join(row["faults"]) or "0"
        table.add_row(f"{row['source']} ({row['modality']})", *counts, faults)
    return table


def estimate_view(estimates: Sequence[StageEstimate], cpus: int) -> RenderableType:
    """Render what `koe plan` measured, for a machine of `cpus` CPUs."""
    table = grid("Estimate", "stage", "of the corpus", "a worker", "CPU-hours", "GPU-hours", "disk")
    for item in estimates:
        # Last comes what the work is counted in: windows, audio seconds or tokens.
        *_, (name, total) = {"records": item.records, **item.totals}.items()
        rate = item.rates().get(name)
        error = f" ± {item.error:.0%}" if item.error and item.cpu_hours else ""
        table.add_row(
            item.stage,
            f"{total:,.0f} {name}",
            f"{rate:,.3g}/s" if rate and rate < 1000 else f"{rate:,.0f}/s" if rate else "",
            f"{item.cpu_hours:,.2f}{error}",
            f"{item.gpu_hours:,.2f}",
            _size(item.disk_bytes),
        )
    data = [item for item in estimates if item.stage != "train"]
    hours = sum(item.cpu_hours for item in data)
    measured = " ".join(f"{i.stage} {i.measured:,} in {i.seconds:.1f} s," for i in data)
    lines = [
        f"Measured by one worker: {measured.rstrip(',')}.",
        f"Up to the shards {hours:,.2f} CPU-hours, {sum(item.gpu_hours for item in data):,.2f} "
        f"GPU-hours and {_size(sum(item.disk_bytes for item in data))}: "
        f"{hours / cpus:,.2f} hours on {cpus} CPUs that do nothing else.",
        *(f"{item.stage.capitalize()}: {item.note}." for item in estimates if item.note),
    ]
    return Group(table, Text("\n".join(lines)))


def _size(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB"
