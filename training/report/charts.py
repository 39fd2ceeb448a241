"""The charts of a run's report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go

from koe.vocabulary import SLOT_CODEBOOKS
from koe.webpage.charts import AMBER, RED, SLOT_COLOURS, Chart, add_right_axis
from koe.webpage.page import cut
from training.logs import SCORES
from training.report.data import Curve, Run, Table, thin
from training.report.drawing import (
    BUCKETS,
    COLOURS,
    draw_limit,
    draw_line,
    draw_noisy,
    new_figure,
    use_log_scale,
)
from training.report.events import draw_with_events

MAX_LABEL = 80  # characters of a source in a legend

HEIGHT, WIDE_HEIGHT = 330, 420  # pixels
LOSS = "loss, nats per token"

Names = Sequence[tuple[str, str]]  # (label, column)


def draw_charts(run: Run) -> dict[str, list[Chart]]:
    """Draw all charts of a run, by the id of their section."""
    lines = partial(_lines, run)
    sources = _under(run.metrics, "loss_by_source")
    sums = [(f"all {label}", name) for label, name in _under(run.metrics, "loss_by_modality")]
    slots = [
        (f"slot {slot} \u00b7 c{codebook}", f"loss_by_slot/{slot}")
        for slot, codebook in enumerate(SLOT_CODEBOOKS)
    ]
    groups = _under(run.metrics, "update_ratio")
    return {
        "loss": [
            _loss(run),
            _gradient_norm(run),
            lines(
                "Loss by source",
                "The curves of all speech and all text are hidden until you click their names.",
                sources + sums,
                LOSS,
                hidden=sums if sources else (),
            ),
            lines(
                "Loss by codebook slot",
                "The seven tokens of a SNAC frame in order, with their codebooks. "
                "Chance is log 4096 = 8.32.",
                slots,
                LOSS,
                colours=SLOT_COLOURS,
            ),
        ],
        "weights": [
            _learning_rate(run),
            lines(
                "Update norm / weight norm",
                "By group of weights. A rise here comes before one of the loss and the gradient norm.",
                [(label.replace("_", " "), name) for label, name in groups],
                "update norm / weight norm",
                log=True,
            ),
            lines(
                "Norm of embedding rows",
                "Old rows come from the base model; new rows are control ids and audio codes.",
                _under(run.metrics, "row_norms"),
                "mean L2 norm of a row",
            ),
            lines(
                "Largest logit",
                "Over the step's supervised tokens. If it climbs steadily, set train.z_loss.",
                [("largest logit", "largest_logit")],
                "logit",
            ),
        ],
        "speed": [
            lines(
                "Throughput",
                "Tokens without padding, over all ranks.",
                [("tokens/s", "tokens_per_second")],
                "tokens/s",
            ),
            _data_wait(run),
        ],
        "evaluation": [_evaluation(run), _generated(run), *_heard(run)],
    }


def _loss(run: Run) -> Chart:
    figure = draw_with_events(run, "loss", "loss", LOSS)
    draw_limit(figure, _main(run, "limits/loss"), "guard skips above", RED)
    _fit(figure, run.metrics.column("loss"))
    return _chart(
        "Loss",
        "Mean cross-entropy of the step's supervised tokens. The strong line is the median of "
        "neighbouring steps; grey lines are steps that a rollback undid.",
        figure,
        wide=True,
    )


def _gradient_norm(run: Run) -> Chart:
    figure = draw_with_events(run, "gradient_norm", "gradient norm", "L2 norm")
    draw_limit(figure, _main(run, "limits/clip"), "guard clips above", AMBER)
    draw_limit(figure, _main(run, "limits/gradient_norm"), "guard skips above", RED)
    use_log_scale(figure, "L2 norm")
    return _chart(
        "Gradient norm", "Over all parameters and ranks, before clipping.", figure, wide=True
    )


def _learning_rate(run: Run) -> Chart:
    figure = new_figure("learning rate")
    rate, factor = _main(run, "learning_rate"), _main(run, "rate_factor")
    draw_line(figure, thin(rate, BUCKETS), "learning rate", COLOURS[0], width=2)
    figure.update_yaxes(rangemode="tozero", exponentformat="e")
    if len(factor):
        style = {"width": 1.5, "line": {"shape": "hv"}, "yaxis": "y2"}
        draw_line(figure, thin(factor, BUCKETS), "guard's factor", COLOURS[1], **style)
        add_right_axis(figure, "guard's factor", range=[0, 1.05], dtick=0.25)
        figure.update_layout(margin={"r": 60})
    note = "As applied: warm-up and decay, times the guard's factor."
    return _chart("Learning rate", note, figure)


def _data_wait(run: Run) -> Chart:
    waits, seconds = run.metrics.column("data_wait_seconds"), run.metrics.column("seconds")
    share = np.divide(100 * waits, seconds, out=np.full(len(waits), np.nan), where=seconds > 0)
    columns = {"step": run.metrics.column("step"), "share": share}
    curve = Table(run.metrics.num_rows, columns).curve("share", run.main)
    figure = new_figure("share of the step's time, %")
    draw_noisy(figure, curve, "waiting for data", COLOURS[0])
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=False)
    note = "Time in which rank 0 has no batch to work on."
    return _chart("Waiting for data", note, figure)


def _evaluation(run: Run) -> Chart:
    names = [("all", "loss"), *_under(run.evaluations, "loss_by_source")]
    if "ema_loss" in run.evaluations.columns:
        names.append(("all, averaged weights", "ema_loss"))
    figure = _measured(run.evaluations, names, LOSS)
    return _chart("Evaluation loss", "On the validation shards.", figure)


def _generated(run: Run) -> Chart:
    table = run.evaluations
    shares = {"valid frames": "valid_share", "samples that end": "ended_share"}
    percent = {label: 100 * table.column(f"samples/{name}") for label, name in shares.items()}
    columns = Table(table.num_rows, {"step": table.column("step"), **percent})
    figure = _measured(columns, _known(columns, [(label, label) for label in percent]), "share, %")
    figure.update_yaxes(range=[-3, 103])
    note = (
        "Frames whose seven tokens lie in their slots, and samples that end within the token limit."
    )
    return _chart("Generated speech", note, figure)


def _heard(run: Run) -> list[Chart]:
    """Draw what listened to the samples, where anything did."""
    table = run.evaluations
    scores = _known(table, [(name, f"samples/{name}") for name in SCORES])
    rate = _known(table, [("character error rate", "samples/character_error_rate")])
    charts = []
    if scores:
        figure = _measured(table, scores, "mean opinion score, 1 to 5")
        note = "DNSMOS of the generated samples: overall, the speech, and the background."
        charts.append(_chart("How generated speech sounds", note, figure))
    if rate:
        percent = Table(
            table.num_rows, {"step": table.column("step"), "rate": 100 * table.column(rate[0][1])}
        )
        figure = _measured(percent, [(rate[0][0], "rate")], "character error rate, %")
        figure.update_yaxes(rangemode="tozero")
        figure.update_layout(showlegend=False)
        note = (
            "Edits between the prompts and what the recogniser heard, by the prompts' characters. "
            "Silence is 100%; more than that is heard where there is too much."
        )
        charts.append(_chart("What is heard of the prompts", note, figure))
    return charts


def _known(table: Table, names: Names) -> Names:
    return [pair for pair in names if np.isfinite(table.column(pair[1])).any()]


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
            draw_noisy(
                figure,
                curve,
                html.escape(cut(label, MAX_LABEL)),
                colours[place % len(colours)],
                **style,
            )
    figure.update_layout(showlegend=len(names) > 1)
    if log:
        use_log_scale(figure, axis, "~e")
    return _chart(title, note, figure)


def _measured(table: Table, names: Names, axis: str) -> go.Figure:
    """Draw what is measured now and then: every point, the first column the strongest."""
    figure = new_figure(axis)
    for place, (label, name) in enumerate(names):
        curve = _last_of_each_step(table.curve(name, np.arange(table.num_rows)))
        colour = COLOURS[place % len(COLOURS)]
        style = {"width": 1.5 if place else 2.5, "mode": "lines+markers", "marker": {"size": 5}}
        draw_line(figure, curve, html.escape(cut(label, MAX_LABEL)), colour, **style)
    steps = table.column("step")
    if len(steps) and np.nanmin(steps) == np.nanmax(steps):
        figure.update_xaxes(dtick=1)  # around a single step plotly would repeat rounded ones
    return figure


def _fit(figure: go.Figure, values: np.ndarray) -> None:
    """Scale the axis to the curve rather than to its limits; by logarithm where spikes tower."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = values.min(), values.max()
    if low > 0 and high > 4 * np.quantile(values, 0.99):
        use_log_scale(figure, LOSS)
        return
    space = 0.05 * (high - low) or 0.5
    figure.update_yaxes(range=[low - space, high + space])


def _chart(title: str, note: str, figure: go.Figure, wide: bool = False) -> Chart:
    height, span = (WIDE_HEIGHT, 6) if wide else (HEIGHT, 3)
    return Chart(title, note, figure, height, span, scalable=True)


def _main(run: Run, column: str) -> Curve:
    return run.metrics.curve(column, run.main)


def _under(table: Table, prefix: str) -> list[tuple[str, str]]:
    """List (label, column) of the columns under a prefix that hold a number."""
    return list(_known(table, [(n.removeprefix(f"{prefix}/"), n) for n in table.names(prefix)]))


def _last_of_each_step(curve: Curve) -> Curve:
    """Keep the last measurement of a step that a rollback made the run pass again."""
    _, places = np.unique(curve.steps[::-1], return_index=True)
    kept = len(curve) - 1 - places
    return Curve(curve.steps[kept], curve.values[kept])
