"""The DNSMOS network on torch, which runs it on a GPU without any other package.

`stages.native.repeatable.deterministic_inference` keeps its FP32 from becoming TF32; where TF32 is
asked for, it is allowed around these convolutions alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import log
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.dnsmos.network import Part, Parts

# How the shared convolutions compute. tf32 rounds their operands to 11 significant bits; tf32x3 is
# as exact as FP32, by three such products for each (tensor cores do both; a CPU has only FP32).
Arithmetic = Literal["fp32", "tf32", "tf32x3", "bf16"]

_MIN_POWER = 1e-12  # the model's, like the rest of the log power
_POOLED = (3, 4)  # convolutions of `Parts.shared` that a pooling follows
_TF32_LOST_BITS = 13  # of the 23 bits after FP32's point
_CHANNEL_BYTES = 16  # a GPU's fast kernels read the channels of a pixel in pieces of so many

_Weights = Sequence[tuple[np.ndarray, np.ndarray]]
_Convolve = Callable[[Tensor, Tensor, Tensor], Tensor]
_Split = Callable[[Tensor], tuple[Tensor, Tensor]]

_LOG = logging.getLogger(__name__)


class _Layer(NamedTuple):
    """A convolution with ReLU; `halves`, where given, turns its input into what `kernel` takes."""

    kernel: Tensor
    bias: Tensor
    halves: Callable[[Tensor], Tensor] | None = None


def torch_parts(parts: Parts, device: str, arithmetic: Arithmetic) -> tuple[Part, Part, Part]:
    """Return spectrogram, shared and head; `arithmetic` is that of shared, the others are FP32."""
    return (
        _spectrogram(parts.filters, device),
        shared_layers(parts.weights, device, arithmetic),
        _head(parts.head_weights, device),
    )


def _spectrogram(filters: np.ndarray, device: str) -> Part:
    """Return `Parts.spectrogram` of its Fourier `filters`, for any number of clips at once."""
    basis = torch.from_numpy(filters.reshape(-1, filters.shape[2]).T.copy()).to(device)

    def run(frames: Tensor) -> Tensor:
        real, imaginary = (frames @ basis).chunk(2, dim=2)
        power = (real.square() + imaginary.square()).clamp(min=_MIN_POWER)
        return (power.log() / log(10)).unsqueeze(1)

    return run


def _head(weights: _Weights, device: str) -> Part:
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


def shared_layers(weights: _Weights, device: str, arithmetic: Arithmetic) -> Part:
    """Return `Parts.shared` of its `weights`.

    The input of the first convolution, 1 % of the work, is never rounded: its rounding alone would
    double the error of a score.
    """
    if arithmetic == "fp32":
        layers = [_Layer(*_moved(layer, device)) for layer in weights]
        return lambda power: _run(power, layers, _convolve)
    split = _split_bf16 if arithmetic == "bf16" else _split_tf32
    num_split = len(weights) if arithmetic == "tf32x3" else 1
    layers = [
        _rounded(*_moved(layer, device), split, in_halves=place < num_split)
        for place, layer in enumerate(weights)
    ]
    uses_tf32 = arithmetic != "bf16"
    with _cudnn(uses_tf32):
        convolve = fused_where_it_runs(layers) if device == "cuda" else _convolve

    def run(power: Tensor) -> Tensor:
        with _cudnn(uses_tf32):
            return _run(power, layers, convolve).float()

    return run


def _cudnn(tf32: bool) -> AbstractContextManager[None]:
    """Let cuDNN compute FP32 in TF32, or not, in here; its kernels are chosen by a rule."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
    )


def _run(x: Tensor, layers: Sequence[_Layer], convolve: _Convolve) -> Tensor:
    for place, (kernel, bias, halves) in enumerate(layers):
        x = convolve(halves(x) if halves else x, kernel, bias)
        if place in _POOLED:
            x = functional.max_pool2d(x, 2)
    return x


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, kernel, bias, padding=1).relu_()


def _fused(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """As `_convolve`, by a kernel of cuDNN that writes what it computes once instead of thrice."""
    return torch.cudnn_convolution_relu(x, kernel, bias, (1, 1), (1, 1), (1, 1), 1)


def fused_where_it_runs(layers: Sequence[_Layer]) -> _Convolve:
    """Return the fastest convolution with ReLU that cuDNN has for all of the layers."""
    try:
        for kernel, bias, _ in layers:
            few = kernel.new_zeros(1, kernel.shape[1], 8, 8)
            _fused(few.contiguous(memory_format=torch.channels_last), kernel, bias)
    except RuntimeError as error:
        _LOG.warning("DNSMOS scores slower, as cuDNN cannot fuse its convolutions: %s", error)
        return _convolve
    return _fused


def _rounded(kernel: Tensor, bias: Tensor, split: _Split, in_halves: bool) -> _Layer:
    """Round a layer; `in_halves` makes it one of an input that goes in as high, low and high.

    With the kernel (high, high, low) that is every product but the one of both lows.
    """
    high, low = split(kernel)
    if not in_halves:
        high = high.contiguous(memory_format=torch.channels_last)
        return _Layer(high, bias.to(high.dtype))

    def halves(x: Tensor) -> Tensor:
        high, low = split(x)
        return _joined(high, low, high)

    return _Layer(_joined(high, high, low), bias.to(high.dtype), halves)


def _joined(*parts: Tensor) -> Tensor:
    """Join parts along the channels, filled up with zeros to what a GPU reads at once."""
    step = _CHANNEL_BYTES // parts[0].element_size()
    num_zeros = -sum(part.shape[1] for part in parts) % step
    zeros = parts[0].new_zeros(parts[0].shape[0], num_zeros, *parts[0].shape[2:])
    return torch.cat((*parts, zeros), dim=1).contiguous(memory_format=torch.channels_last)


def _split_bf16(exact: Tensor) -> tuple[Tensor, Tensor]:
    rounded = exact.to(torch.bfloat16)
    return rounded, (exact - rounded).to(torch.bfloat16)


def _split_tf32(exact: Tensor) -> tuple[Tensor, Tensor]:
    high = round_to_tf32(exact)
    return high, round_to_tf32(exact - high)


def round_to_tf32(exact: Tensor) -> Tensor:
    """Round finite FP32 to the nearest value that TF32 holds, ties away from zero."""
    lost = 1 << _TF32_LOST_BITS
    bits = exact.view(torch.int32)
    return ((bits + lost // 2) & -lost).view(torch.float32)


def _moved(layer: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    weight, bias = (torch.from_numpy(values.copy()).to(device) for values in layer)
    return weight, bias
