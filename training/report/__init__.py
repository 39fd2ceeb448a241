"""One HTML page about a training run, from the logs in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import StorageError
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
    path = path or out_dir / REPORT_FILE
    run = read_run(out_dir)
    text = page(out_dir.resolve().name, run, charts(run))
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"the report {path} cannot be written",
            str(error),
            "Name another place for it, in a folder that exists.",
        ) from error
    return path
