"""What the commands share: consoles, options, the stored run, and JSON on stdout."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from koe.errors import ConfigError, Stopped
from koe.secrets import scrub
from pipeline.config.models import PipelineConfig
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage

# A pipe or a file has no width: wide enough for every table. stdout is None where it is closed.
_HAS_WIDTH = "COLUMNS" in os.environ or (sys.stdout is not None and sys.stdout.isatty())

out = Console(width=None if _HAS_WIDTH else 120)
err = Console(stderr=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration of the run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, as in encode.threshold_ovrl=2.8."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
DEFAULT_CONFIG = Path("pipeline.yaml")


def open_run(settings: PipelineConfig) -> tuple[Plan, Ledger]:
    """Open the stored run. Raises: ConfigError where there is none."""
    storage = Storage(settings.run_dir)
    planned = load_plan(storage)
    if planned is None:
        raise ConfigError(
            f"{settings.run_dir} holds no run", remedy="Start one with `koe run -c CONFIG`."
        )
    return planned, Ledger(storage)


@contextmanager
def ending_early(config: Path, overrides: list[str] | None) -> Iterator[None]:
    """Say how a training that was stopped goes on, and end with the exit code of what stopped it."""
    try:
        yield
    except Stopped as stopped:
        chosen = [] if config == DEFAULT_CONFIG else ["-c", str(config)]
        settings = [word for setting in overrides or [] for word in ("--set", setting)]
        command = shlex.join(["koe", "train", *chosen, *settings])
        say(f"koe: {stopped} Go on with: {command}", "yellow")
        raise typer.Exit(stopped.exit_code) from None


def say(what: str, style: str = "") -> None:
    """Write a line to stderr as it stands: no markup, no colours of its own, not cut to the width."""
    err.print(scrub(what), style=style, markup=False, highlight=False, soft_wrap=True)


def parse_numbers(option: str, text: str) -> list[float]:
    """Read numbers separated by commas. Raises: ConfigError naming the option."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(isfinite, found)):
        raise ConfigError(f"{option} {text} is not a list of numbers", remedy="Write 2.0,2.5,3.0.")
    return found


def print_json(value: Any) -> None:
    """Write a value to stdout as JSON, whatever the terminal's width and encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_ascii = encoding.lower().replace("_", "-") not in ("utf-8", "utf8")
    sys.stdout.write(json.dumps(value, ensure_ascii=is_ascii, indent=1) + "\n")
