"""The operations of `pointwise.py` as Triton compiles them: one pass over memory each.

Torch takes some 40 passes for Snake, depthwise convolution and Snake, and memory is what limits
the encoder on a GPU. Snake is computed anew for each tap, which costs less than to write it and to
read it again: sin^2 has the period pi, so a sine is a polynomial after one reduction, as in
`kernels.c`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.native.build import Unavailable
from stages.snac import kernels
from stages.snac.pointwise import Pointwise, TorchPointwise

_TILE = 2048  # values of a program
_COLUMNS = 32  # of a tile at most: 128 bytes, which memory delivers at once

_TAPS = tl.constexpr(kernels.TAPS)
_OFFSET = tl.constexpr(kernels.OFFSET)
_ALPHA = tl.constexpr(kernels.ALPHA)
_RECIPROCAL = tl.constexpr(kernels.RECIPROCAL)
_TAP = tl.constexpr(kernels.TAP)
_BIAS = tl.constexpr(kernels.BIAS)
_ALPHA_2 = tl.constexpr(kernels.ALPHA_2)
_RECIPROCAL_2 = tl.constexpr(kernels.RECIPROCAL_2)


class FusedPointwise:
    """The operations on the tensors of a CUDA device, or of a CPU in Triton's interpreter."""

    def snake(self, x: Tensor, constants: Tensor, inside: Tensor, margin: int) -> Tensor:
        rows, width = x.shape
        out = x.new_empty(rows + 2 * margin, width)
        columns, grid = _grid(len(out), width)
        launch: Any = _snake_rows[grid]
        launch(
            x, constants, inside, out, rows, margin, width, rows // len(inside),
            _TILE // columns, columns,
        )  # fmt: skip
        return out

    def unit(self, x: Tensor, constants: Tensor, dilation: int, inside: Tensor) -> Tensor:
        rows, width = x.shape
        out = torch.empty_like(x)
        columns, grid = _grid(rows, width)
        launch: Any = _unit_rows[grid]
        launch(
            x, constants, inside, out, rows, width, rows // len(inside), dilation,
            _TILE // columns, columns,
        )  # fmt: skip
        return out


def _grid(rows: int, width: int) -> tuple[int, tuple[int]]:
    """Return the columns of a tile, a power of two that divides the width, and the programs."""
    columns = min(_COLUMNS, width & -width)
    return columns, (-(-rows // (_TILE // columns)) * (width // columns),)


@triton.jit
def _snake(x, alpha, reciprocal):
    """Return x + sin(alpha x)^2 / alpha; the constants are those of `kernels.c`."""
    angle = x * alpha
    turns = (angle * 0.318309886 + 12582912.0) - 12582912.0
    angle = angle - turns * 3.14159274
    angle = angle + turns * 8.74227766e-8
    square = angle * angle
    poly = square * 2.60890397e-6 - 1.98111011e-4
    poly = poly * square + 8.33308790e-3
    poly = poly * square - 1.66666597e-1
    sine = angle + angle * square * poly
    return x + reciprocal * (sine * sine)


@triton.jit
def _is_inside(inside, row, rows, PER_FRAME: tl.constexpr):
    """Tell which rows exist and are of a clip."""
    exists = (row >= 0) & (row < rows)
    return exists & (tl.load(inside + row // PER_FRAME, mask=exists, other=0) != 0)


@triton.jit
def _tile(WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> Any:
    """Return the rows [ROWS, 1] and columns [1, COLUMNS] of this program, columns first."""
    across = WIDTH // COLUMNS
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    return row[:, None], column[None, :]


@triton.jit
def _snake_rows(
    x, constants, inside, out, rows, margin, WIDTH: tl.constexpr, PER_FRAME: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    to, column = _tile(WIDTH, ROWS, COLUMNS)  # pyright: ignore[reportGeneralTypeIssues]
    row = to - margin
    valid = _is_inside(inside, row, rows, PER_FRAME)
    offset = tl.load(constants + _OFFSET * WIDTH + column)
    alpha = tl.load(constants + _ALPHA * WIDTH + column)
    reciprocal = tl.load(constants + _RECIPROCAL * WIDTH + column)
    value = tl.load(x + row * WIDTH + column, mask=valid, other=0.0)
    value = tl.where(valid, _snake(value + offset, alpha, reciprocal), 0.0)
    tl.store(out + to * WIDTH + column, value, mask=to < rows + 2 * margin)


@triton.jit
def _unit_rows(
    x, constants, inside, out, rows, WIDTH: tl.constexpr, PER_FRAME: tl.constexpr,
    DILATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column = _tile(WIDTH, ROWS, COLUMNS)  # pyright: ignore[reportGeneralTypeIssues]
    offset = tl.load(constants + _OFFSET * WIDTH + column)
    alpha = tl.load(constants + _ALPHA * WIDTH + column)
    reciprocal = tl.load(constants + _RECIPROCAL * WIDTH + column)
    total = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.load(constants + _BIAS * WIDTH + column)
    for k in tl.static_range(_TAPS):
        at = row + (k - _TAPS // 2) * DILATION
        valid = _is_inside(inside, at, rows, PER_FRAME)
        value = tl.load(x + at * WIDTH + column, mask=valid, other=0.0)
        value = tl.where(valid, _snake(value + offset, alpha, reciprocal), 0.0)
        total += value * tl.load(constants + (_TAP + k) * WIDTH + column)
    alpha = tl.load(constants + _ALPHA_2 * WIDTH + column)
    reciprocal = tl.load(constants + _RECIPROCAL_2 * WIDTH + column)
    tl.store(out + row * WIDTH + column, _snake(total, alpha, reciprocal), mask=row < rows)


@cache
def checked_pointwise(device: str) -> FusedPointwise:
    """Compile the kernels for a device and check them against torch; once per process.

    Raises: Unavailable when they do not compile or run there, or compute something else.
    """
    pointwise = FusedPointwise()
    try:
        difference = largest_difference(pointwise, TorchPointwise(), device)
    except Exception as error:  # Triton raises those of the driver, LLVM, ptxas and the C compiler
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise Unavailable(f"Triton's kernels do not run here ({why})") from error
    if not difference < 1e-4:
        raise Unavailable(f"Triton's kernels are off by {difference:.1e}")
    return pointwise


def largest_difference(one: Pointwise, other: Pointwise, device: str) -> float:
    """Return the largest difference between two implementations on a few fixed rows."""
    frames, per_frame, width = 6, 32, 48
    inside = torch.tensor([0, 1, 1, 0, 1, 0], dtype=torch.uint8, device=device)
    x = torch.linspace(-3, 3, frames * per_frame * width, device=device).reshape(-1, width)
    constants = torch.linspace(0.3, 1.5, kernels.CONSTANTS * width, device=device)
    constants = constants.reshape(-1, width)
    found = [one.snake(x, constants, inside, 4) - other.snake(x, constants, inside, 4)]
    for dilation in (1, 3, 9):
        mine, theirs = (ops.unit(x, constants, dilation, inside) for ops in (one, other))
        found.append(mine - theirs)
    return max(difference.abs().max().item() for difference in found)


if __name__ == "__main__":  # `on_gpu.why_not_fused` tries them in a process of their own
    try:
        checked_pointwise("cuda")
    except Unavailable as error:
        sys.exit(str(error))
