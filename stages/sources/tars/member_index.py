"""Where the members of a tar lie, for records that stand outside of it and name them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import zstandard

from koe.errors import BadRecord
from stages.sources.base import AudioLocation
from stages.sources.files.compressed import opened
from stages.sources.files.kept import keep, kept
from stages.sources.files.moves import name_of
from stages.sources.files.opening import exists, reading, stamp
from stages.sources.planning import Gap
from stages.sources.tars.header import Member
from stages.sources.tars.members import read_members

_SUFFIX = ".members"

Key = Callable[[str], str | None]


@dataclass(frozen=True)
class TarIndex:
    """The members of one tar by key; `why` says why it may hold more than were found."""

    path: str
    members: dict[str, list[Member]]
    why: str = ""

    def locate(self, key: str) -> AudioLocation:
        """Return where the one member with this key lies.

        Raises: BadRecord missing_audio, ambiguous_audio or unsafe_tar_member.
        """
        return self.place(self.members.get(key, []), key)

    def place(self, found: Sequence[Member], asked: str) -> AudioLocation:
        """Return where the one member lies that was found for what a record asks for.

        Raises: BadRecord missing_audio, ambiguous_audio or unsafe_tar_member.
        """
        if not found:
            detail = f"{self.path} has no member for {asked!r}"
            raise BadRecord("missing_audio", f"{detail}; {self.why}" if self.why else detail)
        if len(found) > 1:
            names = ", ".join(f"{member.name} at byte {member.offset}" for member in found)
            raise BadRecord("ambiguous_audio", f"{self.path} has {names}")
        member = found[0]
        if member.unsafe:
            raise BadRecord("unsafe_tar_member", f"{member.name!r}: {member.unsafe}")
        return AudioLocation("tar", self.path, member.name, member.data_offset, member.size)


def index_tar(path: str, key: Key, index_folder: str = "") -> TarIndex | None:
    """List the members of a tar by the key of their name; None if there is no such tar.

    `key` returns None for members that no record asks for. The headers of a tar are read once, as
    long as it stays the same: what they say is kept in `index_folder`, since looking at every header
    of a tar in an object store is as slow as reading all of it.

    Raises: StorageError.
    """
    if not exists(path):
        return None
    with reading(path):
        return _index_tar(path, stamp(path), key, index_folder)


@lru_cache(maxsize=4)  # a unit asks for one tar, or for neighbours
def _index_tar(path: str, mark: str, key: Key, index_folder: str) -> TarIndex:
    found, why = _kept_members(path, mark, index_folder) or _read_members(path, mark, index_folder)
    members: dict[str, list[Member]] = {}
    for member in found:
        if (name := key(member.name)) is not None:
            members.setdefault(name, []).append(member)
    return TarIndex(path, members, why)


def _read_members(path: str, mark: str, index_folder: str) -> tuple[list[Member], str]:
    """Look at all headers of a tar, and keep what they say; why it may hold more than that."""
    members, why = [], ""
    with opened(path, mark, index_folder) as file:
        headers: Any = getattr(file, "raw", file)
        for member in read_members(headers, 0):
            if isinstance(member, Gap):
                why = why or member.why
            else:
                members.append(member)
    if index_folder:
        data = json.dumps([why, *members]).encode()
        keep(index_folder, name_of(index_folder, path, mark, _SUFFIX), zstandard.compress(data, 1))
    return members, why


def _kept_members(path: str, mark: str, index_folder: str) -> tuple[list[Member], str] | None:
    """Return what `_read_members` kept; None where there is nothing or it is incomplete."""
    data = kept(index_folder, name_of(index_folder, path, mark, _SUFFIX)) if index_folder else None
    if data is None:
        return None
    try:
        why, *rows = json.loads(zstandard.decompress(data))
        return [Member(*row) for row in rows], why
    except (ValueError, TypeError, zstandard.ZstdError):
        return None
