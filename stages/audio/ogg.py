"""Ogg by its pages (RFC 3533): Opus (RFC 7845), Vorbis, and FLAC in Ogg.

Every page is checked by its checksum and its number, so that a damaged or missing one is noticed: libogg
passes over it in silence. Links of a chain, one stream after another, are read one by one; libsndfile
reads the first alone.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from koe.errors import BadRecord
from stages.audio import flac, opus
from stages.audio.links import AudioHeader, Cut, Link, Scan, joined
from stages.audio.opus import Page
from stages.audio.sndfile import Pieces, header
from stages.audio.tags import after_tags

_PAGE = struct.Struct("<4sBBqIIIB")
_BEGINS, _ENDS = 2, 4
_BACKWARDS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MAGICS = (
    (b"OpusHead", "Opus"),
    (b"\x01vorbis", "Vorbis"),
    (b"\x7fFLAC", "FLAC"),
    (b"fLaC", "FLAC"),
    (b"Speex   ", "Speex"),
    (b"\x80theora", "Theora"),
    (b"fishead\0", "Skeleton"),
)
_FLAC_PREFIX_BYTES = 9
# Opus decoders settle after a seek: RFC 7845 asks for 80 ms, and libsndfile needs more (measured:
# up to 0.0076 of full scale off without, at most 0.0024 and mostly nothing with 1 s).
_OPUS_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class OggLink:
    """A stream of a file, and the bytes of the file that libsndfile decodes as it."""

    head: bytes  # comes before the ranges
    ranges: tuple[tuple[int, int], ...]
    header: AudioHeader
    settle_frames: int

    def cut(self, data: bytes, start: int, num_frames: int) -> Cut:
        view = memoryview(data)
        pieces = (self.head, *(view[first:stop] for first, stop in self.ranges))
        return Cut(pieces, start, self.settle_frames)


def scan(data: bytes, start: int) -> Scan:
    """Walk the pages of an Ogg file.

    Raises: BadRecord with reason truncated_audio, unreadable_audio, mixed_format or empty_audio.
    """
    links: list[Link] = []
    for streams in _chain(data, start):
        for pages in streams:
            _require_end(pages)
        kinds = [_kind(data, pages[0]) for pages in streams]
        if sum(kind in _LINKS for kind in kinds) != 1:
            raise BadRecord("unreadable_audio", f"an Ogg link of {' and '.join(kinds)}")
        links += [
            _LINKS[kind](data, pages)
            for kind, pages in zip(kinds, streams, strict=True)
            if kind in _LINKS
        ]
    return joined(links)


def _chain(data: bytes, start: int) -> list[list[list[Page]]]:
    """Return the links of a file, each as the pages of its streams.

    Raises: BadRecord when a page is missing, damaged or cut off.
    """
    chain: list[list[list[Page]]] = []
    streams: dict[int, list[Page]] = {}
    begun = True
    for page in _pages(data, start):
        if page.flags & _BEGINS:
            if begun:
                streams, begun = {}, False
                chain.append([])
            streams[page.serial] = [page]
            chain[-1].append(streams[page.serial])
            continue
        begun = True
        pages = streams.get(page.serial)
        if pages is None:
            raise BadRecord("truncated_audio", f"no stream begins for the page at {page.start}")
        if page.number != pages[-1].number + 1 & 0xFFFFFFFF:
            raise BadRecord(
                "truncated_audio",
                f"page {page.number} follows page {pages[-1].number} at byte {page.start}",
            )
        pages.append(page)
    return chain


def _pages(data: bytes, place: int) -> Iterator[Page]:
    while data.startswith(b"OggS", place):
        if len(data) < place + _PAGE.size:
            raise BadRecord("truncated_audio", "the file ends within a page header")
        _, _, flags, granule, serial, number, checksum, count = _PAGE.unpack_from(data, place)
        body = place + _PAGE.size + count
        sizes = data[place + _PAGE.size : body]
        stop = body + sum(sizes)
        if stop > len(data):
            raise BadRecord("truncated_audio", "the file ends within a page")
        if _checksum(data[place : place + 22] + bytes(4) + data[place + 26 : stop]) != checksum:
            raise BadRecord("unreadable_audio", f"the page at byte {place} has a wrong checksum")
        yield Page(place, body, stop, flags, granule, serial, number, sizes)
        place = stop
    if (after := after_tags(data, place, len(data))) < len(data):
        if b"OggS".startswith(data[after : after + 4]):
            raise BadRecord("truncated_audio", "the file ends within a page header")
        if data.find(b"OggS", after) >= 0:
            raise BadRecord("unreadable_audio", f"no Ogg page at byte {after}")


def _checksum(page: bytes) -> int:
    """Compute the checksum of a page whose own field is 0.

    It is that of zlib with the bits of every byte, and of the result, in the opposite order, and
    without the inversions at both ends.
    """
    value = zlib.crc32(page.translate(_BACKWARDS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(value.to_bytes(4, "little").translate(_BACKWARDS), "big")


def _require_end(pages: list[Page]) -> None:
    if not pages[-1].flags & _ENDS:
        raise BadRecord("truncated_audio", "the last page does not end its stream")


def _kind(data: bytes, page: Page) -> str:
    """Name the codec of a stream by its first packet."""
    head = data[page.body : page.body + 8]
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    return repr(head)


def _opus(data: bytes, pages: list[Page]) -> OggLink:
    header = opus.header(data, pages)
    return OggLink(b"", _ranges(pages), header, int(_OPUS_SETTLE_SECONDS * header.audio_hz))


def _vorbis(data: bytes, pages: list[Page]) -> OggLink:
    view, ranges = memoryview(data), _ranges(pages)
    found = header(Pieces([view[first:stop] for first, stop in ranges]))
    return OggLink(b"", ranges, found, 0)


def _flac(data: bytes, pages: list[Page]) -> OggLink:
    """Take the packets of FLAC in Ogg, which are a FLAC stream (RFC 9639, section 10.1)."""
    packets = b"".join(data[page.body : page.stop] for page in pages)
    prefix = _FLAC_PREFIX_BYTES if packets[:1] == b"\x7f" else 0
    (link,) = flac.scan(io.BytesIO(packets), prefix, len(packets)).links
    head = link.cut(packets, 0, 0).pieces[0]
    behind = prefix + len(head)
    ranges: list[tuple[int, int]] = []
    for page in pages:
        size = page.stop - page.body
        if behind < size:
            ranges.append((page.body + behind, page.stop))
        behind = max(0, behind - size)
    return OggLink(bytes(head), tuple(ranges), link.header, 0)


_LINKS = {"Opus": _opus, "Vorbis": _vorbis, "FLAC": _flac}


def _ranges(pages: list[Page]) -> tuple[tuple[int, int], ...]:
    """Return the bytes of pages, those that are contiguous as one range."""
    ranges: list[tuple[int, int]] = []
    for page in pages:
        if ranges and ranges[-1][1] == page.start:
            ranges[-1] = (ranges[-1][0], page.stop)
        else:
            ranges.append((page.start, page.stop))
    return tuple(ranges)
