"""Texts and numbers as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTHING = "\u2013"  # stands where a value is not known
LONGEST_TEXT = 400  # characters of one that are shown


def escape(value: Any, most: int = LONGEST_TEXT) -> str:
    """Make a text fit to stand in HTML, cut after `most` characters; "–" for None."""
    text = NOTHING if value is None else str(value)
    return html.escape(text if len(text) <= most else f"{text[:most].rstrip()} \u2026")


def short_number(value: float, digits: int = 3) -> str:
    """Write 2,345,678 as 2.35 M; below 10,000 in full, and "–" where it is not finite."""
    if not math.isfinite(value):
        return NOTHING
    if value < 1e4:
        return f"{value:,.0f}"
    value = float(f"{value:.{digits}g}")  # first, so that 999,999 is 1 M and not 1e+03 k
    size, unit = next(pair for pair in _UNITS if value >= pair[0])
    return f"{value / size:.{digits}g} {unit}"


_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def run_name(folder: Path) -> str:
    """Name a run by the nearest folder whose name says more than what it holds."""
    around = (folder, *folder.parents)
    return next((f.name for f in around if f.name not in ("", "run", "train")), folder.name)


def card(body: str) -> str:
    """Put HTML into a card; nothing stays nothing."""
    return body and f'<article class="card">{body}</article>'


def scroll(label: str, body: str) -> str:
    """Wrap what may be wider or higher than its place, so that keys can scroll it."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'
    )


def table(
    label: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: range = range(0),
    kind: str = "",
) -> str:
    """Write a table of HTML cells, named `label` for those who hear the page.

    The columns in `numbers` are aligned to the right; `kind` is its class.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        marks = (' class="number"' if place in numbers else "" for place in range(len(row)))
        return "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, row, strict=True))

    named = f'<table class="{kind}"' if kind else "<table"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = cells("th", heads).replace("<th", '<th scope="col"')
    return (
        f'{named} aria-label="{escape(label)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
