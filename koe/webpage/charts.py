"""Charts as both pages draw them: figures without a background of their own, in cards."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

# All have a contrast of at least 3 : 1 to the cards of either theme (WCAG 2 AA for graphics).
BLUE, ORANGE, GREEN, AMBER, RED, GREY = (
    "#4e79a7",
    "#de7420",
    "#59a14f",
    "#b98a18",
    "#e15759",
    "#8a8f98",
)
# One family of hues per codebook: the slots of a frame are c0 c1 c2 c2 c1 c2 c2.
SLOT_COLOURS = ("#4e79a7", "#de7420", "#2f7d4f", "#59a14f", "#a8763e", "#879a2b", "#3b9a8f")
MAX_DESCRIBED = 12  # traces of a figure whose ranges are listed


@dataclass(frozen=True)
class Chart:
    """A figure with its heading and what it shows; a page says so where it `is_empty`.

    No two charts of a page share a `title`. `height` is in pixels; `span` is how many
    of the page's six columns it takes, and a `tall` one stands beside two others. A `scalable` one
    has a button for its scale; one `by_source` shows the trace of one source and its summary.
    `words` are read out in place of the picture; without them the figure's axes and ranges are.
    """

    title: str
    note: str
    figure: go.Figure
    height: int = 260
    span: int = 3
    tall: bool = False
    scalable: bool = False
    by_source: bool = False
    words: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no trace has a point."""
        traces: Any = self.figure.data
        return not any(trace.x is not None and len(trace.x) for trace in traces)

    @property
    def description(self) -> str:
        """What the picture shows, for those who hear the page."""
        return f"{self.title}. {self.words or described(self.figure)}"


def new_figure(x: str, y: str, **layout: Any) -> go.Figure:
    """Make an empty figure; `x` and `y` name the axes and their units, `layout` adds to it."""
    figure = go.Figure(
        layout={
            "template": "none",
            "hovermode": "closest",
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {"title": {"text": x}, "zeroline": False},
            "yaxis": {"title": {"text": y, "standoff": 8}, "zeroline": False, "automargin": True},
        }
    )
    return figure.update_layout(**layout)


def add_right_axis(figure: go.Figure, title: str, **style: Any) -> None:
    """Give a figure a second value axis, "y2", on its right."""
    figure.update_layout(
        yaxis2={"title": {"text": title}, "overlaying": "y", "side": "right", "showgrid": False}
        | style
    )


def described(figure: go.Figure) -> str:
    """Put a figure into words: its axes, and the range of each trace."""
    layout: Any = figure.layout
    traces: Any = figure.data
    parts = [f"{layout.yaxis.title.text or ''} over {layout.xaxis.title.text or ''}."]
    shown = [trace for trace in traces if trace.visible is not False]
    for trace in shown[:MAX_DESCRIBED]:
        values = np.asarray(() if trace.y is None else trace.y, float)
        values = values[np.isfinite(values)]
        if len(values):
            name = f"{trace.name}: " if trace.name else ""
            parts.append(f"{name}{values.min():.4g} to {values.max():.4g}.")
    return html.unescape(" ".join(parts))  # names are escaped for plotly, which reads markup
