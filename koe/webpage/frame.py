"""The frame of a page: head with its policy, navigation, headline figures, sections."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plotly.offline import get_plotlyjs

from koe.atomic import atomically
from koe.errors import StorageError
from koe.webpage.script import SCRIPT
from koe.webpage.style import STYLE

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data:"
)


GENERATOR = '<meta name="generator" content="koe">'
_HEAD_BYTES = 4096  # of a page; they hold the mark


@dataclass(frozen=True)
class Tile:
    """A headline figure as plain text; `note` says what it is of."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; one without a `body` is left out. `name` is text, `lead` and `body` HTML."""

    id: str
    name: str
    lead: str
    body: str


@dataclass(frozen=True)
class Page:
    """A whole page. `title` and `name` are text; `header`, what follows the heading, is HTML.

    `data`: JSON by the id of the element that carries it; `style` and `script` come after those
    that all pages share.
    """

    title: str
    name: str
    header: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    data: Mapping[str, str] = field(default_factory=dict)
    style: str = ""
    script: str = ""


def document(content: Page) -> str:
    """Put a page together that loads nothing; plotly.js lies in it."""
    shown = [section for section in content.sections if section.body]
    links = "".join(f'<a href="#{part.id}">{html.escape(part.name)}</a>' for part in shown)
    data = "".join(
        f'<script type="application/json" id="{id}">{inert(text)}</script>\n'
        for id, text in content.data.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(content.title)}</title>
<style>{STYLE}{content.style}</style>
</head>
<body>
<div class="sheet">
<header><h1>{html.escape(content.name)}</h1>{content.header}</header>
<nav aria-label="Sections">{links}</nav>
<main>
<dl class="tiles">{"".join(map(_tile, content.tiles))}</dl>
{"".join(map(_section, shown))}
</main>
</div>
{data}<script>{get_plotlyjs()}</script>
<script>{SCRIPT}{content.script}</script>
</body>
</html>
"""


def inert(data: str) -> str:
    """Spell "<" out in JSON, so that no text in it can end its element."""
    return data.replace("<", "\\u003c")


def is_own_page(path: Path) -> bool:
    """Tell whether koe wrote this file. Raises: OSError as the disk gives it."""
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(_HEAD_BYTES)


def write_page(path: Path, text: str) -> Path:
    """Write a page under its name once it is whole, making its folder. Returns `path`.

    Raises: StorageError when it cannot be written.
    """
    try:
        with atomically(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise StorageError(
            f"the report {path} cannot be written",
            str(error),
            "Name another place for it, where files can be written.",
        ) from error
    return path


def _tile(tile: Tile) -> str:
    name, value, note = (html.escape(text) for text in (tile.name, tile.value, tile.note))
    return f'<div class="tile"><dt>{name}</dt><dd><b>{value}</b><span>{note}</span></dd></div>'


def _section(section: Section) -> str:
    lead = f'<p class="lead">{section.lead}</p>' if section.lead else ""
    return (
        f'<section id="{section.id}" aria-labelledby="{section.id}-name">'
        f'<h2 id="{section.id}-name">{html.escape(section.name)}</h2>{lead}{section.body}</section>'
    )
