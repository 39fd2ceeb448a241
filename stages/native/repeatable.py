"""How both models run on torch: without gradients, and with the same result every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_inference() -> Iterator[None]:
    """Keep cuDNN to FP32 and to kernels that are chosen by a rule.

    TF32, and kernels chosen by timing, would make scores and codes differ from run to run.
    """
    kernels = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), kernels:
        yield
