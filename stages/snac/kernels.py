"""The pointwise half of SNAC's encoder on a CPU: compiled C where there is a compiler, or torch.

Between its products of matrices the encoder applies Snake, one sine per value, and depthwise
convolutions. On one Zen 4 core the C of `kernels.c` takes 0.23 ns per value for Snake and 0.59 ns
for Snake, convolution and Snake; torch takes 1.6 and 4.0 ns, of which each sine is 1.2.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stages.native.compiler import Unavailable, load_library

SOURCE = Path(__file__).with_suffix(".c")
LANES = 16
TAPS = 7
# Rows of the constants of a residual unit, as in the C; `snake` reads the first three.
OFFSET, ALPHA, RECIPROCAL, TAP = range(4)
BIAS = TAP + TAPS
ALPHA_2, RECIPROCAL_2 = BIAS + 1, BIAS + 2
CONSTANTS = RECIPROCAL_2 + 1


class Kernels(Protocol):
    """Two operations on contiguous float32 rows of C channels."""

    def snake(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        """Write snake(x + offset) to `out`: [rows, C] both."""
        ...

    def unit(
        self, x: Tensor, constants: Tensor, dilation: int, scratch: Tensor, head: int, out: Tensor
    ) -> None:
        """Write snake(depthwise(snake(x + offset)) + bias) to `out`.

        `scratch` [head + rows + tail, C] takes the first Snake of `x` [rows, C] between rows of
        zeros; `out` has 6 * dilation rows fewer.
        """
        ...


class TorchKernels:
    """The operations as torch computes them."""

    def snake(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        torch.add(x, constants[OFFSET], out=out)
        _add_sine(out, constants[ALPHA], constants[RECIPROCAL])

    def unit(
        self, x: Tensor, constants: Tensor, dilation: int, scratch: Tensor, head: int, out: Tensor
    ) -> None:
        rows = len(out)
        self.snake(x, constants, surrounded(scratch, head, len(x)))
        torch.addcmul(constants[BIAS], constants[TAP], scratch[:rows], out=out)
        for k in range(1, TAPS):
            out.addcmul_(constants[TAP + k], scratch[k * dilation :][:rows])
        _add_sine(out, constants[ALPHA_2], constants[RECIPROCAL_2])


def _add_sine(x: Tensor, alpha: Tensor, reciprocal: Tensor) -> None:
    x.addcmul_(reciprocal, torch.mul(x, alpha).sin_().square_())


class NativeKernels:
    """The operations of `kernels.c`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
        self._snake, self._unit = library.snake_rows, library.unit_rows
        self._snake.argtypes = [pointer] * 3 + [size] * 2
        self._unit.argtypes = [pointer] * 4 + [size] * 5
        self._snake.restype = self._unit.restype = None

    def snake(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        self._snake(x.data_ptr(), constants.data_ptr(), out.data_ptr(), *x.shape)

    def unit(
        self, x: Tensor, constants: Tensor, dilation: int, scratch: Tensor, head: int, out: Tensor
    ) -> None:
        tail = len(scratch) - head - len(x)
        surrounded(scratch, head, len(x))
        pointers = (x.data_ptr(), constants.data_ptr(), scratch.data_ptr(), out.data_ptr())
        self._unit(*pointers, *x.shape, dilation, head, tail)


def surrounded(scratch: Tensor, head: int, rows: int) -> Tensor:
    """Zero what is before `head` and after `rows` more; return the rows between."""
    scratch[:head] = 0
    scratch[head + rows :] = 0
    return scratch[head : head + rows]


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
    rows, width, dilation, head = 50, 2 * LANES, 3, 9
    x = torch.linspace(-3, 3, rows * width).reshape(rows, width)
    constants = torch.linspace(0.3, 1.5, CONSTANTS * width).reshape(CONSTANTS, width)
    outs = []
    for one in (kernels, reference):
        scratch = torch.empty(head + rows, width)
        out = torch.empty(head + rows - (TAPS - 1) * dilation, width)
        one.unit(x, constants, dilation, scratch, head, out)
        outs.append(torch.cat([out, scratch]))
    return (outs[0] - outs[1]).abs().max().item()
