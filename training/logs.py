"""The logs in the folder of a run: their names, and how their lines are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from koe.numbers import counted

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
LOGS = (METRICS_FILE, EVENTS_FILE, EVALUATIONS_FILE)
SAMPLES_FOLDER = "samples"
SAMPLES_FILE = "samples.json"  # in a folder of its own for each step
RATE_FILE = "find_rate.json"  # of the learning-rate range test
SCORES = ("ovrl", "sig", "bak")  # DNSMOS' opinions of a sample, as they are listed
COUNTS = ("step", "data_step")  # in every line of every log
_MAX_COUNT = 2**53  # as many as a float counts
_MAX_DAMAGED = 3  # lines of a file that are named


def read_lines(
    path: Path, tell: Callable[[str], None], needed: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; lines that are damaged are left out.

    A line is damaged that is no object of JSON, or in which one of the `needed` keys is no number of steps.
    `tell` is told of them at the end, in one sentence; an incomplete last line is what a kill leaves,
    and not worth a word. Yields nothing where there is no file.
    """
    damaged: list[str] = []
    for place, line in enumerate(_complete_lines(path), start=1):
        try:
            yield _row(line, needed)
        except ValueError as error:
            damaged.append(f"line {place}: {error}")
    if damaged:
        shown = "; ".join(damaged[:_MAX_DAMAGED])
        more = f"; and {len(damaged) - _MAX_DAMAGED} more" if len(damaged) > _MAX_DAMAGED else ""
        left_out = counted(len(damaged), "damaged line")
        tell(f"{left_out} of {path.name} left out ({shown}{more})")


def _complete_lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with open(path, "rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _row(line: bytes, needed: Sequence[str]) -> dict[str, Any]:
    """Read a line. Raises: ValueError for a damaged one."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}, not an object")
    if wrong := [key for key in needed if not _is_count(row.get(key))]:
        raise ValueError(f"{wrong[0]} is not a number of steps")
    return row


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


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
