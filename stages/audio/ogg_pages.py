"""Pages of an Ogg file (RFC 3533), each checked by its checksum."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from koe.errors import BadRecord
from stages.audio.contents import Contents
from stages.audio.tags import after_tags

CONTINUED, ENDS = 1, 4  # flags of a page: it begins within a packet, it is the last of its stream
_PAGE = struct.Struct("<4sBBqIIIB")
_MAX_HEADER_BYTES = _PAGE.size + 255
_BACKWARDS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Page:
    """A page of an Ogg file; places are bytes of the file, `sizes` the lacing values."""

    start: int
    body: int
    stop: int
    flags: int
    granule: int
    serial: int
    number: int
    sizes: bytes


def read_pages(data: Contents, place: int) -> Iterator[Page]:
    """Yield the pages from `place` on.

    Raises: BadRecord where a page is cut off or damaged.
    """
    while data.startswith(b"OggS", place):
        if len(data) < place + _PAGE.size:
            raise BadRecord("truncated_audio", "the file ends within a page header")
        head = data[place : place + _MAX_HEADER_BYTES]
        _, _, flags, granule, serial, number, checksum, count = _PAGE.unpack_from(head)
        body = place + _PAGE.size + count
        sizes = head[_PAGE.size : _PAGE.size + count]
        stop = body + sum(sizes)
        if stop > len(data):
            raise BadRecord("truncated_audio", "the file ends within a page")
        page = data[place:stop]
        if _checksum(page) != checksum:
            raise BadRecord("unreadable_audio", f"the page at byte {place} has a wrong checksum")
        yield Page(place, body, stop, flags, granule, serial, number, sizes)
        place = stop
    if (after := after_tags(data, place, len(data))) < len(data):
        if b"OggS".startswith(data[after : after + 4]):
            raise BadRecord("truncated_audio", "the file ends within a page header")
        if data.find(b"OggS", after) >= 0:
            raise BadRecord("unreadable_audio", f"no Ogg page at byte {after}")


def rewritten(page: bytes, number: int, granule: int) -> bytes:
    """Return a page with another number and granule position."""
    page = page[:6] + struct.pack("<q4sI", granule, page[14:18], number) + page[22:]
    return page[:22] + struct.pack("<I", _checksum(page)) + page[26:]


def _checksum(page: bytes) -> int:
    """Compute the checksum of a page, in which its own field counts as 0.

    It is that of zlib with the bits of every byte, and of the result, in the opposite order, and
    without the inversions at both ends.
    """
    page = page[:22] + bytes(4) + page[26:]
    value = zlib.crc32(page.translate(_BACKWARDS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(value.to_bytes(4, "little").translate(_BACKWARDS), "big")


def ranges_of(pages: list[Page]) -> tuple[tuple[int, int], ...]:
    """Return the bytes of pages, those that are contiguous as one range."""
    ranges: list[tuple[int, int]] = []
    for page in pages:
        if ranges and ranges[-1][1] == page.start:
            ranges[-1] = (ranges[-1][0], page.stop)
        else:
            ranges.append((page.start, page.stop))
    return tuple(ranges)
