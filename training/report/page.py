"""The report's page: headline figures, charts, the table of events, generated speech."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import numpy as np

from koe.webpage import (
    NOTHING,
    Chart,
    Figures,
    Page,
    Section,
    Tile,
    card,
    document,
    escape,
    scroll,
    short_number,
    table,
)
from training.report.data import LONGEST_TEXT, Run, SpokenSamples, hardest, number
from training.report.template import SCRIPT, STYLE

MAX_EVENTS = 400  # rows of the table
MAX_DOCUMENTS = 3  # of an event, those of the highest loss
MAX_SOUND_BYTES = 2_000_000  # of audio inside the page
LONGEST_ID = 80  # characters of a document's

CHARTS_LEAD = (
    "Drag across a chart to zoom in on steps in all of them; double-click to go back. Click a name "
    "in a legend to hide or show it."
)


def page(title: str, run: Run, drawn: dict[str, list[Chart]]) -> str:
    """Put the page together; `title` is the run's name, `drawn` its charts by heading."""
    figures = Figures("There is no data for this chart in the logs.")
    sections = [
        Section(f"charts-{place}", name, "" if place else CHARTS_LEAD, figures.cards(charts))
        for place, (name, charts) in enumerate(drawn.items())
    ]
    sections += [
        Section("events", "Events", "", card(_events(run.events))),
        Section("speech", "Generated speech to hear", "", card(_speech(run.samples))),
    ]
    return document(
        Page(
            title=f"{title}: training report",
            name=title,
            header=f"<p>{_span(run)}</p>",
            tiles=tiles(run),
            sections=sections,
            data={"figures": figures.as_json()},
            style=STYLE,
            script=SCRIPT,
        )
    )


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
    full = 100 * _median(metrics.column("mfu_full"))
    return [
        Tile("Steps", _count(steps), _undone(run)),
        Tile("Tokens", short_number(tokens), _count(tokens)),
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
            "Throughput",
            short_number(_median(metrics.column("tokens_per_second"))),
            "tokens/s, median",
        ),
        Tile(
            "MFU",
            _plain(100 * _median(metrics.column("mfu_causal")), 1, " %"),
            f"causal; full {_plain(full, 1, ' %')}" if np.isfinite(full) else "device not known",
        ),
        Tile("Waiting for data", _plain(share, 2, " %"), "of the time"),
    ]


def _undone(run: Run) -> str:
    undone = sum(len(piece) for piece in run.abandoned)
    return f"and {undone:,} undone" if undone else "applied"


def _span(run: Run) -> str:
    times = [_clock(str(event["time"])) for event in run.events if event.get("time")]
    starts = sum(event.get("event") == "started" for event in run.events)
    parts = [f"first event {times[0]}"] if times else []
    parts += [f"last event {times[-1]}"] if len(times) > 1 else []
    parts += [f"started {starts} times"] if starts > 1 else []
    return escape(", ".join(["Training report", *parts]))


def _clock(time: str) -> str:
    return time.replace("T", " ").replace("+00:00", " UTC")


def _events(events: list[dict[str, Any]]) -> str:
    if not events:
        return '<p class="none">There are no events in the logs.</p>'
    shown = hardest(events, MAX_EVENTS)
    kinds = Counter(str(event.get("event")) for event in events)
    chips = "".join(
        f'<label><input type="checkbox" checked data-kind="{escape(kind)}">'
        f"{escape(kind.replace('_', ' '))} <i>{number_of:,}</i></label>"
        for kind, number_of in kinds.items()
    )
    left_out = len(events) - len(shown)
    note = f"<p>{left_out:,} of the milder events are in events.jsonl only.</p>" if left_out else ""
    heads = ("Id", "Step", "Data step", "Kind", "Reason", "Documents of the highest loss")
    listed = table("Events", heads, [_event(event) for event in shown])
    return (
        f'<div class="chips" role="group" aria-label="Kinds of events">{chips}</div>{note}'
        f"{scroll('Events', listed)}"
    )


def _event(event: dict[str, Any]) -> list[str]:
    kind = escape(str(event.get("event")))
    return [
        *(escape(event.get(name)) for name in ("id", "step", "data_step")),
        f'<span class="kind {kind}" data-kind="{kind}">{kind.replace("_", " ")}</span>',
        escape(event.get("reason") or "", LONGEST_TEXT),
        _documents(event.get("documents")),
    ]


def _documents(documents: Any) -> str:
    """List an event's documents of the highest loss; what is not finite counts as highest."""
    if not isinstance(documents, list):
        return ""
    losses = [(number(d.get("loss")), d) for d in documents if isinstance(d, dict)]
    known = [(np.inf if np.isnan(loss) else loss, d) for loss, d in losses if d.get("loss")]
    worst = sorted(known, key=lambda pair: -pair[0])[:MAX_DOCUMENTS]
    lines = []
    for _, d in worst:
        loss = d["loss"] if isinstance(d["loss"], str) else f"{d['loss']:.3f}"
        place = f"row {escape(d.get('row'))}, {escape(d.get('source'))}"
        lines.append(f"<b>{escape(loss)}</b> {escape(d.get('id'), LONGEST_ID)} <i>{place}</i>")
    return "<br>".join(lines)


def _speech(found: SpokenSamples) -> str:
    """Show what was spoken, with as many recordings as the page may hold."""
    if not found.samples:
        return '<p class="none">There are no samples in the folder.</p>'
    parts, bytes_left = [], MAX_SOUND_BYTES
    for sample in found.samples:
        prompt = sample.get("prompt")
        name = prompt.get("name") if isinstance(prompt, dict) else prompt
        text = escape(name, LONGEST_TEXT)
        path = found.folder / str(sample.get("wav"))
        sound = "<i>no recording</i>"
        if sample.get("wav") and path.parent == found.folder and path.is_file():
            sound = f"<i>{escape(path.name)} is in the folder only</i>"
            if path.stat().st_size <= bytes_left:
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                bytes_left -= path.stat().st_size
                sound = (
                    f'<audio controls preload="none" aria-label="Speech generated for: {text}" '
                    f'src="data:audio/wav;base64,{data}"></audio>'
                )
        parts.append(f"<figure><figcaption>{text}</figcaption>{sound}</figure>")
    about = f"{found.folder.name}, decoded by: {found.codec or 'no codec'}"
    return f'<p>{escape(about)}</p><div class="sounds">{"".join(parts)}</div>'


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if _any(values) else np.nan


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else np.nan


def _count(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else NOTHING


def _plain(value: float, digits: int, unit: str = "") -> str:
    return f"{value:,.{digits}f}{unit}" if np.isfinite(value) else NOTHING
