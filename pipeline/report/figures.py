"""The charts of the data report, from the statistics of a run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from koe.schema import SPEECH, TEXT
from koe.webpage import AMBER, BLUE, GREEN, GREY, ORANGE, SLOT_COLOURS, Chart
from pipeline.report.drawing import mark_x, new_figure
from pipeline.stats.model import Distribution, MixPart, RunStats

ALL = "all"
SCORES = ("ovrl", "sig", "bak")
MODALITIES = {"clips": SPEECH, "samples": TEXT}
THIRDS = ("seconds", "characters", "characters_per_second")  # charts three in a line

# quantity: (title, x axis, what is counted, how it is worked out)
QUANTITIES = {
    "ovrl": ("Overall quality (ovrl)", "DNSMOS ovrl, 1 to 5", "clips", "Clips left of the line are rejected."),
    "sig": ("Speech quality (sig)", "DNSMOS sig, 1 to 5", "clips", "Of the voice itself."),
    "bak": ("Background quality (bak)", "DNSMOS bak, 1 to 5", "clips", "High where it is quiet."),
    "seconds": ("Clip length", "seconds", "clips", "All clips ingested."),
    "characters": ("Transcript length", "characters", "clips", "All clips ingested."),
    "characters_per_second": ("Speaking rate", "characters a second", "clips", "Outliers are often wrong transcripts."),
    "tokens": ("Tokens of a clip", "tokens", "clips", "Text and codes of the clips tokenized."),
    "text_tokens": ("Tokens of an instruction sample", "tokens", "samples", "Prompt and answer."),
}  # fmt: skip


def qualities(stats: RunStats) -> list[Chart]:
    """Draw the histograms of the scores, the threshold marked, and what others would keep."""
    threshold = stats.thresholds.configured
    charts = [_histogram(stats, "ovrl", threshold), _what_if(stats)]
    return charts + [_histogram(stats, name) for name in SCORES[1:]]


def lengths(stats: RunStats) -> list[Chart]:
    """Draw the histograms of lengths and rates, but for those of a modality without sources."""
    found = {source.modality for source in stats.sources.values()}
    return [
        _histogram(stats, name)
        for name, (_, _, counted, _) in QUANTITIES.items()
        if name not in SCORES and MODALITIES[counted] in found
    ]


def _histogram(stats: RunStats, name: str, threshold: float | None = None) -> Chart:
    """Draw one histogram a source, of which the page shows one at a time.

    Its traces have `meta` of source and summary.
    """
    title, axis, counted, note = QUANTITIES[name]
    figure = new_figure(axis, counted)
    for source, found in stats.distributions.items():
        described = found.get(name)
        if not described:
            continue
        edges = np.array(described.histogram.edges, float)
        counts = described.histogram.counts
        centres, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        colours: Any = ORANGE if name == "text_tokens" else BLUE
        if threshold is not None:
            colours = [BLUE if centre > threshold else AMBER for centre in centres]
        figure.add_bar(
            x=centres,
            y=counts,
            width=widths,
            visible=source == ALL,
            marker={"color": colours, "line": {"width": 0}},
            customdata=[f"{low:g} to {high:g}" for low, high in pairwise(edges.tolist())],
            hovertemplate=f"%{{customdata}}<br>%{{y:,}} {counted}<extra></extra>",
            meta={"source": source, "summary": summary(described)},
        )
    if threshold is not None:
        mark_x(figure, threshold, f"threshold {threshold:g}")
        figure.update_layout(margin={"t": 26})
    if name in SCORES:
        figure.update_xaxes(range=[1, 5], dtick=0.5)
    else:
        figure.update_xaxes(tickformat=",~g", nticks=8)
    figure.update_yaxes(tickformat=",~d")
    of_all = _of_all(stats, name)
    return Chart(
        title,
        note,
        figure if figure.data else None,
        span=2 if name in THIRDS else 3,
        above='<p class="summary"></p>',
        words=f"{axis}: {summary(of_all)}" if of_all else "",
    )


def _of_all(stats: RunStats, name: str) -> Distribution | None:
    return stats.distributions.get(ALL, {}).get(name)


def summary(described: Distribution) -> str:
    """Write count, mean and quantiles in one line."""
    low, middle, high = (_plain(described.quantiles[key]) for key in ("p5", "p50", "p95"))
    return (
        f"{described.count:,} values \u00b7 median {middle} \u00b7 90 % in {low} to "
        f"{high} \u00b7 mean {_plain(described.mean)}"
    )


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _what_if(stats: RunStats) -> Chart:
    configured = stats.thresholds.configured
    scored = _of_all(stats, "ovrl") is not None
    rows = sorted(stats.thresholds.what_if, key=lambda row: row.threshold) * scored
    figure = new_figure("threshold of ovrl", "clips kept, %")
    texts = [
        f"{row.clips:,} clips, {row.hours:,.2f} h"
        + (f", {row.uncertain:,} uncertain" if row.uncertain else "")
        for row in rows
    ]
    figure.add_scatter(
        x=[row.threshold for row in rows],
        y=[100 * row.share for row in rows],
        customdata=texts,
        text=[f"{100 * row.share:.1f} %<br>{row.hours:,.2f} h" for row in rows],
        mode="lines+markers+text" if len(rows) <= 8 else "lines+markers",
        textposition="top right",
        cliponaxis=False,
        line={"color": GREEN, "width": 2},
        marker={"size": 8},
        hovertemplate="above %{x:g}: %{y:.1f} %<br>%{customdata}<extra></extra>",
    )
    if rows:
        marks = [row.threshold for row in rows]
        marks += [] if configured is None else [configured]
        low, high = min(marks), max(marks)
        space = 0.18 * (high - low) or 0.5
        figure.update_xaxes(
            range=[low - space / 3, high + space], tickvals=[r.threshold for r in rows]
        )
    figure.update_yaxes(range=[0, 118], tickvals=[0, 25, 50, 75, 100])
    if rows and configured is not None:
        figure.add_vline(configured, line={"color": AMBER, "width": 1.5, "dash": "dash"})
    note = "Share and hours of the scored clips above a threshold; moving it never scores again."
    words = "; ".join(
        f"above {row.threshold:g}: {text}" for row, text in zip(rows, texts, strict=True)
    )
    return Chart("What another threshold would keep", note, figure if rows else None, words=words)


def mixes(stats: RunStats) -> list[Chart]:
    """Draw the mix of modalities, and fill and documents, along the training rows."""
    rows = stats.mix
    places = [100 * row.progress for row in rows]
    figure = new_figure("progress through the training rows, %", "share of the tokens, %")
    totals = [row.speech_tokens + row.text_tokens for row in rows]
    for name, values, colour in (
        (SPEECH, [row.speech_tokens for row in rows], BLUE),
        (TEXT, [row.text_tokens for row in rows], ORANGE),
    ):
        shares = [100 * v / t if t else 0 for v, t in zip(values, totals, strict=True)]
        figure.add_bar(
            x=places,
            y=shares,
            name=name,
            marker={"color": colour},
            customdata=values,
            hovertemplate=f"%{{x:.0f}} %: %{{y:.1f}} % {name}, %{{customdata:,}} tokens<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0, showlegend=True, margin={"t": 30})
    figure.update_xaxes(range=[0, 100], dtick=25)
    figure.update_yaxes(range=[0, 100])
    note = "In the order in which training reads them: bars of one height mean an even mix."
    mix = Chart("Mix over progress", note, figure if rows else None, 300)
    return [mix, _fill(rows, places)]


def _fill(rows: Sequence[MixPart], places: list[float]) -> Chart:
    figure = new_figure("progress through the training rows, %", "row fill, %")
    lines = [
        ("row fill", [100 * row.fill for row in rows], GREEN, "y"),
        ("documents a row", [row.documents_per_row for row in rows], GREY, "y2"),
    ]
    for name, values, colour, axis in lines:
        figure.add_scatter(
            x=places,
            y=values,
            name=name,
            mode="lines",
            yaxis=axis,
            line={"color": colour, "width": 2},
            hovertemplate=f"%{{x:.0f}} %: {name} %{{y:.2f}}<extra></extra>",
        )
    right = {
        "title": {"text": "documents a row", "standoff": 8},
        "overlaying": "y",
        "side": "right",
    }
    right |= {
        "tickmode": "auto",
        "nticks": 6,
        "rangemode": "tozero",
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
    }
    figure.update_layout(yaxis2=right, showlegend=True, margin={"t": 30, "r": 54})
    figure.update_xaxes(range=[0, 100], dtick=25)
    least = min((row.fill for row in rows), default=0)
    figure.update_yaxes(range=[min(90, 100 * least - 2), 100.5], selector={"side": None})
    note = "How full rows are, and how many documents are packed into one."
    return Chart("Packing over progress", note, figure if rows else None, 300)


def codebooks(stats: RunStats) -> list[Chart]:
    """Draw how much of the codebooks the clips use, slot by slot of a frame."""
    slots = stats.codebooks
    ranks = new_figure("rank of the code (log)", "share of the slot's tokens, % (log)")
    for slot in slots:
        counts = np.array(slot.counts_sorted, float)
        places = np.array(slot.ranks)
        total = _total(places, counts)
        seen = counts > 0
        name = f"slot {slot.slot} \u00b7 c{slot.codebook}"
        ranks.add_scatter(
            x=places[seen],
            y=100 * counts[seen] / total,
            name=name,
            mode="lines",
            line={"color": SLOT_COLOURS[slot.slot % len(SLOT_COLOURS)], "width": 1.8},
            hovertemplate=f"{html.escape(name)}<br>rank %{{x}}: %{{y:.3g}} %<extra></extra>",
        )
    ranks.update_layout(showlegend=True, margin={"t": 30})
    ranks.update_xaxes(type="log", dtick=1)
    ranks.update_yaxes(type="log", dtick=1, tickformat="~g", rangemode="normal")
    use = new_figure("slot of a frame, and its codebook", "codes of 4,096")
    names = [f"{slot.slot}<br>c{slot.codebook}" for slot in slots]
    for label, values, colour in (
        ("used at all", [slot.used for slot in slots], BLUE),
        ("perplexity", [slot.perplexity for slot in slots], GREEN),
    ):
        use.add_bar(
            x=names,
            y=values,
            name=label,
            text=[_plain(value) for value in values],
            textposition="outside",
            textfont={"size": 10},
            cliponaxis=False,
            marker={"color": colour},
            hovertemplate=f"slot %{{x}}<br>{label}: %{{y:,.1f}}<extra></extra>",
        )
    use.update_layout(barmode="group", bargap=0.25, showlegend=True, margin={"t": 30, "b": 56})
    use.update_xaxes(tickangle=0)
    use.update_yaxes(tickformat=",d")
    many = "Perplexity: the number of codes that, used evenly, would be as hard to guess."
    steep = "A flat line uses its codebook evenly; one that falls early uses few codes."
    return [
        Chart("Codes used by slot", many, use if slots else None, 320),
        Chart("How often each code occurs", steep, ranks if slots else None, 320),
    ]


def _total(ranks: np.ndarray, counts: np.ndarray) -> float:
    """Sum the counts of all ranks from those at some, straight lines between them."""
    if not len(counts):
        return 1.0
    return float(np.interp(np.arange(1, ranks[-1] + 1), ranks, counts).sum()) or 1.0
