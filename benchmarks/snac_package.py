"""SNAC as its package runs it, the peer of `snac_gpu`: codes in FP32 and latents in FP64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from snac import SNAC
from torch.nn.functional import pad

from koe.vocabulary import FRAME_SAMPLES, flatten_codes
from stages.native.repeatable import deterministic_inference


def package_codes(model: SNAC, clip: np.ndarray, device: str) -> np.ndarray:
    """Encode a clip alone, float32 [samples] to int [7 frames] in Orpheus' order, as the flags of torch have it."""
    with torch.inference_mode():
        return flat(model.encode(torch.from_numpy(clip)[None, None].to(device)))


def package_fp32(model: SNAC, clips: Sequence[np.ndarray], device: str) -> list[np.ndarray]:
    """Encode each clip alone in FP32."""
    with deterministic_inference():
        return [package_codes(model, clip, device) for clip in clips]


def package_latents(model: SNAC, clip: np.ndarray, device: str) -> torch.Tensor:
    """Return the latents of a clip from a model in FP64."""
    audio = pad(torch.from_numpy(clip).to(device), (0, -len(clip) % FRAME_SAMPLES))
    with torch.inference_mode():
        return model.encoder(audio[None, None].double())


def flat(codebooks: Sequence[torch.Tensor]) -> np.ndarray:
    """Bring the three codebooks of a clip, [1, codes] each, into Orpheus' order."""
    return flatten_codes([codebook[0].cpu().numpy() for codebook in codebooks])
