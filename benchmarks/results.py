"""What the benchmarks share: their result files, and how a command ends.

`python -m benchmarks.results FOLDER` prints what the results in a folder say.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch

from koe.errors import ConfigError, KoeError

COMMITTED = Path(__file__).parent / "results"
RESULTS = Path(os.environ.get("KOE_BENCHMARK_RESULTS", COMMITTED))  # where new ones are written


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark and exit; an error of koe's is a message on stderr, not a traceback."""
    try:
        sys.exit(main())
    except KoeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def hardware() -> str:
    """Name the GPU, or the CPU and its number of cores.

    On a virtual machine a CPU's name may be that of several generations, so its family and model, where
    the system gives them, belong to it: "AMD EPYC" is Zen 4 as 25-17 and Zen 5 as 26-2.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    name = fields.get("model name") or platform.processor()
    if "cpu family" in fields and "model" in fields:
        name += f" {fields['cpu family']}-{fields['model']}"
    return f"{os.cpu_count()}x {name}"


def commit() -> str:
    """Return the commit of the working tree, with + where it has changes."""
    run = ["git", "-C", str(COMMITTED), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known: a copy without its history"


def write_result(
    name: str, peer: str, unit: str, ours: Sequence[float], theirs: Sequence[float], **more: Any
) -> Path:
    """Write the comparison of repetitions that alternated; return the file.

    `ours` and `theirs` are in `unit`, where more is better; the ratio is over 1 when koe is faster.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return write_figures(
        name,
        peer=peer,
        ratio=round(median(ratios), 4),
        ratios=[round(ratio, 4) for ratio in ratios],
        unit=unit,
        ours=median(ours),
        theirs=median(theirs),
        **more,
    )


def write_figures(name: str, **figures: Any) -> Path:
    """Write figures with the commit, the hardware and the day; return the file."""
    date = datetime.now(UTC).date().isoformat()
    found = {"name": name, **figures, "commit": commit(), "hardware": hardware(), "date": date}
    short = re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}_{short}_{date}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def said(folder: Path) -> list[str]:
    """Say in a line each what the results in a folder are."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        line = f"{found['name']}, {found['hardware']}:"
        if "ratio" in found:
            line += (
                f" {found['ours']:.5g} {found['unit']}, {found['ratio']:.2f} times {found['peer']}"
            )
        lines.append(line)
    return lines


if __name__ == "__main__":
    print("\n".join(said(Path(sys.argv[1]))))
