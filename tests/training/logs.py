"""The logs of a run, written by hand, and their report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.webpage import Page
from training.report import write_report


def metrics_row(step: int, action: str = "accept", **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "data_step": step,
        "action": action,
        "loss": 3.0 + step / 1000,
        "gradient_norm": 1.0,
        "learning_rate": 1e-4,
        "tokens": 100,
        "total_tokens": 100 * step,
        "tokens_per_second": 50.0,
        "seconds": 2.0,
        "data_wait_seconds": 0.1,
        "mfu_full": None,
        "mfu_causal": None,
        "limits": {"loss": 30.0, "gradient_norm": 1000.0, "clip": "inf"},
        **changes,
    }


def event(number: int, kind: str, step: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"E{number:04d}", "event": kind, "step": step, "data_step": step, **changes}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def report(folder: Path, metrics: list[dict], events: list[dict] | None = None) -> Page:
    write_lines(folder / "metrics.jsonl", metrics)
    if events is not None:
        write_lines(folder / "events.jsonl", events)
    return read_page(write_report(folder))
