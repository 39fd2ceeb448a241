"""One HTML page about a training run, from the logs in its folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from koe.webpage.page import render, run_name, write_page
from training.report.charts import draw_charts
from training.report.content import about, recordings, tiles, worst
from training.report.data import Run, hardest, read_run

REPORT_FILE = "report.html"
MAX_EVENTS = 400  # rows of the table
SECTIONS = {
    "loss": "Loss and gradient",
    "weights": "Weights and updates",
    "speed": "Speed",
    "evaluation": "Evaluation",
    "events": "Events",
    "speech": "Listen to generated speech",
}

__all__ = ["REPORT_FILE", "write_report"]


def write_report(out_dir: Path, path: Path | None = None) -> Path:
    """Write the report of the training folder `out_dir`, by default to `report.html` in it.

    The page contains everything it needs, plotly.js included, and loads nothing. It may be
    written while the run goes on. Returns the path of the page.
    Raises: ConfigError when the folder holds no logs, ContractError when one cannot be read,
    StorageError when the page cannot be written.
    """
    text = page(run_name(out_dir.resolve()), read_run(out_dir))
    return write_page(path or out_dir / REPORT_FILE, text)


def page(name: str, run: Run) -> str:
    """Render the page of a run of this name."""
    shown = hardest(run.events, MAX_EVENTS)
    return render(
        __name__,
        "report.html.j2",
        name=name,
        kind="training report",
        about=about(run),
        tiles=tiles(run),
        sections=SECTIONS,
        charts=draw_charts(run),
        events=[(event, worst(event.get("documents"))) for event in shown],
        event_kinds=Counter(str(event.get("event")) for event in run.events),
        events_left_out=len(run.events) - len(shown),
        samples=run.samples,
        recordings=recordings(run.samples),
    )
