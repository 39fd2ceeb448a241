"""One HTML page about the data of a run: `koe stats --html`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from koe.errors import ConfigError, StorageError
from koe.webpage.page import is_own_page, run_name, write_page
from pipeline.config.models import PipelineConfig
from pipeline.report.clips import Reconstruction, shown_clips
from pipeline.report.page import Content, page
from pipeline.report.survey import survey
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from pipeline.stats import RunStats

PAGE = "index.html"
NUM_CLIPS = 6  # of each kind by score, half as many of each kind of outlier
MAX_LEFT_OUT = 2000  # excluded records inside the page

__all__ = ["NUM_CLIPS", "PAGE", "require_free", "write_data_report"]


def require_free(folder: Path) -> None:
    """Check that the page may be written into a folder; one that koe wrote before is replaced.

    Raises: ConfigError where a page lies there that koe did not write, StorageError where it
    cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", remedy=f"Name a folder for {PAGE}.")
    path = folder / PAGE
    try:
        is_foreign = path.exists() and not is_own_page(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read", error.strerror or str(error), "Name another folder."
        ) from error
    if is_foreign:
        raise ConfigError(
            f"{path} already exists",
            "koe did not write it, so koe does not overwrite it",
            "Name another folder, or move that page away.",
        )


def write_data_report(
    config: PipelineConfig,
    plan: Plan,
    ledger: Ledger,
    stats: RunStats,
    folder: Path,
    num_clips: int = NUM_CLIPS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `index.html` into `folder` from the statistics of a run.

    The page contains everything it needs, plotly.js and audio included, and loads nothing. It
    shows `num_clips` clips of each kind by score and half as many of each kind of outlier;
    `progress` is called with the clips (done, in all). Returns the path of the page.
    Raises: ConfigError for a negative `num_clips` or a folder with a page that koe did not write,
    StorageError when a file cannot be read or the page cannot be written, StageError when the
    codec fails.
    """
    if num_clips < 0:
        raise ConfigError(f"{num_clips} clips cannot be shown", remedy="Ask for 0 or more.")
    require_free(folder)
    configured = stats.thresholds.configured
    threshold = config.encode.threshold_ovrl if configured is None else configured
    found = survey(plan, ledger, threshold, num_clips, MAX_LEFT_OUT)
    picked = found.extremes.pick()
    codec = Reconstruction(None)
    if any(picked.values()):
        codec = Reconstruction.open(config.snac, stats.codec)
    content = Content(
        name=run_name(Path(config.run_dir).absolute()),
        about=f"Data report of {_place(config.run_dir)}",
        stats=stats,
        threshold=threshold,
        left_out=found.left_out,
        clips=shown_clips(ledger, picked, codec, progress),
        codec=codec,
    )
    return write_page(folder / PAGE, page(content))


def _place(run_dir: str) -> str:
    """Write a run's folder relative to the working directory: the page need not show the rest."""
    path = Path(run_dir)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else run_dir
