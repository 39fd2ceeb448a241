"""Frames of MPEG audio layer III: their headers, and a walk over them.

Frame headers are those of ISO 11172-3, section 2.4.2.3, and ISO 13818-3; a frame holds 1,152 samples, or
576 at the lower sample rates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from koe.errors import BadRecord
from stages.audio.contents import Contents, chunks
from stages.audio.links import AudioHeader, change
from stages.audio.tags import after_tags, num_zeros

# What all frames of a stream share: synchronisation, version, layer and sample rate.
_SAME = 0xFFFE0C00
_KBPS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MPEG1_HZ = (44100, 48000, 32000)
_CHUNK_BYTES = 1 << 17
# Layer III of MPEG 1, 2 or 2.5. Of random bytes, one place of 11,000 looks so.
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_MAX_TRIED, _MAX_GAPS = 1 << 16, 1 << 12
_HOLE_BEGIN_BYTES = 4  # zeros at the end of a frame, of which there are rarely so many
_VBRI_OFFSET = 36  # of Fraunhofer's tag in its frame


def header_at(data: Contents, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "big")


@dataclass(frozen=True)
class Format:
    """What the header of a frame says of all frames of its stream."""

    key: int
    mono: bool
    audio_hz: int
    frame_samples: int
    side_bytes: int  # of side information between the header and the main data
    sizes: tuple[int, ...]  # bytes of a frame by the third byte of its header; 0 for none

    def frame_bytes(self, header: int) -> int:
        """Return the size of a frame of this stream, 0 if `header` begins none."""
        if header & _SAME != self.key or (header & 0xC0 == 0xC0) is not self.mono:
            return 0
        return self.sizes[header >> 8 & 0xFF]

    def header(self, num_samples: int = 0) -> AudioHeader:
        return AudioHeader(num_samples, self.audio_hz, 1 if self.mono else 2, "MP3")

    @property
    def reservoir_bytes(self) -> int:
        """How far the main data of a frame may begin before it."""
        return 511 if self.frame_samples == 1152 else 255


def begins_frame(head: bytes) -> bool:
    return len(head) >= 4 and _format_of(header_at(head, 0)) is not None


def is_free_format(head: bytes) -> bool:
    """Tell whether a frame of layer III begins whose bitrate is not one of the table."""
    header = header_at(head, 0)
    stated = begins_frame((header | 1 << 12).to_bytes(4, "big"))
    return len(head) >= 4 and header >> 12 & 0xF == 0 and stated


@dataclass(frozen=True)
class Walk:
    """The frames of a stream, where they begin and how large they are, and what lies between."""

    form: Format
    starts: np.ndarray  # int64 [frames]
    sizes: np.ndarray  # int32 [frames]
    tagged: tuple[tuple[int, int], ...]  # frames that may count others, and the offset of the tag
    gaps: tuple[tuple[int, int, int], ...]  # next frame, byte, number of bytes
    cut_at: int | None  # where the last frame begins, if it is cut off


def walk(data: Contents, start: int, stop: int) -> Walk:
    """Walk the frames in a range of a file, past tags, zeros and what is neither.

    Raises: BadRecord with reason mixed_format when frames of another format follow, and
    unreadable_audio when there are more such places than damage leaves.
    """
    form = _format_of(header_at(data, start))
    assert form is not None, "the caller has seen a frame at `start`"
    runs: list[np.ndarray] = []  # int64 [frames + 1], the last one where the run ends
    tagged: list[tuple[int, int]] = []
    gaps: list[tuple[int, int, int]] = []
    place, count, last_bytes, cut_at = start, 0, 0, None
    while place < stop:
        run, tags = _run(data[place : min(place + _CHUNK_BYTES, stop)], form)
        tagged += [(count + frame, offset) for frame, offset in tags]
        runs.append(run + place)
        place, count = int(runs[-1][-1]), count + len(run) - 1
        if len(run) > 1:
            last_bytes = int(run[-1] - run[-2])
            continue
        after = after_tags(data, place, stop)
        if after > place and (size := _hole(data, place, stop, last_bytes)):
            gaps.append((count, place, size))
        if after == place < stop:
            if stop - place >= 4 and form.frame_bytes(header_at(data, place)):
                cut_at = place
                break
            after, then = _next_frame(data, place + 1, stop)
            if then is not None and then is not form:
                raise BadRecord("mixed_format", change(form.header(), then.header()))
            gaps.append((count, place, after - place))
            if len(gaps) > _MAX_GAPS:
                detail = f"bytes that are neither frames nor tags at {len(gaps):,} places"
                raise BadRecord("unreadable_audio", detail)
        place = after
    starts = np.concatenate([run[:-1] for run in runs])
    sizes = np.concatenate([np.diff(run) for run in runs]).astype(np.int32)
    return Walk(form, starts, sizes, tuple(tagged), tuple(gaps), cut_at)


def _hole(data: Contents, place: int, stop: int, last_bytes: int) -> int:
    """Return how many zeros from `place` on stand where frames stood; 0 where they are padding.

    A download that breaks off leaves them, or a lost block: they begin within the last frame, of
    `last_bytes`, and are more than a frame.
    """
    size = num_zeros(data, place, stop)
    is_hole = 0 < last_bytes <= size and not any(data[place - _HOLE_BEGIN_BYTES : place])
    return size if is_hole else 0


def _run(chunk: bytes, form: Format) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return where the frames begin that follow each other in a chunk, and where they end.

    Follows the sizes that the third bytes give, and checks the other bytes of all headers at once.
    Returns besides which of the frames, counted from 0, have a letter of a tag where a tag would be,
    and its offset in them.
    """
    sizes, last, stop = form.sizes, len(chunk) - 4, len(chunk)
    starts, place = [0], 0
    while place <= last and (size := sizes[chunk[place + 2]]):
        place += size
        starts.append(place)
    if place > stop:
        starts.pop()
    found = np.array(starts, np.int64)
    raw = np.frombuffer(chunk, np.uint8)
    begins, mono = found[:-1], raw[found[:-1] + 3] >= 0xC0
    is_frame = (raw[begins] == 0xFF) & (raw[begins + 1] & 0xFE == form.key >> 16 & 0xFF)
    wrong = np.flatnonzero(~is_frame | (mono != form.mono))
    found = found[: wrong[0] + 1] if len(wrong) else found
    return found, _tagged(raw, found, 4 + form.side_bytes)


def _tagged(raw: np.ndarray, found: np.ndarray, side: int) -> list[tuple[int, int]]:
    tagged: list[tuple[int, int]] = []
    sizes = np.diff(found)
    for letters, offset in ((b"XI", side), (b"V", _VBRI_OFFSET)):
        large = np.flatnonzero(sizes >= offset + 4)
        is_tag = np.isin(raw[found[large] + offset], np.frombuffer(letters, np.uint8))
        tagged += [(frame, offset) for frame in large[is_tag].tolist()]
    return tagged


def _next_frame(data: Contents, at: int, stop: int) -> tuple[int, Format | None]:
    """Find the next frame that another one, or the end, follows; (`stop`, None) if there is none."""
    tried = 0
    for first, chunk in chunks(data, at, stop, 1):
        for found in _SYNC.finditer(chunk):
            at = first + found.start()
            if (form := _frame_at(data, at, stop)) is not None:
                after = at + form.frame_bytes(header_at(data, at))
                if after == stop or _frame_at(data, after, stop) is form:
                    return at, form
            tried += 1
            if tried > _MAX_TRIED:
                detail = f"no MPEG frame at {tried:,} places up to byte {at} that look like one"
                raise BadRecord("unreadable_audio", detail)
    return stop, None


def first_frame(data: Contents) -> int | None:
    """Return where the first MPEG frame lies that another one follows; None for nowhere."""
    at, form = _next_frame(data, 0, len(data))
    return None if form is None else at


def _frame_at(data: Contents, place: int, stop: int) -> Format | None:
    return _format_of(header_at(data, place)) if place + 4 <= stop else None


def _format_of(header: int) -> Format | None:
    """Return the format of a layer III frame; None if `header` begins none."""
    if header >> 21 != 0x7FF:
        return None
    form = _format(header & _SAME, header & 0xC0 == 0xC0)
    return form if form is not None and form.frame_bytes(header) else None


@lru_cache(maxsize=64)
def _format(key: int, mono: bool) -> Format | None:
    version, layer, rate = key >> 19 & 3, key >> 17 & 3, key >> 10 & 3
    if version == 1 or layer != 1 or rate == 3:
        return None
    audio_hz = _MPEG1_HZ[rate] // {3: 1, 2: 2, 0: 4}[version]
    per_frame = 1152 if version == 3 else 576
    kbps = _KBPS[3 if version == 3 else 2]
    sizes = [
        kbps[byte >> 4] * 125 * per_frame // audio_hz + (byte >> 1 & 1)
        if kbps[byte >> 4] and byte >> 2 & 3 == rate
        else 0
        for byte in range(256)
    ]
    side_bytes = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return Format(key, mono, audio_hz, per_frame, side_bytes, tuple(sizes))
