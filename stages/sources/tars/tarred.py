"""Records that stand outside of the tars with their audio: what is in a tar and has no record."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar

from koe.errors import BadRecord
from koe.schema import Unit
from stages.sources.base import Record, SpeechFiles
from stages.sources.files.listing import SourceFile
from stages.sources.files.opening import parent
from stages.sources.planning import Slice
from stages.sources.tars.header import Member
from stages.sources.tars.member_index import TarIndex

_UNLISTED = "unlisted"  # the state of a unit of members that no record names

Unlisted = tuple[str, Member]  # the path of a tar, and one of its members


class TarredFiles(SpeechFiles):
    """Files of records whose audio lies in tars. A member that no record names is a bad record.

    Such members are units of their own, behind those of the file; `start` and `stop` count them.
    """

    reads_compressed: ClassVar[bool] = True

    def __getstate__(self) -> dict[str, Any]:
        # What was listed is left out: planning sends a source to other processes for each file.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def all_slices(self, file: SourceFile) -> Iterator[Slice]:
        is_whole = True
        for part in super().all_slices(file):
            is_whole = is_whole and not part.gaps
            yield part
        # Of a file that breaks off, the records that are lost are counted already.
        if self.settings.unlisted_audio == "quarantine" and is_whole:
            number = len(self._unlisted(file))
            for start in range(0, number, self.unit_records):
                stop = min(start + self.unit_records, number)
                yield Slice(start, stop, stop - start, state=_UNLISTED)

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.state == _UNLISTED:
            file = SourceFile(unit.path, self.relative(unit), self.beside(unit.path))
            for tar, member in self._unlisted(file)[unit.start : unit.stop]:
                yield self._without_record(unit, tar, member)
        else:
            yield from self.read_listed(unit)

    @abstractmethod
    def read_listed(self, unit: Unit) -> Iterator[Record]:
        """Yield the records of one slice of a file."""

    @abstractmethod
    def beside(self, path: str) -> tuple[str, ...]:
        """List the files beside a file of records, as `files` does: tars among them."""

    @abstractmethod
    def find_unlisted(self, file: SourceFile) -> Iterator[Unlisted]:
        """Yield the members of the tars beside a file that no record names, in a fixed order.

        It must not list all files of the source, which planning would do for each of them.
        """

    @cached_property
    def _last_found(self) -> dict[str, list[Unlisted]]:
        """What was found for the file that was asked for last, because its units follow each other."""
        return {}

    def _unlisted(self, file: SourceFile) -> list[Unlisted]:
        if file.path not in self._last_found:
            self._last_found.clear()
            self._last_found[file.path] = list(self.find_unlisted(file))
        return self._last_found[file.path]

    def _without_record(self, unit: Unit, tar: str, member: Member) -> Record:
        folder, name = parent(self.relative(unit)), tar.rpartition("/")[2]
        key = "/".join(filter(None, (folder, name, member.name)))
        bad = BadRecord("not_in_manifest", f"no record of {unit.path} names it")
        if member.unsafe:
            bad = BadRecord("unsafe_tar_member", f"{member.name!r}: {member.unsafe}")
        return self.record(key, f"{tar}:{member.name}@{member.offset}", bad)


def unnamed(index: TarIndex, named: Iterable[Member]) -> Iterator[Unlisted]:
    """Yield the members of a tar of whose key none is named, in the order of the archive."""
    places = {member.offset for member in named}
    for members in index.members.values():
        if not any(member.offset in places for member in members):
            yield from ((index.path, member) for member in members)
