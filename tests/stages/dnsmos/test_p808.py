"""The P.808 spectrogram must equal librosa's, which the reference uses."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import speechmos.dnsmos as reference

from stages.dnsmos.p808 import P808, _mel_filters
from tests.stages.speech import speech_16k


@pytest.mark.slow
def test_the_mel_filters_equal_librosas():
    theirs = librosa.filters.mel(sr=16_000, n_fft=321, n_mels=120)
    np.testing.assert_allclose(_mel_filters(), theirs.T, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 1e-3, 0.0], ids=["speech", "faint", "silent"])
def test_the_spectrogram_equals_the_references(gain):
    window = speech_16k(9.01)[:144_000] * np.float32(gain)
    theirs = reference.DNSMOS.audio_melspec(None, window)  # pyright: ignore[reportArgumentType]
    ours = P808(lambda values: values).log_mel(window)
    assert ours.shape == (900, 120)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_the_mean_is_over_the_windows():
    seen = []

    def run(values):
        seen.append(values)
        return np.array([[float(len(seen))]], np.float32)

    audio = speech_16k(11.01)
    assert P808(run).score(audio, [0, 16_000, 32_000]) == 2.0
    assert [values.shape for values in seen] == [(1, 900, 120)] * 3
    assert not np.array_equal(seen[0], seen[1])
