"""The stored length of an audio file is the number of samples that decoding it gives.

For 500 files of every codec that koe reads, whole and damaged, drawn from fixed seeds:

- What is found is the same from bytes and from blocks of a few kB, as large files are read.
- `read_header` and `decode` raise nothing but BadRecord; what both keep has exactly the stored length.
- A whole file is kept, and FFmpeg (PyAV) decodes the same length from it, or from its parts if it was
  joined, within one frame of the codec: FFmpeg leaves in the 529 samples of an MP3 decoder's delay
  where no encoder states one.
- Of a damaged file that is kept, FFmpeg must not decode more than a frame beyond koe: nothing may be
  half. It may decode less, as it drops what it cannot decode, and conceals none of it. And koe must not
  keep more than the whole file holds. FFmpeg is no judge where the damage hits a header, since it then
  may take the file for another format, or the samples for others; so this holds for damage behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from koe.errors import BadRecord, attempt
from stages.audio.contents import Blocks
from stages.audio.decode import AudioHeader, decode, read_header
from stages.audio.recording import Recording
from tests.stages import audio_variants as variants
from tests.stages.audio_files import encoded, tone

pytestmark = [pytest.mark.law, pytest.mark.slow]

CASES_PER_CODEC = 500
# What FFmpeg and libsndfile may differ by in a stream: one frame of the codec, at 48 kHz for Opus.
FRAME = {"wav": 0, "flac": 0, "oggflac": 0, "mp3": 1152, "opus": 960, "vorbis": 1024}
# How many of them FFmpeg may leave in a damaged stream: without a whole Info frame at the very beginning
# it plays the delay, the padding and the silent frame that counts the others.
LEFT_IN = {"mp3": 3, "opus": 1, "vorbis": 1, "wav": 1, "flac": 1, "oggflac": 1}
RATES = {"opus": (8_000, 16_000, 24_000, 48_000)}
SECONDS = (0.11, 0.4, 0.83, 1.3)


@dataclass(frozen=True)
class Case:
    """A file, and the whole files of whose lengths its own is the sum."""

    data: bytes
    parts: tuple[bytes, ...]
    header_bytes: int  # in which damage may turn the file into another one


@cache
def whole(codec: str, audio_hz: int, seconds: float, writer: str = "") -> bytes:
    audio = tone(seconds, audio_hz, 100 + 50 * seconds)
    if codec == "oggflac":
        return variants.ffmpeg_encoded(audio, audio_hz, "ogg", "flac")
    if writer == "ffmpeg":
        names = {"flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "wav": "adpcm_ima_wav"}
        container = "ogg" if codec == "opus" else codec
        options = {"id3v2_version": "0"} if codec == "mp3" else {}
        return variants.ffmpeg_encoded(audio, audio_hz, container, names[codec], **options)
    kinds = {"vorbis": "ogg", "float": "float.wav"}
    return encoded(audio, audio_hz, kinds.get(writer or codec, codec))


def wav(draw: random.Random, base: bytes, other: bytes) -> Case:
    size = len(base)
    float_wav = whole("wav", 16_000, draw.choice(SECONDS), "float")
    pcm = whole("wav", 24_000, draw.choice(SECONDS))
    made = {
        "plain": (base, (base,)),
        "float": (float_wav, (float_wav,)),
        "streamed": (variants.wav_stating(base, 0xFFFFFFFF, 0xFFFFFFFF), (base,)),
        "unsized": (variants.wav_stating(base, 0, 0), (base,)),
        "tagged": (variants.id3v2() + base, (base,)),
        "padded": (base + bytes(draw.choice((2, 100))), (base,)),
        "joined": (base + other, (base, other)),
        "rf64": (variants.rf64(pcm), (pcm,)),
        "rifx": (variants.rifx(pcm), (pcm,)),
    }
    return drawn(draw, made, min(size, 200))


def flac(draw: random.Random, base: bytes, other: bytes) -> Case:
    made = {
        "plain": (base, (base,)),
        "pipe": (variants.flac_stating(base, 0), (base,)),
        "half": (variants.flac_stating(base, 100), (base,)),
        "tagged": (variants.id3v2() + base + variants.ID3V1, (base,)),
        "joined pipes": (
            variants.flac_stating(base, 0) + variants.flac_stating(other, 0),
            (base, other),
        ),
    }
    if variants.flac_total(base) != variants.flac_total(
        other
    ):  # of equal streams, see tests/stages/audio/test_audio.py
        made["joined"] = (base + other, (base, other))
    return drawn(draw, made, 9_000)


def mp3(draw: random.Random, base: bytes, other: bytes) -> Case:
    frames, others = variants.mp3_parts(base)[1], variants.mp3_parts(other)[1]
    tag = draw.choice((b"", variants.id3v2(), variants.ID3V1, variants.ape(), bytes(300)))
    made = {
        "xing": (base, (base,)),
        "none": (frames, (frames,)),
        "zero": (variants.xing_counting(base, 0), (base,)),
        "few": (variants.xing_counting(base, 3), (frames,)),
        "vbri": (variants.vbri_counting(base, 2), (frames,)),
        "tagged": (variants.id3v2() + variants.id3v2(3) + base + variants.ID3V1, (base,)),
        "joined": (base + tag + other, (base, other)),
        "joined frames": (frames + tag + others, (frames + others,)),
        "first counts": (base + tag + others, (frames + others,)),
        "riff": (variants.mp3_in_riff(frames, 24_000), (frames,)),
        "junk behind": (base + draw.randbytes(200).replace(b"\xff", b""), (base,)),
    }
    return drawn(draw, made, 300)


def ogg(draw: random.Random, base: bytes, other: bytes) -> Case:
    made = {
        "plain": (base, (base,)),
        "chained": (base + other, (base, other)),
        "tagged": (variants.id3v2() + base + bytes(50), (base,)),
    }
    return drawn(draw, made, 300)


def drawn(
    draw: random.Random, made: dict[str, tuple[bytes, tuple[bytes, ...]]], header_bytes: int
) -> Case:
    data, parts = made[draw.choice(sorted(made))]
    return Case(data, parts, header_bytes)


MAKERS: dict[str, Callable[[random.Random, bytes, bytes], Case]] = {
    "wav": wav,
    "flac": flac,
    "mp3": mp3,
    "opus": ogg,
    "vorbis": ogg,
    "oggflac": ogg,
}


def damaged(draw: random.Random, data: bytes, start: int) -> bytes:
    """Cut, change, remove, repeat or insert bytes behind `start`, or put something behind all."""
    first, last = sorted(draw.randint(min(start, len(data)), len(data)) for _ in range(2))
    kind = draw.choice(("cut", "flip", "flip", "remove", "repeat", "insert", "zeros", "behind"))
    junk = draw.randbytes(draw.choice((1, 30, 2_000)))
    if kind == "cut":
        return data[:last]
    if kind == "flip":
        changed = bytearray(data)
        for place in draw.choices(range(min(start, len(data) - 1), len(data)), k=4):
            changed[place] ^= 1 << draw.randrange(8)
        return bytes(changed)
    return {
        "remove": data[:first] + data[last:],
        "repeat": data[:last] + data[first:],
        "insert": data[:first] + junk + data[first:],
        "zeros": data[:first] + bytes(last - first) + data[last:],
        "behind": data + junk,
    }[kind]


def ffmpeg_frames(codec: str, data: bytes, audio_hz: int) -> int:
    """Count what FFmpeg decodes, at `audio_hz`; it decodes Opus at 48 kHz whatever was encoded."""
    samples = variants.ffmpeg_samples(data) or 0
    return samples * audio_hz // 48_000 if codec == "opus" else samples


@pytest.mark.parametrize("codec", MAKERS)
def test_a_stored_length_is_what_decodes(codec, monkeypatch):
    variants.use_small_blocks(monkeypatch)
    kept = 0
    for seed in range(CASES_PER_CODEC):
        draw = random.Random(f"{codec} {seed}")
        audio_hz = draw.choice(RATES.get(codec, (16_000, 24_000, 44_100)))
        writers = ("", "ffmpeg") if codec in ("flac", "mp3", "opus", "wav") else ("",)
        base, other = (
            whole(codec, audio_hz, draw.choice(SECONDS), draw.choice(writers)) for _ in range(2)
        )
        case = MAKERS[codec](draw, base, other)
        is_whole = seed % 3 == 0
        anywhere = seed % 3 == 1
        data = case.data
        if not is_whole:
            data = damaged(draw, data, 0 if anywhere else case.header_bytes)
        kept += check_length(f"{codec} {seed}", codec, case, data, is_whole, anywhere)
    assert kept >= CASES_PER_CODEC // 3


def found(data: bytes | Blocks) -> AudioHeader | str:
    try:
        return Recording(data).header
    except BadRecord as bad:
        return str(bad)


def check_length(
    name: str, codec: str, case: Case, data: bytes, is_whole: bool, anywhere: bool
) -> bool:
    """Check one file; return whether it was kept."""
    header, decoded = attempt(read_header, data), attempt(decode, data)
    assert found(data) == found(variants.in_blocks(data)), name
    assert not (is_whole and isinstance(header, BadRecord)), f"{name}: {header}"
    assert not (is_whole and isinstance(decoded, BadRecord)), f"{name}: {decoded}"
    if isinstance(decoded, BadRecord):
        return False
    assert isinstance(header, AudioHeader), f"{name}: decodes, but {header}"
    audio, audio_hz = decoded
    assert (len(audio), audio_hz) == (header.num_frames, header.audio_hz), name
    if anywhere:
        return True
    tolerance = FRAME[codec] * len(case.parts)
    whole_frames = sum(ffmpeg_frames(codec, part, audio_hz) for part in case.parts)
    if is_whole:
        assert abs(len(audio) - whole_frames) <= tolerance, (name, len(audio), whole_frames)
    else:
        theirs = ffmpeg_frames(codec, data, audio_hz)
        assert theirs <= len(audio) + LEFT_IN[codec] * tolerance, (name, len(audio), theirs)
    return True
