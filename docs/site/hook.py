"""What the site has besides docs/: the pages at the root, and pages made of the docstrings.

Every module of a package, or folder of modules, is one page, which begins with the folder's README;
a new one needs no entry anywhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# The way of the data: what all share, the stages, the trainer, the commands that run them. Within a
# package the names that stand here come first, in this order, and then the others by name.
ORDER = {
    "koe": ("schema", "vocabulary", "stage", "errors"),
    "stages": ("sources", "ingest", "score", "encode", "tokenize", "interleave"),
    "training": ("config", "preflight", "launch", "run", "loop", "step", "guard"),
    "pipeline": ("config", "cli", "jobs", "execution", "run_dir"),
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the packages to the navigation."""
    assert config.nav is not None
    for package in ORDER:
        pages = [{room: f"api/{package}/{room}.md"} for room in rooms(package)]
        config.nav.append({package: [f"api/{package}/index.md", *pages]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root and of the packages to what is built."""
    for source, uri in FROM_ROOT.items():
        files.append(_generated(config, uri, (ROOT / source).read_text(encoding="utf-8")))
    for package in ORDER:
        files.append(_generated(config, f"api/{package}/index.md", _page(package, [package])))
        for room, modules in rooms(package).items():
            text = _page(f"{package}.{room}", modules)
            files.append(_generated(config, f"api/{package}/{room}.md", text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at their pages; a file without a page becomes text.

    A link to a file that does not exist stays as it is, and the strict build refuses it.
    """
    uri = page.file.src_uri
    pages = {(ROOT / source).resolve(): target for source, target in FROM_ROOT.items()}
    begins = {"index.md": ROOT, "contributing.md": ROOT, "changelog.md": ROOT}
    begin = begins.get(uri, ROOT / "docs" / Path(uri).parent)

    def pointed(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups(default="")
        path = (begin / target).resolve()
        if ":" in target or not path.exists():
            return match[0]
        if path in pages:
            found = pages[path]
        elif path.is_relative_to(ROOT / "docs"):
            found = path.relative_to(ROOT / "docs").as_posix()
        else:
            return text
        return f"{image}[{text}]({os.path.relpath(found, Path(uri).parent)}{anchor})"

    return LINK.sub(pointed, markdown)


def rooms(package: str) -> dict[str, list[str]]:
    """List the pages of a package, in their order, and the modules that each shows."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if len(parts) > 2 or parts[-1] not in ("__init__", "__main__"):
            found.setdefault(parts[1], []).append(name)
    first = ORDER[package]
    unknown = set(first) - set(found)
    if unknown:
        raise ValueError(f"docs/site/hook.py orders {sorted(unknown)}, which {package}/ has not")
    return dict(sorted(found.items(), key=lambda item: _place(item[0], first)))


def _place(room: str, first: tuple[str, ...]) -> tuple[int, str]:
    return (first.index(room) if room in first else len(first)), room


def _generated(config: MkDocsConfig, uri: str, text: str) -> File:
    return File.generated(config, uri, content=text)


def _page(title: str, modules: list[str]) -> str:
    """Write the page of a folder or module: its README, then its docstrings."""
    readme = ROOT.joinpath(*title.split("."), "README.md")
    said = readme.read_text(encoding="utf-8") if readme.exists() else ""
    said = re.sub(r"\A# .*\n", "", said)
    options = "    options: {members: false}\n" if title in ORDER else ""
    return "\n".join([f"# {title}\n", said, *(f"::: {name}\n{options}" for name in modules)])
