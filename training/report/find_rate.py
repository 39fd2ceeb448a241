"""The page of a learning-rate range test: the loss over the rate, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from koe import numbers
from koe.webpage import charts
from koe.webpage.charts import AMBER, BLUE, GREEN, GREY, RED, Chart
from koe.webpage.page import Tile, render, run_name, write_page
from training.mirror import local_copy
from training.places import Place, RemoteFolder, absolute, beside, local_folder

RATE_PAGE = "find_rate.html"
SECTIONS = {"rates": "Loss and gradient over the learning rate"}
_MARKS = {
    "safe_rate": ("safe", GREEN),
    "steepest_rate": ("falls fastest", AMBER),
    "rising_rate": ("begins to rise", RED),
}


def write_rate_page(place: Place, findings: dict[str, Any]) -> Place:
    """Write the findings of `training.find_rate` as a page into a training folder, or one at a URL.

    Returns the path of the page. Raises: StorageError.
    """
    place = absolute(place)
    name = run_name(Path(str(place).partition("://")[2] or place))
    with local_copy(place, []) as folder:
        written = write_page(folder / RATE_PAGE, rate_page(name, findings))
        if local_folder(place) is None:
            RemoteFolder(str(place)).upload(written, RATE_PAGE)
    return beside(place, RATE_PAGE)


def rate_page(name: str, findings: dict[str, Any]) -> str:
    """Render the page of a run of this name."""
    return render(
        __name__.rpartition(".")[0],
        "find_rate.html.j2",
        name=name,
        kind="learning-rate range test",
        findings=findings,
        tiles=_tiles(findings),
        sections=SECTIONS,
        charts={"rates": [_loss(findings), _gradient_norm(findings)]},
    )


def _tiles(findings: dict[str, Any]) -> list[Tile]:
    points = findings["points"]
    lowest = min((point["smoothed"] for point in points), default=None)
    return [
        Tile("Safe rate", _rate(findings["safe_rate"]), f"set: {_rate(findings['learning_rate'])}"),
        Tile("Falls fastest", _rate(findings["steepest_rate"]), "the smoothed loss"),
        Tile("Begins to rise", _rate(findings["rising_rate"]), "the smoothed loss"),
        Tile("Lowest loss", numbers.decimal(lowest, 4), "smoothed, nats per token"),
        Tile("Steps", numbers.count(len(points)), f"after step {findings['step']:,}"),
    ]


def _rate(value: float | None) -> str:
    return numbers.UNKNOWN if value is None else f"{value:.2e}"


def _loss(findings: dict[str, Any]) -> Chart:
    figure = _figure("loss, nats per token")
    _draw(figure, findings, "loss", "loss", GREY, width=1, opacity=0.7)
    _draw(figure, findings, "smoothed", "smoothed", BLUE, width=2.5)
    losses = [point["loss"] for point in findings["points"]]
    for key, (label, colour) in _MARKS.items():
        if findings[key] is not None:  # a shape would not stand in the legend
            line = {"color": colour, "width": 1.5, "dash": "dot"}
            ends = [min(losses), max(losses)]
            figure.add_scatter(x=[findings[key]] * 2, y=ends, name=label, mode="lines", line=line)
    return Chart("Loss", "Of each step, before its update.", figure, 420, 6)


def _gradient_norm(findings: dict[str, Any]) -> Chart:
    figure = _figure("L2 norm")
    _draw(figure, findings, "gradient_norm", "gradient norm", BLUE, width=1.6)
    figure.update_yaxes(type="log", nticks=4, tickformat="~g", title={"text": "L2 norm (log)"})
    figure.update_layout(showlegend=False)
    return Chart("Gradient norm", "Before clipping.", figure, 330, 6)


def _figure(axis: str) -> go.Figure:
    figure = charts.new_figure("learning rate (log)", axis, margin={"l": 68, "r": 18, "t": 8, "b": 44})  # fmt: skip
    figure.update_xaxes(type="log", tickformat="~e", nticks=8)
    return figure


def _draw(
    figure: go.Figure, findings: dict[str, Any], key: str, label: str, colour: str, **style: Any
) -> None:
    line = {"color": colour, "width": style.pop("width")}
    figure.add_scatter(
        x=[point["rate"] for point in findings["points"]],
        y=[point[key] for point in findings["points"]],
        name=label,
        mode="lines",
        line=line,
        **style,
    )
