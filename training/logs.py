"""The logs in the folder of a run: their names, and how their lines are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from koe.errors import ContractError

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
LOGS = (METRICS_FILE, EVENTS_FILE, EVALUATIONS_FILE)
SAMPLES_FOLDER = "samples"
SAMPLES_FILE = "samples.json"  # in a folder of its own for each step
RATE_FILE = "find_rate.json"  # of the learning-rate range test
SCORES = ("ovrl", "sig", "bak")  # DNSMOS' opinions of a sample, as they are listed


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; an incomplete last line is left out.

    Yields nothing where there is no file. Raises: ContractError naming a line that is not an object.
    """
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for place, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _unreadable(path, place, str(error)) from error
            if not isinstance(row, dict):
                raise _unreadable(path, place, f"it is a {type(row).__name__}, not an object")
            yield row


def _unreadable(path: Path, place: int, why: str) -> ContractError:
    return ContractError(
        f"line {place} of {path} cannot be read", why, "Delete the line and start again."
    )


def flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, leaf) of all that a row holds: keys and places in lists joined by "/"."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from flatten(item, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, value


def is_number(value: Any) -> bool:
    """Tell whether a leaf is a number of JSON; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
