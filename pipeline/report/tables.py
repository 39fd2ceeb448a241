"""The tables of the data report: sources, duplicates, shards, what was left out."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from koe.webpage import NOTHING, escape, scroll, short_number, table
from pipeline.report.drawing import as_list
from pipeline.report.survey import LeftOut

Stats = dict[str, Any]
COLUMNS = ("id", "source", "stage", "outcome", "reason", "detail", "location")
MAX_SHARDS = 200
MAX_GROUPS = 5  # of duplicates
MAX_IDS = 3  # of such a group


def sources(stats: Stats) -> str:
    """List the books of every source."""
    rows = []
    for name, found in stats.get("sources", {}).items():
        total = found.get("clips_in", found.get("samples_in", 0))
        kept, speech = found.get("kept", 0), found.get("modality") == "speech"
        lost = [sum(found.get(key, {}).values()) for key in ("rejected", "quarantined")]
        share = 100 * kept / total if total else 0
        words = f"{share:.1f} %" if total else NOTHING
        meter = f'<div class="meter"><i style="width:{share:.1f}%"></i><span>{words}</span></div>'
        hours = [
            f"{found.get(key, 0):,.2f}" if speech else "" for key in ("hours_in", "hours_kept")
        ]
        counts = [f"{number:,}" for number in (total, kept, *lost, found.get("pending", 0))]
        closed = "closed" if found.get("closed") else '<span class="quarantined">open</span>'
        rows.append(
            [
                escape(name),
                escape(found.get("modality")),
                *counts[:2],
                meter,
                *counts[2:],
                *hours,
                closed,
            ]
        )
    heads = (
        "Source,Modality,In,Kept,Share kept,Rejected,Quarantined,Not done,Hours in,Hours kept,Books"
    )
    listed = table("Sources", heads.split(","), rows, range(2, 10))
    return scroll("Sources", listed) if rows else ""


def duplicates(stats: Stats) -> str:
    """Count clips that repeat another's codes or text, with examples."""
    rows = []
    for kind, what in (("audio", "codes"), ("text", "text")):
        found = stats.get("duplicates", {}).get(kind)
        if not found:
            continue
        groups = as_list(found.get("examples"))[:MAX_GROUPS]
        examples = [f"<code>{escape(_group(ids))}</code>" for ids in groups]
        counts = [f"{found.get('groups', 0):,}", f"{found.get('clips', 0):,}"]
        rows.append(
            [what, *counts, f"{found.get('hours', 0):,.3f}", "<br>".join(examples) or "none"]
        )
    heads = (
        "Equal",
        "Groups",
        "Copies after the first",
        "Hours of copies",
        "Largest groups, by id",
    )
    return scroll("Duplicates", table("Duplicates", heads, rows, range(1, 4))) if rows else ""


def _group(ids: Any) -> str:
    names = [str(id) for id in as_list(ids)]
    rest = len(names) - MAX_IDS
    return ", ".join(names[:MAX_IDS]) + (f" and {rest} or more others" if rest > 0 else "")


def shards(stats: Stats) -> str:
    """List the shard files."""
    files = as_list(stats.get("shard_files"))
    rows = [
        [
            f"<code>{escape(shard.get('path'))}</code>",
            escape(shard.get("split")),
            f"{shard.get('rows', 0):,}",
            f"{shard.get('tokens', 0):,}",
            f"{100 * shard.get('fill', 0):.2f} %",
            f"{shard.get('bytes', 0) / 1e6:,.2f}",
            f"<code>{escape(str(shard.get('sha256', ''))[:16])}</code>",
        ]
        for shard in files[:MAX_SHARDS]
    ]
    if not rows:
        return ""
    left = len(files) - len(rows)
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
