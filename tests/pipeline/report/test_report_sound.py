"""Sound and pictures as the report embeds them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import soundfile

from koe.vocabulary import CODEC_HZ
from pipeline.report.spectrogram import BANDS, COLUMNS, mp3, picture, png, power


def test_a_tone_is_seen_at_its_pitch_and_heard_again():
    times = np.arange(2 * CODEC_HZ) / CODEC_HZ
    tone = (0.5 * np.sin(2 * np.pi * 3000 * times)).astype(np.float32)
    decibels = power(tone)
    assert decibels.shape == (BANDS, COLUMNS)
    assert abs(decibels.mean(axis=1).argmax() - 3000 / 12000 * BANDS) <= 1
    heard, rate = soundfile.read(io.BytesIO(mp3(tone)))
    assert rate == CODEC_HZ
    assert abs(len(heard) / rate - 2) < 0.15
    spectrum = np.abs(np.fft.rfft(heard))
    assert abs(spectrum.argmax() / len(heard) * rate - 3000) < 2
    assert len(picture(decibels, 0.0)) < 20_000
    assert power(np.zeros(10, np.float32)).shape == (BANDS, COLUMNS)  # shorter than a window


def test_a_png_holds_its_pixels():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    palette = np.arange(18, dtype=np.uint8).reshape(6, 3)
    data = png(pixels, palette)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + size]
        assert struct.unpack_from(">I", data, place + 8 + size) == (zlib.crc32(body),)
        chunks[body[:4]], place = body[4:], place + 12 + size
    assert struct.unpack(">IIBB", chunks[b"IHDR"][:10]) == (3, 2, 8, 3)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0\0\1\2\0\3\4\5"
    assert chunks[b"PLTE"] == palette.tobytes()
