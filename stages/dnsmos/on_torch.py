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

from koe.errors import ConfigError
from stages.dnsmos.network import EDGE_COLUMNS, WINDOW_FRAMES, Part, Parts

# How the shared convolutions compute. tf32 rounds their operands to 11 significant bits; tf32x3 is
# as exact as FP32, by three such products for each (tensor cores do both; a CPU has only FP32).
Arithmetic = Literal["fp32", "tf32", "tf32x3", "bf16"]

# Of the largest feature, how far one may lie from FP32 on a CPU.
_TOLERANCES: dict[Arithmetic, float] = {"fp32": 1e-4, "tf32x3": 1e-4, "tf32": 0.01, "bf16": 0.05}
_COMPARED_FRAMES = 48

_MIN_POWER = 1e-12  # the model's, like the rest of the log power
_POOLED = (3, 4)  # convolutions of `Parts.shared` that a pooling follows
_TF32_LOST_BITS = 13  # of the 23 bits after FP32's point
_CHANNEL_BYTES = 16  # a GPU's fast kernels read the channels of a pixel in pieces of so many

_Weights = Sequence[tuple[np.ndarray, np.ndarray]]
_Convolve = Callable[[Tensor, Tensor, Tensor], Tensor]

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


def require_sound(
    shared: Part,
    weights: _Weights,
    device: str,
    arithmetic: Arithmetic,
    num_frames: int = WINDOW_FRAMES,
) -> None:
    """Compare `shared` with FP32 on this CPU, at both ends and in the middle of two windows at once.

    Raises: ConfigError when a feature lies further from it than rounding explains.
    """
    drawn = np.random.default_rng(0).uniform(-12, 2, (2, 1, num_frames, 161))
    power = torch.from_numpy(drawn.astype(np.float32))
    found = shared(power.to(device)).cpu()
    exact, off = shared_layers(weights, "cpu", "fp32"), 0.0
    for start in (0, num_frames // 2 // 4 * 4, num_frames - _COMPARED_FRAMES):
        stop = start + _COMPARED_FRAMES
        expected = exact(power[:, :, start:stop])
        # Only columns that see all that they see in the whole window.
        columns = slice(EDGE_COLUMNS if start else 0, -EDGE_COLUMNS if stop < num_frames else None)
        error = (found[:, :, start // 4 : stop // 4] - expected)[:, :, columns].abs().max()
        off = max(off, float((error / expected.abs().max()).nan_to_num(torch.inf)))
    if off > _TOLERANCES[arithmetic]:
        raise ConfigError(
            f"score.precision {arithmetic} cannot be used on {device}",
            f"its convolutions are off by {off:.1e} of the largest feature there",
            "Set score.provider: cpu, and report the GPU and the versions of torch and cuDNN.",
        )


def _spectrogram(filters: np.ndarray, device: str) -> Part:
    """Return `Parts.spectrogram` of its `filters`, for any number of clips at once.

    A product, as they were trained: no Fourier transform gives theirs.
    """
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


def shared_layers(
    weights: _Weights, device: str, arithmetic: Arithmetic, fuse: bool | None = None
) -> Part:
    """Return `Parts.shared` of its `weights`.

    The input of the first convolution, 1 % of the work, is never rounded: its rounding alone would
    double the error of a score. `fuse` takes cuDNN's convolutions with ReLU in one kernel; None: on
    CUDA, but not in FP32, whose speed was measured without.
    """
    moved = [_moved(layer, device) for layer in weights]
    rounding = {"fp32": None, "bf16": _BF16}.get(arithmetic, _TF32)
    num_split = len(weights) if arithmetic == "tf32x3" else 1
    layers = [
        _rounded(*layer, rounding, in_halves=place < num_split) if rounding else _Layer(*layer)
        for place, layer in enumerate(moved)
    ]
    if fuse is None:
        fuse = device == "cuda" and arithmetic != "fp32"
    with _cudnn(tf32=rounding is _TF32):
        convolve = fused_where_it_runs(layers) if fuse else _convolve

    def run(power: Tensor) -> Tensor:
        with _cudnn(tf32=rounding is _TF32):
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
    """As `_convolve`, by a kernel of cuDNN that writes what it computes once instead of thrice.

    It heeds no `cudnn.deterministic`; what it chooses by rule for a shape, it chooses every time.
    """
    return torch.cudnn_convolution_relu(x, kernel, bias, (1, 1), (1, 1), (1, 1), 1)


def fused_where_it_runs(layers: Sequence[_Layer]) -> _Convolve:
    """Return the fastest convolution with ReLU that cuDNN has for all of the layers."""
    try:
        for kernel, bias, _ in layers:
            _fused(kernel.new_zeros(1, kernel.shape[1], 8, 8), kernel, bias)
    except RuntimeError as error:
        _LOG.warning("DNSMOS scores slower, as cuDNN cannot fuse its convolutions: %s", error)
        return _convolve
    return _fused


class _Rounding(NamedTuple):
    """How values become fewer bits: `split` into two whose sum they are but for a rest.

    `halves` lays out an input [n, channels, ...] as high, low, high along its channels, and zeros
    up to what a GPU reads at once. With the kernel (high, high, low) a convolution then has every
    product but the one of both lows.
    """

    split: Callable[[Tensor], tuple[Tensor, Tensor]]
    halves: Callable[[Tensor], Tensor]


def _rounded(kernel: Tensor, bias: Tensor, rounding: _Rounding, in_halves: bool) -> _Layer:
    high, low = rounding.split(kernel)
    laid = _joined(high, high, low) if in_halves else high
    laid = laid.contiguous(memory_format=torch.channels_last)
    return _Layer(laid, bias.to(high.dtype), rounding.halves if in_halves else None)


def _joined(*parts: Tensor) -> Tensor:
    """Join parts along the channels, filled up with zeros to what a GPU reads at once."""
    num_zeros = _num_zeros(sum(part.shape[1] for part in parts), parts[0].element_size())
    zeros = parts[0].new_zeros(parts[0].shape[0], num_zeros, *parts[0].shape[2:])
    return torch.cat((*parts, zeros), dim=1)


def _num_zeros(num_channels: int, num_bytes: int) -> int:
    return -num_channels % (_CHANNEL_BYTES // num_bytes)


def _split_bf16(exact: Tensor) -> tuple[Tensor, Tensor]:
    rounded = exact.to(torch.bfloat16)
    return rounded, (exact - rounded).to(torch.bfloat16)


def _bf16_halves(x: Tensor) -> Tensor:
    high, low = _split_bf16(x)
    return _joined(high, low, high).contiguous(memory_format=torch.channels_last)


def _split_tf32(exact: Tensor) -> tuple[Tensor, Tensor]:
    high = round_to_tf32(exact)
    return high, round_to_tf32(exact - high)


def _tf32_halves(x: Tensor) -> Tensor:
    """Write each value where it belongs: this is done to every activation, and memory is slow.

    Instead of rounding, high leaves bits out, and the tensor cores do so with low.
    """
    num, channels, *size = x.shape
    num_zeros = _num_zeros(3 * channels, x.element_size())
    laid = torch.empty(
        (num, 3 * channels + num_zeros, *size),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
    )  # fmt: skip
    high, low, again, zeros = laid.split([channels, channels, channels, num_zeros], dim=1)
    torch.bitwise_and(x.view(torch.int32), -(1 << _TF32_LOST_BITS), out=high.view(torch.int32))
    torch.sub(x, high, out=low)
    again.copy_(high)
    zeros.zero_()
    return laid


def round_to_tf32(exact: Tensor) -> Tensor:
    """Round finite FP32 to the nearest value that TF32 holds, ties away from zero."""
    lost = 1 << _TF32_LOST_BITS
    return ((exact.view(torch.int32) + lost // 2) & -lost).view(torch.float32)


_BF16 = _Rounding(_split_bf16, _bf16_halves)
_TF32 = _Rounding(_split_tf32, _tf32_halves)


def _moved(layer: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    weight, bias = (torch.from_numpy(values.copy()).to(device) for values in layer)
    return weight, bias
