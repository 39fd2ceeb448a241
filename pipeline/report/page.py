"""The page of the data report: what the template is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from koe import numbers
from koe.schema import EXCLUDED, SPEECH, TEXT
from koe.webpage.charts import Chart
from koe.webpage.page import Tile, render
from pipeline.report import figures
from pipeline.report.clips import KINDS, MAX_SECONDS, Reconstruction, ShownClip
from pipeline.report.flow import waterfalls
from pipeline.report.survey import LeftOut
from pipeline.stats.duplicates import KINDS as DUPLICATE_KINDS
from pipeline.stats.model import RunStats
from pipeline.stats.transcripts import checks_on

# The sections by id, in the order of the page; one that has nothing to show is left out.
SECTIONS = {
    "flow": "From records in to tokens out",
    "sources": "Sources",
    "quality": "Quality",
    "lengths": "Lengths",
    "transcripts": "Transcripts",
    "mix": "Mix and packing",
    "codebooks": "Codebooks",
    "clips": "Listen to clips",
    "left-out-records": "Records left out",
    "duplicates": "Duplicates",
    "shards": "Shards",
}


@dataclass(frozen=True)
class Content:
    """All that the page shows; `codec` is what decoded the clips."""

    name: str
    about: str
    stats: RunStats
    threshold: float
    left_out: LeftOut
    clips: Sequence[ShownClip]
    codec: Reconstruction


def page(content: Content) -> str:
    """Render the page. Every text of the corpus is escaped, or lies in JSON."""
    stats, left_out = content.stats, content.left_out
    charts = {
        "flow": waterfalls(
            stats, left_out.losses(_sources(stats, SPEECH)), left_out.losses(_sources(stats, TEXT))
        ),
        "quality": figures.qualities(stats),
        "lengths": figures.lengths(stats),
        "mix": figures.mixes(stats),
        "codebooks": figures.codebooks(stats),
    }
    records = left_out.shown()
    return render(
        "pipeline.report",
        "report.html.j2",
        kind="data report",
        sections=_sections(content, charts),
        charts=charts,
        data={
            "left-out": {
                "columns": EXCLUDED.names,
                "records": [[record[name] for name in EXCLUDED.names] for record in records],
            }
        },
        tiles=_tiles(stats),
        num_records=len(records),
        filters={name: left_out.totals(name) for name in ("source", "stage", "outcome", "reason")},
        kinds=KINDS,
        duplicate_kinds=DUPLICATE_KINDS,
        checks=checks_on(stats.transcripts) if stats.transcripts else "",
        clip_counts=Counter(clip.kind for clip in content.clips),
        max_seconds=MAX_SECONDS,
        **vars(content),
    )


def _sections(content: Content, charts: Mapping[str, Iterable[Chart]]) -> dict[str, str]:
    stats = content.stats
    found = {
        "sources": stats.sources,
        "clips": content.clips or _sources(stats, SPEECH),
        "left-out-records": True,
        "transcripts": stats.transcripts,
        "duplicates": stats.duplicates,
        "shards": stats.shard_files,
    }
    found |= {id: not all(chart.is_empty for chart in charts[id]) for id in charts}
    return {id: heading for id, heading in SECTIONS.items() if found[id]}


def _sources(stats: RunStats, modality: str) -> set[str]:
    return {name for name, source in stats.sources.items() if source.modality == modality}


def _tiles(stats: RunStats) -> list[Tile]:
    """Work out the headline figures; a modality without sources has none."""
    clips, samples, shards = stats.clips, stats.samples, stats.shards
    kept = f"{clips.hours_kept:,.2f} h"
    if clips.pending:
        kept = f"{clips.pending:,} not done yet"
    of_clips = [
        Tile("Clips in", numbers.short(clips.records_in), f"{clips.hours_in:,.2f} h"),
        Tile("Clips kept", numbers.short(clips.kept), kept),
    ]
    of_samples = [Tile("Samples kept", numbers.short(samples.kept), f"of {samples.records_in:,}")]
    rejected = clips.rejected.total() + samples.rejected.total()
    quarantined = clips.quarantined.total() + samples.quarantined.total()
    speech = shards.tokens_by_modality.get(SPEECH, 0)
    share = f"{numbers.percent(speech / shards.tokens)} speech" if shards.tokens else ""
    return [
        *(of_clips if _sources(stats, SPEECH) else ()),
        *(of_samples if _sources(stats, TEXT) else ()),
        Tile(
            "Left out",
            numbers.short(rejected + quarantined),
            f"{rejected:,} rejected, {quarantined:,} quarantined",
        ),
        Tile("Tokens out", numbers.short(shards.tokens), share),
        Tile(
            "Row fill",
            numbers.percent(shards.fill, 2),
            f"{shards.rows:,} rows in {shards.num_shards:,} shards",
        ),
    ]
