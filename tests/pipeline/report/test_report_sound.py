"""Sound and pictures as the report embeds them."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from PIL import Image

from koe.vocabulary import CODEC_HZ
from pipeline.report.spectrogram import BANDS, COLUMNS, mp3, picture, power


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


def test_a_picture_holds_its_levels_from_dark_to_bright():
    decibels = np.array([[-80.0, -40.0], [0.0, -200.0]])  # the first row is the lowest band
    image = Image.open(io.BytesIO(picture(decibels, 0.0))).convert("RGB")
    assert image.size == (2, 2)
    brightness = np.asarray(image, int).sum(axis=2)
    assert brightness[0, 0] == brightness.max(), "the loudest point, of the upper band"
    assert brightness[0, 1] == brightness[1, 0] == brightness.min(), "80 dB below, or more"
    assert brightness.min() < brightness[1, 1] < brightness.max()
