"""How the report draws: figures without a background of their own, curves, limits and marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from training.report.data import Curve, medians, thin

BUCKETS = 400  # of a thinned curve, up to 4 points each
MEDIANS = 250  # points of the line drawn through a noisy curve

# Legible on white and on near-black (Tableau 10, without its yellow).
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2", "#9c755f", "#ff9da7")
GREY, RED, DARK_RED, AMBER, VIOLET = "#8a8f98", "#e15759", "#c0392b", "#d9962a", "#b07aa1"


@dataclass(frozen=True)
class Chart:
    """A figure with its heading and what it shows; `figure` is None where there is no data."""

    title: str
    note: str
    figure: go.Figure | None
    wide: bool = False


def new_figure(axis: str) -> go.Figure:
    """Make an empty figure over steps; `axis` names the values and their unit."""
    return go.Figure(
        layout={
            "template": "none",
            "margin": {"l": 68, "r": 18, "t": 8, "b": 44},
            "hovermode": "closest",
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {"title": {"text": "step"}, "zeroline": False, "tickformat": ",d"},
            "yaxis": {
                "title": {"text": axis, "standoff": 8},
                "zeroline": False,
                "automargin": True,
            },
        }
    )


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
    """Draw every point of a curve; `style` holds further attributes of plotly's scatter."""
    line = {"color": colour, "width": width, **style.pop("line", {})}
    figure.add_scatter(
        x=curve.steps.astype(np.int32),
        y=curve.values.astype(np.float32),
        name=label,
        **{"mode": "lines", "line": line, "showlegend": True, **style},
    )


def scale_by_logarithm(figure: go.Figure, axis: str, ticks: str = "~g") -> None:
    """Make the axis of values, named `axis`, logarithmic; `ticks` is d3's format of its ticks."""
    figure.update_yaxes(type="log", tickformat=ticks, title={"text": f"{axis} (log)"})


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
