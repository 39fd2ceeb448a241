"""Resampling with torchaudio's default windowed sinc, to the same bits on every machine.

The sum of a sample runs over its terms in one order, in FP64, in compiled C or in numpy; torch's
convolution takes it as its instruction set does. Also the filter is computed here, because sines differ
by C library and CPU. The samples are torchaudio's to some 1e-7, which each worker proves at the first clip of a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torchaudio

from koe.errors import StageError
from stages.native.build import Unavailable
from stages.native.compiler import Library, load_library

SOURCE = Path(__file__).with_suffix(".c")
# torchaudio's defaults: zero crossings of the sinc on either side, and where it cuts off.
_CROSSINGS, _ROLLOFF = 6, 0.99
_MOST_APART = 1e-6  # from torchaudio in FP64: FP32's rounding of taps and samples
_TERMS = 14  # of a sine's Taylor series: the first left out is below 1e-17 at pi / 2


@dataclass(frozen=True)
class Filter:
    """Taps [phases, width] in FP64 that are floats, and where each phase begins in the audio.

    Output sample n reads `width` samples from `n // phases * step + first[n % phases]` of audio with
    `before` zeros in front.
    """

    taps: np.ndarray
    first: np.ndarray
    step: int
    before: int

    @property
    def phases(self) -> int:
        return len(self.taps)

    @property
    def width(self) -> int:
        return self.taps.shape[1]


def resampled(audio: np.ndarray, step: int, phases: int) -> np.ndarray:
    """Resample float32 [samples] to `phases` samples for every `step`, which share no divisor.

    Raises: StageError where the samples are not torchaudio's on this machine.
    """
    return _proved(step, phases)(audio)


@lru_cache(maxsize=32)
def _proved(step: int, phases: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what resamples, in C or else in numpy, after a comparison with torchaudio."""
    of = windowed_sinc(step, phases)
    try:
        compute = partial(in_c, library=load_library(SOURCE))
    except Unavailable:
        compute = in_numpy

    def resample(audio: np.ndarray) -> np.ndarray:
        samples, values = padded(of, audio)
        return compute(of, values, samples)

    probe = np.sin(np.arange(2 * step + 99) ** 1.5 / 40, dtype=np.float32)  # rises to high tones
    exact = torchaudio.functional.resample(torch.from_numpy(probe).double(), step, phases).numpy()
    apart = float(np.abs(resample(probe) - exact).max())
    if not apart < _MOST_APART:
        raise StageError(
            f"resampling by {phases}/{step} is off by {apart:.1e} from torchaudio's",
            f"the code compiled from {SOURCE.name} or numpy computes wrongly on this machine",
            "Install koe again on this machine, or leave it out of the run.",
        )
    return resample


def padded(of: Filter, audio: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how many samples `audio` becomes, and it with all the zeros that they read."""
    samples = -(-of.phases * len(audio) // of.step)
    periods = -(-samples // of.phases)
    end = (periods - 1) * of.step + int(of.first.max()) + of.width
    after = max(0, end - of.before - len(audio))
    return samples, np.pad(audio.astype(np.float32, copy=False), (of.before, after))


def in_c(of: Filter, values: np.ndarray, samples: int, library: Library) -> np.ndarray:
    out = np.empty(samples, np.float32)
    sizes = (samples, of.step, of.phases, of.width)
    library.resample(values, of.taps, of.first, out, *sizes)
    return out


def in_numpy(of: Filter, values: np.ndarray, samples: int) -> np.ndarray:
    periods = -(-samples // of.phases)
    out = np.empty((periods, of.phases), np.float32)
    for phase in range(of.phases):
        total = np.zeros(periods)
        for k in range(of.width):
            start = int(of.first[phase]) + k
            total += of.taps[phase, k] * values[start :: of.step][:periods].astype(np.float64)
        out[:, phase] = total
    return out.reshape(-1)[:samples]


@lru_cache(maxsize=32)
def windowed_sinc(step: int, phases: int) -> Filter:
    """Compute torchaudio's filter (`_get_sinc_resample_kernel`) but for the taps beyond its window."""
    base = min(step, phases) * _ROLLOFF
    before = math.ceil(_CROSSINGS * step / base)
    # Phase j lies at j / phases of a period of `step` samples; times are in zero crossings.
    center = np.arange(phases) * step / phases
    reach = _CROSSINGS * step / base
    first = np.maximum(np.ceil(center - reach).astype(np.int64), -before)
    width = int((np.floor(center + reach).astype(np.int64) - first).max()) + 1
    offsets = first[:, None] + np.arange(width)
    crossings = (offsets / step - np.arange(phases)[:, None] / phases) * base
    inside = np.abs(crossings) < _CROSSINGS
    times = np.where(inside, crossings, _CROSSINGS)
    # The window is the cosine's square: (1 + cos(pi t / 6)) / 2.
    window = (1 + _sine_of_pi(times / _CROSSINGS + 0.5)) / 2
    angle = np.where(times == 0, 1.0, times * math.pi)
    sinc = np.where(times == 0, 1.0, _sine_of_pi(times) / angle)
    taps = np.where(inside, sinc * window * (base / step), 0.0).astype(np.float32)
    return Filter(taps.astype(np.float64), first + before, step, before)


def _sine_of_pi(x: np.ndarray) -> np.ndarray:
    """Return sin(pi x) by products and sums alone, which every CPU rounds alike."""
    turns = np.rint(x)
    angle = (x - turns) * math.pi
    square, term, total = angle * angle, angle, angle
    for k in range(1, _TERMS):
        term = term * square / -(2 * k * (2 * k + 1))
        total = total + term
    return np.where(turns % 2 == 0, total, -total)
