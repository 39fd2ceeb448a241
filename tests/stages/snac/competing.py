"""A small codec whose codes compete hard: each entry of its codebooks has a twin a rounding away."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from snac import SNAC

from stages.snac.architecture import ARCHITECTURE, fold_weight_norm
from tests.stages.speech import speech_24k

_TWINS_APART = 1e-7  # the last bit of an entry


@cache
def competing_model() -> SNAC:
    """Return SNAC with a sixth of its width, seeded, its weight norm folded.

    Any change of the last bits of what is quantised changes about every second code.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        small: dict[str, Any] = {**ARCHITECTURE, "encoder_dim": 16, "decoder_dim": 64}
        model = fold_weight_norm(SNAC(**small))
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Conv1d):
                module.weight *= 2.0  # or the latents hardly move
        rest = model.encoder(torch.from_numpy(speech_24k(20 * 2048))[None, None])
        for level in model.quantizer.quantizers:
            mean = rest.mean((0, 2))
            level.in_proj.bias.copy_(-level.in_proj.weight[:, :, 0] @ mean)
            entries = level.codebook.weight
            entries[1::2] = entries[::2] * (1 + _TWINS_APART * torch.randn(entries[::2].shape))
            rest = rest - level(rest)[0]
    return model
