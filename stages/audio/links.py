"""What a walk over an audio file finds: its links, each a run of samples that one decoder gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from koe.errors import BadRecord
from stages.audio.contents import Contents, Range


@dataclass(frozen=True)
class AudioHeader:
    """What an audio file holds; `num_frames` counts the samples of each channel."""

    num_frames: int
    audio_hz: int
    channels: int
    format: str

    @property
    def seconds(self) -> float:
        return self.num_frames / self.audio_hz


@dataclass(frozen=True)
class Cut:
    """A file for libsndfile, in pieces, and the sample in it where the wanted ones begin.

    `settle_frames` None means that the samples before `start` are decoded and dropped; a number
    that the decoder seeks, and begins that many samples before.
    """

    pieces: tuple[Range, ...]
    start: int
    settle_frames: int | None = None


class Link(Protocol):
    @property
    def header(self) -> AudioHeader: ...

    @property
    def index_bytes(self) -> int:
        """Return about how much memory the link takes."""
        ...

    def cut(self, data: Contents, start: int, num_frames: int) -> Cut:
        """Return what gives the samples [start, start + num_frames) of this link of a file."""
        ...


@dataclass(frozen=True)
class Scan:
    """A file's header and its links, in order."""

    header: AudioHeader
    links: tuple[Link, ...]


def joined(links: Sequence[Link]) -> Scan:
    """Return the scan of a file whose links are played one after another.

    Raises: BadRecord with reason mixed_format when they differ in sample rate or channels, and
    empty_audio when they hold no sample.
    """
    first = links[0].header
    for link in links:
        header = link.header
        if (header.audio_hz, header.channels) != (first.audio_hz, first.channels):
            raise BadRecord("mixed_format", change(first, header))
    num_frames = sum(link.header.num_frames for link in links)
    if num_frames == 0:
        raise BadRecord("empty_audio", "no samples")
    header = AudioHeader(num_frames, first.audio_hz, first.channels, first.format)
    return Scan(header, tuple(link for link in links if link.header.num_frames))


def change(first: AudioHeader, then: AudioHeader) -> str:
    return (
        f"{first.audio_hz} Hz with {first.channels} channel(s) at first, "
        f"{then.audio_hz} Hz with {then.channels} later"
    )
