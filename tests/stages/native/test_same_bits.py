"""Codes and scores of the native engines have the same bits on every instruction set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.audio import resampling
from stages.native.build import HEADERS, PORTABLE, sources
from stages.native.products import PANEL, panels
from stages.snac import compiled
from tests.stages.native.engines import NativeEngines, library, runnable, runnable_in_bf16
from tests.stages.native.recording import RecordedLibrary, Recording
from tests.stages.native.whole import computed
from tests.stages.speech import speech_16k, speech_24k

OWN, *OTHERS = runnable()
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("other", OTHERS)
def test_codes_and_latents_have_the_same_bits(other):
    """On weights whose codes compete, so that a difference would show."""
    audio = speech_24k(2_500 if other == PORTABLE else 60_000)
    expected = NativeEngines(OWN).latents_and_codes(audio)
    for found, own in zip(NativeEngines(other).latents_and_codes(audio), expected, strict=True):
        assert torch.equal(found, own)


@pytest.mark.parametrize("other", OTHERS)
def test_scores_have_the_same_bits(other):
    audio, starts = speech_16k(12.0), [0, 16_000, 32_000]
    if other != PORTABLE:
        expected = NativeEngines(OWN).raw_scores(audio, starts)
        np.testing.assert_array_equal(NativeEngines(other).raw_scores(audio, starts), expected)
        return
    for found, own in zip(_short_scoring(other), _short_scoring(OWN), strict=True):
        assert torch.equal(found, own)


def _short_scoring(name: str, wrap=lambda library: library) -> list[torch.Tensor]:
    """Run each part of the scorer on little: its features, then its head's scores."""
    spectrogram, shared, head = NativeEngines(name, wrap).scorer_parts()
    frames = torch.from_numpy(speech_16k(0.26)).unfold(0, 320, 160)
    features = shared(spectrogram(frames.contiguous()[None]))
    return [features, head(features)]


def _some_power(seed: int = 0, num_frames: int = 12) -> np.ndarray:
    """Log power as `NativeShared` takes it, in which silence makes most points zero."""
    draws = np.random.default_rng(seed)
    power = draws.normal(-6, 3, (1, 1, num_frames, 161)).astype(np.float32)
    power[..., 90:] = -12
    return power


# With small weights most products, and then most sums, are too small to be normal values.
@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e-7])
@pytest.mark.parametrize("other", runnable_in_bf16()[1:])
def test_bf16_has_the_same_bits_with_and_without_instructions_for_it(other, scale):
    own = runnable_in_bf16()[0]
    power = _some_power(num_frames=8 if other == PORTABLE else 60)
    expected = NativeEngines(own).bf16_features(power, scale)
    found = NativeEngines(other).bf16_features(power, scale)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    depth=st.integers(1, 300),
    outputs=st.integers(1, 2 * PANEL),
    overlap=st.integers(0, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_have_the_same_bits_whatever_their_sizes(rows, depth, outputs, overlap, seed):
    draws = torch.Generator().manual_seed(seed)
    step = max(1, depth - overlap)
    x = torch.randn(rows * step + depth, generator=draws).as_strided((rows, depth), (step, 1))
    weight = panels(torch.randn(depth, outputs, generator=draws))
    start = torch.randn(rows, len(weight) * PANEL, generator=draws)
    made = []
    for name in (OWN, *OTHERS):
        made.append(start.clone())
        kernels = compiled.NativeKernels(library(compiled.SOURCE, name))
        kernels.add_product(x, weight, made[-1])
        assert torch.equal(made[-1], made[0])
    filled = weight.transpose(0, 1).reshape(depth, -1).double()
    exact = start.double() + x.double() @ filled
    scale = start.abs() + x.abs() @ filled.float().abs()
    assert ((made[0] - exact).abs() <= 1e-5 * scale).all()


@settings(max_examples=60, deadline=None)
@given(
    step=st.integers(1, 160),
    phases=st.integers(1, 160),
    length=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
)
def test_resampling_has_the_same_bits_with_and_without_c(step, phases, length, seed):
    of = resampling.windowed_sinc(step, phases)
    audio = np.random.default_rng(seed).normal(size=length).astype(np.float32)
    samples, padded = resampling.padded(of, audio)
    expected = resampling.in_numpy(of, padded, samples)
    for name in (OWN, *OTHERS):
        found = resampling.in_c(of, padded, samples, library(resampling.SOURCE, name))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(OWN not in ("avx512", "avx2"), reason="needs AVX2 at least")
def test_a_worker_on_an_older_cpu_writes_the_same_bytes():
    """Torch and numpy too are held to less, in a process of their own."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]  # beyond numpy's baseline
    older = {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": " ".join(found)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.stages.native.whole", "avx2"]
    done = subprocess.run(
        command, env=os.environ | older, capture_output=True, text=True, cwd=HERE.parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"DEFAULT {computed()}"


@pytest.mark.slow
def test_neon_gives_the_same_bits_under_emulation(tmp_path):
    """Every call of a clip's encoding and scoring, repeated by an emulated ARM core."""
    recording = Recording()

    def wrap(of):
        return RecordedLibrary(of, recording)

    NativeEngines(OWN, wrap).latents_and_codes(speech_24k(1_000))
    _short_scoring(OWN, wrap)
    NativeEngines(OWN, wrap).bf16_features(_some_power(num_frames=4))
    results = _replayed(recording, tmp_path)
    expected = b"".join(recording.results)
    assert len(results) == len(expected)
    assert results == expected


def _replayed(recording: Recording, folder: Path) -> bytes:
    """Compile the kernels for ARM, statically, and repeat the calls: with qemu, or on an ARM CPU."""
    arm = platform.machine() == "aarch64"
    compiler = shutil.which("gcc" if arm else "aarch64-linux-gnu-gcc")
    emulator = None if arm else shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if compiler is None or (emulator is None and not arm):
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64 (qemu-user)")
    lines = [f"FUNCTION({name})" for name in sorted(recording.names)]
    (folder / "functions.inc").write_text("\n".join(lines))
    (folder / "calls").write_bytes(recording.file())
    flags = ("-O2", "-static", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")
    files = [*map(str, sources()), str(HERE / "replay.c"), "-o", str(folder / "replay"), "-lm"]
    subprocess.run([compiler, *flags, f"-I{HEADERS}", f"-I{folder}", *files], check=True)
    command = [folder / "replay", folder / "calls", folder / "results"]
    subprocess.run([*([emulator] if emulator else []), *map(str, command)], check=True)
    return (folder / "results").read_bytes()
