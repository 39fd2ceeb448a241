"""How many samples an Opus stream in Ogg holds, by its packets (RFC 6716, RFC 7845)."""

from __future__ import annotations

from dataclasses import dataclass

from koe.errors import BadRecord
from stages.audio.links import AudioHeader

_ENDS = 4
_NO_PACKET_ENDS = -1
_GRANULE_HZ = 48_000
_CODE_3 = 3  # the packet's second byte counts its frames


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


def header(data: bytes, pages: list[Page]) -> AudioHeader:
    """Count the samples of an Opus stream, at the rate that libsndfile decodes it with.

    Raises: BadRecord with reason unreadable_audio when a header or a page is malformed,
    truncated_audio when packets are missing, and empty_audio.
    """
    head = data[pages[0].body : pages[0].stop]
    if len(head) < 19 or head[8] > 15 or head[9] == 0:
        raise BadRecord("unreadable_audio", "the Opus header is malformed")
    skip = int.from_bytes(head[10:12], "little")
    # The lowest rate of Opus that holds what was encoded; 0 means that it is not known.
    stated = int.from_bytes(head[12:16], "little")
    audio_hz = next((hz for hz in (8000, 12000, 16000, 24000) if stated <= hz), _GRANULE_HZ)
    granules = _granules(data, _after_comments(pages))
    num_frames = (granules - skip) * audio_hz // _GRANULE_HZ
    if num_frames <= 0:
        raise BadRecord("empty_audio", "no samples")
    return AudioHeader(num_frames, audio_hz, head[9], "OPUS")


def _after_comments(pages: list[Page]) -> list[Page]:
    """Return the pages behind the one on which the second packet, the comments, ends."""
    for place, page in enumerate(pages[1:], 2):
        if any(size < 255 for size in page.sizes):
            return pages[place:]
    return []


def _granules(data: bytes, pages: list[Page]) -> int:
    """Count the samples of the packets on `pages` at 48 kHz, without the padding at the end."""
    start, end, unfinished = 0, None, 0
    for page in pages:
        duration, unfinished = _duration(data, page, unfinished)
        if page.granule == _NO_PACKET_ENDS:
            continue
        is_last = page.flags & _ENDS
        if end is None:
            start = 0 if is_last else page.granule - duration
            end = start
        late = page.granule - end - duration
        if start < 0 or (late < 0 and not is_last):
            raise BadRecord(
                "unreadable_audio", f"the page at byte {page.start} holds more than its time"
            )
        if late > 0:
            lost = f"{late / _GRANULE_HZ:.3f} s are missing"
            raise BadRecord("truncated_audio", f"{lost} before the end of the page at {page.start}")
        end = page.granule
    return 0 if end is None else end - start


def _duration(data: bytes, page: Page, unfinished: int) -> tuple[int, int]:
    """Return how long the packets that end on a page are, and the one that does not end on it."""
    total, place = 0, page.body
    samples, begins = unfinished, not page.flags & 1
    for size in page.sizes:
        if begins:
            samples = _SAMPLES[data[place]] if size else 0
            if samples < 0:  # of a frame, times the number of frames
                samples = -samples * (data[place + 1] & 0x3F) if size > 1 else 0
        place += size
        begins = size < 255
        if begins:
            total += samples
    return total, 0 if begins else samples


def _frame_samples(config: int) -> int:
    """Return the samples of a frame at 48 kHz (RFC 6716, table 2)."""
    if config < 12:
        return (480, 960, 1920, 2880)[config & 3]
    if config < 16:
        return (480, 960)[config & 1]
    return (120, 240, 480, 960)[config & 3]


def _packet_samples(toc: int) -> int:
    """Return the samples of a packet by its first byte; of one frame, negated, for code 3."""
    samples, code = _frame_samples(toc >> 3), toc & 3
    return -samples if code == _CODE_3 else samples * (1 if code == 0 else 2)


_SAMPLES = tuple(_packet_samples(toc) for toc in range(256))
