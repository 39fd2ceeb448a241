"""Ways to spoil speech: audio, its rate and a random generator in, spoiled audio out.

Every function takes float32 [samples] and returns float32 [samples] of the same length. Those
with a strength draw it from `rng`, so that a degradation by name needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Degradation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

TELEPHONE_HZ = (300.0, 3400.0)  # the pass band of ITU-T G.712
_MU = 255.0  # of ITU-T G.711


def add_white_noise(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Add white noise at 0 to 30 dB SNR."""
    return mix(audio, rng.standard_normal(len(audio)), rng.uniform(0.0, 30.0))


def add_pink_noise(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Add noise whose power falls by 3 dB an octave, at 0 to 30 dB SNR."""
    spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
    hz = np.fft.rfftfreq(len(audio), 1.0 / audio_hz)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(hz, 20.0)), len(audio))
    return mix(audio, noise, rng.uniform(0.0, 30.0))


def add_babble(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Add a murmur at 0 to 30 dB SNR: eight shifted copies of the speech, half of them reversed."""
    voices = [
        np.roll(audio[:: 1 if voice % 2 else -1], int(rng.integers(len(audio))))
        for voice in range(8)
    ]
    return mix(audio, np.sum(voices, axis=0), rng.uniform(0.0, 30.0))


def reverberate(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a synthetic room: noise that decays by 60 dB in 0.4 to 2 s.

    The reverberation is 6 dB stronger to 9 dB weaker than the direct sound.
    """
    decay_seconds = rng.uniform(0.4, 2.0)
    seconds = np.arange(int(decay_seconds * audio_hz)) / audio_hz
    tail = rng.standard_normal(len(seconds)) * 10.0 ** (-3.0 * seconds / decay_seconds)
    tail *= 10.0 ** (-rng.uniform(-6.0, 9.0) / 20.0) / np.sqrt(np.sum(tail**2))
    tail[0] += 1.0
    num_samples = len(audio) + len(tail) - 1
    wet = np.fft.irfft(
        np.fft.rfft(audio, num_samples) * np.fft.rfft(tail, num_samples), num_samples
    )
    return wet[: len(audio)].astype(np.float32)


def clip_peaks(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Overdrive by 10 to 42 dB into a hard limit at the level of the original peak."""
    peak = float(np.abs(audio).max(initial=0.0))
    gain = 10.0 ** (rng.uniform(10.0, 42.0) / 20.0)
    return np.clip(audio * gain, -peak, peak).astype(np.float32)


def telephone(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Keep the band of a telephone line and quantise by mu-law to 2 to 6 bits.

    Bandwidth and 8 bits alone hardly lower DNSMOS; fewer bits do.
    """
    low_hz, high_hz = TELEPHONE_HZ
    spectrum = np.fft.rfft(audio)
    hz = np.fft.rfftfreq(len(audio), 1.0 / audio_hz)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0.0
    narrow = np.fft.irfft(spectrum, len(audio))
    peak = float(np.abs(narrow).max(initial=0.0))
    if peak == 0.0:
        return audio
    return (peak * quantise_mu_law(narrow / peak, int(rng.integers(2, 7)))).astype(np.float32)


def quantise_mu_law(audio: np.ndarray, num_bits: int) -> np.ndarray:
    """Compress, round to 2^num_bits - 1 levels around zero, and expand audio within -1..1."""
    half_levels = 2 ** (num_bits - 1) - 1
    compressed = np.sign(audio) * np.log1p(_MU * np.abs(audio)) / np.log1p(_MU)
    rounded = np.round(compressed * half_levels) / half_levels
    return np.sign(rounded) * np.expm1(np.abs(rounded) * np.log1p(_MU)) / _MU


def mix(audio: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add `noise`, scaled to lie `snr_db` below the mean power of `audio`."""
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    if noise_power == 0.0:
        return audio
    wanted = float(np.mean(np.square(audio, dtype=np.float64))) * 10.0 ** (-snr_db / 10.0)
    return (audio + noise * np.sqrt(wanted / noise_power)).astype(np.float32)


DEGRADATIONS: dict[str, Degradation] = {
    "white_noise": add_white_noise,
    "pink_noise": add_pink_noise,
    "babble": add_babble,
    "reverberation": reverberate,
    "clipping": clip_peaks,
    "telephone": telephone,
}
