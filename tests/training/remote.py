"""Folders of shards at URLs, and what lies there and in the cache."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec

from tests.training.shards import write_shards


def upload(folder: Path, url: str) -> str:
    """Copy a folder's files to a URL, and return it."""
    system, base = fsspec.url_to_fs(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            system.pipe_file(f"{base}/{path.relative_to(folder)}", path.read_bytes())
    return url


def memory_url() -> str:
    """Name a place in memory that no other test uses."""
    return f"memory://{uuid.uuid4().hex}"


def remote_shards(folder: Path, url: str | None = None, **settings) -> tuple[Path, str]:
    """Write shards into a folder and upload them; return both places."""
    write_shards(folder, **settings)
    return folder, upload(folder, url or memory_url())


def entries(folder: Path, split: str = "train") -> list[dict]:
    listed = json.loads((folder / "index.json").read_text())["shards"]
    return [entry for entry in listed if entry["split"] == split]


def gigabytes(folder: Path, shards: float, split: str = "train") -> float:
    """Return the room that so many of the largest shards of a split take, in GB."""
    return shards * max(entry["num_bytes"] for entry in entries(folder, split)) / 1e9


def cached_bytes(cache: Path) -> int:
    """Add up the shards in a cache, and those on their way as large as they will be."""
    return sum(
        int(path.suffixes[-2][1:]) if path.suffix == ".part" else path.stat().st_size
        for path in cache.glob("shards/*")
        if path.suffix in (".arrow", ".part")
    )
