"""The members of a tar by their headers alone; what cannot be read is passed over and counted."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from stages.file_signatures import looks_like
from stages.sources.files.lines import num_bytes
from stages.sources.planning import Gap
from stages.sources.tars.header import (
    BLOCK_BYTES,
    Member,
    has_checksum,
    padded,
    plain_member,
    why_unsafe,
)

_CHUNK_BYTES = 1 << 20  # read at once where a header is searched

_MAGIC = re.compile(rb"ustar[\0 ]")
_MAGIC_AT = 257
_CHECKSUM = re.compile(rb"[0-7 ]{6,7}[\0 ]")
_CHECKSUM_AT = 148
_TYPE_AT = 156
# Headers that say more of the member behind them: its long name, or that of a link, or anything (pax).
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_MAX_EXTENSIONS = 16  # of one member
_MAX_EXTENSION_BYTES = 1 << 20


class _Entry(NamedTuple):
    """What a header describes: a member, or None for a folder; `next`: where another may follow."""

    member: Member | None
    next: int


class _Damaged(Exception):
    """There is no sound header here, nor before the byte `behind`."""

    def __init__(self, why: str, behind: int = 0) -> None:
        super().__init__(why)
        self.behind = behind


def read_members(file: BinaryIO, start: int) -> Iterator[Member | Gap]:
    """Yield the members from byte `start` on, and a Gap for each range without a sound header.

    After a damaged header, a member that is cut off or one whose size reaches over other headers,
    reading goes on at the next header whose checksum is right. Blocks of zeros, which end an
    archive, are passed over, so that archives joined with `cat` are read to the end. All this
    depends on nothing that precedes `start`: global pax headers, which few writers use for more than
    a comment, are passed over.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    tar = _Tar(file)
    place, item = start, None
    while place < tar.size:
        item, place = tar.step(place)
        if item is not None:
            yield item
    if not tar.has_ended and not isinstance(item, Gap):
        yield Gap(tar.size, tar.size, f"the archive ends at byte {tar.size} without an end mark")


class _Tar:
    """Looks at the headers of an archive; keeps the one that it saw last."""

    def __init__(self, file: BinaryIO) -> None:
        # TarFile's own iteration takes a broken header for the end of the archive, and needs an
        # intact one to start with. So only the settings of the public header parser are its own.
        archive = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * BLOCK_BYTES)), encoding="utf-8")
        archive.fileobj = file
        self._file, self._archive, self.size = file, archive, num_bytes(file)
        self._seen: tuple[int, bytes, Member | None] = (-1, b"", None)
        self.has_ended = False  # with zeros up to the end of the file

    def step(self, place: int) -> tuple[Member | Gap | None, int]:
        """Return what lies at `place`, and where to look next; None for what is no record."""
        if (member := self._look(place)[2]) is not None:  # nearly all, behind which another begins
            behind = member.data_offset + padded(member.size)
            if behind < self.size and self._look(behind)[2] is not None:
                return member, behind
        if not self._block(place).strip(b"\0"):
            return self._pass_zeros(place)
        try:
            entry = self._entry(place)
            self._require_sound(entry)
        except _Damaged as damaged:
            stop = self._resume(place, damaged.behind)
            return Gap(place, stop, str(damaged)), stop
        return entry

    def _look(self, place: int) -> tuple[int, bytes, Member | None]:
        if self._seen[0] != place:
            self._file.seek(place)
            block = self._file.read(BLOCK_BYTES)
            self._seen = (place, block, plain_member(block, place))
        return self._seen

    def _block(self, place: int) -> bytes:
        return self._look(place)[1]

    def _is_header(self, place: int) -> bool:
        _, block, member = self._look(place)
        return member is not None or has_checksum(block)

    def _entry(self, place: int) -> _Entry:
        archive, member = self._archive, self._look(place)[2]
        archive.pax_headers = {}  # nothing is remembered of what precedes
        if member:
            return _Entry(member, member.data_offset + padded(member.size))
        if (behind := self._behind_extensions(place)) is not None:
            return _Entry(None, behind)
        self._file.seek(place)
        try:
            info = tarfile.TarInfo.fromtarfile(archive)
        except (tarfile.TarError, ValueError, OverflowError, LookupError) as error:
            what = f"the header at byte {place} of {self.size} is cut off or damaged"
            if place == 0:
                name = looks_like(self._block(0))
                what = f"it is not a tar archive{f' but {name}' if name else ', or damaged there'}"
            raise _Damaged(f"{what}: {error}") from None
        if info.size < 0 or archive.offset <= place:
            raise _Damaged(f"the header at byte {place} states a size of {info.size}")
        if info.isdir():
            return _Entry(None, archive.offset)
        name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        size = info.size if info.isreg() and not info.issparse() else 0
        return _Entry(Member(name, place, info.offset_data, size, why_unsafe(info)), archive.offset)

    def _behind_extensions(self, place: int) -> int | None:
        """Return where a global header ends; None for any other, unless it is damaged.

        tarfile reads extended headers into memory, and each that follows another with a call of
        itself.
        """
        start, number = place, 0
        while (block := self._block(place))[_TYPE_AT : _TYPE_AT + 1] in _EXTENSIONS:
            try:
                size = tarfile.nti(block[124:136])  # pyright: ignore[reportAttributeAccessIssue]
            except tarfile.TarError:
                return None
            if not has_checksum(block) or not 0 <= size <= self.size - place - BLOCK_BYTES:
                return None
            if size > _MAX_EXTENSION_BYTES:
                raise _Damaged(f"the extended header at byte {place} has {size} bytes")
            if block[_TYPE_AT : _TYPE_AT + 1] == tarfile.XGLTYPE and place == start:
                return place + BLOCK_BYTES + padded(size)
            place, number = place + BLOCK_BYTES + padded(size), number + 1
        if number > _MAX_EXTENSIONS:
            raise _Damaged(f"{number} extended headers from byte {start} on", place)
        return None

    def _require_sound(self, entry: _Entry) -> None:
        """Raise _Damaged for a member that cannot be as long as its header says."""
        member, place = entry
        if member is None:
            return
        end = member.data_offset + member.size
        if end > self.size:
            raise _Damaged(f"{member.name} should end at byte {end}, the file ends at {self.size}")
        if place >= self.size or not self._block(place).strip(b"\0") or self._is_header(place):
            return
        if member.name.lower().endswith(".tar"):
            return  # an archive within the archive, which has headers of its own
        if (other := self._search(member.data_offset, end, place)) is not None:
            raise _Damaged(f"{member.name} of {member.size} bytes reaches over a header at {other}")
        self._file.seek(end)
        if self._file.read(place - end).strip(b"\0"):  # where zeros fill the last block
            raise _Damaged(f"{member.name} has other bytes behind it than zeros, and no header")

    def _pass_zeros(self, place: int) -> tuple[Gap | None, int]:
        first = self._first_byte(place)
        if first is None:
            self.has_ended = True
            return None, self.size
        if self._is_header(first):  # as after `cat a b`
            return None, first
        stop = self._resume(first)
        return Gap(place, stop, "zeros are followed by data, but not by a header"), stop

    def _first_byte(self, place: int) -> int | None:
        """Find the first byte from `place` on that is not zero."""
        self._file.seek(place)
        while chunk := self._file.read(_CHUNK_BYTES):
            if rest := chunk.lstrip(b"\0"):
                return place + len(chunk) - len(rest)
            place += len(chunk)
        return None

    def _resume(self, place: int, behind: int = 0) -> int:
        """Find where to go on after a damaged header at `place`: up to there nothing can be read."""
        found = self._search(max(place + 1, behind), self.size, place)
        found = self._end_mark(place) if found is None else found
        if behind:
            return found
        stated = self._stated_end(place)
        if stated is not None and (self._is_header(stated) or self._first_byte(stated) is None):
            is_archive = self._block(place)[:100].rstrip(b"\0").lower().endswith(b".tar")
            return stated if is_archive else min(stated, found)
        return found

    def _stated_end(self, place: int) -> int | None:
        """Return the end of the member whose header is damaged, if that can be told."""
        try:
            size = int(self._block(place)[124:136].strip(b"\0 ") or b"-1", 8)
        except ValueError:
            return None
        end = place + BLOCK_BYTES + padded(size)
        return end if size >= 0 and end < self.size else None

    def _search(self, start: int, stop: int, grid: int) -> int | None:
        """Find the first sound header that begins in a byte range.

        One with the magic word may begin at any byte, an older one a whole number of blocks from
        byte `grid`.
        """
        place = start
        while place < stop:
            self._file.seek(place)
            chunk = self._file.read(_CHUNK_BYTES)
            for at in sorted(_candidates(chunk, (grid - place) % BLOCK_BYTES)):
                if place + at < stop and has_checksum(chunk[at : at + BLOCK_BYTES]):
                    return place + at
            if len(chunk) < _CHUNK_BYTES:
                return None
            place += len(chunk) - BLOCK_BYTES + 1
        return None

    def _end_mark(self, place: int) -> int:
        """Return where the zeros begin that end the file, a whole number of blocks from `place`."""
        self._file.seek(max(place, self.size - _CHUNK_BYTES))
        num_zeros = len(tail := self._file.read()) - len(tail.rstrip(b"\0"))
        if num_zeros < 2 * BLOCK_BYTES:
            return self.size
        return place + padded(self.size - num_zeros - place)


def _candidates(chunk: bytes, first_block: int) -> Iterable[int]:
    """List where headers may begin in a chunk, whose first whole block is at `first_block`."""
    last = len(chunk) - BLOCK_BYTES
    magic = (match.start() - _MAGIC_AT for match in _MAGIC.finditer(chunk))
    blocks = range(first_block, last + 1, BLOCK_BYTES)
    old = (at for at in blocks if _CHECKSUM.match(chunk, at + _CHECKSUM_AT))
    return {at for at in (*magic, *old) if 0 <= at <= last}
