"""The folder of this machine for what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "KOE_CACHE"


def cache_folder() -> Path:
    """Return $KOE_CACHE, or koe's folder of the XDG cache."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "koe"
