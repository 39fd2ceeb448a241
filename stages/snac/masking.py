"""The snac package's encoder on clips of several lengths at once, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MaskedEncoder:
    """Runs an encoder that mixes time steps by convolutions alone, as that of SNAC 24 kHz does.

    Beyond the end of a clip the next convolution must find zeros, as it does where a clip ends
    alone: what each convolution writes there is set to zero.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._frames = [0]
        self._masks: dict[int, Tensor] = {}  # by values per frame
        for module in encoder.modules():
            if isinstance(module, nn.Conv1d):
                module.register_forward_hook(self._zero_beyond)

    def __call__(self, audio: Tensor, frames: Sequence[int]) -> Tensor:
        """Encode float32 [clips, 1, samples] of `frames` frames each; the longest fills its row.

        Returns latents [clips, width, values], zero beyond a clip's end.
        """
        self._frames, self._masks = list(frames), {}
        try:
            return self._encoder(audio)
        finally:
            self._frames = [0]  # a direct call of the encoder is not masked

    def _zero_beyond(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        shortest, longest = min(self._frames), max(self._frames)
        if shortest == longest:
            return
        scale = output.shape[2] // longest
        if scale not in self._masks:
            self._masks[scale] = self._mask(shortest, longest, scale, output)
        output[:, :, shortest * scale :].mul_(self._masks[scale])

    def _mask(self, shortest: int, longest: int, scale: int, like: Tensor) -> Tensor:
        """Mark what lies inside each clip of the values after the shortest's end: [clips, 1, n]."""
        stops = torch.tensor(self._frames, device=like.device).mul_(scale).view(-1, 1, 1)
        place = torch.arange(shortest * scale, longest * scale, device=like.device)
        return (place < stops).to(like.dtype)
