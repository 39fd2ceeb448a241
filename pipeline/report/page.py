"""The page of the data report: headline figures, charts, clips to hear, what was left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly.offline import get_plotlyjs

from pipeline.report import figures, tables
from pipeline.report.clips import MOST_SECONDS, ShownClip
from pipeline.report.drawing import Chart, short_number
from pipeline.report.flow import waterfalls
from pipeline.report.script import SCRIPT
from pipeline.report.style import STYLE
from pipeline.report.survey import LeftOut
from pipeline.report.tables import escape

Stats = dict[str, Any]
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data:"
)

FLOW_LEAD = (
    'Every record is kept, <b class="rejected">rejected</b> by a rule, or '
    '<b class="quarantined">quarantined</b> as broken, each with its reason and stage.'
)


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    `codec` names what decoded the clips, `trained` says whether it can speak; `problem` is why
    there is no codec.
    """

    title: str
    about: str
    stats: Stats
    threshold: float
    left_out: LeftOut
    clips: Sequence[ShownClip]
    codec: str
    trained: bool
    problem: str = ""


class _Drawn:
    """Cards of charts, and their figures in the order of the page."""

    def __init__(self) -> None:
        self._figures: list[str] = []

    def cards(self, charts: Sequence[Chart]) -> str:
        return f'<div class="charts">{"".join(map(self._card, charts))}</div>'

    def _card(self, chart: Chart) -> str:
        body = '<p class="none">There is nothing to draw yet.</p>'
        if chart.figure is not None:
            body = '<p class="summary"></p>' if chart.by_source else ""
            body += (
                f'<div class="plot" style="height:{chart.height}px" '
                f'data-figure="{len(self._figures)}"></div>'
            )
            self._figures.append(str(chart.figure.to_json()))
        return (
            f'<article class="card span{chart.span}"><h3>{escape(chart.title)}</h3>'
            f"<p>{escape(chart.note)}</p>{body}</article>"
        )

    def as_json(self) -> str:
        return f"[{','.join(self._figures)}]"


def page(content: Content) -> str:
    """Put the page together. Every text of the corpus is escaped, or lies in JSON."""
    drawn, shown = _Drawn(), content.left_out.shown()
    sections = _sections(content, drawn, shown)
    links = "".join(f'<a href="#{id}">{name}</a>' for id, name, _, body in sections if body)
    bodies = "".join(
        f'<section id="{id}"><h2>{name}</h2><p class="lead">{lead}</p>{body}</section>'
        for id, name, lead, body in sections
        if body
    )
    rows = [[row[name] for name in tables.COLUMNS] for row in shown]
    title = escape(content.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}: data report</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{_badges(content)}<p>{escape(content.about)}</p></header>
<nav>{links}</nav>
<div class="tiles">{_tiles(content.stats)}</div>
{bodies}
</main>
<script type="application/json" id="figures">{_inert(drawn.as_json())}</script>
<script type="application/json" id="left-out">{_inert(json.dumps(rows, ensure_ascii=False))}</script>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _inert(data: str) -> str:
    """Spell "<" out in JSON, so that no text of the corpus can end its element."""
    return data.replace("<", "\\u003c")


def _sections(
    content: Content, drawn: _Drawn, shown: Sequence[dict[str, str]]
) -> list[tuple[str, str, str, str]]:
    """Return (id, heading, lead, body) of each section; one without a body is left out."""
    stats, found = content.stats, content.left_out
    speech, text = _sources(stats, "speech"), _sources(stats, "text")
    choice = _choice(stats)
    flow = waterfalls(stats, found.losses(speech), found.losses(text))
    clip_lead = (
        f"Up to {MOST_SECONDS} s of each, at 24 kHz; click into a spectrogram to play from there. "
        "Both pictures of a clip share one scale of 80 dB."
    )
    repeats = tables.duplicates(stats)
    return [
        ("flow", "From clips in to tokens out", FLOW_LEAD, drawn.cards(flow)),
        ("sources", "Sources", "", _card(tables.sources(stats))),
        ("quality", "Quality", "DNSMOS P.835 of every clip ingested.",
         choice + drawn.cards(figures.qualities(stats))),
        ("lengths", "Lengths", "Bins at either end hold what lies beyond them too.",
         choice + drawn.cards(figures.lengths(stats))),
        ("mix", "Mix and packing", "", drawn.cards(figures.mixes(stats))),
        ("codebooks", "Codebooks", "SNAC codes of the clips encoded, seven slots a frame.",
         drawn.cards(figures.codebooks(stats))),
        ("clips", "Clips to hear", clip_lead + _codec_warning(content),
         _card(tables.clips(content.clips, content.threshold, _codec_name(content)))),
        ("left-out-records", "Left out", "", _card(tables.left_out(found, shown))),
        ("duplicates", "Duplicates", "Among the clips encoded.", repeats and _card(repeats)),
        ("shards", "Shards", "", _shards(stats)),
    ]  # fmt: skip


def _card(body: str) -> str:
    return f'<div class="card wide">{body}</div>'


def _shards(stats: Stats) -> str:
    body = tables.shards(stats)
    return body and _card(body)


def _sources(stats: Stats, modality: str) -> set[str]:
    found = stats.get("sources", {})
    return {name for name, source in found.items() if source.get("modality") == modality}


def _choice(stats: Stats) -> str:
    names = list(stats.get("distributions", {}))
    if not names:
        return ""
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in names)
    return f'<div class="controls"><label>Source<select class="source">{options}</select></label></div>'


def _codec_name(content: Content) -> str:
    kind = "" if content.trained else ' class="quarantined"'
    return f"<span{kind}>{escape(content.codec or 'no codec')}</span>"


def _codec_warning(content: Content) -> str:
    if content.problem:
        return f' <b class="quarantined">Originals only: {escape(content.problem)}</b>'
    if not content.trained:
        return (
            ' <b class="quarantined">The codec is UNTRAINED: its reconstructions are noise, and say '
            "nothing about the clips.</b>"
        )
    return ""


def _badges(content: Content) -> str:
    accounts = [content.stats.get(key, {}) for key in ("accounting", "samples")]
    closed = all(account.get("closed", True) for account in accounts)
    badges = [("good", "books closed") if closed else ("bad", "books do not close")]
    label = content.stats.get("codec", {}).get("label")
    if label:
        trained = content.stats["codec"].get("trained", True)
        badges.append(("" if trained else "bad", f"codec {label}"))
    return "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in badges)


def _tiles(stats: Stats) -> str:
    clips, samples, shards = (stats.get(key, {}) for key in ("accounting", "samples", "shards"))
    tokens, by_modality = shards.get("tokens", 0), shards.get("tokens_by_modality", {})
    speech = f"{100 * by_modality.get('speech', 0) / tokens:.1f} % speech" if tokens else ""
    hours = [
        sum(source.get(key, 0) for source in stats.get("sources", {}).values())
        for key in ("hours_in", "hours_kept")
    ]
    lost = [
        sum(sum(account.get(key, {}).values()) for account in (clips, samples))
        for key in ("rejected", "quarantined")
    ]
    rows = [
        ("Clips in", short_number(clips.get("clips_in", 0)), f"{hours[0]:,.2f} h"),
        ("Clips kept", short_number(clips.get("kept", 0)), f"{hours[1]:,.2f} h above the threshold"),
        ("Samples kept", short_number(samples.get("kept", 0)), f"of {samples.get('samples_in', 0):,}"),
        ("Left out", short_number(sum(lost)), f"{lost[0]:,} rejected, {lost[1]:,} quarantined"),
        ("Tokens out", short_number(tokens), speech),
        ("Row fill", f"{100 * shards.get('fill', 0):.2f} %",
         f"{shards.get('rows', 0):,} rows in {shards.get('num_shards', 0):,} shards"),
    ]  # fmt: skip
    return "".join(
        f'<div class="tile"><h3>{name}</h3><b>{value}</b><span>{note}</span></div>'
        for name, value, note in rows
    )
