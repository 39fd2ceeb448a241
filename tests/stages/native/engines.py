"""The native engines of codec and scorer, complete, on one instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.dnsmos.kernels import (
    BF16_SOURCE,
    SOURCE,
    SPECTROGRAM_SOURCE,
    NativeHead,
    NativeShared,
    NativeSpectrogram,
)
from stages.dnsmos.network import Network, Part, Parts, cut
from stages.dnsmos.scorer import find_model
from stages.native.build import PORTABLE, Unavailable
from stages.native.compiler import Library, bf16_target, load_target, target
from stages.snac import compiled
from stages.snac.architecture import fold_weight_norm
from stages.snac.encoder import TiledEncoder
from stages.snac.untrained import untrained_model

Wrap = Callable[[Library], Library]


def runnable() -> list[str]:
    """Name the instruction sets that this CPU runs, the portable code last."""
    try:
        own = target()
    except Unavailable:
        return [PORTABLE]
    return [own, *(["avx2"] if own == "avx512" else []), PORTABLE]


def runnable_in_bf16() -> list[str]:
    """Name what `runnable` does, first of all what this CPU multiplies BF16 with, if it does."""
    try:
        return [bf16_target(), *runnable()]
    except Unavailable:
        return runnable()


def library(source: Path, name: str) -> Library:
    try:
        return load_target(source, name)
    except Unavailable as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class NativeEngines:
    """Both engines on libraries of one instruction set, each wrapped by `wrap`."""

    name: str
    wrap: Wrap = lambda library: library

    def latents_and_codes(self, audio: np.ndarray) -> list[torch.Tensor]:
        """Encode float32 [samples] at 24 kHz with the untrained weights."""
        kernels = compiled.NativeKernels(self._library(compiled.SOURCE))
        encoder, clip = TiledEncoder(folded_model(), kernels), torch.from_numpy(audio)
        with torch.inference_mode():
            return [encoder.latents(clip), *encoder.encode(clip)]

    def raw_scores(self, audio: np.ndarray, starts: list[int]) -> np.ndarray:
        return Network(*self.scorer_parts(), map).raw_scores(audio, starts)

    def bf16_features(self, power: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Return what the shared convolutions of `Network`, scaled, make of log power in BF16."""
        weights = [
            (kernel * np.float32(scale), bias * 0) for kernel, bias in dnsmos_parts().weights
        ]
        if scale == 1.0:
            weights = dnsmos_parts().weights
        return NativeShared(weights, "bf16", self._library(BF16_SOURCE))(power)

    def scorer_parts(self) -> tuple[Part, Part, Part]:
        """Return spectrogram, shared convolutions and head of `Network`."""
        parts, windows = dnsmos_parts(), self._library(SOURCE)
        spectrogram = self._library(SPECTROGRAM_SOURCE)
        made = (
            NativeSpectrogram(parts.filters, spectrogram),
            NativeShared(parts.weights, "fp32", windows),
            NativeHead(parts.head_weights, windows),
        )
        first, second, third = (_on_tensors(run) for run in made)
        return first, second, third

    def _library(self, source: Path) -> Library:
        return self.wrap(library(source, self.name))


def _on_tensors(run: Callable[[np.ndarray], np.ndarray]) -> Part:
    return lambda values: torch.from_numpy(run(values.contiguous().numpy()))


@cache
def folded_model():
    return fold_weight_norm(untrained_model(0)[0])


@cache
def dnsmos_parts() -> Parts:
    return cut(Path(find_model().path).read_bytes())
