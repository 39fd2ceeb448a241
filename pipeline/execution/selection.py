"""Which stages a command runs, and which of them it does again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from koe.dataflow import stage_names
from koe.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """The stages to run, in order, and those whose units are done again.

    `find_poison`: the units that these stages left aside, or the one that `unit` names, are searched
    first for the records that end their worker.
    """

    stages: tuple[str, ...] = field(default_factory=stage_names)
    force: frozenset[str] = frozenset()
    find_poison: bool = False
    unit: str | None = None


def select_stages(
    first: str | None, last: str | None, only: str | None, force: Sequence[str]
) -> Selection:
    """Turn --from, --to, --only and --force into a selection.

    Raises: ConfigError for an unknown stage or options that exclude each other.
    """
    known = stage_names()
    for name in (first, last, only, *force):
        if name is not None and name not in known:
            raise ConfigError(f"there is no stage {name!r}", remedy=f"Stages: {', '.join(known)}.")
    if only and (first or last):
        raise ConfigError("--only excludes --from and --to")
    start = known.index(only or first or known[0])
    stop = known.index(only or last or known[-1])
    if start > stop:
        raise ConfigError(f"--from {first} comes after --to {last}")
    chosen = known[start : stop + 1]
    outside = [name for name in force if name not in chosen]
    if outside:
        raise ConfigError(
            f"--force {outside[0]} is not among the stages to run: {', '.join(chosen)}"
        )
    return Selection(chosen, frozenset(force))
