"""Keys that have been renamed are still accepted under their former names, with one warning each.

A table maps the former dotted path of a key to its present name: `{"guard.climb": "climb_factor"}`.
The table stands beside the models or records whose keys it lists, and is applied wherever a file
may have been written by an earlier version: `pipeline.yaml` and `--set` (`RENAMED` in
`pipeline/config/models.py`, which takes in `training.config.RENAMED` below `train.`), a run's
`config.json`, and the lines of metrics. A path passes through lists: `sources.speech.layout` is
the key of every item. A section is renamed like a key; what lies below it is then listed under the
section's present name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from koe.errors import ConfigError

_LOG = logging.getLogger(__name__)


def with_present_names(data: Any, renamed: Mapping[str, str], where: str) -> Any:
    """Return `data`, a mapping, with every key of the table `renamed` under its present name.

    `where` names the file in the warnings; a key is warned of once for each file.
    Raises: ConfigError when a key is given under both of its names.
    """
    if not any(_holders(data, path) for path in renamed):
        return data
    data = deepcopy(data)
    for path, name in renamed.items():
        former, present = path.rpartition(".")[2], _present(path, name)
        for holder in _holders(data, path):
            if name in holder:
                raise ConfigError(
                    f"{where} gives {present} twice",
                    f"{path} is its former name",
                    f"Remove {path}.",
                )
            holder[name] = holder.pop(former)
            _warn(where, path, present)
    return data


def present_path(path: str, renamed: Mapping[str, str], where: str) -> str:
    """Return the present dotted path of a key, and warn if a part of it was given a former name."""
    for former, name in renamed.items():
        if path == former or path.startswith(f"{former}."):
            present = _present(former, name)
            _warn(where, former, present)
            path = present + path.removeprefix(former)
    return path


def _present(former: str, name: str) -> str:
    return ".".join([*former.split(".")[:-1], name])


def _holders(data: Any, path: str) -> list[dict[str, Any]]:
    """List the mappings in `data` that hold the key at `path`."""
    *parents, key = path.split(".")
    places = [data]
    for parent in parents:
        places = [place.get(parent) for place in _mappings(places)]
    return [place for place in _mappings(places) if key in place]


def _mappings(places: list[Any]) -> Iterator[dict[str, Any]]:
    for place in places:
        if isinstance(place, dict):
            yield place
        elif isinstance(place, list):
            yield from _mappings(place)


@cache
def _warn(where: str, former: str, present: str) -> None:
    _LOG.warning("%s: %s is now called %s; the former name still works", where, former, present)
