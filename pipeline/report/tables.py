"""The tables of the data report: sources, duplicates, shards, what was left out."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from koe.schema import SPEECH
from koe.webpage import NOTHING, escape, scroll, short_number, table
from pipeline.report.survey import LeftOut
from pipeline.stats.model import RunStats

COLUMNS = ("id", "source", "stage", "outcome", "reason", "detail", "location")
MAX_SHARDS = 200
MAX_GROUPS = 5  # of duplicates
MAX_IDS = 3  # of such a group


def sources(stats: RunStats) -> str:
    """List the record counts of every source."""
    rows = []
    for name, found in stats.sources.items():
        total, kept = found.records_in, found.kept
        share = 100 * kept / total if total else 0
        words = f"{share:.1f} %" if total else NOTHING
        meter = f'<div class="meter"><i style="width:{share:.1f}%"></i><span>{words}</span></div>'
        lost = (found.rejected.total(), found.quarantined.total(), found.pending)
        hours = (found.hours_in, found.hours_kept)
        rows.append(
            [
                escape(name),
                escape(found.modality),
                f"{total:,}",
                f"{kept:,}",
                meter,
                *(f"{number:,}" for number in lost),
                *(f"{value:,.2f}" if found.modality == SPEECH else "" for value in hours),
                "yes" if found.adds_up else '<span class="quarantined">no</span>',
            ]
        )
    heads = (
        "Source,Modality,In,Kept,Share kept,Rejected,Quarantined,Not done,Hours in,Hours kept,"
        "Adds up"
    )
    listed = table("Sources", heads.split(","), rows, range(2, 10))
    return scroll("Sources", listed) if rows else ""


def duplicates(stats: RunStats) -> str:
    """Count clips that repeat another's codes or text, with examples."""
    rows = []
    for kind, found in stats.duplicates.items():
        examples = [f"<code>{escape(_group(ids))}</code>" for ids in found.examples[:MAX_GROUPS]]
        rows.append(
            [
                "codes" if kind == "audio" else kind,
                f"{found.groups:,}",
                f"{found.clips:,}",
                f"{found.hours:,.3f}",
                "<br>".join(examples) or "none",
            ]
        )
    heads = (
        "Equal",
        "Groups",
        "Copies after the first",
        "Hours of copies",
        "Largest groups, by id",
    )
    return scroll("Duplicates", table("Duplicates", heads, rows, range(1, 4))) if rows else ""


def _group(ids: Sequence[str]) -> str:
    rest = len(ids) - MAX_IDS
    return ", ".join(ids[:MAX_IDS]) + (f" and {rest} or more others" if rest > 0 else "")


def shards(stats: RunStats) -> str:
    """List the shard files."""
    rows = [
        [
            f"<code>{escape(shard.path)}</code>",
            escape(shard.split),
            f"{shard.rows:,}",
            f"{shard.tokens:,}",
            f"{100 * shard.fill:.2f} %",
            f"{shard.bytes / 1e6:,.2f}",
            f"<code>{escape(shard.sha256[:16])}</code>",
        ]
        for shard in stats.shard_files[:MAX_SHARDS]
    ]
    if not rows:
        return ""
    left = len(stats.shard_files) - len(rows)
    rest = f'<p class="none">{left:,} more are in index.json.</p>' if left else ""
    heads = ("File", "Split", "Rows", "Tokens", "Fill", "MB", "SHA-256")
    return scroll("Shards", table("Shards", heads, rows, range(2, 6))) + rest


def left_out(found: LeftOut, shown: Sequence[dict[str, str]]) -> str:
    """Write filters and an empty table, which the page's script fills."""
    total = found.counts.total()
    if not total:
        return '<p class="none">Nothing was left out.</p>'
    filters = "".join(
        _filter(name, found, lambda group, name=name: getattr(group, name))
        for name in ("source", "stage", "outcome", "reason")
    )
    note = f"{len(shown):,} of {total:,} records are shown"
    note += ", as many of each source, stage and reason." if len(shown) < total else "."
    empty = table("Records left out", [name.capitalize() for name in COLUMNS], [], kind="browser")
    return (
        f'<p>{note} The numbers beside the filters count all of them.</p><div class="controls">'
        f'{filters}<label>Text<input type="search" placeholder="id, detail, location"></label>'
        '<button id="clear">Clear</button><span id="status" class="facts" role="status"></span></div>'
        f"{scroll('Records left out', empty)}"
        '<div class="controls"><button id="more">Show 100 more</button></div>'
    )


def _filter(name: str, found: LeftOut, key: Callable[[Any], str]) -> str:
    totals: dict[str, int] = {}
    for group, number in found.counts.items():
        totals[key(group)] = totals.get(key(group), 0) + number
    ordered = sorted(totals, key=lambda value: (-totals[value], value))
    options = "".join(
        f'<option value="{html.escape(value)}">{escape(value.replace("_", " "))} '
        f"({short_number(totals[value])})</option>"
        for value in ordered
    )
    return (
        f'<label>{name.capitalize()}<select data-column="{name}"><option value="">all</option>'
        f"{options}</select></label>"
    )
