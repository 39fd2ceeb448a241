"""The waterfalls of the data report: where clips and samples went, and what tokens became of them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from pipeline.report.drawing import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Chart,
    new_figure,
    short_number,
)

Loss = tuple[str, str, str, int]  # stage, outcome, reason, records
MOST_REASONS = 9  # of a waterfall; the rarer ones share a bar


@dataclass(frozen=True)
class Step:
    """A bar of a waterfall: a whole that starts at 0, or a part that comes on or goes off."""

    label: str
    value: int
    kind: str  # of KINDS
    whole: bool = False


# kind of a step: (name in the legend, colour)
KINDS = {
    "in": ("in", BLUE),
    "kept": ("kept", GREEN),
    "rejected": ("rejected", AMBER),
    "quarantined": ("quarantined", RED),
    "pending": ("not done yet", GREY),
    "speech": ("speech", BLUE),
    "text": ("text", ORANGE),
    "tokens": ("tokens out", GREEN),
    "padding": ("padding", GREY),
}


def waterfalls(
    stats: dict[str, Any], clip_losses: Sequence[Loss], sample_losses: Sequence[Loss]
) -> list[Chart]:
    """Draw the waterfalls from clips and samples in to tokens out."""
    clips, samples = stats.get("accounting", {}), stats.get("samples", {})
    charts = [
        _books("Clips", "clips", clips, "clips_in", clip_losses),
        _books("Instruction samples", "samples", samples, "samples_in", sample_losses),
        _tokens(stats.get("shards", {})),
    ]
    charts = [chart for chart in charts if chart is not None]
    span, rows = 6 // max(len(charts), 1), max((chart.rows for chart in charts), default=0)
    for chart in charts:  # bars of one thickness
        chart.figure.update_traces(width=0.7 * chart.rows / rows)
    return [Chart(c.title, c.note, c.figure, 90 + 26 * rows, span) for c in charts]


@dataclass(frozen=True)
class _Drawn:
    title: str
    note: str
    figure: go.Figure
    rows: int


def _books(
    title: str, unit: str, account: dict[str, Any], key: str, losses: Sequence[Loss]
) -> _Drawn | None:
    total = account.get(key, 0)
    if not total:
        return None
    shown = sorted(losses, key=lambda loss: -loss[3])[:MOST_REASONS]
    rest = sum(loss[3] for loss in losses) - sum(loss[3] for loss in shown)
    steps = [Step(f"{unit} in", total, "in", whole=True)]
    for stage, outcome, reason, number in losses:
        if (stage, outcome, reason, number) in shown:
            kind = "rejected" if outcome == "rejected" else "quarantined"
            steps.append(Step(f"{reason.replace('_', ' ')} \u00b7 {stage}", number, kind))
    if rest:
        steps.append(Step(f"{len(losses) - len(shown)} rarer reasons", rest, "quarantined"))
    if account.get("pending"):
        steps.append(Step("not done yet", account["pending"], "pending"))
    steps.append(Step("kept", account.get("kept", 0), "kept", whole=True))
    share = f"{100 * account.get('kept', 0) / total:.1f} % kept"
    return _Drawn(title, share, _waterfall(steps, unit), len(steps))


def _tokens(shards: dict[str, Any]) -> _Drawn | None:
    rows, tokens = shards.get("rows", 0), shards.get("tokens", 0)
    if not tokens:
        return None
    by_modality = shards.get("tokens_by_modality", {})
    steps = [
        Step(f"{name} tokens", by_modality[name], name)
        for name in ("speech", "text")
        if by_modality.get(name)
    ]
    steps.append(Step("tokens out", tokens, "tokens", whole=True))
    capacity = rows * shards.get("row_capacity", 0)
    if capacity:
        steps.append(Step("padding to full rows", capacity - tokens, "padding"))
    note = f"{rows:,} rows of {shards.get('row_capacity', 0):,}, {100 * shards.get('fill', 0):.2f} % full"
    return _Drawn("Tokens", note, _waterfall(steps, "tokens"), len(steps))


def _waterfall(steps: Sequence[Step], unit: str) -> go.Figure:
    """Draw steps from top to bottom, each from where the one above ended."""
    figure, level, drawn = new_figure(unit, ""), 0, []
    gains = ("in", "speech", "text", "padding")
    for step in steps:
        change = step.value if step.kind in gains else -step.value
        start = 0 if step.whole else min(level, level + change)
        level = step.value if step.whole else level + change
        sign = "" if step.whole or step.kind in gains else "\u2212"
        drawn.append((step, start, f"{sign}{short_number(step.value, 4)}"))
    most = max((start + step.value for step, start, _ in drawn), default=0)
    for kind in dict.fromkeys(step.kind for step in steps):
        name, colour = KINDS[kind]
        rows = [(n, *found) for n, found in enumerate(drawn) if found[0].kind == kind]
        figure.add_bar(
            orientation="h",
            name=name,
            y=[n for n, *_ in rows],
            x=[step.value for _, step, _, _ in rows],
            base=[start for *_, start, _ in rows],
            text=[text for *_, text in rows],
            customdata=[f"{html.escape(step.label)}: {step.value:,}" for _, step, _, _ in rows],
            textposition="outside",
            cliponaxis=False,
            marker={"color": colour, "line": {"color": colour, "width": 1.5}},  # 3 of a million too
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(bargap=0.3, barmode="overlay", margin={"l": 8, "t": 4})
    figure.update_xaxes(range=[0, 1.25 * most or 1], tickformat="~s", nticks=5, showgrid=True)
    figure.update_yaxes(
        tickvals=list(range(len(steps))),
        ticktext=[html.escape(step.label) for step in steps],
        range=[len(steps) - 0.4, -0.6],
        showgrid=False,
        ticks="",
    )
    return figure
