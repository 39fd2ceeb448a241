"""How the page draws: charts without a background of their own, marks, numbers in words."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

# Legible on white and on near-black.
BLUE, ORANGE, GREEN, AMBER, RED, GREY = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#d9962a",
    "#e15759",
    "#8a8f98",
)
# One family of hues a codebook: the slots of a frame are c0 c1 c2 c2 c1 c2 c2.
SLOT_COLOURS = ("#4e79a7", "#f28e2b", "#2f7d4f", "#59a14f", "#e0b070", "#8cd17d", "#76b7b2")


@dataclass(frozen=True)
class Chart:
    """A figure with its heading and what it shows; `figure` is None where there is no data.

    `height` is in pixels; `span` is how many of the page's six columns it takes. `by_source`: its
    traces are one a source, each with `meta` of source and summary.
    """

    title: str
    note: str
    figure: go.Figure | None
    height: int = 260
    span: int = 3
    by_source: bool = False


def new_figure(x: str, y: str) -> go.Figure:
    """Make an empty figure; `x` and `y` name the axes and their units."""
    return go.Figure(
        layout={
            "template": "none",
            "margin": {"l": 56, "r": 14, "t": 10, "b": 40},
            "hovermode": "closest",
            "showlegend": False,
            "bargap": 0.06,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {"title": {"text": x, "standoff": 6}, "zeroline": False, "showgrid": False},
            "yaxis": {
                "title": {"text": y, "standoff": 8},
                "zeroline": False,
                "automargin": True,
                "rangemode": "tozero",
                "nticks": 6,
            },
        }
    )


def mark_x(figure: go.Figure, x: float, label: str, colour: str = RED) -> None:
    """Mark a place on the x axis by a dashed line with its name at the top."""
    figure.add_vline(x, line={"color": colour, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        x=x,
        y=1,
        yref="paper",
        text=html.escape(label),
        showarrow=False,
        yanchor="bottom",
        font={"color": colour, "size": 12},
    )


def short_number(value: float, digits: int = 3) -> str:
    """Write 2,345,678 as 2.35 M; numbers below 10,000 in full."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, "")):
        if value >= size:
            scaled = value / (size if unit else 1e3)
            return f"{scaled:.{digits}g}{unit or ' k'}"
    return f"{value:,.0f}"


def as_list(value: Any) -> list[Any]:
    """Return a list found in the statistics; empty where there is none."""
    return value if isinstance(value, list) else []
