"""Rich rendering of statistics, for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_NAMES = {"characters_per_second": "characters/s", "text_tokens": "text tokens"}
_MARKS = ("p1", "p5", "p50", "p95", "p99")
_WHOLE = ("characters", "tokens", "text_tokens")  # quantities shown without decimals
_EXAMPLE = "example"
_MOST_SHARDS = 12
_TENTHS = 10


def stats_view(stats: dict[str, Any]) -> RenderableType:
    """Render the statistics of a run; parts that were not computed are left out."""
    examples = stats.get("quarantine_examples", [])
    parts = [
        _books(stats["sources"]),
        *(
            _left_out(outcome, stats["sources"], examples)
            for outcome in ("rejected", "quarantined")
        ),
        _closing_lines(stats),
    ]
    if "distributions" in stats:
        parts += [_distributions(stats["distributions"]), _medians(stats)]
    elif stats["scores"]:
        parts.append(_scores(stats["scores"]))
    if stats["scores"]:
        parts.append(_thresholds(stats["thresholds"]))
    parts += [
        _codebooks(stats.get("codebooks", [])),
        _duplicates(stats.get("duplicates", {}), stats["codec"]),
        _shards(stats["shards"]),
        _mix(stats.get("mix", [])),
        _shard_files(stats.get("shard_files", [])),
    ]
    return Group(*(line for part in parts for line in _spaced(part)), codec_line(stats["codec"]))


def _spaced(part: RenderableType) -> list[RenderableType]:
    """Set a part off from the next; a table without rows vanishes with its title."""
    if not isinstance(part, Table):
        return [part, Text("")]
    # above the table, not in it: there it would wrap at the table's width
    title, part.title = Text(str(part.title), style="bold"), None
    return [title, part, Text("")] if part.row_count else []


def codec_line(codec: dict[str, Any]) -> Text:
    if not codec:
        return Text("")
    if codec.get("trained", True):
        return Text(f"codec: {codec.get('label')}  sha256 {codec.get('sha256', '')[:12]}")
    return Text(
        f"codec: {codec.get('label')} - the speech tokens are noise, good for trials only",
        style="bold red",
    )


def _table(title: str, *columns: str, left: Sequence[str] = ()) -> Table:
    """Make a table without lines; its first column and those in `left` stand to the left.

    The column `example` is cut where the line ends.
    """
    has_example = _EXAMPLE in columns
    table = Table(
        title=title, header_style="dim", box=None, padding=(0, 2, 0, 0), pad_edge=False,
        expand=has_example,
    )  # fmt: skip
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if number == 0 or column in left else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column == _EXAMPLE else None,
        )
    return table


def _books(sources: dict[str, Any]) -> Table:
    is_pending = any(account["pending"] for account in sources.values())
    table = _table(
        "Records", "source", "in", "kept", "rejected", "quarantined",
        *(["pending"] if is_pending else []), "h in", "h kept",
    )  # fmt: skip
    if is_pending:
        table.padding = (0, 1, 0, 0)  # so that eight columns of millions of records fit
    for name, account in sources.items():
        is_speech = "clips_in" in account
        cells = [
            account["clips_in" if is_speech else "samples_in"],
            account["kept"],
            sum(account["rejected"].values()),
            sum(account["quarantined"].values()),
            *([account["pending"]] if is_pending else []),
        ]
        hours = [_hours(account[key]) if is_speech else "" for key in ("hours_in", "hours_kept")]
        table.add_row(Text(name), *(f"{cell:,}" for cell in cells), *hours)
    return table


def _left_out(outcome: str, sources: dict[str, Any], examples: Sequence[dict[str, Any]]) -> Table:
    """List reasons by source; an example where there is one: its id and what was found."""
    first = {
        (example["source"], example["reason"]): example
        for example in reversed(examples)
        if example["outcome"] == outcome
    }
    columns = ["source", "reason", "records", *([_EXAMPLE] if first else [])]
    table = _table(outcome.capitalize(), *columns, left=["reason", _EXAMPLE])
    for source, account in sources.items():
        for reason, count in account[outcome].items():
            example = first.get((source, reason))
            shown = f"{example['id']}: {example['detail']}" if example else ""
            table.add_row(Text(source), reason, f"{count:,}", *([Text(shown)] if first else []))
    return table


def _closing_lines(stats: dict[str, Any]) -> Text:
    lines = []
    for name, key, name_in in (
        ("clips", "accounting", "clips_in"),
        ("samples", "samples", "samples_in"),
    ):
        account = stats[key]
        lines.append(
            f"{name}: {account[name_in]:,} in = {account['kept']:,} kept "
            f"+ {sum(account['rejected'].values()):,} rejected "
            f"+ {sum(account['quarantined'].values()):,} quarantined"
            + (f" + {account['pending']:,} pending" if account["pending"] else "")
            + ("" if account["closed"] else "  THE BOOKS DO NOT CLOSE")
        )
    return Text("\n".join(lines))


def _scores(scores: dict[str, Any]) -> Table:
    title = f"DNSMOS of {scores['clips']:,} clips, {scores['windows']:,} windows"
    table = _table(title, "score", *_MARKS)
    for name in ("sig", "bak", "ovrl"):
        if name in scores:
            table.add_row(name, *(f"{scores[name][mark]:.2f}" for mark in _MARKS))
    return table


def _distributions(found: dict[str, Any]) -> Table:
    table = _table("Distributions", "of all", "number", "mean", *_MARKS)
    for name, values in found["all"].items():
        marks = (values["mean"], *(values["quantiles"][mark] for mark in _MARKS))
        cells = (_number(name, mark) for mark in marks)
        table.add_row(_NAMES.get(name, name), f"{values['count']:,}", *cells)
    return table


def _medians(stats: dict[str, Any]) -> Table:
    names = ("seconds", "characters", "characters_per_second", "tokens", "sig", "bak", "ovrl")
    found = {source: stats["distributions"].get(source, {}) for source in stats["sources"]}
    present = [name for name in names if any(name in values for values in found.values())]
    table = _table("Medians", "source", *(_NAMES.get(name, name) for name in present))
    for source, values in found.items():
        if values:
            cells = (
                _number(name, values[name]["quantiles"]["p50"]) if name in values else ""
                for name in present
            )
            table.add_row(Text(source), *cells)
    return table


def _thresholds(thresholds: dict[str, Any]) -> Table:
    rows, configured = thresholds["what_if"], thresholds["configured"]
    is_uncertain = any(row["uncertain"] for row in rows)
    applied = f", {configured:g} is applied" if configured is not None else ""
    table = _table(
        f"What a threshold keeps of the scored clips{applied}",
        "ovrl above", "clips", "share", "hours", *(["uncertain"] if is_uncertain else []),
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row["threshold"]),
            f"{row['clips']:,}",
            f"{row['share']:.1%}",
            _hours(row["hours"]),
            *([f"{row['uncertain']:,}"] if is_uncertain else []),
        )
    return table


def _codebooks(slots: Sequence[dict[str, Any]]) -> Table:
    table = _table("Codes used, of 4,096", "slot", "codebook", "used", "share", "perplexity")
    for slot in slots:
        table.add_row(
            str(slot["slot"]),
            str(slot["codebook"]),
            f"{slot['used']:,}",
            f"{slot['share']:.1%}",
            f"{slot['perplexity']:,.1f}",
        )
    return table


def _duplicates(kinds: dict[str, Any], codec: dict[str, Any]) -> Table:
    chance = "" if codec.get("trained", True) else ", untrained codes agree by chance"
    table = _table(
        f"Duplicates among encoded clips{chance}",
        "equal", "groups", "extra clips", "hours", _EXAMPLE, left=[_EXAMPLE],
    )  # fmt: skip
    for kind, found in kinds.items():
        example = " = ".join(found["examples"][0][:2]) if found["examples"] else ""
        table.add_row(
            "codes" if kind == "audio" else kind,
            f"{found['groups']:,}",
            f"{found['clips']:,}",
            _hours(found["hours"]),
            Text(example),
        )
    return table


def _shards(shards: dict[str, Any]) -> RenderableType:
    if not shards["num_shards"]:
        return Text("no shards yet", style="yellow")
    tokens = shards["tokens_by_modality"]
    longest = f"{shards['max_row_tokens']:,} of {shards['row_capacity']:,} tokens"
    table = _table(
        f"Shards, the longest row of {longest}",
        "shards", "rows", "documents", "tokens", "speech", "text", "fill",
    )  # fmt: skip
    table.add_row(
        *(f"{shards[key]:,}" for key in ("num_shards", "rows", "documents", "tokens")),
        *(f"{tokens[modality] / max(shards['tokens'], 1):.1%}" for modality in ("speech", "text")),
        f"{shards['fill']:.2%}",
    )
    return table


def _mix(parts: Sequence[dict[str, Any]]) -> Table:
    """Show the way through the training rows in ten steps."""
    table = _table("On the way through the training rows")
    if not parts:
        return table
    by_tenth: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        by_tenth.setdefault(int(part["progress"] * _TENTHS) + 1, []).append(part)
    steps = list(by_tenth.values())
    for name in ("up to", *(f"{tenth / _TENTHS:.0%}" for tenth in by_tenth)):
        table.add_column(name, justify="right" if table.columns else "left", no_wrap=True)
    table.add_row("speech tokens", *(f"{_speech_share(step):.0%}" for step in steps))
    table.add_row("fill", *(f"{_row_mean(step, 'fill'):.0%}" for step in steps))
    documents = (f"{_row_mean(step, 'documents_per_row'):.1f}" for step in steps)
    table.add_row("documents/row", *documents)
    return table


def _speech_share(parts: Sequence[dict[str, Any]]) -> float:
    speech, text = (sum(part[key] for part in parts) for key in ("speech_tokens", "text_tokens"))
    return speech / max(speech + text, 1)


def _row_mean(parts: Sequence[dict[str, Any]], key: str) -> float:
    return sum(part[key] * part["rows"] for part in parts) / sum(part["rows"] for part in parts)


def _shard_files(files: Sequence[dict[str, Any]]) -> Table:
    title = "Shard files" + (f", the first {_MOST_SHARDS}" if len(files) > _MOST_SHARDS else "")
    table = _table(title, "file", "rows", "tokens", "MB", "fill", "sha256")
    for file in files[:_MOST_SHARDS]:
        table.add_row(
            file["path"],
            f"{file['rows']:,}",
            f"{file['tokens']:,}",
            f"{file['bytes'] / 1e6:,.2f}",
            f"{file['fill']:.2%}",
            file["sha256"][:12],
        )
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:,.3f}"


def _number(quantity: str, value: float) -> str:
    return f"{value:,.0f}" if quantity in _WHOLE else f"{value:,.2f}"
