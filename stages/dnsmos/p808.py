"""DNSMOS P.808: one overall score per window, computed only when asked for.

Source: `speechmos/dnsmos.py` of speechmos 0.0.1.1 (`audio_melspec`), which uses librosa's
`melspectrogram` and `power_to_db`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stages.dnsmos.onnx_session import Run

_HZ = 16_000
_FFT, _HOP, _MELS = 321, 160, 120
_WINDOW_SAMPLES = 144_000  # the reference leaves out the last hop of its 144,160
_FRAMES = 900
_TOP_DB = 80.0
_MIN_POWER = 1e-10


class P808:
    """The P.808 network over its own log-mel spectrograms."""

    def __init__(self, run: Run) -> None:
        """Bind `run`, which maps log-mel spectrograms [n, 900, 120] to scores [n, 1]."""
        self._run = run
        self._window = torch.hann_window(_FFT)
        self._mels = torch.from_numpy(_mel_filters())

    def score(self, audio: np.ndarray, starts: Sequence[int]) -> float:
        """Return the mean over the windows at `starts` of float32 [samples], mono, 16 kHz."""
        windows = (audio[start : start + _WINDOW_SAMPLES] for start in starts)
        scores = [float(self._run(self.log_mel(window)[np.newaxis])[0, 0]) for window in windows]
        return float(np.mean(scores))

    def log_mel(self, window: np.ndarray) -> np.ndarray:
        """Return the log-mel spectrogram of a window: float32 [144000] to float32 [900, 120]."""
        with torch.inference_mode():
            spectrum = torch.stft(
                torch.from_numpy(window),
                _FFT,
                _HOP,
                window=self._window,
                center=True,
                pad_mode="constant",
                return_complex=True,
            )
            power = spectrum.abs().square().T @ self._mels
            decibels = 10 * torch.log10(power.clamp(min=_MIN_POWER))
            decibels -= 10 * torch.log10(power.max().clamp(min=_MIN_POWER))
            return ((decibels.clamp(min=-_TOP_DB) + 40) / 40).numpy()[:_FRAMES]


def _mel_filters() -> np.ndarray:
    """Return Slaney's triangular filters of equal area: float32 [161, 120].

    torchaudio's assume an even FFT, whose last bin lies at half the rate; that of 321 does not.
    """
    bins = np.arange(_FFT // 2 + 1) * (_HZ / _FFT)
    corners = _slaney_hz(np.linspace(0, _slaney_mel(_HZ / 2), _MELS + 2))
    rising = (bins[:, np.newaxis] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - bins[:, np.newaxis]) / np.diff(corners)[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (corners[2:] - corners[:-2])).astype(np.float32)


# Slaney's scale: linear up to 1 kHz (15 mel), then 27 mel to each factor of 6.4.
_LINEAR_HZ, _LINEAR_MEL, _LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27


def _slaney_mel(hz: float) -> float:
    return _LINEAR_MEL + np.log(hz / _LINEAR_HZ) / _LOG_STEP  # of a frequency over 1 kHz


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    curved = _LINEAR_HZ * np.exp(_LOG_STEP * (mel - _LINEAR_MEL))
    return np.where(mel < _LINEAR_MEL, mel * _LINEAR_HZ / _LINEAR_MEL, curved)
