"""Resampling is torchaudio's, and refuses rates that would need a giant kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import BadRecord, StageError
from stages.audio import resampling
from stages.audio.decode import resample
from tests.stages.audio_files import tone


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(44_100, 16_000), (8_000, 24_000), (48_000, 24_000)]
)
def test_resampling_is_torchaudios(from_hz, to_hz):
    audio = tone(1.0, from_hz)
    ours = resample(audio, from_hz, to_hz)
    exact = torchaudio.functional.resample(torch.from_numpy(audio).double(), from_hz, to_hz)
    assert ours.dtype == np.float32
    assert len(ours) == to_hz
    assert np.abs(ours - exact.numpy()).max() < 1e-6


def test_resampling_to_the_same_rate_changes_nothing():
    audio = tone(0.1, 16_000)
    assert resample(audio, 16_000, 16_000) is audio


def test_a_rate_with_a_giant_kernel_is_refused():
    with pytest.raises(BadRecord, match="unsupported_rate"):
        resample(tone(0.1, 22_051), 22_051, 16_000)


def test_samples_that_are_not_torchaudios_stop_the_stage(monkeypatch):
    monkeypatch.setattr(resampling, "_ROLLOFF", 0.9)
    for cached in (resampling.windowed_sinc, resampling._proved):
        cached.cache_clear()
    try:
        with pytest.raises(StageError, match=r"by 2/3 is off by .* from torchaudio's"):
            resample(tone(0.1, 24_000), 24_000, 16_000)
    finally:
        for cached in (resampling.windowed_sinc, resampling._proved):
            cached.cache_clear()


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]),
       st.sampled_from([16_000, 24_000]), st.integers(1, 400), st.integers(0, 2**31))  # fmt: skip
def test_any_rate_and_length_is_torchaudios(from_hz, to_hz, length, seed):
    audio = np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)
    exact = torchaudio.functional.resample(torch.from_numpy(audio).double(), from_hz, to_hz)
    found = resample(audio, from_hz, to_hz)
    assert len(found) == len(exact)
    assert np.abs(found - exact.numpy()).max() < 1e-6
