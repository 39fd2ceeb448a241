"""The result files of the benchmarks: one JSON each, with commit, hardware and date."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """Name the GPU, or the CPU and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line.split(":")[1] for line in text.splitlines() if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{os.cpu_count()}x {name.strip()}"


def commit() -> str:
    """Return the commit of the working tree, with + where it has changes."""
    run = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def write_result(
    name: str,
    peer: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    **more: Any,
) -> Path:
    """Write a comparison of alternating repetitions; return the file.

    `ours` and `theirs` are in `unit`, more being better; the ratio is over 1 when we are faster.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    date = datetime.now(UTC).date().isoformat()
    found = {
        "name": name,
        "peer": peer,
        "ratio": round(median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "unit": unit,
        "ours": median(ours),
        "theirs": median(theirs),
        "commit": commit(),
        "hardware": hardware(),
        "date": date,
        **more,
    }
    short = re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{short}_{date}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path
