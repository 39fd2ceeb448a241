"""Draws the data report's figures: room for their labels, and marks."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from koe.webpage import charts
from koe.webpage.charts import RED


def new_figure(x: str, y: str) -> go.Figure:
    """Make an empty figure; `x` and `y` name the axes and their units."""
    return charts.new_figure(
        x,
        y,
        margin={"l": 56, "r": 14, "t": 10, "b": 40},
        showlegend=False,
        bargap=0.06,
        xaxis={"title": {"standoff": 6}, "showgrid": False},
        yaxis={"rangemode": "tozero", "nticks": 6},
    )


def mark_x(figure: go.Figure, x: float, label: str) -> None:
    """Mark a place on the x axis by a dashed line, its name above the plot."""
    figure.add_vline(x, line={"color": RED, "width": 1.5, "dash": "dash"})
    style = {"showarrow": False, "yanchor": "bottom", "font": {"size": 12}}
    figure.add_annotation(x=x, y=1, yref="paper", text=html.escape(label), **style)
    figure.update_layout(margin={"t": 26})
