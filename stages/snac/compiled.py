"""The arithmetic of SNAC's encoder and quantizer in compiled C."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.native.build import Unavailable
from stages.native.compiler import Library, load_library
from stages.native.products import PANEL, panels
from stages.snac.kernels import CONSTANTS, TAPS, Kernels, Quantize, TorchKernels, surrounded

SOURCE = Path(__file__).with_name("kernels.c")


@dataclass(frozen=True)
class Level:
    """A level of the quantizer in FP64, and for how many rows it chooses one entry.

    `into` [channels, points] and `out` [points, channels] project, `entries` [count, points] is the
    codebook, `normalised` [points, count] the same with entries of length 1, and `halves` [count]
    half the squares of those lengths (0 for an entry of zeros).
    """

    into: np.ndarray
    into_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    entries: np.ndarray
    normalised: np.ndarray
    halves: np.ndarray
    stride: int

    @classmethod
    def of(cls, level: Any) -> Level:
        into, out = level.in_proj, level.out_proj
        entries = _exact(level.codebook.weight)
        normalised = entries / np.maximum(np.sqrt(_squares(entries)), 1e-12)[:, None]
        return cls(
            _exact(into.weight[:, :, 0].t()),
            _exact(into.bias),
            _exact(out.weight[:, :, 0].t()),
            _exact(out.bias),
            entries,
            np.ascontiguousarray(normalised.T),
            _squares(normalised) / 2,
            level.stride,
        )

    def quantize(self, residual: np.ndarray, library: Library) -> Tensor:
        """Choose codes for rows [rows, channels], and take what they stand for from the rows."""
        rows, channels = residual.shape
        count, points = self.entries.shape
        codes = np.empty(rows // self.stride, np.int64)
        arrays = (self.into, self.into_bias, self.out, self.out_bias)
        library.quantize_level(
            *(residual, *arrays, self.entries, self.normalised, self.halves),
            *(
                np.empty(points + max(count, channels)),
                codes,
                rows,
                channels,
                points,
                count,
                self.stride,
            ),
        )
        return torch.from_numpy(codes)


def _exact(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().numpy().astype(np.float64))


def _squares(rows: np.ndarray) -> np.ndarray:
    """Sum the squares of each row in order: numpy's own sums have the order of its build."""
    total = np.zeros(len(rows))
    for column in rows.T:
        total += column * column
    return total


class NativeKernels:
    """The operations of `kernels.c`, in FP32; the quantizer in FP64."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def stem(self, x: Tensor, taps: Tensor, out: Tensor) -> None:
        self._library.stem_rows(x, taps, out, *out.shape)

    def snake(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        self._library.snake_rows(x, constants, out, *x.shape)

    def unit(
        self, x: Tensor, constants: Tensor, dilation: int, scratch: Tensor, head: int, out: Tensor
    ) -> None:
        tail = len(scratch) - head - len(x)
        surrounded(scratch, head, len(x))
        self._library.unit_rows(x, constants, scratch, out, *x.shape, dilation, head, tail)

    def depthwise(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        self._library.depthwise_rows(x, constants, out, *out.shape)

    def prepared(self, weight: Tensor) -> Tensor:
        return panels(weight)

    def add_product(self, x: Tensor, prepared: Tensor, out: Tensor) -> None:
        rows, depth = x.shape
        self._library.add_product(x, x.stride(0), prepared, out, rows, depth, out.shape[1])

    def quantizer(self, module: Any) -> Quantize:
        levels = [Level.of(level) for level in module.quantizers]

        def quantize(rows: Tensor) -> list[Tensor]:
            residual = rows.numpy().astype(np.float64)
            return [level.quantize(residual, self._library) for level in levels]

        return quantize


@cache
def native_kernels() -> NativeKernels:
    """Compile the C, load it and check it against torch; once per process.

    Raises: Unavailable without a compiler, or when it fails.
    """
    kernels = NativeKernels(load_library(SOURCE))
    difference = _difference(kernels, TorchKernels())
    if not difference < 1e-4:
        raise Unavailable(f"the code compiled from {SOURCE.name} is off by {difference:.1e}")
    return kernels


def _difference(kernels: Kernels, reference: Kernels) -> float:
    """Return the largest difference between two kernels on a few fixed rows."""
    rows, width, dilation, head = 50, 2 * PANEL, 3, 9
    x = torch.linspace(-3, 3, rows * width).reshape(rows, width)
    constants = torch.linspace(0.3, 1.5, CONSTANTS * width).reshape(CONSTANTS, width)
    outs = []
    for one in (kernels, reference):
        scratch = torch.empty(head + rows, width)
        out = torch.empty(head + rows - (TAPS - 1) * dilation, width)
        one.unit(x, constants, dilation, scratch, head, out)
        outs.append(torch.cat([out, scratch]))
    return (outs[0] - outs[1]).abs().max().item()
