"""SNAC 24 kHz as the package builds it.

Source: the package snac 1.2.1 (`snac/snac.py`) and hubertsiuzdak/snac_24khz (`config.json`).
"""

from __future__ import annotations

from typing import Any

from snac import SNAC
from torch.nn.utils import parametrize

from koe.vocabulary import CODEBOOK_SIZE, CODEC_HZ

ARCHITECTURE: dict[str, Any] = {
    "sampling_rate": CODEC_HZ,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": CODEBOOK_SIZE,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def fold_weight_norm(model: SNAC) -> SNAC:
    """Compute the 60 normalised weights once, here and not at every call; returns `model`."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name)
    return model.eval().requires_grad_(False)
