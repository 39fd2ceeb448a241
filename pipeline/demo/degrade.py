"""Ways to degrade speech: audio, its rate and a random generator in, degraded audio out.

Every function takes float32 [samples] and returns float32 [samples] of the same length. It draws
its strength from `rng`, so that a degradation needs no other settings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Degradation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def add_white_noise(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Add white noise at a signal-to-noise ratio of 0 to 30 dB."""
    return mix(audio, rng.standard_normal(len(audio)), rng.uniform(0.0, 30.0))


def add_babble(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Add a murmur at 0 to 20 dB: eight shifted copies of the speech, half of them reversed."""
    voices = [
        np.roll(audio[:: 1 if voice % 2 else -1], int(rng.integers(len(audio))))
        for voice in range(8)
    ]
    return mix(audio, np.sum(voices, axis=0), rng.uniform(0.0, 20.0))


def reverberate(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a synthetic room: noise that decays by 60 dB within 0.4 to 2 s.

    The reverberation is between 6 dB stronger and 9 dB weaker than the direct sound.
    """
    decay_seconds = rng.uniform(0.4, 2.0)
    seconds = np.arange(int(decay_seconds * audio_hz)) / audio_hz
    tail = rng.standard_normal(len(seconds)) * 10.0 ** (-3.0 * seconds / decay_seconds)
    tail *= 10.0 ** (-rng.uniform(-6.0, 9.0) / 20.0) / np.sqrt(np.sum(tail**2))
    tail[0] += 1.0
    # a power of two, because the transform of a length with large prime factors is slow
    num_samples = 1 << (len(audio) + len(tail) - 1).bit_length()
    wet = np.fft.irfft(
        np.fft.rfft(audio, num_samples) * np.fft.rfft(tail, num_samples), num_samples
    )
    return wet[: len(audio)].astype(np.float32)


def clip_peaks(audio: np.ndarray, audio_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Amplify by 10 to 42 dB and cut everything off at the level of the original peak."""
    peak = float(np.abs(audio).max(initial=0.0))
    gain = 10.0 ** (rng.uniform(10.0, 42.0) / 20.0)
    return np.clip(audio * gain, -peak, peak).astype(np.float32)


def mix(audio: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add `noise`, scaled to lie `snr_db` below the mean power of `audio`."""
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    if noise_power == 0.0:
        return audio
    wanted = float(np.mean(np.square(audio, dtype=np.float64))) * 10.0 ** (-snr_db / 10.0)
    return (audio + noise * np.sqrt(wanted / noise_power)).astype(np.float32)


DEGRADATIONS: dict[str, Degradation] = {
    "white_noise": add_white_noise,
    "babble": add_babble,
    "reverberation": reverberate,
    "clipping": clip_peaks,
}
