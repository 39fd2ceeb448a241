"""The page of the data report: headline figures, charts, clips to hear, what was left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from koe.schema import SPEECH, TEXT
from koe.webpage import (
    Chart,
    Figures,
    Page,
    Section,
    Tile,
    card,
    document,
    escape,
    short_number,
)
from pipeline.report import figures, players, tables
from pipeline.report.clips import MAX_SECONDS, ShownClip
from pipeline.report.flow import waterfalls
from pipeline.report.script import SCRIPT
from pipeline.report.style import STYLE
from pipeline.report.survey import LeftOut
from pipeline.stats.model import RunStats

FLOW_LEAD = (
    'Every record is kept, <b class="rejected">rejected</b> by a rule, or '
    '<b class="quarantined">quarantined</b> as broken, each with its reason and stage.'
)
QUALITY_LEAD = "DNSMOS P.835 of every clip ingested."
LENGTHS_LEAD = "Bins at either end hold what lies beyond them too."
CODEBOOKS_LEAD = "SNAC codes of the clips encoded, seven slots a frame."
CLIPS_LEAD = (
    f"Up to {MAX_SECONDS} s of each, at 24 kHz; click into a spectrogram to play from there. "
    "Both pictures of a clip share one scale of 80 dB. Speech that is very fast or slow often has "
    "a wrong transcript."
)


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    `codec` names what decoded the clips, `trained` says whether it can speak; `problem` is why
    there is no codec.
    """

    title: str
    about: str
    stats: RunStats
    threshold: float
    left_out: LeftOut
    clips: Sequence[ShownClip]
    codec: str
    trained: bool
    problem: str = ""


def page(content: Content) -> str:
    """Put the page together. Every text of the corpus is escaped, or lies in JSON."""
    drawn, shown = Figures("There is nothing to draw yet."), content.left_out.shown()
    sections = _sections(content, drawn, shown)
    rows = [[row[name] for name in tables.COLUMNS] for row in shown]
    return document(
        Page(
            title=f"{content.title}: data report",
            name=content.title,
            header=f"{_badges(content)}<p>{escape(content.about)}</p>",
            tiles=_tiles(content.stats),
            sections=sections,
            data={
                "figures": drawn.as_json(),
                "left-out": json.dumps(rows, ensure_ascii=False),
            },
            style=STYLE,
            script=SCRIPT,
        )
    )


def _sections(content: Content, drawn: Figures, shown: Sequence[dict[str, str]]) -> list[Section]:
    """Make the sections in the order of the page; one that has nothing to show has no body."""
    stats, found = content.stats, content.left_out
    speech, text = _sources(stats, SPEECH), _sources(stats, TEXT)
    flow = waterfalls(stats, found.losses(speech), found.losses(text))
    clips = card(players.clips(content.clips, content.threshold, _codec_name(content)))
    if not clips and speech:
        clips = card('<p class="none">No clip has been scored yet, or none was asked for.</p>')

    def charts(found: Sequence[Chart], before: str = "") -> str:
        return before + drawn.cards(found) if any(c.figure is not None for c in found) else ""

    choice = _choice(stats)
    return [
        Section("flow", "From clips in to tokens out", FLOW_LEAD, charts(flow)),
        Section("sources", "Sources", "", card(tables.sources(stats))),
        Section("quality", "Quality", QUALITY_LEAD, charts(figures.qualities(stats), choice)),
        Section("lengths", "Lengths", LENGTHS_LEAD, charts(figures.lengths(stats), choice)),
        Section("mix", "Mix and packing", "", charts(figures.mixes(stats))),
        Section("codebooks", "Codebooks", CODEBOOKS_LEAD, charts(figures.codebooks(stats))),
        Section("clips", "Clips to hear", CLIPS_LEAD + _codec_warning(content), clips),
        Section("left-out-records", "Left out", "", card(tables.left_out(found, shown))),
        Section("duplicates", "Duplicates", _duplicates_lead(stats),
                card(tables.duplicates(stats))),
        Section("shards", "Shards", "", card(tables.shards(stats))),
    ]  # fmt: skip


def _sources(stats: RunStats, modality: str) -> set[str]:
    return {name for name, source in stats.sources.items() if source.modality == modality}


def _choice(stats: RunStats) -> str:
    names = list(stats.distributions)
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


def _duplicates_lead(stats: RunStats) -> str:
    return f"Among the clips encoded{'' if stats.has_trained_codec else '; untrained codes agree by chance'}."


def _badges(content: Content) -> str:
    stats = content.stats
    adds_up = stats.clips.adds_up and stats.samples.adds_up
    badges = [
        ("good", "record counts add up") if adds_up else ("bad", "record counts do not add up")
    ]
    if stats.codec:
        badges.append(("" if stats.codec.trained else "bad", f"codec {stats.codec.label}"))
    return "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in badges)


def _tiles(stats: RunStats) -> list[Tile]:
    """Work out the headline figures; a modality without sources has none."""
    clips, samples, shards = stats.clips, stats.samples, stats.shards
    speech = ""
    if shards.tokens:
        speech = f"{100 * shards.tokens_by_modality[SPEECH] / shards.tokens:.1f} % speech"
    rejected, quarantined = (
        clips.rejected.total() + samples.rejected.total(),
        clips.quarantined.total() + samples.quarantined.total(),
    )
    kept = f"{clips.pending:,} not done yet" if clips.pending else f"{clips.hours_kept:,.2f} h"
    of_clips = [
        Tile("Clips in", short_number(clips.records_in), f"{clips.hours_in:,.2f} h"),
        Tile("Clips kept", short_number(clips.kept), kept),
    ]
    of_samples = Tile("Samples kept", short_number(samples.kept), f"of {samples.records_in:,}")
    rest = [
        Tile(
            "Left out",
            short_number(rejected + quarantined),
            f"{rejected:,} rejected, {quarantined:,} quarantined",
        ),
        Tile("Tokens out", short_number(shards.tokens), speech),
        Tile(
            "Row fill",
            f"{100 * shards.fill:.2f} %",
            f"{shards.rows:,} rows in {shards.num_shards:,} shards",
        ),
    ]
    has_text = bool(_sources(stats, TEXT))
    return of_clips * bool(_sources(stats, SPEECH)) + [of_samples] * has_text + rest
