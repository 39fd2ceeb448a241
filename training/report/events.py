"""A curve and its events: abandoned pieces, steps that were not applied, the guard's actions."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go

from koe.webpage.charts import AMBER, GREY, RED
from koe.webpage.page import cut
from training.report.data import Curve, Run, hardest, number, thin
from training.report.drawing import (
    BUCKETS,
    COLOURS,
    DARK_RED,
    VIOLET,
    draw_line,
    draw_marks,
    draw_noisy,
    new_figure,
)

MAX_MARKS = 500  # events marked on a curve, the hardest
MAX_HOVER = 240  # characters of a reason under the pointer, which does not wrap
MAX_LINES = 50  # events with a vertical line

# kind of event: (symbol, colour); other kinds are not marked.
EVENT_MARKS = {
    "clip": ("circle-open", AMBER),
    "skip": ("x", RED),
    "lower_rate": ("triangle-down", VIOLET),
    "climbing": ("triangle-up", VIOLET),
    "restore_rate": ("diamond-open", COLOURS[2]),
    "roll_back": ("triangle-left", DARK_RED),
    "stop": ("octagon", DARK_RED),
}

_REJECTING = ("skip", "lower_rate", "roll_back", "stop")


def draw_with_events(run: Run, column: str, label: str, axis: str) -> go.Figure:
    """Draw one column with its abandoned pieces, skipped steps and events."""
    figure = new_figure(axis)
    if column not in run.metrics.columns:
        return figure
    for place, piece in enumerate(run.abandoned):
        curve = thin(run.metrics.curve(column, piece), BUCKETS // 4)
        style = {"width": 1, "opacity": 0.6, "legendgroup": "undone", "showlegend": place == 0}
        draw_line(figure, curve, "undone by a rollback", GREY, **style)
    draw_noisy(figure, run.metrics.curve(column, run.main), label, COLOURS[0])
    if sum(event.get("event") in _REJECTING for event in run.events) < len(run.skipped):
        skipped = _in_order(run.metrics.curve(column, run.skipped))
        draw_marks(figure, thin(skipped, BUCKETS), "not applied", "x-thin-open", RED)
    top = _largest(run.metrics.column(column))
    found = [(row, text) for name, row, text in run.metrics.not_finite if name == column]
    draw_marks(
        figure,
        Curve(run.metrics.column("step")[[row for row, _ in found]], np.full(len(found), top)),
        "not finite",
        "asterisk-open",
        DARK_RED,
        [f"{label} is {html.escape(text)}" for _, text in found],
    )
    _mark_events(figure, run, column, top)
    return figure


def _mark_events(figure: go.Figure, run: Run, column: str, top: float) -> None:
    """Mark the guard's events at their own value, or else at the step's, or else at `top`."""
    main = run.metrics.curve(column, run.main)
    of_step = dict(zip(main.steps.tolist(), main.values.tolist(), strict=True))
    shown = [event for event in run.events if event.get("event") in EVENT_MARKS]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in hardest(shown, MAX_MARKS):
        if np.isfinite(number(event.get("step"))):
            by_kind.setdefault(event["event"], []).append(event)
    for kind, events in by_kind.items():
        steps = np.array([number(event["step"]) for event in events])
        values = np.array(
            [number(event.get(column, of_step.get(event["step"]))) for event in events]
        )
        curve = Curve(steps, np.where(np.isfinite(values), values, top))
        symbol, colour = EVENT_MARKS[kind]
        texts = [_hover(event) for event in events]
        draw_marks(figure, curve, kind.replace("_", " "), symbol, colour, texts)
        if kind in ("roll_back", "stop"):
            for step in steps[:MAX_LINES]:
                figure.add_vline(float(step), line={"color": colour, "width": 1, "dash": "dot"})


def _hover(event: dict[str, Any]) -> str:
    kind = str(event["event"]).replace("_", " ")
    title = f"{event.get('id', '')} {kind}, step {event['step']}".strip()
    reason = html.escape(cut(event.get("reason") or "", MAX_HOVER))
    return f"<b>{html.escape(title)}</b><br>{reason}"


def _largest(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else 1.0


def _in_order(curve: Curve) -> Curve:
    order = np.argsort(curve.steps, kind="stable")
    return Curve(curve.steps[order], curve.values[order])
