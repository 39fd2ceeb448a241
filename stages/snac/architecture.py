"""SNAC 24 kHz as the package builds it.

Source: the package snac 1.2.1 (`snac/snac.py`) and hubertsiuzdak/snac_24khz (`config.json`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from snac import SNAC
from torch import Tensor
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

_IN_CACHE = 1 << 14  # values


def fold_weight_norm(model: SNAC) -> SNAC:
    """Compute the 60 normalised weights once, here and not at every call; returns `model`.

    In FP64 and in one order, so that every CPU rounds them to the same weights.
    """
    for module in list(model.modules()):
        for name, parametrized in list(getattr(module, "parametrizations", {}).items()):
            weight = _normalised(parametrized.original0, parametrized.original1)
            parametrize.remove_parametrizations(module, name)
            getattr(module, name).data.copy_(weight)
    return model.eval().requires_grad_(False)


def _normalised(length: Tensor, direction: Tensor) -> Tensor:
    """Return `direction` [n, ...] with each of its n parts scaled to a `length` [n, 1, 1]."""
    rows = direction.detach().cpu().flatten(1).numpy()
    lengths = length.detach().cpu().flatten(1).numpy()
    scaled = np.empty_like(rows)
    at_once = max(1, _IN_CACHE // rows.shape[1])
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        exact = rows[part].astype(np.float64)
        norm = np.sqrt(_row_sums(exact * exact))
        scaled[part] = exact * (lengths[part] / norm[:, np.newaxis])
    return torch.from_numpy(scaled).reshape(direction.shape)


def _row_sums(rows: np.ndarray) -> np.ndarray:
    """Sum rows [n, k] by halves, an order that no library chooses."""
    while (width := rows.shape[1]) > 1:
        half = width // 2
        folded = rows[:, :half] + rows[:, width - half :]
        rows = np.concatenate([folded, rows[:, half : width - half]], axis=1)
    return rows[:, 0]
