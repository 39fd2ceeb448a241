"""The tables of the data report: sources, duplicates, shards, clips to hear, what was left out."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.report.clips import ShownClip, Sound
from pipeline.report.drawing import as_list, short_number
from pipeline.report.survey import BEST, BORDERLINE, WORST, LeftOut

Stats = dict[str, Any]
COLUMNS = ("id", "source", "stage", "outcome", "reason", "detail", "location")
MOST_SHARDS = 200
MOST_GROUPS = 5  # of duplicates
MOST_IDS = 3  # of such a group
MOST_SOUND_BYTES = 6_500_000  # base64 adds a third; with plotly.js the page stays below 15 MB
TOO_LARGE = "left out to keep the page small: ask for fewer clips"
LONGEST_TEXT = 400  # characters of one that are shown


def escape(value: Any) -> str:
    """Make a text of the corpus fit to stand in HTML, shortened; "–" for None."""
    text = "\u2013" if value is None else str(value)
    return html.escape(text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} \u2026")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: range) -> str:
    """Write a table of HTML cells; the columns in `numbers` are aligned to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        marks = (' class="number"' if place in numbers else "" for place in range(len(row)))
        return "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def sources(stats: Stats) -> str:
    """List the books of every source."""
    rows = []
    for name, found in stats.get("sources", {}).items():
        total = found.get("clips_in", found.get("samples_in", 0))
        kept, speech = found.get("kept", 0), found.get("modality") == "speech"
        lost = [sum(found.get(key, {}).values()) for key in ("rejected", "quarantined")]
        share = 100 * kept / total if total else 0
        meter = (
            f'<div class="meter"><i style="width:{share:.1f}%"></i><span>{share:.1f} %</span></div>'
        )
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
    return table(heads.split(","), rows, range(2, 10))


def duplicates(stats: Stats) -> str:
    """Count clips that repeat another's codes or text, with examples."""
    rows = []
    for kind, what in (("audio", "Equal&nbsp;codes"), ("text", "Equal&nbsp;text")):
        found = stats.get("duplicates", {}).get(kind)
        if not found:
            continue
        groups = as_list(found.get("examples"))[:MOST_GROUPS]
        examples = [f"<code>{escape(_group(ids))}</code>" for ids in groups]
        counts = [f"{found.get('groups', 0):,}", f"{found.get('clips', 0):,}"]
        rows.append(
            [what, *counts, f"{found.get('hours', 0):,.2f}", "<br>".join(examples) or "none"]
        )
    heads = ("", "Groups", "Copies after the first", "Hours of copies", "Largest groups, by id")
    return table(heads, rows, range(1, 4)) if rows else ""


def _group(ids: Any) -> str:
    names = [str(id) for id in as_list(ids)]
    rest = len(names) - MOST_IDS
    return ", ".join(names[:MOST_IDS]) + (f" and {rest} or more others" if rest > 0 else "")


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
        for shard in files[:MOST_SHARDS]
    ]
    if not rows:
        return ""
    left = len(files) - len(rows)
    rest = f'<p class="none">{left:,} more are in index.json.</p>' if left else ""
    heads = ("File", "Split", "Rows", "Tokens", "Fill", "MB", "SHA-256")
    return f'<div class="scroll">{table(heads, rows, range(2, 6))}</div>{rest}'


def clips(shown: Sequence[ShownClip], threshold: float, codec: str) -> str:
    """List clips with players and spectrograms; `codec` heads the column of reconstructions."""
    if not shown:
        return '<p class="none">No clip has been scored yet.</p>'
    names = {
        BORDERLINE: f"Borderline: nearest to {threshold:g}",
        WORST: "Worst",
        BEST: "Best",
        "all": "All",
    }
    present = [*dict.fromkeys(clip.kind for clip in shown), "all"]
    numbers = {**Counter(clip.kind for clip in shown), "all": len(shown)}
    buttons = "".join(
        f'<button data-kind="{kind}" aria-pressed="false">{names[kind]} <small>{numbers[kind]}</small></button>'
        for kind in present
    )
    left = MOST_SOUND_BYTES
    rows = []
    for clip in shown:
        sounds = []
        for sound, what in ((clip.original, "Original"), (clip.reconstruction, "Reconstruction")):
            size = len(sound.mp3) + len(sound.png)
            fits = size <= left
            left -= size if fits else 0
            sounds.append(_sound(sound if fits else Sound(TOO_LARGE), what, clip))
        cells = "".join(f"<td>{cell}</td>" for cell in (_facts(clip, names), *sounds))
        rows.append(f'<tr data-kind="{clip.kind}">{cells}</tr>')
    return (
        f'<div class="controls">{buttons}</div><table class="clips"><thead><tr><th>Clip</th>'
        f"<th>Original</th><th>Reconstruction, {codec}</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _facts(clip: ShownClip, names: dict[str, str]) -> str:
    row = clip.clip
    scores = " \u00b7 ".join(
        f"{name} {row[name]:.2f}" for name in ("sig", "bak", "p808") if row.get(name) is not None
    )
    about = f"{row['seconds']:.1f} s \u00b7 {row['audio_hz'] / 1000:g} kHz \u00b7 {escape(row['source'])}"
    fate = escape(clip.fate)
    return (
        f'<div class="score">{row["ovrl"]:.3f} <small>ovrl \u00b7 {names[clip.kind].split(":")[0]}'
        f'</small></div><div class="outcome {clip.outcome}">{escape(clip.outcome)}</div>'
        f'<div class="facts">{fate}</div><div class="transcript" title="{escape(row["text"])}">'
        f'{escape(row["text"])}</div><div class="facts">{scores}<br>{about}<br>'
        f"<code>{escape(row['id'])}</code></div>"
    )


def _sound(sound: Sound, what: str, clip: ShownClip) -> str:
    if not sound.mp3:
        return f'<div class="absent"><b>No {what.lower()}</b><br>{escape(sound.note)}</div>'
    picture, audio = (base64.b64encode(data).decode() for data in (sound.png, sound.mp3))
    name = escape(f"{what} of {clip.clip['id']}")
    length = f"{min(clip.clip['seconds'], 99):.1f} s" if not sound.note else escape(sound.note)
    return (
        f'<div class="sound"><img alt="Spectrogram: {name}" src="data:image/png;base64,{picture}">'
        f'<i></i><span class="top">12 kHz</span><span class="bottom">0 Hz</span>'
        f'<span class="bottom right">{length}</span></div><audio controls preload="metadata" '
        f'aria-label="{name}" src="data:audio/mpeg;base64,{audio}"></audio>'
    )


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
    heads = "".join(f"<th>{name.capitalize()}</th>" for name in COLUMNS)
    return (
        f'<p>{note} The numbers beside the filters count all of them.</p><div class="controls">'
        f'{filters}<label>Text<input type="search" placeholder="id, detail, location"></label>'
        '<button id="clear">Clear</button><span id="status" class="facts"></span></div>'
        f'<div class="wide scroll"><table class="browser"><thead><tr>{heads}</tr></thead><tbody></tbody>'
        '</table></div><div class="controls"><button id="more">Show 100 more</button></div>'
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
