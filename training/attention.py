"""Attention within documents of packed rows."""

from __future__ import annotations

import torch


def document_causal_mask(document_index: torch.Tensor) -> torch.Tensor:
    """Mark which token may attend to which: earlier ones of its own document, and itself.

    `document_index`: integer [rows, tokens], -1 at padding. Returns bool [rows, 1, tokens,
    tokens], true where query (third axis) may see key. Padding sees padding, because a query
    that sees nothing would make softmax return NaN.
    """
    num_tokens = document_index.shape[1]
    same = document_index.unsqueeze(2) == document_index.unsqueeze(1)
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=same.device).tril()
    return (same & causal).unsqueeze(1)
