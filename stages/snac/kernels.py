"""The arithmetic of SNAC's encoder on a CPU: compiled C where there is a compiler, or torch.

On one core the C of `kernels.c` takes 0.23 ns per value for Snake, one sine, and 0.59 ns for Snake,
depthwise convolution and Snake; torch takes 1.6 and 4.0 ns, of which each sine is 1.2. The C gives the
same bits on every instruction set (`stages/native/lanes.h`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

TAPS = 7
# Rows of the constants of a residual unit, as in the C; `snake` reads the first three, `depthwise`
# taps and bias.
OFFSET, ALPHA, RECIPROCAL, TAP = range(4)
BIAS = TAP + TAPS
ALPHA_2, RECIPROCAL_2 = BIAS + 1, BIAS + 2
CONSTANTS = RECIPROCAL_2 + 1

# Rows of complete frames [4 F, channels] to the codes of each level, int64.
Quantize = Callable[[Tensor], list[Tensor]]


class Kernels(Protocol):
    """Operations on contiguous rows of C channels, float32 unless it says otherwise."""

    def stem(self, x: Tensor, taps: Tensor, out: Tensor) -> None:
        """Write the first convolution of x [rows + 6] by `taps` [7, C] to `out` [rows, C]."""
        ...

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

    def depthwise(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        """Write depthwise(x) + bias to `out`, which has 6 rows fewer."""
        ...

    def prepared(self, weight: Tensor) -> Tensor:
        """Lay out a matrix [inputs, outputs] as `add_product` takes it."""
        ...

    def add_product(self, x: Tensor, prepared: Tensor, out: Tensor) -> None:
        """Add x [rows, inputs], whose rows may overlap, times a matrix to `out` [rows, outputs]."""
        ...

    def quantizer(self, module: Any) -> Quantize:
        """Copy the residual quantizer of a SNAC model, its weight norm removed."""
        ...


class TorchKernels:
    """The operations as torch computes them, in the precision of their arguments."""

    def stem(self, x: Tensor, taps: Tensor, out: Tensor) -> None:
        torch.mm(x.as_strided((len(out), len(taps)), (1, 1)), taps, out=out)

    def snake(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        torch.add(x, constants[OFFSET], out=out)
        _add_sine(out, constants[ALPHA], constants[RECIPROCAL])

    def unit(
        self, x: Tensor, constants: Tensor, dilation: int, scratch: Tensor, head: int, out: Tensor
    ) -> None:
        self.snake(x, constants, surrounded(scratch, head, len(x)))
        _convolve(scratch, constants, dilation, out)
        _add_sine(out, constants[ALPHA_2], constants[RECIPROCAL_2])

    def depthwise(self, x: Tensor, constants: Tensor, out: Tensor) -> None:
        _convolve(x, constants, 1, out)

    def prepared(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def add_product(self, x: Tensor, prepared: Tensor, out: Tensor) -> None:
        out.addmm_(x, prepared)

    def quantizer(self, module: Any) -> Quantize:
        return lambda rows: [codes[0] for codes in module(rows.t()[None])[1]]


def _convolve(x: Tensor, constants: Tensor, dilation: int, out: Tensor) -> None:
    rows = len(out)
    torch.addcmul(constants[BIAS], constants[TAP], x[:rows], out=out)
    for k in range(1, TAPS):
        out.addcmul_(constants[TAP + k], x[k * dilation :][:rows])


def _add_sine(x: Tensor, alpha: Tensor, reciprocal: Tensor) -> None:
    x.addcmul_(reciprocal, torch.mul(x, alpha).sin_().square_())


def surrounded(scratch: Tensor, head: int, rows: int) -> Tensor:
    """Zero what is before `head` and after `rows` more; return the rows between."""
    scratch[:head] = 0
    scratch[head + rows :] = 0
    return scratch[head : head + rows]
