"""Rich rendering of what checks of transcripts would reject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from koe.numbers import UNKNOWN, count, decimal, percent
from koe.printable import escape_control_characters
from pipeline.stats.model import TranscriptStats
from pipeline.stats.transcripts import checks_on
from pipeline.terminal.tables import grid

_MARKS = ("p1", "p50", "p99")
_EXAMPLE = "example"


def transcripts_view(
    found: TranscriptStats | None, source: str | None = None
) -> Iterator[RenderableType]:
    """Show speaking rates by source, and what the checks that are on reject; of `source` only."""
    if found is None or (source is not None and source not in found.sources):
        return
    if source is not None:
        found = replace(found, sources={source: found.sources[source]})
    yield _rates(found)
    if on := checks_on(found):
        yield _rejected(found, on)


def _rates(found: TranscriptStats) -> Table:
    table = grid("Letters and digits per second of clip", "source", "clips", *_MARKS)
    for source, of_source in found.sources.items():
        rates = of_source.characters_per_second
        cells = (decimal(rates[mark], 2) if rates else UNKNOWN for mark in _MARKS)
        table.add_row(Text(source), count(of_source.clips), *cells)
    return table


def _rejected(found: TranscriptStats, on: str) -> Table:
    title = escape_control_characters(f"What these checks of transcripts reject: {on}")
    columns = ("source", "reason", "clips", "share", _EXAMPLE)
    table = grid(title, *columns, left=["reason", _EXAMPLE], cut=_EXAMPLE)
    examples = {(item.source, item.reason): item for item in reversed(found.examples)}
    for source, of_source in found.sources.items():
        for reason, number in of_source.rejected.items():
            example = examples.get((source, reason))
            shown = f"{example.id}: {example.detail}" if example else ""
            table.add_row(
                Text(source),
                reason,
                count(number),
                percent(number / max(of_source.clips, 1)),
                Text(escape_control_characters(shown)),
            )
        if not of_source.rejected:
            table.add_row(Text(source), "none", "0", percent(0), "")
    return table
