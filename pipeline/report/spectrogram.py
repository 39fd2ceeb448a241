"""Audio as the page embeds it: an MP3 to play and a small PNG of its spectrogram.

A plotly heatmap would hold every point as text.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
from PIL import Image
from plotly.colors import hex_to_rgb, sequential

from koe.vocabulary import CODEC_HZ

COLUMNS, BANDS = 480, 128  # pixels; a band is 94 Hz wide
RANGE_DB = 80.0  # from the loudest point down to black
_LEVELS = 64  # colours; more could not be told apart, and would cost bytes
_WINDOW = 1024  # samples at 24 kHz, 43 ms


def mp3(audio: np.ndarray) -> bytes:
    """Compress float32 [samples] at 24 kHz to MP3, which every browser plays, unlike Vorbis."""
    file = io.BytesIO()
    soundfile.write(
        file,
        np.clip(audio, -1.0, 1.0),
        CODEC_HZ,
        format="MP3",
        bitrate_mode="VARIABLE",
        compression_level=0.3,
    )
    return file.getvalue()


def power(audio: np.ndarray) -> np.ndarray:
    """Measure the power of float32 [samples] at 24 kHz: [BANDS, COLUMNS], 0 to 12 kHz, in dB."""
    padded = np.pad(audio, _WINDOW // 2)
    starts = np.linspace(0, len(audio), COLUMNS, endpoint=False).astype(np.int64)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[starts]
    bins = np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW), axis=1)[:, 1:]) ** 2
    bands = bins.reshape(COLUMNS, BANDS, -1).mean(axis=2)
    return 10 * np.log10(bands.T + 1e-10)


def picture(decibels: np.ndarray, top: float) -> bytes:
    """Draw [bands, columns] as a PNG, low bands at the bottom; `top` dB is the brightest colour."""
    levels = (decibels[::-1] - top + RANGE_DB) / RANGE_DB * (_LEVELS - 1)
    image = Image.fromarray(np.clip(levels, 0, _LEVELS - 1).astype(np.uint8))
    image.putpalette(_palette().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _palette() -> np.ndarray:
    """Return uint8 [colours, 3] from dark to bright, in steps that look even."""
    anchors = np.array([hex_to_rgb(colour) for colour in sequential.Magma])
    places = np.linspace(0, len(anchors) - 1, _LEVELS)
    channels = [np.interp(places, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=1).round().astype(np.uint8)
