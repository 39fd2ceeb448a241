"""The waterfalls of the data report: where clips and samples went, and the tokens they became."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from koe import numbers
from koe.schema import QUARANTINED, REJECTED, SPEECH, TEXT
from koe.webpage.charts import AMBER, BLUE, GREEN, GREY, ORANGE, RED, Chart
from pipeline.report.drawing import new_figure
from pipeline.stats.model import Account, RunStats, ShardStats

Loss = tuple[str, str, str, int]  # stage, outcome, reason, records
MAX_REASONS = 9  # of a waterfall; the rarer ones of an outcome share a bar

# kind of a step: (name in the legend, colour)
KINDS = {
    "in": ("in", BLUE),
    "kept": ("kept", GREEN),
    REJECTED: ("rejected", AMBER),
    QUARANTINED: ("quarantined", RED),
    "pending": ("not done yet", GREY),
    SPEECH: ("speech", BLUE),
    TEXT: ("text", ORANGE),
    "tokens": ("tokens out", GREEN),
    "padding": ("padding", GREY),
}
GAINS = ("in", SPEECH, TEXT, "padding")


@dataclass(frozen=True)
class Step:
    """A bar of a waterfall: a total that starts at 0, or a part that is added or taken away."""

    label: str
    value: int
    kind: str  # of KINDS
    is_total: bool = False

    @property
    def signed(self) -> int:
        """What the step adds to the level it starts from."""
        return self.value if self.is_total or self.kind in GAINS else -self.value

    @property
    def sign(self) -> str:
        return "\u2212" if self.signed < 0 else ""


def waterfalls(
    stats: RunStats, clip_losses: Sequence[Loss], sample_losses: Sequence[Loss]
) -> list[Chart]:
    """Draw the waterfalls from clips and samples in to tokens out."""
    made = (
        _records("Clips", "clips", stats.clips, clip_losses),
        _records("Instruction samples", "samples", stats.samples, sample_losses),
        _tokens(stats.shards),
    )
    charts = [chart for chart in made if chart is not None]
    if len(charts) < 3:
        return charts
    if charts[0].height > 0.75 * (charts[1].height + charts[2].height):
        return [replace(charts[0], tall=True), *charts[1:]]  # the other two beside it
    return [replace(chart, span=2) for chart in charts]


def _records(title: str, unit: str, account: Account, losses: Sequence[Loss]) -> Chart | None:
    total, kept, pending = account.records_in, account.kept, account.pending
    if not total:
        return None
    steps = [Step(f"{unit} in", total, "in", is_total=True), *_parts(losses)]
    if pending:
        steps.append(Step("not done yet", pending, "pending"))
    steps.append(Step("kept", kept, "kept", is_total=True))
    shares = [(kept, "kept")] if kept or not pending else []
    shares += [(pending, "not done yet")] if pending else []
    note = ", ".join(f"{numbers.percent(number / total)} {what}" for number, what in shares)
    return _chart(title, note, steps, unit)


def _parts(losses: Sequence[Loss]) -> list[Step]:
    """Make a step of each of the most frequent reasons, and one of all others of an outcome."""
    ranked = sorted(losses, key=lambda loss: -loss[3])
    rare = [] if len(ranked) <= MAX_REASONS + 1 else ranked[MAX_REASONS:]
    steps = [
        Step(f"{reason.replace('_', ' ')} \u00b7 {stage}", number, outcome)
        for stage, outcome, reason, number in losses
        if (stage, outcome, reason, number) not in rare
    ]
    for kind in (REJECTED, QUARANTINED):
        counts = [number for _, outcome, _, number in rare if outcome == kind]
        if counts:
            label = f"{len(counts)} rarer reason{'s' if len(counts) > 1 else ''}"
            steps.append(Step(label, sum(counts), kind))
    return steps


def _tokens(shards: ShardStats) -> Chart | None:
    if not shards.tokens:
        return None
    steps = [
        Step(f"{name} tokens", shards.tokens_by_modality[name], name)
        for name in (SPEECH, TEXT)
        if shards.tokens_by_modality.get(name)
    ]
    steps.append(Step("tokens out", shards.tokens, "tokens", is_total=True))
    capacity = shards.rows * shards.row_capacity
    if capacity:
        steps.append(Step("padding to full rows", capacity - shards.tokens, "padding"))
    fill = numbers.percent(shards.fill, 2)
    note = f"{shards.rows:,} rows of {shards.row_capacity:,} tokens, {fill} full"
    return _chart("Tokens", note, steps, "tokens")


def _chart(title: str, note: str, steps: Sequence[Step], unit: str) -> Chart:
    words = "; ".join(
        f"{step.label}: {step.sign}{step.value:,}{f' ({step.kind})' * (not step.is_total)}"
        for step in steps
    )
    height = 90 + 26 * len(steps)  # pixels: bars of the same thickness in all charts
    return Chart(title, note, _waterfall(steps, unit), height, words=words)


def _waterfall(steps: Sequence[Step], unit: str) -> go.Figure:
    """Draw steps from top to bottom, each from where the one above ended."""
    figure, level, starts = new_figure(unit, ""), 0, []
    for step in steps:
        before = 0 if step.is_total else level
        level = before + step.signed
        starts.append(min(before, level))
    for kind in dict.fromkeys(step.kind for step in steps):
        name, colour = KINDS[kind]
        rows = [row for row, step in enumerate(steps) if step.kind == kind]
        shown = [steps[row] for row in rows]
        figure.add_bar(
            orientation="h",
            name=name,
            y=rows,
            x=[step.value for step in shown],
            base=[starts[row] for row in rows],
            text=[f"{step.sign}{numbers.short(step.value, 4)}" for step in shown],
            customdata=[f"{html.escape(step.label)}: {step.value:,}" for step in shown],
            textposition="outside",
            cliponaxis=False,
            width=0.7,
            marker={
                "color": colour,
                "line": {"color": colour, "width": 1.5},
            },  # shows even 3 of a million
            hovertemplate="%{customdata}<extra></extra>",
        )
    most = max((start + step.value for start, step in zip(starts, steps, strict=True)), default=0)
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
