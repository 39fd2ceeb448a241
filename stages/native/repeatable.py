"""How both models run on torch: without gradients, and with the same result every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from koe.errors import ConfigError


@contextmanager
def deterministic_inference(tf32: bool = False) -> Iterator[None]:
    """Keep torch to FP32, or to TF32, and cuDNN to kernels that are chosen by a rule.

    TF32 where it was not asked for, and kernels chosen by timing, would make scores and codes
    differ from run to run.
    """
    kernels = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
    )
    with torch.inference_mode(), kernels, _products("high" if tf32 else "highest"):
        yield


def fp32_products() -> AbstractContextManager[None]:
    """Hold products of matrices to FP32, inside of what runs in TF32."""
    return _products("highest")


@contextmanager
def _products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def require_gpu(setting: str) -> None:
    """Check that torch can use a GPU of this machine. Raises: ConfigError naming the setting."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{setting} cuda cannot be used",
            "torch finds no CUDA device on this machine",
            f"Set {setting}: cpu, or give the stage's workers a GPU (gpus_per_worker).",
        )
