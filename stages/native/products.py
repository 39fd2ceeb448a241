"""Matrices as the compiled products of `products.h` take them."""

from __future__ import annotations

from torch import Tensor

PANEL = 48  # outputs; every width of vectors divides it


def panels(matrix: Tensor) -> Tensor:
    """Lay out [depth, outputs] as [panels, depth, PANEL], with zeros beyond the last output."""
    depth, outputs = matrix.shape
    filled = matrix.new_zeros(depth, -(-outputs // PANEL) * PANEL)
    filled[:, :outputs] = matrix
    # torch's memory begins at a line of the cache, numpy's may not.
    return filled.reshape(depth, -1, PANEL).transpose(0, 1).contiguous()
