"""Ogg by its pages (RFC 3533): Opus (RFC 7845), Vorbis, and FLAC in Ogg.

Every page is checked by its checksum and its number, so that a damaged or missing one is noticed: libogg
passes over it in silence. Links of a chain, one stream after another, are read one by one; libsndfile
reads the first alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from koe.errors import BadRecord
from stages.audio import flac, opus
from stages.audio.contents import Contents, Range, whole
from stages.audio.links import AudioHeader, Cut, Link, Scan, joined
from stages.audio.ogg_pages import ENDS, Page, ranges_of, read_pages
from stages.audio.sndfile import Joined, header, read

_BEGINS = 2
_MAX_PAGES = 1 << 20  # 12 days of the usual second each
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
_MAX_VORBIS_OVERLAP = 8192  # samples of the largest block


@dataclass(frozen=True)
class OggLink:
    """A stream of a file, and the bytes of the file that libsndfile decodes as it."""

    head: bytes  # comes before the ranges
    ranges: tuple[tuple[int, int], ...]
    header: AudioHeader
    seekable: int  # up to which sample libsndfile finds a place

    @property
    def index_bytes(self) -> int:
        return 150 * len(self.ranges)

    def cut(self, data: Contents, start: int, num_frames: int) -> Cut:
        pieces = (whole(self.head), *(Range(data, first, stop) for first, stop in self.ranges))
        return Cut(pieces, start, max(0, start - self.seekable))


def scan(data: Contents, start: int) -> Scan:
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


def _chain(data: Contents, start: int) -> list[list[list[Page]]]:
    """Return the links of a file, each as the pages of its streams.

    Raises: BadRecord when a page is missing, damaged or cut off.
    """
    chain: list[list[list[Page]]] = []
    streams: dict[int, list[Page]] = {}
    begun = True
    for count, page in enumerate(read_pages(data, start)):
        if count == _MAX_PAGES:
            raise BadRecord("record_too_large", f"more than {_MAX_PAGES:,} pages of Ogg")
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


def _require_end(pages: list[Page]) -> None:
    if not pages[-1].flags & ENDS:
        raise BadRecord("truncated_audio", "the last page does not end its stream")


def _kind(data: Contents, page: Page) -> str:
    """Name the codec of a stream by its first packet."""
    head = data[page.body : page.body + 8]
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    return repr(head)


def _vorbis(data: Contents, pages: list[Page]) -> OggLink:
    ranges = ranges_of(pages)
    pieces = tuple(Range(data, first, stop) for first, stop in ranges)
    found = header(Joined(pieces))
    read(Cut(pieces, 0), 1, found)  # where it gives no sample, libvorbis crashes as one is sought
    # libsndfile counts back from the end that a page states, which for the last one is not that of
    # its packets: a place on it is found from before it.
    ends = [0, *(page.granule for page in pages if page.granule > 0)]
    seekable = ends[-2] - (ends[-1] - found.num_frames) - _MAX_VORBIS_OVERLAP
    return OggLink(b"", ranges, found, max(0, seekable))


def _flac(data: Contents, pages: list[Page]) -> OggLink:
    """Take the packets of FLAC in Ogg, which are a FLAC stream (RFC 9639, section 10.1)."""
    packets = Joined([Range(data, page.body, page.stop) for page in pages])
    prefix = _FLAC_PREFIX_BYTES if packets.read(1) == b"\x7f" else 0
    links = flac.scan(packets, prefix, packets.seek(0, os.SEEK_END)).links
    link = links[0]
    if len(links) > 1 or not isinstance(link, flac.FlacLink):
        raise BadRecord("unreadable_audio", "several FLAC streams in one Ogg stream")
    head = link.streaminfo
    behind = prefix + len(head)
    ranges: list[tuple[int, int]] = []
    for page in pages:
        size = page.stop - page.body
        if behind < size:
            ranges.append((page.body + behind, page.stop))
        behind = max(0, behind - size)
    return OggLink(head, tuple(ranges), link.header, link.header.num_frames)


_LINKS = {"Opus": opus.link, "Vorbis": _vorbis, "FLAC": _flac}
