"""Every engine must give the codes of FP64 but for near ties, and say when it cannot run."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from snac import SNAC

from koe.errors import ConfigError
from koe.memory import keep_memory
from koe.vocabulary import flatten_codes
from stages.native.build import Unavailable
from stages.native.compiler import instruction_set
from stages.snac import compiled, on_gpu
from stages.snac import kernels as snac_kernels
from stages.snac.architecture import ARCHITECTURE, fold_weight_norm
from stages.snac.codec import Codec, resolve_codec
from stages.snac.compiled import native_kernels
from stages.snac.encoder import TiledEncoder, Tiles, supports
from stages.snac.engines import open_engine, open_stream, resolve_engine
from stages.snac.kernels import CONSTANTS, TorchKernels
from stages.snac.masking import MaskedEncoder
from stages.snac.untrained import untrained_model
from tests.stages.snac.exact import assert_near_ties, exact_latents
from tests.stages.speech import speech_24k

# Tiles of two rows of the deepest block, segments of three latents, distances of a frame.
SMALL = Tiles(values=2 * 8 * 384, latents=3, distances=4)
FRAME = 2048


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in a worker."""
    torch.set_num_threads(1)
    keep_memory()


@pytest.fixture(scope="module")
def model() -> SNAC:
    return fold_weight_norm(untrained_model(0)[0])


@pytest.fixture(params=["native", "tiled"])
def kernels(request) -> snac_kernels.Kernels:
    if request.param == "tiled":
        return TorchKernels()
    try:
        return native_kernels()
    except Unavailable as error:
        pytest.skip(str(error))


def _assert_exact(encoder: TiledEncoder, audio: np.ndarray) -> None:
    """Compare latents and codes with FP64: products of other sizes are summed in another order."""
    clip = torch.from_numpy(audio)
    with torch.inference_mode():
        latents, codes = encoder.latents(clip), encoder.encode(clip)
    expected = exact_latents(audio)
    # Closer than codes can tell: an error at one edge changes few of them.
    difference = (latents.double() - expected).abs().max()
    assert difference < 2e-5 * expected.abs().max()
    assert_near_ties(flatten_codes([codebook.numpy() for codebook in codes]), audio)


@pytest.mark.parametrize("samples", [1, 2, 700, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME])
@pytest.mark.parametrize("tiles", [SMALL, Tiles()], ids=["small", "default"])
def test_codes_and_latents_are_those_of_fp64(samples, tiles, kernels, model):
    _assert_exact(TiledEncoder(model, kernels, tiles), speech_24k(samples))


@pytest.mark.parametrize("tiles", [(3_000, 5), (7_000, 1), (20_000, 2), (90_000, 3)])
def test_no_seam_shows_wherever_tiles_meet(tiles, kernels, model):
    _assert_exact(TiledEncoder(model, kernels, Tiles(*tiles)), speech_24k(2 * FRAME))


@pytest.mark.slow
def test_a_clip_longer_than_a_segment_has_the_codes_of_fp64(kernels, model):
    _assert_exact(TiledEncoder(model, kernels, Tiles(latents=30)), speech_24k(50_000))


def test_silence_and_full_scale_have_the_codes_of_fp64(kernels, model):
    for audio in (np.zeros(5_000), np.ones(5_000), np.resize([1.0, -1.0], 5_000)):
        _assert_exact(TiledEncoder(model, kernels), audio.astype(np.float32))


def test_snake_holds_far_from_zero(kernels):
    width, rows = 48, 64
    x = torch.linspace(-300, 300, width * rows).reshape(rows, width)
    constants = torch.zeros(CONSTANTS, width)
    constants[snac_kernels.ALPHA] = torch.linspace(-4, 4, width)
    constants[snac_kernels.RECIPROCAL] = 1.0
    out = torch.empty_like(x)
    kernels.snake(x, constants, out)
    angle = x * constants[snac_kernels.ALPHA]  # rounded, as the package rounds it
    expected = x.double() + torch.sin(angle.double()).square()
    assert (out - expected).abs().max() < 3e-5


def test_auto_is_native_where_it_compiles():
    try:
        native_kernels()
    except Unavailable as error:
        pytest.skip(str(error))
    assert resolve_codec("untrained").engine == "native"


def test_without_a_compiler_auto_is_tiled_and_says_so(no_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        spec = resolve_codec("untrained")
    assert spec.engine == f"tiled-{instruction_set()}"
    assert "no C compiler" in caplog.text
    assert "Install a C compiler" in caplog.text


def test_without_a_compiler_native_is_refused(no_compiler):
    with pytest.raises(ConfigError, match=r"snac\.engine native.*no C compiler") as caught:
        resolve_codec("untrained", engine="native")
    assert "snac.engine: auto" in caught.value.remedy


def test_kernels_that_compute_something_else_are_not_used(monkeypatch, tmp_path):
    try:
        native_kernels()
    except Unavailable as error:
        pytest.skip(str(error))
    source, text = tmp_path / "snac_kernels.c", compiled.SOURCE.read_text()
    assert "fused(tap[k]" in text
    source.write_text(text.replace("fused(tap[k]", "fused(-tap[k]"))
    shutil.copy(compiled.SOURCE.with_name("quantizer.h"), tmp_path)
    monkeypatch.setattr(compiled, "SOURCE", source)
    native_kernels.cache_clear()
    with pytest.raises(Unavailable, match=r"snac_kernels\.c is off by"):
        native_kernels()
    native_kernels.cache_clear()


def test_beyond_a_clips_end_every_convolution_finds_zeros(model):
    encoder = MaskedEncoder(model.encoder)
    clips = [speech_24k(size * FRAME, 12_000 * size) for size in (1, 5, 3)]
    batch = torch.zeros(3, 1, 5 * FRAME)
    for row, clip in zip(batch, clips, strict=True):
        row[0, : len(clip)] = torch.from_numpy(clip)
    with torch.inference_mode():
        together = encoder(batch, [1, 5, 3])
        for row, clip in zip(together, clips, strict=True):
            alone = encoder(torch.from_numpy(clip).view(1, 1, -1), [len(clip) // FRAME])[0]
            difference = (row[:, : alone.shape[1]] - alone).abs().max()
            assert difference < 1e-5 * alone.abs().max()
            assert not row[:, alone.shape[1] :].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_codes_of_fp64_in_any_batch():
    gpu = Codec.open(resolve_codec("untrained", device="cuda"))
    clips = [speech_24k(size, 3 * size) for size in (9_000, 30_000, 2_048, 8_200, 60_000)]
    for codes, clip in zip(gpu.encode(clips), clips, strict=True):
        assert_near_ties(codes, clip)
        assert_near_ties(gpu.encode([clip])[0], clip)


@pytest.mark.parametrize("engine", ["native", "tiled"])
def test_engines_of_the_cpu_do_not_run_on_cuda(engine):
    with pytest.raises(ConfigError, match=r"snac\.device is cuda"):
        resolve_engine(engine, "cuda", True)


def test_fused_does_not_run_on_a_cpu_nor_on_another_build():
    with pytest.raises(ConfigError, match=r"snac\.engine fused .*runs on CUDA"):
        resolve_engine("fused", "cpu", True)
    with pytest.raises(ConfigError, match="not built as the published one"):
        resolve_engine("fused", "cuda", False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_where_the_kernels_of_a_gpu_cannot_be_checked_auto_is_eager_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert resolve_engine("auto", "cuda", True) == "eager"
    assert "torch finds no CUDA device" in caplog.text
    assert "set snac.engine: fused" in caplog.text
    assert resolve_engine("fused", "cuda", True) == "fused-fp32"
    model = fold_weight_norm(SNAC(**ARCHITECTURE))
    with pytest.raises(ConfigError, match="fused-fp32 cannot be used on this machine") as caught:
        open_stream(model, "fused-fp32", "cuda")
    assert "snac.engine: eager" in caught.value.remedy


@pytest.mark.parametrize(
    ("program", "engine"),
    [("", "fused-fp32"), ("raise SystemExit('ptxas is lost')", "eager"), ("1 / 0", "eager")],
)
def test_auto_is_fused_where_the_kernels_run_in_a_process_of_their_own(
    program, engine, monkeypatch, tmp_path, caplog
):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(on_gpu.sys, "executable", str(python))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu.why_not_fused.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert resolve_engine("auto", "cuda", True) == engine
    finally:
        on_gpu.why_not_fused.cache_clear()
    expected = {"": "", "1 / 0": "ZeroDivisionError"}.get(program, "ptxas is lost")
    assert expected in caplog.text
    assert bool(caplog.text) == (engine == "eager")


def test_the_precision_is_refused_where_it_does_not_run_and_part_of_the_name():
    with pytest.raises(ConfigError, match=r"snac\.precision tf32 cannot be used.*CPUs") as caught:
        resolve_codec("untrained", precision="tf32")
    assert "snac.precision: fp32" in caught.value.remedy
    with pytest.raises(ConfigError, match=r"snac\.precision tf32 .*eager computes in FP32"):
        resolve_engine("eager", "cuda", True, "tf32")
    fp32, tf32 = (
        resolve_codec("untrained", device="cuda", engine="fused", precision=precision)
        for precision in ("fp32", "tf32")
    )
    assert [fp32.describe()["engine"], tf32.describe()["engine"]] == ["fused-fp32", "fused-tf32"]
    assert fp32.describe() != tf32.describe()


def test_an_encoder_of_another_build_runs_eagerly():
    settings = {**ARCHITECTURE, "encoder_dim": 8, "depthwise": False}
    assert supports(ARCHITECTURE)
    assert not supports(settings)
    engine = resolve_engine("auto", "cpu", False)
    assert engine.startswith("eager-")
    other = fold_weight_norm(SNAC(**settings))
    encode = open_engine(other, engine, "cpu")
    clip = torch.from_numpy(speech_24k(4096))[None]
    with torch.inference_mode():
        for codes, expected in zip(encode(clip, [2])[0], other.encode(clip[None]), strict=True):
            assert torch.equal(codes, expected[0])
    with pytest.raises(ConfigError, match="not built as the published one"):
        resolve_engine("tiled", "cpu", False)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="no such engine"):
        resolve_engine("turbo", "cpu", True)  # pyright: ignore[reportArgumentType]


def test_the_engine_is_part_of_what_decides_the_codes():
    tiled, eager = (resolve_codec("untrained", engine=name) for name in ("tiled", "eager"))
    assert tiled.describe()["engine"] == f"tiled-{instruction_set()}"
    assert tiled.describe() != eager.describe()


def test_a_worker_that_cannot_run_the_engine_of_the_run_refuses(no_compiler):
    """With the resolved engine there is no other to fall back to."""
    spec = resolve_codec("untrained", engine="tiled")
    with pytest.raises(
        ConfigError, match=r"native cannot be used on this machine.*compiler"
    ) as caught:
        Codec.open(replace(spec, engine="native"))
    assert "Install a C compiler" in caught.value.remedy
    with pytest.raises(ConfigError, match=r"tiled-vax.*this machine computes with") as caught:
        Codec.open(replace(spec, engine="tiled-vax"))
    assert caught.value.remedy == "Run koe and its workers on machines of one kind."
