"""MPEG audio layer III by its frames, whatever an Info, Xing or VBRI frame says of their number.

Encoders write a frame without sound before the others that counts them, and LAME states in it how many
samples it put before and after the audio (gabriel.mp3-tech.org/mp3infotag.html). Joined files have one
at each seam.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from koe.errors import BadRecord
from stages.audio.contents import Contents, Range, whole
from stages.audio.links import AudioHeader, Cut, Scan, joined
from stages.audio.mpeg_frames import Format, Walk, header_at, walk

# mpg123 drops these of what it decodes: the delay of any layer III decoder.
_DECODER_DELAY = 529
_TAGS = (b"Xing", b"Info", b"VBRI")
# The synthesis of 8 frames uses the decoder's buffer in the same order as that of any other 8, so
# a cut that begins at a multiple of them sums in the same order, and gives the same bits.
_PHASE_FRAMES = 8
# A frame overlaps with the one before it, which overlaps with its own.
_OVERLAP_FRAMES = 2
_COUNTS = struct.Struct(">II")


@dataclass(frozen=True)
class _Promise:
    """What an Info, Xing or VBRI frame states; `num_frames` 0 where it states no number."""

    num_frames: int = 0
    delay: int = 0
    padding: int = 0


@dataclass(frozen=True)
class MpegLink:
    """Frames that one encoder wrote: where they begin in the file, and what is audio in them."""

    form: Format
    first_header: int
    starts: np.ndarray  # int64 [frames]
    sizes: np.ndarray  # int32 [frames]
    begin: int  # of the samples of all frames, the first that is audio
    num_samples: int

    @property
    def header(self) -> AudioHeader:
        return self.form.header(self.num_samples)

    @property
    def index_bytes(self) -> int:
        return self.starts.nbytes + self.sizes.nbytes

    def cut(self, data: Contents, start: int, num_frames: int) -> Cut:
        """Cut the frames that these samples depend on, and put two frames without sound before them.

        One counts the others; one holds the bits of earlier frames that the first ones refer to.
        What the decoder gives is bit for bit what it gives of these samples in the whole stream.
        """
        per_frame = self.form.frame_samples
        first = self.begin + start
        stop = min(len(self.starts), -(-(first + num_frames) // per_frame))
        lead = max(0, first // per_frame - _OVERLAP_FRAMES - 1)
        lead -= lead % _PHASE_FRAMES
        pieces = [self._info_frame(stop - lead)]
        if lead > 0:
            pieces.append(self._silent_frame(self._reservoir(data, lead + 1)))
        real = self._frames(data, lead + (lead > 0), stop)
        after = first - lead * per_frame - _DECODER_DELAY
        return Cut((*map(whole, pieces), *real), after)

    def _reservoir(self, data: Contents, frame: int) -> bytes:
        """Return the last bits before a frame that it and later ones may refer to."""
        parts: list[bytes] = []
        missing = self.form.reservoir_bytes
        while missing > 0 and frame > 0:
            frame -= 1
            place = int(self.starts[frame])
            content = data[place : place + int(self.sizes[frame])]
            has_checksum = not content[1] & 1
            main = content[4 + 2 * has_checksum + self.form.side_bytes :][-missing:]
            parts.append(main)
            missing -= len(main)
        return b"".join(reversed(parts))

    def _silent_frame(self, behind: bytes, begin: bytes = b"") -> bytes:
        """Make a frame whose side information is 0, with bytes right behind it or at its end."""
        # The first header, without checksum and padding, at the highest bitrate, to have the room.
        header = (self.first_header | 1 << 16) & ~(0xF << 12) & ~(1 << 9) | 14 << 12
        frame = header.to_bytes(4, "big") + bytes(self.form.side_bytes) + begin
        return frame.ljust(self.form.frame_bytes(header) - len(behind), b"\0") + behind

    def _frames(self, data: Contents, start: int, stop: int) -> Iterator[Range]:
        """Yield the bytes of frames, those that are contiguous in one piece."""
        starts, ends = self.starts[start:stop], self.starts[start:stop] + self.sizes[start:stop]
        breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        for first, after in zip([0, *breaks], [*breaks, len(starts)], strict=True):
            yield Range(data, int(starts[first]), int(ends[after - 1]))

    def _info_frame(self, count: int) -> bytes:
        """Make an Info frame that counts `count` frames and states no delay."""
        return self._silent_frame(b"", struct.pack(">4sII", b"Info", 1, count))


def scan(data: Contents, start: int, stop: int) -> Scan:
    """Walk the MPEG frames in a range of a file.

    Raises: BadRecord with reason truncated_audio when the last frame is cut off, or when fewer
    frames are there than an Info frame states; unreadable_audio where bytes are neither frames
    nor tags, unless an Info frame proves that no frame is lost; mixed_format; empty_audio.
    """
    walked = walk(data, start, stop)
    if len(walked.starts) == 0:
        raise BadRecord("truncated_audio", "the file ends within its first MPEG frame")
    links = list(_links(data, walked))
    for link, promise, last in links:
        _require_promise(walked, link, promise, last)
    return joined([link for link, _, _ in links])


def _links(data: Contents, walked: Walk) -> Iterator[tuple[MpegLink, _Promise | None, int]]:
    """Yield the links between counting frames, what each promises, and the frame that ends it."""
    counting = _counting_frames(data, walked)
    bounds = [*counting, len(walked.starts)]
    if bounds[0] > 0:
        yield _link(data, walked, 0, bounds[0], None), None, bounds[0]
    for (frame, promise), stop in zip(counting.items(), bounds[1:], strict=True):
        yield _link(data, walked, frame + 1, stop, promise), promise, stop


def _counting_frames(data: Contents, walked: Walk) -> dict[int, _Promise]:
    """Find the frames that count others, by their number, in order."""
    found: dict[int, _Promise] = {}
    for frame, offset in walked.tagged:
        place = int(walked.starts[frame])
        tag = data[place + offset : place + int(walked.sizes[frame])]
        if tag.startswith(_TAGS):
            found[frame] = _promise(tag)
    return dict(sorted(found.items()))


def _promise(tag: bytes) -> _Promise:
    """Read the fields of an Info, Xing or VBRI tag; what lies outside the frame is not there."""
    if tag[:4] == b"VBRI":
        return _Promise(int.from_bytes(tag[14:18], "big") if len(tag) >= 18 else 0)
    if len(tag) < 12:
        return _Promise()
    flags, count = _COUNTS.unpack_from(tag, 4)
    # The numbers of frames and of bytes, the table of contents, the quality; then LAME's fields.
    lame = 8 + sum(size for bit, size in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    delay = padding = 0
    if len(tag) >= lame + 24 and tag[lame]:
        both = int.from_bytes(tag[lame + 21 : lame + 24], "big")
        delay, padding = both >> 12, both & 0xFFF
    return _Promise(count if flags & 1 else 0, delay, padding)


def _link(
    data: Contents, walked: Walk, start: int, stop: int, promise: _Promise | None
) -> MpegLink:
    form, count = walked.form, stop - start
    total = count * form.frame_samples
    promise = promise or _Promise()
    delay, padding = promise.delay, promise.padding
    if delay + padding >= total:
        delay = padding = 0
    if 0 < promise.num_frames < count:
        padding = 0  # it lies before frames that were put behind it
    begin = delay + _DECODER_DELAY
    end = min(total, total - padding + _DECODER_DELAY)
    first = int(walked.starts[min(start, len(walked.starts) - 1)])
    return MpegLink(
        form,
        header_at(data, first),
        walked.starts[start:stop],
        walked.sizes[start:stop],
        begin,
        max(0, end - begin),
    )


def _require_promise(walked: Walk, link: MpegLink, promise: _Promise | None, after: int) -> None:
    """Refuse a link that lacks frames; `after` is the number of the frame that follows it."""
    count = len(link.starts)
    promised = promise.num_frames if promise else 0
    cut_at = walked.cut_at if after == len(walked.starts) else None
    # Some encoders count the counting frame too.
    if promised > count + 1 or (promised > count and cut_at is not None):
        raise BadRecord("truncated_audio", f"{count} of {promised} MPEG frames")
    if promised and promised == count:
        return  # what else is there is no frame of this link
    if cut_at is not None:
        raise BadRecord("truncated_audio", f"the file ends within frame {after}, at byte {cut_at}")
    first = after - count
    lost = [(place, size) for frame, place, size in walked.gaps if first <= frame <= after]
    if lost:
        place, size = lost[0]
        raise BadRecord(
            "unreadable_audio", f"{size} bytes at byte {place} are neither an MPEG frame nor a tag"
        )
