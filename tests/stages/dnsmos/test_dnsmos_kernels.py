"""The compiled convolutions must equal onnxruntime's, at every edge of every tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from koe.errors import ConfigError
from stages.dnsmos import engines as dnsmos_engines
from stages.dnsmos import kernels as dnsmos_kernels
from stages.dnsmos.engines import describe_engine, open_network, resolve_engine
from stages.dnsmos.kernels import NativeShared
from stages.dnsmos.network import cut
from stages.dnsmos.scorer import DnsmosScorer, find_model
from stages.native.build import Unavailable
from stages.native.compiler import instruction_set
from tests.stages.native.engines import library, runnable_in_bf16
from tests.stages.speech import speech_16k

PARTS = cut(Path(find_model().path).read_bytes())


@pytest.fixture(scope="module")
def native() -> NativeShared:
    try:
        return NativeShared(PARTS.weights)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def native_bf16() -> NativeShared:
    """In BF16, with the code for CPUs that have no instructions for it where there are none."""
    name = runnable_in_bf16()[0]
    return NativeShared(PARTS.weights, "bf16", library(dnsmos_kernels.BF16_SOURCE, name))


def _plain(power: np.ndarray, weights=PARTS.weights) -> np.ndarray:
    """The same layers in torch, FP64."""
    x = torch.from_numpy(power).double()
    for place, (kernel, bias) in enumerate(weights):
        x = functional.conv2d(
            x,
            torch.from_numpy(kernel.copy()).double(),
            torch.from_numpy(bias.copy()).double(),
            padding=1,
        ).relu()
        if place in (3, 4):
            x = functional.max_pool2d(x, 2)
    return x.numpy()


# Rows and columns that end at, before and behind whole tiles of each layer, and blocks of tiles.
@pytest.mark.parametrize("columns", [4, 5, 7, 96, 97, 161, 163])
@pytest.mark.parametrize("rows", [4, 8, 12, 20, 24, 52])
def test_every_size_equals_plain_convolutions(native, rows, columns):
    power = np.random.default_rng(rows).normal(-4, 3, (1, 1, rows, columns)).astype(np.float32)
    expected = _plain(power)
    np.testing.assert_allclose(native(power), expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [4, 97, 161])
@pytest.mark.parametrize("rows", [4, 12, 52])
def test_bf16_is_off_by_its_rounding_alone(native, native_bf16, rows, columns):
    power = np.random.default_rng(rows).normal(-4, 3, (2, 1, rows, columns)).astype(np.float32)
    found, expected = native_bf16(power), native(power)
    difference = found - expected
    assert np.sqrt((difference**2).mean() / (expected**2).mean()) < 0.1
    assert (difference != 0).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_workspace_is_not_expected_to_be_clean(precision, request, monkeypatch):
    native = request.getfixturevalue("native" if precision == "fp32" else "native_bf16")
    power = np.random.default_rng(0).normal(-4, 3, (2, 1, 24, 161)).astype(np.float32)
    expected = native(power)
    empty = np.empty
    monkeypatch.setattr(
        dnsmos_kernels.np, "empty", lambda *args: np.full_like(empty(*args), np.nan)
    )
    np.testing.assert_array_equal(native(power), expected)
    np.testing.assert_array_equal(native(power[1:]), expected[1:])


def test_outliers_stay_where_they_are(native):
    """Beyond a pixel's reach only the rounding of its tile may show."""
    power = np.full((1, 1, 40, 161), -12.0, np.float32)
    quiet = native(power)
    power[0, 0, 17, 80] = 3.0
    change = np.abs(native(power) - quiet).max(axis=1)[0]
    rows, columns = np.nonzero(change > 1e-4)
    assert len(rows)
    assert (np.abs(rows - 17 // 4) <= 3).all()
    assert (np.abs(columns - 80 // 4) <= 3).all()


@pytest.mark.parametrize("seconds", [0.3, 9.0, 20.0])
def test_scores_of_the_engines_agree(native, seconds):
    model, audio = find_model().path, speech_16k(seconds)
    scores = [DnsmosScorer(model, engine=e).score(audio, "all") for e in ("native", "onnxruntime")]
    assert scores[0].ovrl == pytest.approx(scores[1].ovrl, abs=2e-5)
    assert scores[0].sig == pytest.approx(scores[1].sig, abs=2e-5)
    assert scores[0].bak == pytest.approx(scores[1].bak, abs=2e-5)


def test_auto_is_native_where_it_compiles(native):
    assert resolve_engine("auto", "cpu", "fp32") == "native"
    assert resolve_engine("auto", "cpu", "fp32", True) == f"native-{instruction_set()}"
    assert resolve_engine("onnxruntime", "cpu", "fp32").startswith("onnxruntime-")
    assert resolve_engine("auto", "cuda", "fp32") == "torch"
    assert resolve_engine("auto", "cuda", "bf16") == "torch"
    with pytest.raises(ConfigError, match="not on cuda"):
        resolve_engine("native", "cuda", "fp32")


@pytest.mark.parametrize(
    ("has", "chosen"),
    [
        ({"avx512_bf16"}, "native"),
        ({"avx512_bf16", "amx_bf16"}, f"onnxruntime-{instruction_set()}"),  # torch multiplies there
        (set(), f"onnxruntime-{instruction_set()}"),
    ],
)
def test_bf16_is_compiled_where_the_cpu_multiplies_it_but_not_in_tiles(
    native, monkeypatch, caplog, has, chosen
):
    found = torch.cpu.get_capabilities() | {"avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found | dict.fromkeys(has, True))
    monkeypatch.setattr("stages.native.compiler.target", lambda: "avx512")
    monkeypatch.setattr("stages.dnsmos.kernels.load_target", lambda *_: None)
    assert resolve_engine("auto", "cpu", "bf16") == chosen
    assert ("torch in BF16" in caplog.text) == (not has)
    if not has:
        with pytest.raises(ConfigError, match="no AVX-512 BF16"):
            resolve_engine("native", "cpu", "bf16")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_engine_is_described_with_what_would_be_faster(native, monkeypatch, has_bf16):
    found = torch.cpu.get_capabilities() | {"avx512_bf16": has_bf16, "amx_bf16": False}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found)
    monkeypatch.setattr("stages.native.compiler.target", lambda: "avx512")
    said = describe_engine("cpu", "fp32", "native")
    assert said.startswith("DNSMOS runs on CPUs in FP32, with the native engine")
    assert ("score.precision: bf16" in said) == has_bf16
    assert "as fast" not in describe_engine("cpu", "bf16", "native")
    assert "torch's convolutions" in describe_engine("cpu", "bf16", "onnxruntime-avx512")
    assert describe_engine("cuda", "fp32", "torch").startswith("DNSMOS runs on a GPU")
    assert "as fast" not in describe_engine("cuda", "fp32", "torch")


def test_without_a_compiler_auto_is_onnxruntime_and_says_so(no_compiler, caplog):
    assert resolve_engine("auto", "cpu", "fp32").startswith("onnxruntime-")
    assert "no C compiler" in caplog.text
    assert "Install a C compiler" in caplog.text
    with pytest.raises(ConfigError, match="no C compiler") as caught:
        resolve_engine("native", "cpu", "fp32")
    assert "score.engine: auto" in caught.value.remedy


def test_without_avx2_onnxruntime_is_taken(monkeypatch, caplog):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert resolve_engine("auto", "cpu", "fp32").startswith("onnxruntime-")
    assert "AVX2" in caplog.text


def test_compiled_code_that_computes_something_else_is_not_used(native, monkeypatch):
    wrong = [(kernel * np.float32(1.01), bias) for kernel, bias in PARTS.weights]
    shared = NativeShared(wrong)
    monkeypatch.setattr(dnsmos_engines, "NativeShared", lambda *_: shared)
    with pytest.raises(ConfigError, match=r"NativeShared.* is off by"):
        open_network(find_model().path, "cpu", "fp32", "native", map)


def test_other_layers_are_not_given_to_it():
    with pytest.raises(Unavailable, match="not those"):
        NativeShared(PARTS.weights[:-1])


def test_a_worker_that_computes_otherwise_than_the_run_refuses(no_compiler):
    with pytest.raises(ConfigError, match=r"native-vax cannot be used on this machine.*last bits"):
        DnsmosScorer(find_model().path, engine="native-vax")
    with pytest.raises(ConfigError, match="no C compiler"):
        DnsmosScorer(find_model().path, engine="native")
