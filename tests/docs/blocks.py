"""The fenced blocks of README.md and docs/*.md, and the commands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """List the blocks of a language, page by page."""
    return [
        Block(page.name, found, text)
        for page in PAGES
        for found, text in _FENCE.findall(page.read_text("utf-8"))
        if found == language
    ]


def commands() -> list[str]:
    """List every line of every `sh` block once, without comments, in the order of the pages."""
    found: dict[str, None] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = re.split(r"\s+#\s", line)[0].strip()
            if command and not command.startswith("#"):
                found[command] = None
    return list(found)
