"""The precision of products is chosen where a model runs, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from stages.native.repeatable import deterministic_inference, fp32_products


def _flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("tf32", [False, True])
def test_the_precision_holds_inside_and_is_as_before_outside(tf32):
    before = _flags()
    with deterministic_inference(tf32):
        assert _flags() == (tf32, tf32)
        assert torch.is_inference_mode_enabled()
        with fp32_products():
            assert _flags()[0] is False
        assert _flags() == (tf32, tf32)
    assert _flags() == before


def test_an_error_inside_leaves_the_precision_as_it_was():
    before = _flags()
    with pytest.raises(RuntimeError, match="lost"), deterministic_inference(tf32=True):
        raise RuntimeError("lost")
    assert _flags() == before


def test_what_the_process_computes_with_otherwise_stays():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with deterministic_inference():
            assert _flags() == (False, False)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
