"""What SNAC's encoder does between its products of matrices, on the rows of a launch.

A launch holds clips of several lengths with gaps between them (`pieces.py`). `inside` marks the
frames that are of a clip, uint8 [frames]; beyond them a convolution finds zeros. A frame is the
same number of rows as the other frames. The constants are those of `kernels.py`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import pad

from stages.snac.kernels import ALPHA, ALPHA_2, BIAS, OFFSET, RECIPROCAL, RECIPROCAL_2, TAP, TAPS


class Pointwise(Protocol):
    """Two operations on contiguous float32 rows of C channels."""

    def snake(self, x: Tensor, constants: Tensor, inside: Tensor, margin: int) -> Tensor:
        """Return snake(x + offset), zero outside clips and in `margin` rows before and after."""
        ...

    def unit(self, x: Tensor, constants: Tensor, dilation: int, inside: Tensor) -> Tensor:
        """Return snake(depthwise(snake(x + offset)) + bias), as many rows as x.

        Outside clips the values are finite and mean nothing.
        """
        ...


class TorchPointwise:
    """The operations as torch computes them, on any device."""

    def snake(self, x: Tensor, constants: Tensor, inside: Tensor, margin: int) -> Tensor:
        activated = _snake(x + constants[OFFSET], constants[ALPHA], constants[RECIPROCAL])
        return pad(outside_zeroed(activated, inside), (0, 0, margin, margin))

    def unit(self, x: Tensor, constants: Tensor, dilation: int, inside: Tensor) -> Tensor:
        around = self.snake(x, constants, inside, TAPS // 2 * dilation)
        out = constants[BIAS].addcmul(constants[TAP], around[: len(x)])
        for k in range(1, TAPS):
            out.addcmul_(constants[TAP + k], around[k * dilation :][: len(x)])
        return _snake(out, constants[ALPHA_2], constants[RECIPROCAL_2])


def _snake(x: Tensor, alpha: Tensor, reciprocal: Tensor) -> Tensor:
    """Add sin(alpha x)^2 / alpha to x, in place."""
    return x.addcmul_(reciprocal, (x * alpha).sin_().square_())


def outside_zeroed(x: Tensor, inside: Tensor) -> Tensor:
    """Zero the rows of x outside clips, in place."""
    x.view(len(inside), -1).masked_fill_((inside == 0)[:, None], 0)
    return x
