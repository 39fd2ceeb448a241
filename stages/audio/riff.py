"""WAV by its chunks: RIFF, RIFX and RF64, with PCM of any kind or MPEG audio inside.

libsndfile silently shortens a truncated file, and takes one written to a pipe for empty.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from koe.errors import BadRecord
from stages.audio import mpeg
from stages.audio.contents import Contents, Range, whole
from stages.audio.links import AudioHeader, Cut, Link, Scan, joined
from stages.audio.mpeg_frames import begins_frame
from stages.audio.sndfile import Joined, Readable, header
from stages.audio.tags import after_tags

MAGICS = (b"RIFF", b"RIFX", b"RF64")
# WAV writers that cannot seek back leave 0, 2^32 - 1, or (SoX, arecord) a number near 2^31.
_STREAMED_BYTES = 0x7FFFF000
_PCM, _MPEG_LAYER_3 = 0x0001, 0x0055
_MAX_CHANNELS = 1024  # of libsndfile
# The bits of a sample by format tag: integers, floats, A-law and mu-law.
_PLAIN_BITS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}


@dataclass(frozen=True)
class RiffLink:
    """A WAV file inside a file; `head` replaces its chunks before the samples, if not empty."""

    start: int
    stop: int
    head: bytes
    header: AudioHeader
    index_bytes = 0

    def cut(self, data: Contents, start: int, num_frames: int) -> Cut:
        return Cut((whole(self.head), Range(data, self.start, self.stop)), start, 0)


@dataclass(frozen=True)
class _Chunks:
    """What the chunks up to `data` state; places are bytes of the file."""

    magic: bytes
    stop: int  # where the RIFF chunk ends, or the file where its size is not known
    form: bytes  # of `fmt `
    data_start: int
    data_stop: int
    repaired: bool  # whether libsndfile would read the chunks differently

    @property
    def tag(self) -> int:
        order = "big" if self.magic == b"RIFX" else "little"
        return int.from_bytes(self.form[:2], order)


def scan(file: Readable, start: int, num_bytes: int) -> Scan:
    """Scan a WAV file that begins at `start` of a file of `num_bytes`.

    Raises: BadRecord with reason truncated_audio, unreadable_audio, empty_audio, mixed_format when
    another WAV file of another format follows, or length_mismatch when bytes follow that no chunk
    holds.
    """
    chunks = _chunks(file, start, num_bytes)
    if chunks.tag == _MPEG_LAYER_3:
        data = file.contents()
        place = after_tags(data, chunks.data_start, chunks.data_stop)
        if not begins_frame(data[place : chunks.data_stop][:4]):
            raise BadRecord("unreadable_audio", "no MPEG layer III frame where the samples begin")
        return mpeg.scan(data, place, chunks.data_stop)
    following = _following(file, chunks, num_bytes)
    head, found = _head(chunks), _plain(chunks)
    if found is None and start == 0 and following is None and not chunks.repaired:
        return joined([RiffLink(0, num_bytes, b"", _header(file, chunks))])
    if found is None:
        samples = Range(file.contents(), chunks.data_start, chunks.data_stop)
        found = _header(Joined((whole(head), samples)), chunks)
    links: list[Link] = [RiffLink(chunks.data_start, chunks.data_stop, head, found)]
    if following is not None:
        links += scan(file, following, num_bytes).links
    return joined(links)


def _plain(chunks: _Chunks) -> AudioHeader | None:
    """Return the header of samples of a fixed size; None where only libsndfile can count them.

    Raises: BadRecord with reason unreadable_audio when a sample cannot be as large as is stated.
    """
    if len(chunks.form) < 16:
        return None
    order = ">" if chunks.magic == b"RIFX" else "<"
    tag, channels, audio_hz, _, align, bits = struct.unpack_from(order + "HHIIHH", chunks.form)
    if tag == _PCM and align and align != channels * -(-bits // 8):
        detail = f"{bits} bits of {channels} channel(s) do not take {align} bytes, as is stated"
        raise BadRecord("unreadable_audio", detail)
    size = chunks.data_stop - chunks.data_start
    if bits not in _PLAIN_BITS.get(tag, ()) or align != channels * bits // 8:
        return None
    if not 0 < channels <= _MAX_CHANNELS or not 0 < audio_hz < 1 << 31:
        return None
    return AudioHeader(size // align, audio_hz, channels, "WAV")


def _header(file: Readable, chunks: _Chunks) -> AudioHeader:
    """Read a header by libsndfile, which does not say what it is that it does not know."""
    try:
        return header(file)
    except BadRecord as bad:
        tag = f" (its samples are of format {chunks.tag:#06x})" if len(chunks.form) >= 2 else ""
        raise BadRecord(bad.reason, f"{bad.detail}{tag}") from None


def _chunks(file: Readable, start: int, num_bytes: int) -> _Chunks:
    """Walk the chunks up to `data`.

    Raises: BadRecord when the file ends before its samples do.
    """
    file.seek(start)
    head = file.read(12)
    if len(head) < 12:
        raise BadRecord("truncated_audio", "the file ends within its header")
    if head[8:] != b"WAVE":
        raise BadRecord("unreadable_audio", f"a RIFF file of {head[8:]!r}, not of WAVE")
    order = ">" if head[:4] == b"RIFX" else "<"
    (riff_bytes,) = struct.unpack(order + "I", head[4:8])
    riff_stop = start + riff_bytes + 8
    place, wide_bytes, form, repaired = start + 12, None, b"", False
    while place + 8 <= num_bytes:
        file.seek(place)
        name, size = struct.unpack(order + "4sI", file.read(8))
        body = place + 8
        if name == b"ds64":  # RF64: the 64-bit sizes (EBU Tech 3306)
            sizes = file.read(16)
            if len(sizes) == 16:
                wide_bytes = struct.unpack(order + "8xQ", sizes)[0]
        elif name == b"fmt ":
            form = file.read(min(size, 1 << 16))
        elif name == b"data":
            there = num_bytes - body
            if size == 0xFFFFFFFF and head[:4] == b"RF64" and wide_bytes is not None:
                size = wide_bytes
            is_streamed = head[:4] != b"RF64" and size >= _STREAMED_BYTES
            if (
                size == 0
                and there > 0
                and not (riff_stop == num_bytes and _is_chunk(_at(file, body)))
            ):
                size, repaired = there, True
            elif there < size and is_streamed:
                size = there
            elif there < size:
                raise BadRecord("truncated_audio", f"{there} of {size} bytes of samples")
            return _Chunks(head[:4], riff_stop, form, body, body + size, repaired)
        place, odd = _next_chunk(file, body + size, size)
        repaired = repaired or odd
    raise BadRecord("truncated_audio", "the file ends before its samples")


def _next_chunk(file: Readable, end: int, size: int) -> tuple[int, bool]:
    """Return where the next chunk begins, and whether the byte that pads an odd one is missing."""
    if size % 2 == 0:
        return end, False
    file.seek(end)
    names = file.read(5)
    known = (b"fmt ", b"data", b"fact", b"LIST")
    is_missing = names[:4] in known and names[1:5] not in known
    return (end, True) if is_missing else (end + 1, False)


def _head(chunks: _Chunks) -> bytes:
    """Make the chunks before the samples anew; the sizes are those of a stream."""
    order = ">" if chunks.magic == b"RIFX" else "<"
    name = b"RIFX" if chunks.magic == b"RIFX" else b"RIFF"
    size = min(chunks.data_stop - chunks.data_start, 0xFFFFFFFF)
    form = struct.pack(order + "4sI", b"fmt ", len(chunks.form)) + chunks.form
    form += b"\0" * (len(form) % 2)
    riff = struct.pack(order + "4sI4s", name, min(size + len(form) + 12, 0xFFFFFFFF), b"WAVE")
    return riff + form + struct.pack(order + "4sI", b"data", size)


def _following(file: Readable, chunks: _Chunks, num_bytes: int) -> int | None:
    """Return where another WAV file begins behind the samples; None if there is none.

    Raises: BadRecord with reason length_mismatch.
    """
    size = chunks.data_stop - chunks.data_start
    places = sorted({chunks.data_stop, chunks.data_stop + size % 2, chunks.stop})
    heads = {place: _at(file, place) for place in places if chunks.data_stop <= place < num_bytes}
    for place, head in heads.items():
        if head[:4] in MAGICS and head[8:12] == b"WAVE":
            return place
    rest = num_bytes - chunks.data_stop
    if rest < 8 or any(_is_chunk(head) for head in heads.values()):
        return None
    if after_tags(file.contents(), chunks.data_stop, num_bytes) < num_bytes:
        raise BadRecord(
            "length_mismatch", f"{size} bytes of samples, and {rest} more that no chunk holds"
        )
    return None


def _at(file: Readable, place: int) -> bytes:
    file.seek(place)
    return file.read(12)


def _is_chunk(head: bytes) -> bool:
    """Tell whether a chunk may begin so: its name is printable ASCII."""
    return len(head) >= 8 and all(0x20 <= byte < 0x7F for byte in head[:4])
