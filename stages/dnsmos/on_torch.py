"""The DNSMOS network on torch, which runs it on a GPU without any other package.

`stages.native.repeatable.deterministic_inference` keeps its FP32 from becoming TF32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.dnsmos.network import Part, Parts
from stages.settings import Precision

_MIN_POWER = 1e-12  # the model's, like the rest of the log power
_POOLED = (3, 4)  # convolutions of `Parts.shared` that a pooling follows


def torch_parts(parts: Parts, device: str, precision: Precision) -> tuple[Part, Part, Part]:
    """Return spectrogram, shared and head; `precision` is that of shared, the others are FP32."""
    shared = bf16_shared if precision == "bf16" else _fp32_shared
    return (
        _spectrogram(parts.filters, device),
        shared(parts.weights, device),
        _head(parts.head_weights, device),
    )


def _spectrogram(filters: np.ndarray, device: str) -> Part:
    """Return `Parts.spectrogram` of its Fourier `filters`."""
    basis = torch.from_numpy(filters.reshape(-1, filters.shape[2]).T.copy()).to(device)

    def run(frames: Tensor) -> Tensor:
        real, imaginary = (frames[0] @ basis).chunk(2, dim=1)
        power = (real.square() + imaginary.square()).clamp(min=_MIN_POWER)
        return (power.log() / log(10)).unsqueeze(0).unsqueeze(0)

    return run


def _head(weights: Sequence[tuple[np.ndarray, np.ndarray]], device: str) -> Part:
    """Return `Parts.head` of its `head_weights`."""
    layers = [_moved(layer, device) for layer in weights]
    kernel, kernel_bias = layers[0]

    def run(features: Tensor) -> Tensor:
        x = functional.conv2d(functional.max_pool2d(features, 2), kernel, kernel_bias, padding=1)
        x = x.relu_().amax(dim=(2, 3))
        for weight, bias in layers[1:-1]:
            x = torch.addmm(bias, x, weight).relu_()
        return torch.addmm(layers[-1][1], x, layers[-1][0])

    return run


def _fp32_shared(weights: Sequence[tuple[np.ndarray, np.ndarray]], device: str) -> Part:
    """Return `Parts.shared` in FP32."""
    layers = [_moved(layer, device) for layer in weights]

    return lambda power: _convolve(power, layers)


def bf16_shared(weights: Sequence[tuple[np.ndarray, np.ndarray]], device: str) -> Part:
    """Return `Parts.shared` in BF16 (on a CPU by AVX-512 BF16 or AMX).

    Power and kernel of the first convolution, 1 % of the work, go in as sums of two BF16 values:
    their rounding alone would double the error of a score.
    """
    layers = [_moved(layer, device) for layer in weights]
    high, low = _split(layers[0][0])
    kernels = [
        torch.cat((high, high, low), dim=1),
        *(_split(kernel)[0] for kernel, _ in layers[1:]),
    ]
    rounded = [
        (kernel.contiguous(memory_format=torch.channels_last), bias.to(torch.bfloat16))
        for kernel, (_, bias) in zip(kernels, layers, strict=True)
    ]

    def run(power: Tensor) -> Tensor:
        high, low = _split(power)
        return _convolve(torch.cat((high, low, high), dim=1), rounded).float()

    return run


def _convolve(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for place, (kernel, bias) in enumerate(layers):
        x = functional.conv2d(x, kernel, bias, padding=1).relu_()
        if place in _POOLED:
            x = functional.max_pool2d(x, 2)
    return x


def _split(exact: Tensor) -> tuple[Tensor, Tensor]:
    rounded = exact.to(torch.bfloat16)
    return rounded, (exact - rounded).to(torch.bfloat16)


def _moved(layer: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    weight, bias = (torch.from_numpy(values.copy()).to(device) for values in layer)
    return weight, bias
