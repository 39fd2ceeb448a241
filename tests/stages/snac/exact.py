"""SNAC in FP64 on the untrained weights: what the codes of every engine are judged by."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch
from snac import SNAC

from benchmarks.codec_distance import code_margins, latents
from stages.snac.untrained import untrained_model

# FP32 moves what is quantised by some 5e-6; the second nearest entry is usually 0.03 further away.
NEAR_TIE = 2e-4


@cache
def exact_model() -> SNAC:
    return copy.deepcopy(untrained_model(0)[0]).double().eval()


def exact_latents(audio: np.ndarray) -> torch.Tensor:
    """Return what FP64 quantises: float32 [samples] to float64 [1, channels, 4 F]."""
    return _latents(audio.tobytes())


@cache
def _latents(audio: bytes) -> torch.Tensor:
    return latents(exact_model(), np.frombuffer(audio, np.float32).copy())


def assert_near_ties(codes: np.ndarray, audio: np.ndarray) -> None:
    """Check that each code [7 F] is the nearest entry in FP64, or one that rounding makes nearest."""
    assert len(codes) == 7 * -(-len(audio) // 2_048)
    assert code_margins(exact_model(), exact_latents(audio), codes).max() < NEAR_TIE
