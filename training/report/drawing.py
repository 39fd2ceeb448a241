"""Draws curves, limits and marks over the steps of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from koe.webpage import charts
from koe.webpage.charts import BLUE, GREEN, ORANGE, RED
from training.report.data import Curve, medians, thin

BUCKETS = 400  # of a thinned curve, at most 4 points each
MEDIANS = 250  # points of the line drawn through a noisy curve

COLOURS = (BLUE, ORANGE, GREEN, "#b07aa1", RED, "#3b9a8f", "#9c755f", "#d36a8a")
DARK_RED, VIOLET = "#c0392b", "#b07aa1"


def new_figure(axis: str) -> go.Figure:
    """Make an empty figure over steps; `axis` names the values and their unit."""
    margin = {"l": 68, "r": 18, "t": 8, "b": 44}
    return charts.new_figure("step", axis, margin=margin, xaxis={"tickformat": ",d"})


def draw_noisy(figure: go.Figure, curve: Curve, label: str, colour: str, **style: Any) -> None:
    """Draw a curve thinned, and its median over it where it has many points."""
    style = {"legendgroup": label, **style}
    if len(curve) <= 2 * MEDIANS:
        draw_line(figure, thin(curve, BUCKETS), label, colour, width=1.6, **style)
        return
    faint = {**style, "opacity": 0.4, "showlegend": False}
    draw_line(figure, thin(curve, BUCKETS), label, colour, width=1, **faint)
    draw_line(figure, medians(curve, MEDIANS), label, colour, width=2, **style)


def draw_line(
    figure: go.Figure, curve: Curve, label: str, colour: str, *, width: float, **style: Any
) -> None:
    """Draw every point of a curve; `style` holds more attributes of plotly's scatter."""
    line = {"color": colour, "width": width, **style.pop("line", {})}
    figure.add_scatter(
        x=curve.steps.astype(np.int32),
        y=curve.values.astype(np.float32),
        name=label,
        **{"mode": "lines", "line": line, "showlegend": True, **style},
    )


def use_log_scale(figure: go.Figure, axis: str, ticks: str = "~g") -> None:
    """Make the value axis, named `axis`, logarithmic; `ticks` is d3's format of its ticks."""
    # with more ticks, plotly would label 1 to 9 in each decade, one label over another
    figure.update_yaxes(type="log", nticks=4, tickformat=ticks, title={"text": f"{axis} (log)"})


def draw_limit(figure: go.Figure, curve: Curve, label: str, colour: str) -> None:
    """Draw a limit of the guard, dashed."""
    if len(curve):
        line = {"dash": "dash", "shape": "hv"}
        curve = thin(curve, BUCKETS // 4)
        draw_line(figure, curve, label, colour, width=1.2, line=line, hoverinfo="skip")


def draw_marks(
    figure: go.Figure,
    curve: Curve,
    label: str,
    symbol: str,
    colour: str,
    texts: list[str] | None = None,
) -> None:
    """Mark the points of a curve; `texts` (HTML) are shown under the pointer."""
    if len(curve):
        figure.add_scatter(
            x=curve.steps.astype(np.int32),
            y=curve.values.astype(np.float32),
            name=label,
            mode="markers",
            marker={
                "symbol": symbol,
                "color": colour,
                "size": 5 if symbol == "circle-open" else 8,
                "line": {"width": 1.4 if symbol.endswith("-open") else 0, "color": colour},
            },
            text=texts,
            hovertemplate="%{text}<extra></extra>" if texts else None,
        )
