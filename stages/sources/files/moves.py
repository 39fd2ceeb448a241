"""Where the files of a source lie now, when they were copied elsewhere since they were planned.

What a run stores names files by the path that they had when they were planned: units, clips, and what
was found out about files. So a copy of run and corpus is the same run, and no byte of it changes. The
moves are kept beside these, in the folder for what workers need, and applied when a file is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stages.sources.files.kept import keep, kept
from stages.sources.files.opening import exists

FILE = "moves.json"


@dataclass(frozen=True)
class Move:
    """A folder as it was called when its files were planned, and where it is at present."""

    planned: str
    present: str

    def to_planned(self, path: str) -> str:
        """Name a file as it was when it was planned; one that has not moved keeps its name."""
        below = _below(path, self.present)
        return path if below is None else self.planned + below

    def to_present(self, path: str) -> str | None:
        """Name a file where it should be at present; None for one that was not in the folder."""
        below = _below(path, self.planned)
        return None if below is None else self.present + below

    def settings_as_planned(self, value: Any) -> Any:
        """Name files and folders in JSON as they were when they were planned."""
        if isinstance(value, dict):
            return {key: self.settings_as_planned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.settings_as_planned(item) for item in value]
        return self.to_planned(value) if isinstance(value, str) else value


# Of a source: how it moved since it was planned, then since it was in each other place.
Moves = tuple[Move, ...]


def between(planned: str, present: str) -> Move:
    """Return the move of a file from one path to another: the folders above all that is the same."""
    before, after = planned.split("/"), present.split("/")
    same = 0
    while same < min(len(before), len(after)) and before[-1 - same] == after[-1 - same]:
        same += 1
    return Move("/".join(before[: len(before) - same]), "/".join(after[: len(after) - same]))


def present_path(path: str, moves: Moves) -> str:
    """Find a file that is named as it was once: where it should be now, unless it was left behind."""
    for move in moves:
        found = move.to_present(path)
        if found is not None and (exists(found) or not exists(path)):
            return found
    return path


def _below(path: str, folder: str) -> str | None:
    """Return what follows the folder in a path; None for a path that is not in it."""
    is_below = path == folder or path.startswith(f"{folder}/")
    return path[len(folder) :] if is_below else None


def followed(before: Moves, move: Move) -> Moves:
    """Return the moves of a source that has moved before, now that it is where `move` says.

    Units that were read in between name their clips by the place of that time.
    """
    first, *others = before
    since = _since(first, move)
    if since is None:
        return (move, *before)
    moves = [_onto(other, since) for other in others]
    return (move, *(found for found in dict.fromkeys([*moves, since]) if found != move))


def _since(first: Move, move: Move) -> Move | None:
    """Return how files moved that `first` brought to one place, and that are now where `move` says."""
    if (below := _below(first.planned, move.planned)) is not None:
        return Move(first.present, move.present + below)
    if (below := _below(move.planned, first.planned)) is not None:
        return Move(first.present + below, move.present)
    return None


def _onto(earlier: Move, since: Move) -> Move:
    """Put a later move behind an earlier one."""
    if (below := _below(earlier.present, since.planned)) is not None:
        return Move(earlier.planned, since.present + below)
    if (below := _below(since.planned, earlier.present)) is not None:
        return Move(earlier.planned + below, since.present)
    return earlier


def save_moves(folder: str, moves: Mapping[str, Move]) -> None:
    """Keep where the files of each source are; those of others are where they were planned.

    `folder` is the one for what workers need, as in `SourceFiles`. Raises: StorageError.
    """
    before = load_moves(folder)
    now: dict[str, Moves] = {name: (move,) for name, move in moves.items() if name not in before}
    for name, known in before.items():
        back = Move(known[0].planned, known[0].planned)
        now[name] = followed(known, moves.get(name, back))
    if now != before:
        rows = {name: [[m.planned, m.present] for m in found] for name, found in now.items()}
        keep(folder, FILE, json.dumps(rows, ensure_ascii=False, indent=1).encode())
        _load_moves.cache_clear()


def load_moves(folder: str) -> Mapping[str, Moves]:
    """Return the moves of a run by source; none where what was kept is incomplete.

    Raises: StorageError.
    """
    return _load_moves(folder) if folder else {}


@lru_cache(maxsize=4)
def _load_moves(folder: str) -> Mapping[str, Moves]:
    data = kept(folder, FILE)
    try:
        rows = {} if data is None else json.loads(data)
        found = {name: tuple(Move(*row) for row in moves) for name, moves in rows.items()}
        return {name: moves for name, moves in found.items() if moves}
    except (ValueError, TypeError, AttributeError):
        return {}  # the next run finds and keeps them again


def name_of(folder: str, path: str, stamp: str, suffix: str) -> str:
    """Return the name under which something is kept that depends on a file with this stamp.

    A file that has moved has the name that it had before. Raises: StorageError.
    """
    planned = (moves[0].to_planned(path) for moves in load_moves(folder).values())
    path = next((name for name in planned if name != path), path)
    return f"{hashlib.sha256(f'{path}|{stamp}'.encode()).hexdigest()[:32]}{suffix}"
