"""Small files of every kind of audio, by name."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

import numpy as np
import soundfile

from tests.fuzz.mutations import Files
from tests.fuzz.reader import Pack, Reader, lines, plain
from tests.stages.audio_files import clip, encoded, tone
from tests.stages.audio_variants import mp3_in_riff, mp3_parts, ogg_pages, rf64, rifx

HZ = 8_000


def audio_reader(audio: Callable[[], bytes], pack: Pack = plain) -> Reader:
    """Make the reader of one audio file, of which there are three clips."""
    whole = {"audio_filepath": "a.audio", "text": "文"}
    parts = [{**whole, "offset": 0.05, "duration": 0.1}, {**whole, "offset": 0.1, "channel": 0}]
    manifest = {"m.jsonl": lines(whole, *parts)}
    settings = {"kind": "manifest", "paths": ["m.jsonl"], "fields": {"channel": "channel"}}
    return Reader(lambda: {"a.audio": audio()}, settings, pack=pack, beside=lambda: manifest)


def wav(subtype: str, channels: int = 1) -> bytes:
    data = io.BytesIO()
    audio = np.stack([tone(0.25, HZ, 200.0 + 90 * number) for number in range(channels)], axis=1)
    soundfile.write(data, audio, HZ, format="WAV", subtype=subtype)
    return data.getvalue()


def stereo(kind: str) -> bytes:
    return encoded(np.stack([tone(0.25, HZ), tone(0.25, HZ, 331.0)], axis=1), HZ, kind)


def with_checksums(files: Files) -> dict[str, bytes]:
    """Give each page of an Ogg file the checksum of what is on it, so that more than it is tried."""
    return {name: b"".join(map(_checked, ogg_pages(data))) for name, data in files.items()}


_BACKWARDS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checked(page: bytes) -> bytes:
    bare = (page[:22] + bytes(4) + page[26:]).translate(_BACKWARDS)
    value = (zlib.crc32(bare, 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "little").translate(_BACKWARDS)
    return page[:22] + value[::-1] + page[26:] if len(page) >= 26 else page


AUDIO = {
    "wav": audio_reader(lambda: wav("PCM_16", 2)),
    "wav_float": audio_reader(lambda: wav("FLOAT")),
    "wav_ulaw": audio_reader(lambda: wav("ULAW")),
    "wav_adpcm": audio_reader(lambda: wav("IMA_ADPCM")),
    "wav_gsm": audio_reader(lambda: wav("GSM610")),
    "wav_rf64": audio_reader(lambda: rf64(wav("PCM_16"))),
    "wav_rifx": audio_reader(lambda: rifx(wav("PCM_16"))),
    "wav_mp3": audio_reader(lambda: mp3_in_riff(mp3_parts(clip(0.3, 16_000, "mp3"))[1], 16_000)),
    "flac": audio_reader(lambda: stereo("flac")),
    "mp3": audio_reader(lambda: stereo("mp3")),
    "opus": audio_reader(lambda: stereo("opus"), with_checksums),
    "vorbis": audio_reader(lambda: stereo("ogg"), with_checksums),
}
