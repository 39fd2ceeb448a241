"""Numbered files in one name, such as `audio_{0..511}.tar`, as shells, WebDataset and NeMo have it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from koe.errors import ConfigError

_MAX_NAMES = 200_000

# NeMo writes _OP_ and _CL_ where a shell or a job scheduler would take braces for its own.
_BRACES = re.compile(r"(?:\{|_OP_)(?:(\d+)\.\.(\d+)|([^{}/]*,[^{}/]*?))(?:\}|_CL_)")


def has_range(path: str) -> bool:
    return _BRACES.search(path) is not None


def expand_ranges(path: str) -> list[str]:
    """List the names that a path with `{0..511}` or `{a,b}` stands for; the path itself without.

    Where either end of a range begins with a zero, all numbers have as many digits as the longer.

    Raises: ConfigError for more names than a source can have files.
    """
    names = list(islice(_expanded(path), _MAX_NAMES + 1))
    if len(names) > _MAX_NAMES:
        raise ConfigError(
            f"the ranges of {path} stand for more than {_MAX_NAMES:,} names",
            "each of them is looked for before any work",
            "Name the files with a glob, such as *.tar, instead.",
        )
    return list(dict.fromkeys(names))  # `{a,{b,c}}` gives a twice


def _expanded(path: str) -> Iterator[str]:
    found = _BRACES.search(path)
    if found is None:
        yield path
        return
    first, last, listed = found.groups()
    for part in listed.split(",") if listed is not None else _numbers(first, last):
        yield from _expanded(path[: found.start()] + part + path[found.end() :])


def _numbers(first: str, last: str) -> Iterator[str]:
    is_padded = any(end[0] == "0" and len(end) > 1 for end in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield f"{number:0{width}d}"
