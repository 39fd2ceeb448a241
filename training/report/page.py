"""The report's page: headline figures, charts, the table of events, generated speech."""

from __future__ import annotations

import base64
import html
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from training.report.data import Run, Samples, hardest, number, shorten
from training.report.drawing import Chart
from training.report.template import SCRIPT, STYLE

MOST_EVENTS = 400  # rows of the table
MOST_DOCUMENTS = 3  # of an event, those of the highest loss
MOST_SOUND_BYTES = 2_000_000  # of audio inside the page


@dataclass(frozen=True)
class Tile:
    """A headline figure; `note` says what it is of."""

    name: str
    value: str
    note: str = ""


def page(title: str, run: Run, drawn: list[Chart]) -> str:
    """Put the page together; `title` is the run's name."""
    figures = ",".join(str(chart.figure.to_json()) for chart in drawn if chart.figure)
    # "<" is spelled out in the JSON, so that no text of the run can end the element.
    data = f"[{figures}]".replace("<", "\\u003c")
    name = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; media-src data:">
<title>{name}: training report</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{name}</h1><p>{_span(run)}</p></header>
<section class="tiles">{"".join(_tile(tile) for tile in tiles(run))}</section>
<p class="hint">Drag across a chart to zoom in on steps in all of them; double-click to go back. \
Click a name in a legend to hide or show it.</p>
<section class="charts">{_cards(drawn)}</section>
<section class="card wide"><h2>Events</h2>{_events(run.events)}</section>
<section class="card wide"><h2>Generated speech to hear</h2>{_speech(run.samples)}</section>
</main>
<script type="application/json" id="figures">{data}</script>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def tiles(run: Run) -> list[Tile]:
    """Work out the headline figures; "–" where the logs do not tell."""
    metrics = run.metrics
    steps, tokens = (_last(metrics.column(n)[run.main]) for n in ("step", "total_tokens"))
    norms = metrics.column("gradient_norm")
    largest = (
        "at step " + _count(metrics.column("step")[np.nanargmax(norms)]) if _any(norms) else ""
    )
    odd = sum(name == "gradient_norm" for name, _, _ in metrics.not_finite)
    kinds = Counter(str(event.get("event")) for event in run.events)
    waits, seconds = (metrics.column(name) for name in ("data_wait_seconds", "seconds"))
    known = np.isfinite(waits) & np.isfinite(seconds)
    share = 100 * waits[known].sum() / seconds[known].sum() if seconds[known].sum() > 0 else np.nan
    skipped = len(run.skipped)
    return [
        Tile("Steps", _count(steps), _undone(run)),
        Tile("Tokens", _short(tokens), _count(tokens)),
        Tile("Last loss", _plain(_last(metrics.column("loss")[run.main]), 4), "nats a token"),
        Tile(
            "Largest gradient norm",
            _plain(np.nanmax(norms) if _any(norms) else np.nan, 3),
            largest + (f", {odd} not finite" if odd else ""),
        ),
        Tile("Steps clipped", _count(metrics.actions.count("clip")), "by the guard"),
        Tile("Steps skipped", _count(skipped), "gradient not used"),
        Tile(
            "Rollbacks",
            _count(kinds["roll_back"]),
            f"lowerings of the rate: {kinds['lower_rate'] + kinds['climbing']}",
        ),
        Tile(
            "Throughput", _short(_median(metrics.column("tokens_per_second"))), "tokens/s, median"
        ),
        Tile(
            "MFU",
            _plain(100 * _median(metrics.column("mfu_causal")), 1, " %"),
            "causal; full " + _plain(100 * _median(metrics.column("mfu_full")), 1, " %"),
        ),
        Tile("Waiting for data", _plain(share, 2, " %"), "of the time"),
    ]


def _undone(run: Run) -> str:
    undone = sum(len(piece) for piece in run.abandoned)
    return f"and {undone:,} undone" if undone else "applied"


def _span(run: Run) -> str:
    times = [str(event["time"]) for event in run.events if event.get("time")]
    starts = sum(event.get("event") == "started" for event in run.events)
    parts = [f"{times[0]} to {times[-1]}"] if times else []
    parts += [f"started {starts} times"] if starts > 1 else []
    return html.escape("Training report. " + ", ".join(parts))


def _tile(tile: Tile) -> str:
    name, value, note = (html.escape(text) for text in (tile.name, tile.value, tile.note))
    return f'<div class="tile"><h3>{name}</h3><b>{value}</b><span>{note}</span></div>'


def _cards(drawn: list[Chart]) -> str:
    cards, number_of = [], 0
    for chart in drawn:
        body = '<p class="none">There is no data for this chart in the logs.</p>'
        button = ""
        if chart.figure:
            body = f'<div class="plot" data-figure="{number_of}"></div>'
            button = f'<button class="scale" data-figure="{number_of}"></button>'
            number_of += 1
        cards.append(
            f'<article class="card{" wide" if chart.wide else ""}"><h2>{html.escape(chart.title)}'
            f"{button}</h2><p>{html.escape(chart.note)}</p>{body}</article>"
        )
    return "".join(cards)


def _events(events: list[dict[str, Any]]) -> str:
    if not events:
        return '<p class="none">There are no events in the logs.</p>'
    shown = hardest(events, MOST_EVENTS)
    kinds = Counter(str(event.get("event")) for event in events)
    chips = "".join(
        f'<label><input type="checkbox" checked data-kind="{html.escape(kind)}">'
        f"{html.escape(kind.replace('_', ' '))} <i>{number_of:,}</i></label>"
        for kind, number_of in kinds.items()
    )
    left_out = len(events) - len(shown)
    note = f"<p>{left_out:,} of the milder events are in events.jsonl only.</p>" if left_out else ""
    heads = ("Id", "Step", "Data step", "Kind", "Reason", "Documents of the highest loss")
    head = "".join(f"<th>{name}</th>" for name in heads)
    rows = "".join(_event(event) for event in shown)
    return (
        f'<div class="chips">{chips}</div>{note}<div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _event(event: dict[str, Any]) -> str:
    kind = html.escape(str(event.get("event")))
    cells = [
        html.escape(_text(event.get("id"))),
        html.escape(_text(event.get("step"))),
        html.escape(_text(event.get("data_step"))),
        f'<span class="kind {kind}">{kind.replace("_", " ")}</span>',
        html.escape(shorten(_text(event.get("reason")))),
        _documents(event.get("documents")),
    ]
    return f'<tr data-kind="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _documents(documents: Any) -> str:
    """List an event's documents of the highest loss; what is not finite counts as highest."""
    if not isinstance(documents, list):
        return ""
    losses = [(number(d.get("loss")), d) for d in documents if isinstance(d, dict)]
    known = [(np.inf if np.isnan(loss) else loss, d) for loss, d in losses if d.get("loss")]
    worst = sorted(known, key=lambda pair: -pair[0])[:MOST_DOCUMENTS]
    lines = []
    for _, d in worst:
        loss = d["loss"] if isinstance(d["loss"], str) else f"{d['loss']:.3f}"
        place = f"row {_text(d.get('row'))}, {_text(d.get('source'))}"
        name = html.escape(shorten(_text(d.get("id")), 80))
        lines.append(f"<b>{html.escape(loss)}</b> {name} <i>{html.escape(place)}</i>")
    return "<br>".join(lines)


def _speech(found: Samples) -> str:
    """Show what was spoken, with as many recordings as the page may hold."""
    if not found.samples:
        return '<p class="none">There are no samples in the folder.</p>'
    parts, bytes_left = [], MOST_SOUND_BYTES
    for sample in found.samples:
        path = found.folder / str(sample.get("wav"))
        sound = "<i>no recording</i>"
        if sample.get("wav") and path.parent == found.folder and path.is_file():
            sound = f"<i>{html.escape(path.name)} is in the folder only</i>"
            if path.stat().st_size <= bytes_left:
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                bytes_left -= path.stat().st_size
                sound = (
                    f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>'
                )
        prompt = sample.get("prompt")
        name = prompt.get("name") if isinstance(prompt, dict) else prompt
        text = html.escape(shorten(_text(name)))
        parts.append(f"<figure><figcaption>{text}</figcaption>{sound}</figure>")
    about = f"{found.folder.name}, decoded by: {found.codec or 'no codec'}"
    return f'<p>{html.escape(about)}</p><div class="sounds">{"".join(parts)}</div>'


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if _any(values) else np.nan


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else np.nan


def _count(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "–"


def _plain(value: float, digits: int, unit: str = "") -> str:
    return f"{value:,.{digits}f}{unit}" if np.isfinite(value) else "–"


def _short(value: float) -> str:
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return _count(value)
