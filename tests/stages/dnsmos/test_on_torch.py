"""Rounded convolutions are the model's but for their rounding, and TF32 stays where it is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from koe.errors import ConfigError
from stages.dnsmos import on_torch
from stages.dnsmos.network import cut
from stages.dnsmos.on_torch import fused_where_it_runs, require_sound, round_to_tf32, shared_layers
from stages.dnsmos.scorer import find_model
from stages.native.repeatable import deterministic_inference

PARTS = cut(Path(find_model().path).read_bytes())
# Of the largest feature, how far one may lie from FP64.
_ERRORS = {"fp32": 5e-6, "tf32x3": 5e-6, "tf32": 0.01, "bf16": 0.03}


def _power() -> torch.Tensor:
    drawn = np.random.default_rng(0).normal(-4, 2, (2, 1, 24, 161))
    return torch.from_numpy(drawn.astype(np.float32))


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    x = _power().double()
    for place, (kernel, bias) in enumerate(PARTS.weights):
        weights = (torch.from_numpy(values.copy()).double() for values in (kernel, bias))
        x = functional.conv2d(x, *weights, padding=1).relu()
        x = functional.max_pool2d(x, 2) if place in (3, 4) else x
    return x


@pytest.mark.parametrize("arithmetic", _ERRORS)
def test_the_layers_are_those_of_the_model_but_for_rounding(arithmetic, exact):
    found = shared_layers(PARTS.weights, "cpu", arithmetic)(_power())
    assert found.shape == exact.shape == (2, 32, 6, 40)
    assert found.dtype == torch.float32
    error = float((found.double() - exact).abs().max() / exact.abs().max())
    assert 0 < error < _ERRORS[arithmetic]


def _truncated(x: torch.Tensor) -> torch.Tensor:
    """Leave out what TF32 does not hold, as tensor cores may do with their operands."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("arithmetic", ["tf32", "tf32x3"])
def test_what_tensor_cores_leave_out_of_operands_costs_no_more(arithmetic, exact, monkeypatch):
    kernels = []

    def on_tensor_cores(x, kernel, bias):
        kernels.append(kernel)
        return functional.conv2d(_truncated(x), _truncated(kernel), bias, padding=1).relu_()

    monkeypatch.setattr(on_torch, "_convolve", on_tensor_cores)
    found = shared_layers(PARTS.weights, "cpu", arithmetic)(_power())
    error = float((found.double() - exact).abs().max() / exact.abs().max())
    assert 0 < error < _ERRORS[arithmetic]
    assert len(kernels) == 6
    assert all(torch.equal(_truncated(kernel), kernel) for kernel in kernels)


@given(st.integers(1, 9), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_the_halves_of_an_input_are_the_input(channels, layout):
    drawn = np.random.default_rng(channels).normal(0, 1, (2, channels, 3, 5)).astype(np.float32)
    x = torch.from_numpy(drawn).contiguous(memory_format=layout)
    for rounding, bits in ((on_torch._TF32, 0), (on_torch._BF16, 16)):
        laid = rounding.halves(x)
        high, low, again, zeros = laid.float().split(
            [channels, channels, channels, laid.shape[1] - 3 * channels], dim=1
        )
        assert torch.equal(high, again)
        assert torch.equal(high + low, x) or bits
        assert not zeros.any()
        torch.testing.assert_close(high + low, x, rtol=2.0**-16, atol=0)
        torch.testing.assert_close(high, x, rtol=2.0**-8 if bits else 2.0**-10, atol=0)


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_rounding_to_tf32_takes_the_nearest_value(value):
    exact = torch.tensor([value], dtype=torch.float32)
    found = round_to_tf32(exact)
    assert torch.equal(found, _truncated(found))
    step = 2.0 ** (np.frexp(float(exact))[1] - 11) if value else 0.0
    assert abs(float(found) - float(exact)) <= max(step / 2, 2.0**-137)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rounding_keeps_values_in_their_places(layout):
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).contiguous(memory_format=layout)
    assert torch.equal(round_to_tf32(x), x)


@pytest.mark.parametrize(("arithmetic", "allowed"), [("tf32", True), ("bf16", False)])
def test_tf32_is_allowed_around_its_own_convolutions_alone(arithmetic, allowed, monkeypatch):
    seen = []

    def spy(x, kernel, bias):
        seen.append(torch.backends.cudnn.allow_tf32)
        return functional.conv2d(x, kernel, bias, padding=1).relu_()

    monkeypatch.setattr(on_torch, "_convolve", spy)
    before = torch.backends.cudnn.allow_tf32
    shared = shared_layers(PARTS.weights, "cpu", arithmetic)
    with deterministic_inference():
        assert torch.backends.cudnn.allow_tf32 is False
        shared(_power())
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is before
    assert seen == [allowed] * 6


def test_products_are_fp32_inside_and_as_they_were_outside():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with deterministic_inference():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(KeyError), deterministic_inference():
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("arithmetic", ["tf32", "tf32x3", "bf16"])
def test_channels_come_in_pieces_that_a_gpu_reads_at_once(arithmetic, monkeypatch):
    shapes = []

    def spy(x, kernel, bias):
        shapes.append((x.shape[1] * x.element_size(), kernel.shape[1] * kernel.element_size()))
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, kernel, bias, padding=1).relu_()

    monkeypatch.setattr(on_torch, "_convolve", spy)
    shared_layers(PARTS.weights, "cpu", arithmetic)(_power())
    assert len(shapes) == 6
    assert all(of_x == of_kernel and of_x % 16 == 0 for of_x, of_kernel in shapes)


@pytest.mark.parametrize("arithmetic", _ERRORS)
def test_rounding_alone_is_sound(arithmetic):
    with deterministic_inference():
        shared = shared_layers(PARTS.weights, "cpu", arithmetic)
        require_sound(shared, PARTS.weights, "cpu", arithmetic, num_frames=104)


@pytest.mark.parametrize(
    ("column", "changed"), [(0, 0.001), (18, 0.001), (25, 0.001), (25, np.nan)]
)
def test_a_gpu_that_computes_something_else_is_refused(column, changed):
    shared = shared_layers(PARTS.weights, "cpu", "fp32")

    def wrong(power: torch.Tensor) -> torch.Tensor:
        features = shared(power)
        features[1, :, column] += changed * features.max()
        return features

    with pytest.raises(ConfigError, match=r"fp32 cannot be used on cpu.*are off by"):
        require_sound(wrong, PARTS.weights, "cpu", "fp32", num_frames=104)


def _layers():
    kernel = torch.ones(8, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    return [on_torch._Layer(kernel, torch.zeros(8))]


def test_where_cudnn_cannot_fuse_it_is_said_and_computed_otherwise(monkeypatch, caplog):
    def refuse(*args):
        raise RuntimeError("Unable to find a valid cuDNN algorithm")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    with caplog.at_level(logging.WARNING):
        assert fused_where_it_runs(_layers()) is on_torch._convolve
    assert "Unable to find a valid cuDNN algorithm" in caplog.text


def test_the_fused_convolution_is_asked_for_what_the_plain_one_computes(monkeypatch):
    def cudnn(x, kernel, bias, stride, padding, dilation, groups):
        return functional.conv2d(x, kernel, bias, stride, padding, dilation, groups).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", cudnn)
    fused = fused_where_it_runs(_layers())
    assert fused is on_torch._fused
    x = torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(0))
    kernel, bias, _ = _layers()[0]
    assert torch.equal(fused(x, kernel, bias), on_torch._convolve(x, kernel, bias))


@pytest.mark.parametrize("arithmetic", _ERRORS)
def test_fused_layers_are_the_plain_ones(arithmetic, monkeypatch):
    called = []

    def cudnn(x, kernel, bias, stride, padding, dilation, groups):
        called.append(torch.backends.cudnn.allow_tf32)
        return functional.conv2d(x, kernel, bias, stride, padding, dilation, groups).relu_()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", cudnn)
    fused = shared_layers(PARTS.weights, "cpu", arithmetic, fuse=True)
    assert torch.equal(fused(_power()), shared_layers(PARTS.weights, "cpu", arithmetic)(_power()))
    # Each layer once to see that it runs, and then in use, in the arithmetic that was asked for.
    assert called == [arithmetic.startswith("tf32")] * 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arithmetic", _ERRORS)
def test_a_gpu_rounds_no_more(arithmetic, exact, caplog):
    with deterministic_inference():
        shared = shared_layers(PARTS.weights, "cuda", arithmetic)
        found = shared(_power().cuda()).cpu()
    error = float((found.double() - exact).abs().max() / exact.abs().max())
    assert error < _ERRORS[arithmetic]
    assert "cannot fuse" not in caplog.text
