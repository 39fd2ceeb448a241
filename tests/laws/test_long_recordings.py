"""A segment of a recording is what decoding the whole recording gives there, however it is read.

Files of every container, of speech-like signals and of noise, whose segments are drawn at random: from
bytes in memory, and from blocks of a few kB through a cache that holds few of them, by several threads.
The samples are equal bit for bit.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import soundfile

from stages.audio.recording import Recording
from tests.stages import audio_variants as variants
from tests.stages.audio_files import tone

pytestmark = [pytest.mark.law, pytest.mark.slow]

SECONDS, SEGMENTS = 8.0, 20
Maker = Callable[[int, int], bytes]


@cache
def signal(audio_hz: int, channels: int, kind: str = "noise") -> np.ndarray:
    """Make float32 [samples, channels]: noise, which fills the bit reservoir of MP3, or a tone."""
    if kind == "tone":
        return np.stack([tone(SECONDS, audio_hz, 200.0 + 40 * n) for n in range(channels)], axis=1)
    shape = (round(SECONDS * audio_hz), channels)
    envelope = np.abs(np.sin(np.arange(shape[0]) / audio_hz * 5))[:, None]
    noise = np.random.default_rng(channels).standard_normal(shape)
    return (0.2 * envelope * noise).astype(np.float32)


def written(container: str, subtype: str, kind: str = "noise", **options: object) -> Maker:
    def write(audio_hz: int, channels: int) -> bytes:
        buffer = io.BytesIO()
        audio = signal(audio_hz, channels, kind)
        soundfile.write(buffer, audio, audio_hz, subtype, format=container, **options)  # pyright: ignore[reportArgumentType]
        return buffer.getvalue()

    return write


def constant(level: float) -> Maker:
    return written("MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=level)


def joined(first: Maker, second: Maker) -> Maker:
    return lambda audio_hz, channels: first(audio_hz, channels) + second(audio_hz, channels)


def changed(first: Maker, change: Callable[[bytes], bytes]) -> Maker:
    return lambda audio_hz, channels: change(first(audio_hz, channels))


FLAC, MP3 = written("FLAC", "PCM_16"), written("MP3", "MPEG_LAYER_III")
VORBIS, OPUS = written("OGG", "VORBIS"), written("OGG", "OPUS")
ALL_HZ, FEW_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000), (16_000, 44_100)
FILES: dict[str, tuple[Maker, tuple[int, ...]]] = {
    "wav": (written("WAV", "PCM_16"), FEW_HZ),
    "wav of 24 bits": (written("WAV", "PCM_24"), FEW_HZ),
    "wav of floats": (written("WAV", "FLOAT"), FEW_HZ),
    "wav, A-law": (written("WAV", "ALAW"), FEW_HZ),
    "wav, IMA ADPCM": (written("WAV", "IMA_ADPCM"), FEW_HZ),
    "rf64": (written("RF64", "PCM_16"), FEW_HZ),
    "wav of a pipe": (
        changed(written("WAV", "PCM_16"), lambda data: variants.wav_stating(data, 0, 0)),
        FEW_HZ,
    ),
    "wav, tagged": (
        changed(written("WAV", "PCM_16"), lambda data: variants.id3v2() + data),
        FEW_HZ,
    ),
    "wav, joined": (joined(written("WAV", "PCM_16"), written("WAV", "PCM_16", "tone")), FEW_HZ),
    "flac": (FLAC, FEW_HZ),
    "flac of 24 bits": (written("FLAC", "PCM_24"), FEW_HZ),
    "flac of a pipe": (changed(FLAC, lambda data: variants.flac_stating(data, 0)), FEW_HZ),
    "mp3": (MP3, ALL_HZ),
    "mp3 of a tone": (written("MP3", "MPEG_LAYER_III", "tone"), FEW_HZ),
    "mp3, constant and low": (constant(0.95), ALL_HZ),
    "mp3, constant and high": (constant(0.05), ALL_HZ),
    "mp3 without a count": (changed(MP3, lambda data: variants.mp3_parts(data)[1]), FEW_HZ),
    "mp3, joined": (joined(MP3, constant(0.4)), FEW_HZ),
    "mp3, joined at a tag": (joined(lambda hz, n: MP3(hz, n) + variants.ID3V1, MP3), FEW_HZ),
    "flac in ogg": (
        lambda hz, _: variants.ffmpeg_encoded(signal(hz, 1)[:, 0], hz, "ogg", "flac"),
        FEW_HZ,
    ),
    "vorbis": (VORBIS, FEW_HZ),
    "vorbis, chained": (joined(VORBIS, written("OGG", "VORBIS", "tone")), FEW_HZ),
    "opus": (OPUS, (16_000, 24_000, 48_000)),
    "opus, chained": (joined(OPUS, OPUS), (24_000,)),
    "opus, cut out of another": (
        changed(OPUS, lambda data: variants.without_first_pages(data, 2)),
        (8_000, 48_000),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_segment_is_its_part_of_the_whole(name, monkeypatch, capfd):
    variants.use_small_blocks(monkeypatch)
    make, rates = FILES[name]
    for audio_hz in rates:
        for channels in (1, 2):
            data = make(audio_hz, channels)
            readings = [Recording(data), Recording(variants.in_blocks(data))]
            header = readings[0].header
            assert header == readings[1].header
            whole = readings[0].read(0, header.num_frames)
            check_segments(f"{name} {audio_hz} {channels}", readings, whole, audio_hz)
    assert capfd.readouterr().err == "", "a decoder complains of what it is given"


def check_segments(name: str, readings: list[Recording], whole: np.ndarray, audio_hz: int) -> None:
    draw = random.Random(name)
    starts = [draw.randrange(len(whole)) for _ in range(SEGMENTS)]
    segments = [
        (start, draw.randint(1, min(2 * audio_hz, len(whole) - start)))
        for start in [0, 1, len(whole) - 1, *starts]
    ]
    with ThreadPoolExecutor(3) as pool:
        for recording in readings:
            parts = pool.map(lambda segment, of=recording: of.read(*segment), segments)
            for (start, length), part in zip(segments, parts, strict=True):
                assert len(part) == length, (name, start, length)
                expected = whole[start : start + length]
                assert np.array_equal(part, expected), (name, start, length)
