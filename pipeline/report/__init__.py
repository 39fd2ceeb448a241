"""One HTML page about the data of a run: `koe stats --html`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.report.clips import Reconstruction, shown_clips
from pipeline.report.page import Content, page
from pipeline.report.survey import survey

PAGE = "index.html"
NUM_CLIPS = 6  # of each kind: best, worst, borderline
MOST_LEFT_OUT = 2000  # excluded records inside the page

__all__ = ["NUM_CLIPS", "PAGE", "write_data_report"]


def write_data_report(
    config: PipelineConfig,
    plan: Plan,
    ledger: Ledger,
    stats: dict[str, Any],
    folder: Path,
    num_clips: int = NUM_CLIPS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `index.html` into `folder` from the statistics of `koe stats --json`.

    The page holds all that it needs, plotly.js and audio too, and loads nothing. `progress` is
    told of clips (done, in all). Returns where the page lies.
    Raises: ConfigError for a negative `num_clips`, StorageError when a file cannot be read or the
    page cannot be written, StageError when the codec fails.
    """
    if num_clips < 0:
        raise ConfigError(f"{num_clips} clips cannot be shown", remedy="Ask for 0 or more.")
    configured = stats.get("thresholds", {}).get("configured")
    threshold = config.encode.threshold_ovrl if configured is None else configured
    found = survey(plan, ledger, threshold, num_clips, MOST_LEFT_OUT)
    picked = found.extremes.pick()
    codec = Reconstruction.open(config.snac) if any(picked.values()) else Reconstruction.none()
    content = Content(
        title=_title(Path(config.run_dir).absolute()),
        about=f"Data report of {config.run_dir}",
        stats=stats,
        threshold=threshold,
        left_out=found.left_out,
        clips=shown_clips(ledger, picked, codec, progress),
        codec=codec.label,
        trained=codec.trained,
        problem=codec.problem,
    )
    path = folder / PAGE
    draft = path.with_name(f".{PAGE}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(page(content), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"the report {path} cannot be written", str(error), "Name a folder that can be written."
        ) from error
    return path


def _title(run_dir: Path) -> str:
    """Name a run by its folder, or by the one around it where it is called run."""
    return run_dir.parent.name if run_dir.name == "run" else run_dir.name
