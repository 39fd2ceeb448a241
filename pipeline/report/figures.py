"""The charts of qualities, lengths, mix and codebooks, from the statistics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from koe import numbers
from koe.schema import SPEECH, TEXT
from koe.webpage.charts import AMBER, BLUE, GREEN, GREY, ORANGE, SLOT_COLOURS, Chart, add_right_axis
from pipeline.report.drawing import mark_x, new_figure
from pipeline.stats.model import Distribution, MixPart, RunStats, SlotUse

ALL = "all"
PROGRESS = "progress through the training rows, %"
LEGEND = {"showlegend": True, "margin": {"t": 30}}
SCORES = ("ovrl", "sig", "bak")
MODALITIES = {"clips": SPEECH, "samples": TEXT}
THIRDS = ("seconds", "characters", "characters_per_second")  # their charts stand three in a row

# quantity: (title, x axis, what is counted, note)
QUANTITIES = {
    "ovrl": ("Overall quality (ovrl)", "DNSMOS ovrl, 1 to 5", "clips", "Clips left of the line are rejected."),
    "sig": ("Speech quality (sig)", "DNSMOS sig, 1 to 5", "clips", "Quality of the voice itself."),
    "bak": ("Background quality (bak)", "DNSMOS bak, 1 to 5", "clips", "High where the background is quiet."),
    "seconds": ("Clip length", "seconds", "clips", "All clips that were ingested."),
    "characters": ("Transcript length", "characters", "clips", "All clips that were ingested."),
    "characters_per_second": ("Speaking rate", "characters per second", "clips", "Outliers often have a wrong transcript."),
    "tokens": ("Tokens per clip", "tokens", "clips", "Text and codes of the clips that were tokenized."),
    "text_tokens": ("Tokens per instruction sample", "tokens", "samples", "Prompt and answer."),
}  # fmt: skip


def qualities(stats: RunStats) -> list[Chart]:
    """Draw the histograms of the scores, the threshold marked, and what others would keep."""
    ovrl, *others = (_histogram(stats, name) for name in SCORES)
    return [ovrl, _what_if(stats), *others]


def lengths(stats: RunStats) -> list[Chart]:
    """Draw the histograms of lengths and rates, except those of a modality without sources."""
    found = {source.modality for source in stats.sources.values()}
    return [
        _histogram(stats, name)
        for name, (_, _, counted, _) in QUANTITIES.items()
        if name not in SCORES and MODALITIES[counted] in found
    ]


def _histogram(stats: RunStats, name: str) -> Chart:
    """Draw one histogram per source, of which the page shows one at a time.

    Its traces have `meta` of source and summary.
    """
    title, axis, counted, note = QUANTITIES[name]
    threshold = stats.thresholds.configured if name == "ovrl" else None
    figure = new_figure(axis, counted)
    for source in stats.distributions:
        if found := _of_source(stats, source, name):
            _draw_bars(figure, source, found, counted, threshold)
    if threshold is not None:
        mark_x(figure, threshold, f"threshold {threshold:g}")
    if name in SCORES:
        figure.update_xaxes(range=[1, 5], dtick=0.5)
    else:
        figure.update_xaxes(tickformat=",~g", nticks=8)
    figure.update_yaxes(tickformat=",~d")
    of_all = stats.distributions.get(ALL, {}).get(name)
    return Chart(
        title,
        note,
        figure,
        span=2 if name in THIRDS else 3,
        by_source=True,
        words=f"{axis}: {summary(of_all)}" if of_all else "",
    )


def _of_source(stats: RunStats, source: str, name: str) -> Distribution | None:
    """Return the distribution of a quantity in a source of its modality, or in all of them."""
    found, account = stats.distributions[source], stats.sources.get(source)
    if account is None:  # all sources, whose instruction samples have a quantity of their own
        return found.get(name)
    if account.modality != MODALITIES[QUANTITIES[name][2]]:
        return None
    return found.get("tokens" if name == "text_tokens" else name)


def _draw_bars(
    figure: Any, source: str, found: Distribution, counted: str, threshold: float | None
) -> None:
    edges = np.array(found.histogram.edges, float)
    centres = (edges[1:] + edges[:-1]) / 2
    colours: Any = ORANGE if counted == "samples" else BLUE
    if threshold is not None:
        colours = [BLUE if centre > threshold else AMBER for centre in centres]
    figure.add_bar(
        x=centres,
        y=found.histogram.counts,
        width=np.diff(edges),
        visible=source == ALL,
        marker={"color": colours, "line": {"width": 0}},
        customdata=[f"{low:g} to {high:g}" for low, high in pairwise(edges.tolist())],
        hovertemplate=f"%{{customdata}}<br>%{{y:,}} {counted}<extra></extra>",
        meta={"source": source, "summary": summary(found)},
    )


def summary(found: Distribution) -> str:
    """Write count, mean and quantiles in one line."""
    low, middle, high = (numbers.significant(found.quantiles[key]) for key in ("p5", "p50", "p95"))
    return (
        f"{found.count:,} values \u00b7 median {middle} \u00b7 90% in {low}\u2013{high} "
        f"\u00b7 mean {numbers.significant(found.mean)}"
    )


def _what_if(stats: RunStats) -> Chart:
    title = "What another threshold would keep"
    note = "Share and hours of the clips above a threshold. A new threshold scores no clip again."
    rows = sorted(stats.thresholds.what_if, key=lambda row: row.threshold)
    figure, places = new_figure("threshold of ovrl", "clips kept, %"), [r.threshold for r in rows]
    if not rows or "ovrl" not in stats.distributions.get(ALL, {}):
        return Chart(title, note, figure)
    shares = [numbers.percent(row.share) for row in rows]
    texts = [
        f"{row.clips:,} clips, {row.hours:,.2f} h"
        + (f", {row.uncertain:,} uncertain" if row.uncertain else "")
        for row in rows
    ]
    figure.add_scatter(
        x=places,
        y=[100 * row.share for row in rows],
        customdata=texts,
        text=[f"{share}<br>{row.hours:,.2f} h" for share, row in zip(shares, rows, strict=True)],
        mode="lines+markers+text" if len(rows) <= 8 else "lines+markers",
        textposition="top right",
        cliponaxis=False,
        line={"color": GREEN, "width": 2},
        marker={"size": 8},
        hovertemplate="above %{x:g}: %{y:.1f}%<br>%{customdata}<extra></extra>",
    )
    marks = list(places)
    if (configured := stats.thresholds.configured) is not None:
        mark_x(figure, configured, f"threshold {configured:g}")
        marks.append(configured)
    space = 0.18 * (max(marks) - min(marks)) or 0.5
    figure.update_xaxes(range=[min(marks) - space / 3, max(marks) + space], tickvals=places)
    figure.update_yaxes(range=[0, 118], tickvals=[0, 25, 50, 75, 100])
    words = "; ".join(f"above {x:g}: {text}" for x, text in zip(places, texts, strict=True))
    return Chart(title, note, figure, words=words)


def mixes(stats: RunStats) -> list[Chart]:
    """Draw the mix of modalities, and fill and documents, along the training rows."""
    return [_mix(stats.mix), _fill(stats.mix)]


def _mix(rows: Sequence[MixPart]) -> Chart:
    figure = new_figure(PROGRESS, "share of the tokens, %")
    totals = [row.speech_tokens + row.text_tokens for row in rows]
    for name, tokens, colour in (
        (SPEECH, [row.speech_tokens for row in rows], BLUE),
        (TEXT, [row.text_tokens for row in rows], ORANGE),
    ):
        figure.add_bar(
            x=[100 * row.progress for row in rows],
            y=[100 * part / (total or 1) for part, total in zip(tokens, totals, strict=True)],
            name=name,
            marker={"color": colour},
            customdata=tokens,
            hovertemplate=f"%{{x:.0f}}%: %{{y:.1f}}% {name}, %{{customdata:,}} tokens<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0, **LEGEND)
    figure.update_xaxes(range=[0, 100], dtick=25)
    figure.update_yaxes(range=[0, 100])
    note = "In the order in which training reads the rows: bars of equal height mean an even mix."
    return Chart("Mix over progress", note, figure, 300)


def _fill(rows: Sequence[MixPart]) -> Chart:
    figure = new_figure(PROGRESS, "row fill, %")
    for name, values, colour, axis in (
        ("row fill", [100 * row.fill for row in rows], GREEN, "y"),
        ("documents per row", [row.documents_per_row for row in rows], GREY, "y2"),
    ):
        figure.add_scatter(
            x=[100 * row.progress for row in rows],
            y=values,
            name=name,
            mode="lines",
            yaxis=axis,
            line={"color": colour, "width": 2},
            hovertemplate=f"%{{x:.0f}}%: {name} %{{y:.2f}}<extra></extra>",
        )
    ticks = {"tickmode": "auto", "nticks": 6, "rangemode": "tozero", "zeroline": False}
    add_right_axis(figure, "documents per row", automargin=True, **ticks)
    figure.update_layout(showlegend=True, margin={"t": 30, "r": 54})
    figure.update_xaxes(range=[0, 100], dtick=25)
    least = min((row.fill for row in rows), default=0)
    figure.update_yaxes(range=[min(90, 100 * least - 2), 100.5], selector={"side": None})
    note = "How full rows are, and how many documents are packed into one."
    return Chart("Packing over progress", note, figure, 300)


def codebooks(stats: RunStats) -> list[Chart]:
    """Draw how much of the codebooks the clips use, slot by slot of a frame."""
    return [_codes_used(stats.codebooks), _code_ranks(stats.codebooks)]


def _codes_used(slots: Sequence[SlotUse]) -> Chart:
    figure = new_figure("slot of a frame, and its codebook", "codes of 4,096")
    for label, values, colour in (
        ("used at all", [slot.used for slot in slots], BLUE),
        ("perplexity", [slot.perplexity for slot in slots], GREEN),
    ):
        figure.add_bar(
            x=[f"{slot.slot}<br>c{slot.codebook}" for slot in slots],
            y=values,
            name=label,
            text=[numbers.significant(value) for value in values],
            textposition="outside",
            textfont={"size": 10},
            cliponaxis=False,
            marker={"color": colour},
            hovertemplate=f"slot %{{x}}<br>{label}: %{{y:,.1f}}<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25, showlegend=True, margin={"t": 30, "b": 56})
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(tickformat=",d")
    note = "Perplexity: the number of codes that, used evenly, would be as hard to guess."
    return Chart("Codes used by slot", note, figure, 320)


def _code_ranks(slots: Sequence[SlotUse]) -> Chart:
    figure = new_figure("rank of the code (log)", "share of the slot's tokens, % (log)")
    for slot in slots:
        counts, ranks = np.array(slot.counts_sorted, float), np.array(slot.ranks)
        seen = counts > 0
        name = f"slot {slot.slot} \u00b7 c{slot.codebook}"
        figure.add_scatter(
            x=ranks[seen],
            y=100 * counts[seen] / _total(ranks, counts),
            name=name,
            mode="lines",
            line={"color": SLOT_COLOURS[slot.slot % len(SLOT_COLOURS)], "width": 1.8},
            hovertemplate=f"{name}<br>rank %{{x}}: %{{y:.3g}}%<extra></extra>",
        )
    figure.update_layout(**LEGEND)
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1, tickformat="~g", rangemode="normal")
    note = "A flat line uses its codebook evenly; one that falls early uses few codes."
    return Chart("How often each code occurs", note, figure, 320)


def _total(ranks: np.ndarray, counts: np.ndarray) -> float:
    """Sum the counts of all ranks, of which only some are known, by straight lines between."""
    if not len(counts):
        return 1.0
    return float(np.interp(np.arange(1, ranks[-1] + 1), ranks, counts).sum()) or 1.0
