"""One HTML page about a training run, from the logs in its folder."""

from __future__ import annotations

from pathlib import Path

from koe.webpage import run_name, write_page
from training.report.charts import charts
from training.report.data import read_run
from training.report.page import page

REPORT_FILE = "report.html"

__all__ = ["REPORT_FILE", "write_report"]


def write_report(out_dir: Path, path: Path | None = None) -> Path:
    """Write the report of the training folder `out_dir`, by default to `report.html` in it.

    The page holds all that it needs, plotly.js too, and loads nothing. It may be written while
    the run goes on. Returns where it lies.
    Raises: ConfigError when the folder holds no logs, ContractError when one cannot be read,
    StorageError when the page cannot be written.
    """
    run = read_run(out_dir)
    text = page(run_name(out_dir.resolve()), run, charts(run))
    return write_page(path or out_dir / REPORT_FILE, text)
