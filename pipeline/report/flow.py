"""The waterfalls of the data report: where clips and samples went, and what tokens became of them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from koe.schema import REJECTED, SPEECH, TEXT
from koe.webpage import AMBER, BLUE, GREEN, GREY, ORANGE, RED, Chart, short_number
from pipeline.report.drawing import new_figure
from pipeline.stats.model import Account, RunStats, ShardStats

Loss = tuple[str, str, str, int]  # stage, outcome, reason, records
MAX_REASONS = 9  # of a waterfall; the rarer ones of an outcome share a bar


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
GAINS = ("in", "speech", "text", "padding")


def waterfalls(
    stats: RunStats, clip_losses: Sequence[Loss], sample_losses: Sequence[Loss]
) -> list[Chart]:
    """Draw the waterfalls from clips and samples in to tokens out."""
    charts = [
        _records("Clips", "clips", stats.clips, clip_losses),
        _records("Instruction samples", "samples", stats.samples, sample_losses),
        _tokens(stats.shards),
    ]
    return _placed([chart for chart in charts if chart is not None])


def _placed(charts: list[Chart]) -> list[Chart]:
    """Stand three in a line, or the first beside the other two if it is about as high as both."""
    if len(charts) < 3:
        return charts
    first, *others = charts
    if first.height > 0.75 * sum(chart.height for chart in others):
        return [replace(first, tall=True), *others]
    return [replace(chart, span=2) for chart in charts]


def _records(title: str, unit: str, account: Account, losses: Sequence[Loss]) -> Chart | None:
    total, kept, pending = account.records_in, account.kept, account.pending
    if not total:
        return None
    steps = [Step(f"{unit} in", total, "in", whole=True), *_parts(losses)]
    if pending:
        steps.append(Step("not done yet", pending, "pending"))
    steps.append(Step("kept", kept, "kept", whole=True))
    shares = [(kept, "kept")] if kept or not pending else []
    shares += [(pending, "not done yet")] if pending else []
    note = ", ".join(f"{100 * number / total:.1f} % {what}" for number, what in shares)
    return _chart(title, note, steps, unit)


def _parts(losses: Sequence[Loss]) -> list[Step]:
    """Make a step of each of the most frequent reasons, and one of all others of an outcome."""
    ranked = sorted(range(len(losses)), key=lambda place: -losses[place][3])
    shown = set(ranked if len(ranked) <= MAX_REASONS + 1 else ranked[:MAX_REASONS])
    steps: list[Step] = []
    rest = {"rejected": (0, 0), "quarantined": (0, 0)}  # reasons, records
    for place, (stage, outcome, reason, number) in enumerate(losses):
        kind = "rejected" if outcome == REJECTED else "quarantined"
        if place in shown:
            steps.append(Step(f"{reason.replace('_', ' ')} \u00b7 {stage}", number, kind))
        else:
            reasons, records = rest[kind]
            rest[kind] = reasons + 1, records + number
    for kind, (reasons, records) in rest.items():
        if reasons:
            label = f"{reasons} rarer reason{'s' if reasons > 1 else ''}"
            steps.append(Step(label, records, kind))
    return steps


def _tokens(shards: ShardStats) -> Chart | None:
    if not shards.tokens:
        return None
    steps = [
        Step(f"{name} tokens", shards.tokens_by_modality[name], name)
        for name in (SPEECH, TEXT)
        if shards.tokens_by_modality.get(name)
    ]
    steps.append(Step("tokens out", shards.tokens, "tokens", whole=True))
    capacity = shards.rows * shards.row_capacity
    if capacity:
        steps.append(Step("padding to full rows", capacity - shards.tokens, "padding"))
    note = f"{shards.rows:,} rows of {shards.row_capacity:,}, {100 * shards.fill:.2f} % full"
    return _chart("Tokens", note, steps, "tokens")


def _chart(title: str, note: str, steps: Sequence[Step], unit: str) -> Chart:
    words = "; ".join(
        f"{step.label}: {_sign(step)}{step.value:,}{f' ({step.kind})' * (not step.whole)}"
        for step in steps
    )
    height = 90 + 26 * len(steps)  # pixels: bars of one thickness in all
    return Chart(title, note, _waterfall(steps, unit), height, words=words)


def _sign(step: Step) -> str:
    return "" if step.whole or step.kind in GAINS or not step.value else "\u2212"


def _waterfall(steps: Sequence[Step], unit: str) -> go.Figure:
    """Draw steps from top to bottom, each from where the one above ended."""
    figure, level, drawn = new_figure(unit, ""), 0, []
    for step in steps:
        change = step.value if step.kind in GAINS else -step.value
        start = 0 if step.whole else min(level, level + change)
        level = step.value if step.whole else level + change
        drawn.append((step, start, f"{_sign(step)}{short_number(step.value, 4)}"))
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
            width=0.7,
            marker={"color": colour, "line": {"color": colour, "width": 1.5}},  # 3 of a million too
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(barmode="overlay", margin={"l": 8, "t": 4})
    figure.update_xaxes(range=[0, 1.4 * most or 1], tickformat="~s", nticks=5, showgrid=True)
    figure.update_yaxes(
        tickvals=list(range(len(steps))),
        ticktext=[html.escape(step.label) for step in steps],
        range=[len(steps) - 0.4, -0.6],
        showgrid=False,
        ticks="",
    )
    return figure
