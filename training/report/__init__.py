"""One HTML page about a training run, from the logs in its folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from koe.webpage.page import render, run_name, write_page
from training.logs import LOGS, SAMPLES_FILE, SAMPLES_FOLDER
from training.mirror import local_copy
from training.places import Place, RemoteFolder, absolute, beside, local_folder
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


def write_report(place: Place) -> Place:
    """Write the report of a training folder, or of one at a URL, to `report.html` in it.

    The page contains everything it needs, plotly.js included, and loads nothing. It may be
    written while the run goes on. Returns the path of the page.
    What cannot be read of the logs is left out, and said in the page.
    Raises: ConfigError when the folder holds no logs, StorageError when the page cannot be written.
    """
    place = absolute(place)
    name = run_name(Path(str(place).partition("://")[2] or place))
    with local_copy(place, _needed(place)) as folder:
        written = write_page(folder / REPORT_FILE, page(name, read_run(folder, place)))
        if local_folder(place) is None:
            RemoteFolder(str(place)).upload(written, REPORT_FILE)
    return beside(place, REPORT_FILE)


def _needed(place: Place) -> list[str]:
    """List the files at a URL that the report is made of: the logs, and the newest samples."""
    if local_folder(place) is not None:
        return []
    found = [f"{SAMPLES_FOLDER}/{name}" for name in RemoteFolder(str(place)).sizes(SAMPLES_FOLDER)]
    folders = [name.rpartition("/")[0] for name in found if name.endswith(f"/{SAMPLES_FILE}")]
    newest = [name for name in found if folders and name.startswith(f"{max(folders)}/")]
    return [*LOGS, *newest]


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
        damage=run.damage,
    )
