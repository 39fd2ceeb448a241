"""Opus in Ogg (RFC 6716, RFC 7845): how many samples its packets hold, and which pages hold a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from koe.errors import BadRecord
from stages.audio.contents import Contents, Range, whole
from stages.audio.links import AudioHeader, Cut
from stages.audio.ogg_pages import CONTINUED, ENDS, Page, ranges_of, rewritten

_NO_PACKET_ENDS = -1
_GRANULE_HZ = 48_000
# An Opus decoder forgets only by and by what it heard before: RFC 7845 asks for 80 ms. Measured: speech
# and noise are bit-identical after 1 s (0.003 of full scale off after 80 ms); a stationary tone, which
# the decoder predicts from itself, may be off by up to 0.03 even then.
_SETTLE_SECONDS = 1.0
_CODE_3 = 3  # the packet's second byte counts its frames


@dataclass(frozen=True)
class OpusLink:
    """An Opus stream of a file: its pages, and the granule positions at their ends."""

    header: AudioHeader
    head: tuple[tuple[int, int], ...]  # the bytes of the file with the pages before the audio
    head_pages: int
    places: np.ndarray  # int64 [audio pages, 2], first byte and first one behind
    granules: np.ndarray  # int64 [audio pages]; -1 where no packet ends
    begins: np.ndarray  # bool [audio pages], whether a packet begins where the page does
    first_granule: int  # where the first audio page begins
    skip: int  # samples at 48 kHz that a decoder drops at the beginning of a stream

    @property
    def index_bytes(self) -> int:
        return self.places.nbytes + self.granules.nbytes + self.begins.nbytes

    def cut(self, data: Contents, start: int, num_frames: int) -> Cut:
        """Cut the pages that hold these samples, and some before them for the decoder to settle."""
        first = self.first_granule + start * self._step
        lead = self._first_page(first - int(_SETTLE_SECONDS * _GRANULE_HZ))
        if lead == 0 and self.first_granule == 0:
            ranges = [Range(data, *place) for place in (*self.head, *self.places.tolist())]
            return Cut(tuple(ranges), start)
        # libsndfile drops the samples that it should, at the beginning of a stream, only where granule
        # positions begin at 0; so they do in the cut.
        begun = int(self.granules[lead - 1]) if lead else self.first_granule
        behind = np.flatnonzero(self.granules >= first + num_frames * self._step + self.skip)
        after = int(behind[0]) + 1 if len(behind) else len(self.granules)
        pages = [
            whole(self._page(data, number, self.head_pages + number - lead, begun))
            for number in range(lead, after)
        ]
        head = [Range(data, *place) for place in self.head]
        return Cut((*head, *pages), (first - begun) // self._step)

    def _page(self, data: Contents, number: int, new_number: int, begun: int) -> bytes:
        """Return an audio page, with its number and its granule position in a cut."""
        start, stop = self.places[number].tolist()
        granule = int(self.granules[number])
        return rewritten(data[start:stop], new_number, granule - begun if granule >= 0 else granule)

    @property
    def _step(self) -> int:
        """Return how far the granule position moves in a sample."""
        return _GRANULE_HZ // self.header.audio_hz

    def _first_page(self, granule: int) -> int:
        """Return the last page that begins with a packet, and before a granule position.

        Not the last one of all: where a stream ends is not where its packets end.
        """
        before = self.granules[:-2]
        fits = (before >= 0) & (before <= granule) & self.begins[1:-1] & (self.granules[1:-1] >= 0)
        fits &= (self.first_granule + self.skip - before) % self._step == 0
        found = np.flatnonzero(fits)
        return int(found[-1]) + 1 if len(found) else 0


def link(data: Contents, pages: list[Page]) -> OpusLink:
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
    audio = _after_comments(pages)
    start, stop = _granules(data, audio)
    num_frames = (stop - start - skip) * audio_hz // _GRANULE_HZ
    if num_frames <= 0:
        raise BadRecord("empty_audio", "no samples")
    return OpusLink(
        AudioHeader(num_frames, audio_hz, head[9], "OPUS"),
        ranges_of(pages[: len(pages) - len(audio)]),
        len(pages) - len(audio),
        np.array([(page.start, page.stop) for page in audio], np.int64),
        np.array([page.granule for page in audio], np.int64),
        np.array([not page.flags & CONTINUED for page in audio]),
        start,
        skip,
    )


def _after_comments(pages: list[Page]) -> list[Page]:
    """Return the pages behind the one on which the second packet, the comments, ends."""
    for place, page in enumerate(pages[1:], 2):
        if any(size < 255 for size in page.sizes):
            return pages[place:]
    return []


def _granules(data: Contents, pages: list[Page]) -> tuple[int, int]:
    """Return the granule positions, at 48 kHz, where `pages` begin and where they end."""
    start, end, unfinished = 0, None, 0
    for page in pages:
        duration, unfinished = _duration(data[page.body : page.stop], page, unfinished)
        if page.granule == _NO_PACKET_ENDS:
            continue
        is_last = page.flags & ENDS
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
    return start, start if end is None else end


def _duration(body: bytes, page: Page, unfinished: int) -> tuple[int, int]:
    """Return how long the packets that end on a page are, and the one that does not end on it."""
    total, place = 0, 0
    samples, begins = unfinished, not page.flags & CONTINUED
    for size in page.sizes:
        if begins:
            samples = _SAMPLES[body[place]] if size else 0
            if samples < 0:  # of a frame, times the number of frames
                samples = -samples * (body[place + 1] & 0x3F) if size > 1 else 0
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
