"""Rich rendering of the shards' part of the statistics, for 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from koe.numbers import count, percent
from koe.schema import SPEECH, TEXT
from pipeline.stats.model import MixPart, ShardFile, ShardStats
from pipeline.terminal.tables import grid

_MAX_SHARDS = 12
_TENTHS = 10


def shards_table(shards: ShardStats) -> RenderableType:
    """Show the totals of the shards."""
    if not shards.num_shards:
        return Text("no shards yet", style="yellow")
    tokens = shards.tokens_by_modality
    longest = f"{shards.max_row_tokens:,} of {shards.row_capacity:,} tokens"
    table = grid(
        f"Shards, the longest row of {longest}",
        "shards", "rows", "documents", "tokens", "speech", "text", "fill",
    )  # fmt: skip
    table.add_row(
        *map(count, (shards.num_shards, shards.rows, shards.documents, shards.tokens)),
        *(percent(tokens[modality] / max(shards.tokens, 1)) for modality in (SPEECH, TEXT)),
        percent(shards.fill, 2),
    )
    return table


def mix_table(parts: Sequence[MixPart]) -> Table:
    """Show how the mix changes along the training rows, in ten steps."""
    table = grid("Mix along the training rows")
    if not parts:
        return table
    by_tenth: dict[int, list[MixPart]] = {}
    for part in parts:
        by_tenth.setdefault(int(part.progress * _TENTHS) + 1, []).append(part)
    steps = list(by_tenth.values())
    for name in ("up to", *(f"{tenth / _TENTHS:.0%}" for tenth in by_tenth)):
        table.add_column(name, justify="right" if table.columns else "left", no_wrap=True)
    table.add_row("speech tokens", *(f"{_speech_share(step):.0%}" for step in steps))
    table.add_row("fill", *(f"{_row_mean(step, attrgetter('fill')):.0%}" for step in steps))
    documents = (f"{_row_mean(step, attrgetter('documents_per_row')):.1f}" for step in steps)
    table.add_row("documents/row", *documents)
    return table


def _speech_share(parts: Sequence[MixPart]) -> float:
    speech = sum(part.speech_tokens for part in parts)
    return speech / max(speech + sum(part.text_tokens for part in parts), 1)


def _row_mean(parts: Sequence[MixPart], value: Callable[[MixPart], float]) -> float:
    return sum(value(part) * part.rows for part in parts) / sum(part.rows for part in parts)


def shard_files_table(files: Sequence[ShardFile]) -> Table:
    """List the first shards."""
    title = "Shard files" + (f", the first {_MAX_SHARDS}" if len(files) > _MAX_SHARDS else "")
    table = grid(title, "file", "rows", "tokens", "MB", "fill", "sha256")
    for file in files[:_MAX_SHARDS]:
        table.add_row(
            file.path,
            *map(count, (file.rows, file.tokens)),
            f"{file.bytes / 1e6:,.2f}",
            percent(file.fill, 2),
            file.sha256[:12],
        )
    return table
