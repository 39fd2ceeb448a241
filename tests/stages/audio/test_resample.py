"""Resampling is torchaudio's, and refuses rates that would need a giant kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from koe.errors import BadRecord
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
