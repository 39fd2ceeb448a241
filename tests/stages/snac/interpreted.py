"""Compares Triton's kernels with torch in Triton's interpreter, in a process of their own.

    TRITON_INTERPRET=1 python -m tests.stages.snac.interpreted

Prints the largest difference. The variable must be set before Triton is imported.
"""

from __future__ import annotations

import itertools

import torch

from stages.snac.fused import FusedPointwise, largest_difference
from stages.snac.kernels import ALPHA, ALPHA_2, CONSTANTS, RECIPROCAL, RECIPROCAL_2
from stages.snac.pointwise import TorchPointwise


def main() -> None:
    found = [largest_difference(FusedPointwise(), TorchPointwise(), "cpu")]
    widths, per_frame, masks = (16, 48, 96), (4, 32), ([1], [0, 1], [1, 0, 0, 1, 1])
    for case in itertools.product(widths, per_frame, masks):
        found += _differences(*case)
    print(max(found))


def _differences(width: int, per_frame: int, mask: list[int]) -> list[float]:
    draws = torch.Generator().manual_seed(width)
    inside = torch.tensor(mask, dtype=torch.uint8)
    x = 3 * torch.randn(len(mask) * per_frame, width, generator=draws)
    constants = torch.randn(CONSTANTS, width, generator=draws)
    for alpha, reciprocal in ((ALPHA, RECIPROCAL), (ALPHA_2, RECIPROCAL_2)):
        constants[alpha] = constants[alpha].abs() + 0.1
        constants[reciprocal] = 1 / constants[alpha]
    fused, plain = FusedPointwise(), TorchPointwise()
    found = []
    for margin in (1, 2, 4):
        pair = [one.snake(x, constants, inside, margin) for one in (fused, plain)]
        found.append((pair[0] - pair[1]).abs().max().item())
    rows = inside.repeat_interleave(per_frame) != 0
    for dilation in (1, 3, 9):
        pair = [one.unit(x, constants, dilation, inside) for one in (fused, plain)]
        assert pair[0].isfinite().all()
        found.append((pair[0] - pair[1])[rows].abs().max().item())
    return found


if __name__ == "__main__":
    main()
