"""The charts of a run's report."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from koe.vocabulary import SLOT_CODEBOOKS
from koe.webpage import AMBER, RED, SLOT_COLOURS, Chart
from training.report.data import Curve, Run, Table, thin
from training.report.drawing import (
    BUCKETS,
    COLOURS,
    draw_limit,
    draw_line,
    draw_noisy,
    new_figure,
    scale_by_logarithm,
)
from training.report.events import draw_with_events

HEIGHT, WIDE_HEIGHT = 330, 420  # pixels

Names = Sequence[tuple[str, str]]  # (label, column)


def charts(run: Run) -> dict[str, list[Chart]]:
    """Draw all charts of a run, by the heading under which they stand."""
    return {
        "Loss and gradient": [_loss(run), _gradient_norm(run), _by_source(run), _by_slot(run)],
        "Weights and updates": [_learning_rate(run), *_weights(run)],
        "Speed": [_throughput(run), _data_wait(run)],
        "Evaluation": [_evaluation(run), _speech(run)],
    }


def _by_slot(run: Run) -> Chart:
    return _lines(
        run,
        "Loss by codebook slot",
        "The seven tokens of a SNAC frame in their order, and their codebook. Chance is log 4096 = 8.32.",
        [
            (f"slot {slot} \u00b7 c{SLOT_CODEBOOKS[slot]}", f"loss_by_slot/{slot}")
            for slot in range(len(SLOT_CODEBOOKS))
        ],
        "loss, nats a token",
        colours=SLOT_COLOURS,
    )


def _weights(run: Run) -> list[Chart]:
    groups = [
        (name.replace("_", " "), column) for name, column in _under(run.metrics, "update_ratio")
    ]
    return [
        _lines(
            run,
            "Update norm / weight norm",
            "By group of weights. A rise here comes before one of loss and gradient norm.",
            groups,
            "update norm / weight norm",
            log=True,
        ),
        _lines(
            run,
            "Norm of embedding rows",
            "Old: the base model's; new: control ids and audio codes.",
            _under(run.metrics, "row_norms"),
            "mean L2 norm of a row",
        ),
        _lines(
            run,
            "Largest logit",
            "Over the step's supervised tokens; a steady climb calls for z-loss.",
            [("largest logit", "largest_logit")],
            "logit",
        ),
    ]


def _throughput(run: Run) -> Chart:
    return _lines(
        run,
        "Throughput",
        "Tokens without padding, over all ranks.",
        [("tokens/s", "tokens_per_second")],
        "tokens/s",
    )


def _loss(run: Run) -> Chart:
    figure = draw_with_events(run, "loss", "loss", "loss, nats a token")
    draw_limit(figure, _main(run, "limits/loss"), "guard skips above", RED)
    _fit(figure, run.metrics.column("loss"))
    return _chart(
        "Loss",
        "Mean cross-entropy of the step's supervised tokens; the strong line is its median over "
        "neighbouring steps. Grey: pieces that a rollback undid.",
        figure,
        "loss" in run.metrics.columns,
        wide=True,
    )


def _gradient_norm(run: Run) -> Chart:
    figure = draw_with_events(run, "gradient_norm", "gradient norm", "L2 norm")
    draw_limit(figure, _main(run, "limits/clip"), "guard clips above", AMBER)
    draw_limit(figure, _main(run, "limits/gradient_norm"), "guard skips above", RED)
    scale_by_logarithm(figure, "L2 norm")
    return _chart(
        "Gradient norm",
        "Of the gradient over all parameters and ranks, before clipping.",
        figure,
        "gradient_norm" in run.metrics.columns,
        wide=True,
    )


def _by_source(run: Run) -> Chart:
    sources = _under(run.metrics, "loss_by_source")
    modalities = [(f"all {label}", name) for label, name in _under(run.metrics, "loss_by_modality")]
    return _lines(
        run,
        "Loss by source",
        "The sums over all text and all speech start hidden.",
        sources + modalities,
        "loss, nats a token",
        hidden=modalities if sources else (),
    )


def _learning_rate(run: Run) -> Chart:
    figure = new_figure("learning rate")
    rate, factor = _main(run, "learning_rate"), _main(run, "rate_factor")
    draw_line(figure, thin(rate, BUCKETS), "learning rate", COLOURS[0], width=2)
    figure.update_yaxes(rangemode="tozero", exponentformat="e")
    if len(factor):
        draw_line(
            figure,
            thin(factor, BUCKETS),
            "guard's factor",
            COLOURS[1],
            width=1.5,
            line={"shape": "hv"},
            yaxis="y2",
        )
        right = {"title": {"text": "guard's factor"}, "overlaying": "y", "side": "right"}
        figure.update_layout(
            yaxis2={**right, "range": [0, 1.05], "dtick": 0.25, "showgrid": False},
            margin={"r": 60},
        )
    return _chart(
        "Learning rate",
        "As used: warm-up and cosine, times the guard's factor.",
        figure,
        len(rate) > 0,
    )


def _data_wait(run: Run) -> Chart:
    waits, seconds = run.metrics.column("data_wait_seconds"), run.metrics.column("seconds")
    share = np.divide(100 * waits, seconds, out=np.full(len(waits), np.nan), where=seconds > 0)
    columns = {"step": run.metrics.column("step"), "share": share}
    curve = Table(run.metrics.num_rows, columns).curve("share", run.main)
    figure = new_figure("share of the step's time, %")
    draw_noisy(figure, curve, "waiting for data", COLOURS[0])
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=False)
    return _chart(
        "Waiting for data", "Time that rank 0 has no batch to work on.", figure, len(curve) > 0
    )


def _evaluation(run: Run) -> Chart:
    names = [("all", "loss"), *_under(run.evaluations, "loss_by_source")]
    return _chart(
        "Evaluation loss",
        "On the validation shards.",
        _measured(run.evaluations, names, "loss, nats a token"),
        _any(run.evaluations, "loss"),
    )


def _speech(run: Run) -> Chart:
    table = run.evaluations
    shares = {"frames that are valid": "valid_share", "samples that end": "ended_share"}
    percent = {label: 100 * table.column(f"samples/{name}") for label, name in shares.items()}
    columns = Table(table.num_rows, {"step": table.column("step"), **percent})
    names = [(label, label) for label, values in percent.items() if np.isfinite(values).any()]
    figure = _measured(columns, names, "share, %")
    figure.update_yaxes(range=[-3, 103])
    return _chart(
        "Generated speech",
        "Of the prompts spoken: frames whose seven tokens lie in their slots, samples that end.",
        figure,
        bool(names),
    )


def _lines(
    run: Run,
    title: str,
    note: str,
    names: Names,
    axis: str,
    *,
    log: bool = False,
    colours: Sequence[str] = COLOURS,
    hidden: Names = (),
) -> Chart:
    """Draw columns of the main run, each as a faint curve and its median.

    Those in `hidden` are shown once their name is clicked.
    """
    figure = new_figure(axis)
    curves = [(label, _main(run, name)) for label, name in names]
    for place, (label, curve) in enumerate(curves):
        if len(curve):
            style = {"visible": "legendonly"} if names[place] in hidden else {}
            draw_noisy(figure, curve, html.escape(label), colours[place % len(colours)], **style)
    figure.update_layout(showlegend=len(names) > 1)
    if log:
        scale_by_logarithm(figure, axis, "~e")
    return _chart(title, note, figure, any(len(curve) for _, curve in curves))


def _measured(table: Table, names: Names, axis: str) -> go.Figure:
    """Draw what is measured now and then: every point, the first column the strongest."""
    figure = new_figure(axis)
    for place, (label, name) in enumerate(names):
        curve = _last_of_each_step(table.curve(name, np.arange(table.num_rows)))
        colour = COLOURS[place % len(COLOURS)]
        style = {"width": 1.5 if place else 2.5, "mode": "lines+markers", "marker": {"size": 5}}
        draw_line(figure, curve, html.escape(label), colour, **style)
    steps = table.column("step")
    if len(steps) and np.nanmin(steps) == np.nanmax(steps):
        figure.update_xaxes(dtick=1)  # about a single step plotly would repeat rounded ones
    return figure


def _fit(figure: go.Figure, values: np.ndarray) -> None:
    """Scale the axis to the curve rather than to its limits; by logarithm where spikes tower."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = values.min(), values.max()
    if low > 0 and high > 4 * np.quantile(values, 0.99):
        scale_by_logarithm(figure, "loss, nats a token")
        return
    space = 0.05 * (high - low) or 0.5
    figure.update_yaxes(range=[low - space, high + space])


def _chart(title: str, note: str, figure: go.Figure, has_data: bool, wide: bool = False) -> Chart:
    return Chart(
        title,
        note,
        figure if has_data else None,
        height=WIDE_HEIGHT if wide else HEIGHT,
        span=6 if wide else 3,
        tools='<button class="scale"></button>',
    )


def _any(table: Table, column: str) -> bool:
    return bool(np.isfinite(table.column(column)).any())


def _main(run: Run, column: str) -> Curve:
    return run.metrics.curve(column, run.main)


def _under(table: Table, prefix: str) -> list[tuple[str, str]]:
    """List (label, column) of the columns under a prefix that hold a number."""
    return [
        (name.removeprefix(f"{prefix}/"), name) for name in table.names(prefix) if _any(table, name)
    ]


def _last_of_each_step(curve: Curve) -> Curve:
    """Keep what was measured last where a rollback made the run pass a step again."""
    _, places = np.unique(curve.steps[::-1], return_index=True)
    kept = len(curve) - 1 - places
    return Curve(curve.steps[kept], curve.values[kept])
