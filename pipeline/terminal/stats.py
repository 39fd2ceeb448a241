"""Rich rendering of statistics, for 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from koe.errors import ConfigError
from koe.numbers import audio_hours, count, counted, decimal, percent
from koe.printable import escape_control_characters, shorten_list
from koe.schema import QUARANTINED, REJECTED, SPEECH
from pipeline.stats.duplicates import KINDS
from pipeline.stats.model import (
    Account,
    CodecUsed,
    Distribution,
    DuplicateStats,
    ExcludedRecord,
    RunStats,
    ScoreStats,
    SlotUse,
    Thresholds,
)
from pipeline.terminal.shards import mix_table, shard_files_table, shards_table
from pipeline.terminal.tables import grid, titled
from pipeline.terminal.transcripts import transcripts_view

_NAMES = {"characters_per_second": "characters/s", "text_tokens": "text tokens"}
_MARKS = ("p1", "p5", "p50", "p95", "p99")
_INTEGERS = ("characters", "tokens", "text_tokens")  # quantities shown without decimals
_EXAMPLE = "example"


def stats_view(stats: RunStats, source: str | None = None) -> RenderableType:
    """Render the statistics of a run; parts that were not computed are left out.

    With `source`, only that source's record counts and distributions are shown.
    Raises: ConfigError for a source that the run does not have.
    """
    if source is None:
        parts = [
            *_outcomes(stats, stats.sources),
            _sums(stats),
            *_clips(stats),
            *transcripts_view(stats.transcripts),
            _codebooks(stats.codebooks),
            _duplicates(stats.duplicates, stats.has_trained_codec),
            shards_table(stats.shards),
            mix_table(stats.mix),
            shard_files_table(stats.shard_files),
        ]
    else:
        require_source(stats.sources, source)
        parts = [
            *_outcomes(stats, {source: stats.sources[source]}),
            _distributions(source, stats.distributions.get(source, {})),
            *transcripts_view(stats.transcripts, source),
        ]
    return Group(*(line for part in parts for line in _spaced(part)), codec_line(stats.codec))


def require_source(sources: Iterable[str], source: str) -> None:
    """Refuse a source that the run does not have. Raises: ConfigError naming those that it has."""
    if source not in sources:
        known = f"the run's sources are {shorten_list(sources, source)}"
        raise ConfigError(f"there is no source {source!r}", known, "Give one of them to --source.")


def _outcomes(stats: RunStats, sources: Mapping[str, Account]) -> list[RenderableType]:
    """Show where the records of the sources went."""
    examples = stats.quarantine_examples
    left_out = (_left_out(outcome, sources, examples) for outcome in (REJECTED, QUARANTINED))
    return [
        _records(sources),
        *_unreadable(stats.unreadable_receipts),
        *_set_aside(stats.set_aside),
        *_not_readable(sources),
        *left_out,
        *_notes(sources),
    ]


def _set_aside(units: Sequence[Mapping[str, str]]) -> list[RenderableType]:
    """Name the units that are left aside: their records stay pending until that ends."""
    lines = [f"set aside by {unit['stage']}: {unit['unit']}, {unit['why']}" for unit in units]
    return [Text(escape_control_characters(line), "red") for line in lines]


def _unreadable(receipts: Sequence[str]) -> list[RenderableType]:
    """Name the receipts that cannot be read: nothing else tells such a unit from one that never ran."""
    if not receipts:
        return []
    what = f"{counted(len(receipts), 'receipt')} cannot be read: {shorten_list(receipts)}"
    why = "damaged, or of another version of koe; `koe run` does these units again"
    return [Text(escape_control_characters(f"{what} ({why})"), style="yellow")]


def _not_readable(sources: Mapping[str, Account]) -> list[RenderableType]:
    """Show what was lost of the source files, which the records that came in cannot tell."""
    lines = [
        f"{name}: {account.not_readable}"
        for name, account in sources.items()
        if account.not_readable
    ]
    return [Text(escape_control_characters("\n".join(lines)), style="yellow")] if lines else []


def _notes(sources: Mapping[str, Account]) -> list[RenderableType]:
    """Say what the records of the sources have that is not read, one line each."""
    lines = [
        escape_control_characters(f"{source}: {note} ({counted(number, 'record')})")
        for source, account in sources.items()
        for note, number in sorted(account.notes.items())
    ]
    return [Text("\n".join(lines), style="yellow")] if lines else []


def _clips(stats: RunStats) -> list[RenderableType]:
    """Show what the clips are like, and what their scores would keep."""
    parts: list[RenderableType] = []
    if stats.distributions:
        parts += [_distributions("all", stats.distributions["all"]), _medians(stats)]
    elif stats.scores:
        parts.append(_scores(stats.scores))
    if stats.scores:
        parts.append(_thresholds(stats.thresholds))
    return parts


def _spaced(part: RenderableType) -> list[RenderableType]:
    """Add an empty line below a part; a table without rows is left out with its title."""
    if not isinstance(part, Table):
        return [part, Text("")]
    return [titled(part), Text("")] if part.row_count else []


def codec_line(codec: CodecUsed | None) -> Text:
    if codec is None:
        return Text("")
    if codec.trained:
        return Text(f"codec: {codec.label}  sha256 {codec.sha256[:12]}")
    warning = f"codec: {codec.label} - the speech tokens are noise, good for trials only"
    return Text(warning, style="bold red")


def _records(sources: Mapping[str, Account]) -> Table:
    is_pending = any(account.pending for account in sources.values())
    table = grid(
        "Records", "source", "in", "kept", "rejected", "quarantined",
        *(["pending"] if is_pending else []), "h in", "h kept",
    )  # fmt: skip
    if is_pending:
        table.padding = (0, 1, 0, 0)  # so that eight columns of millions of records fit
    for name, account in sources.items():
        rejected, quarantined = account.rejected.total(), account.quarantined.total()
        counts = [account.records_in, account.kept, rejected, quarantined]
        counts += [account.pending] if is_pending else []
        hours = (account.hours_in, account.hours_kept) if account.modality == SPEECH else ()
        table.add_row(Text(name), *map(count, counts), *map(audio_hours, hours))
    return table


def _left_out(
    outcome: str, sources: Mapping[str, Account], examples: Sequence[ExcludedRecord]
) -> Table:
    """List reasons by source; an example where there is one: its id and what was found."""
    first = {
        (example.source, example.reason): example
        for example in reversed(examples)
        if example.outcome == outcome
    }
    columns = ["source", "reason", "records", *([_EXAMPLE] if first else [])]
    table = grid(outcome.capitalize(), *columns, left=["reason", _EXAMPLE], cut=_EXAMPLE)
    for source, account in sources.items():
        for reason, number in account.reasons(outcome).items():
            example = first.get((source, reason))
            shown = f"{example.id}: {example.detail}" if example else ""
            cells = [Text(escape_control_characters(shown))] if first else []
            table.add_row(Text(source), reason, count(number), *cells)
    return table


def _sums(stats: RunStats) -> Text:
    lines = [
        f"{name}: {account.records_in:,} in = {account.kept:,} kept "
        f"+ {account.rejected.total():,} rejected "
        f"+ {account.quarantined.total():,} quarantined"
        + (f" + {account.pending:,} pending" if account.pending else "")
        + ("" if account.adds_up else "  THE RECORD COUNTS DO NOT ADD UP")
        for name, account in (("clips", stats.clips), ("samples", stats.samples))
    ]
    return Text("\n".join(lines))


def _scores(scores: ScoreStats) -> Table:
    title = f"DNSMOS of {scores.clips:,} clips, {scores.windows:,} windows"
    table = grid(title, "score", *_MARKS)
    for name, marks in scores.quantiles.items():
        table.add_row(name, *(f"{marks[mark]:.2f}" for mark in _MARKS))
    return table


def _distributions(source: str, found: Mapping[str, Distribution]) -> Table:
    table = grid("Distributions", f"of {source}", "number", "mean", *_MARKS)
    for name, values in found.items():
        marks = (values.mean, *(values.quantiles[mark] for mark in _MARKS))
        cells = (_number(name, mark) for mark in marks)
        table.add_row(_NAMES.get(name, name), count(values.count), *cells)
    return table


def _medians(stats: RunStats) -> Table:
    names = ("seconds", "characters", "characters_per_second", "tokens", "sig", "bak", "ovrl")
    by_source = {source: stats.distributions.get(source, {}) for source in stats.sources}
    present = [name for name in names if any(name in found for found in by_source.values())]
    table = grid("Medians", "source", *(_NAMES.get(name, name) for name in present))
    for source, found in by_source.items():
        if found:
            medians = {name: _number(name, found[name].quantiles["p50"]) for name in found}
            table.add_row(Text(source), *(medians.get(name, "") for name in present))
    return table


def _thresholds(thresholds: Thresholds) -> Table:
    rows, configured = thresholds.what_if, thresholds.configured
    is_uncertain = any(row.uncertain for row in rows)
    applied = f", {configured:g} is applied" if configured is not None else ""
    table = grid(
        f"What a threshold keeps of the scored clips{applied}",
        "ovrl above", "clips", "share", "hours", *(["uncertain"] if is_uncertain else []),
    )  # fmt: skip
    for row in rows:
        uncertain = [count(row.uncertain)] if is_uncertain else []
        kept = (count(row.clips), percent(row.share), audio_hours(row.hours))
        table.add_row(str(row.threshold), *kept, *uncertain)
    return table


def _codebooks(slots: Sequence[SlotUse]) -> Table:
    table = grid("Codes used, of 4,096", "slot", "codebook", "used", "share", "perplexity")
    for slot in slots:
        used = (count(slot.used), percent(slot.share), decimal(slot.perplexity, 1))
        table.add_row(str(slot.slot), str(slot.codebook), *used)
    return table


def _duplicates(kinds: Mapping[str, DuplicateStats], has_trained_codec: bool) -> Table:
    chance = "" if has_trained_codec else ", untrained codes agree by chance"
    table = grid(
        f"Duplicates among encoded clips, with the key of interleave.duplicates{chance}",
        "equal", "key", "groups", "extra clips", "hours", _EXAMPLE,
        left=["key", _EXAMPLE], cut=_EXAMPLE,
    )  # fmt: skip
    for kind, found in kinds.items():
        example = " = ".join(found.examples[0][:2]) if found.examples else ""
        table.add_row(
            *KINDS[kind],
            *map(count, (found.groups, found.clips)),
            audio_hours(found.hours),
            Text(escape_control_characters(example)),
        )
    return table


def _number(quantity: str, value: float) -> str:
    return decimal(value, 0 if quantity in _INTEGERS else 2)
