"""DNSMOS must equal the reference package, window by window and score by score."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import speechmos.dnsmos as reference
import torch

from koe.errors import BadRecord, ConfigError, StageError
from stages.dnsmos.engines import BF16_OVRL_ERROR, ovrl_error, require_precision
from stages.dnsmos.network import WINDOW_SAMPLES
from stages.dnsmos.onnx_session import require_provider
from stages.dnsmos.scorer import (
    P808_FILE,
    DnsmosScorer,
    find_model,
    repeated_samples,
    window_starts,
)
from tests.stages.native.engines import runnable_in_bf16
from tests.stages.speech import speech_16k

SECONDS = (0.3, 1.0, 3.0, 4.505, 5.0, 9.0, 9.01, 10.0, 16.0, 17.0, 20.0, 30.0, 70.3)


class _Remembering:
    """A session that keeps what it was fed, and computes the same window only once."""

    def __init__(self, session) -> None:
        self.session, self.answers, self.fed = session, {}, []

    def run(self, outputs, feeds):
        (window,) = feeds.values()
        self.fed.append(window)
        key = window.tobytes()
        if key not in self.answers:
            self.answers[key] = self.session.run(outputs, feeds)
        return self.answers[key]


class _Constant:
    def run(self, outputs, feeds):
        return [np.ones((1, 3), np.float32)]


@pytest.fixture(scope="module")
def scorer() -> DnsmosScorer:
    return DnsmosScorer(find_model().path, p808=find_model(None, P808_FILE))


@pytest.fixture(scope="module")
def referee() -> reference.DNSMOS:
    folder = Path(find_model().path).parent
    referee = reference.DNSMOS(find_model().path, str(folder / P808_FILE))
    referee.onnx_sess = _Remembering(referee.onnx_sess)
    return referee


@pytest.mark.parametrize("seconds", SECONDS)
def test_the_windows_are_those_that_the_reference_feeds_its_model(seconds, referee, monkeypatch):
    audio = np.random.default_rng(0).uniform(-1, 1, round(seconds * 16_000)).astype(np.float32)
    spy = _Remembering(_Constant())
    monkeypatch.setattr(referee, "onnx_sess", spy)

    monkeypatch.setattr(referee, "audio_melspec", lambda audio: np.zeros((1, 1), np.float32))
    monkeypatch.setattr(referee, "p808_onnx_sess", _Constant())
    referee(audio, 16_000, False)

    doubled = np.tile(audio, repeated_samples(len(audio)) // len(audio))
    starts = window_starts(len(audio), "reference")
    assert len(starts) == len(spy.fed)
    for start, fed in zip(starts, spy.fed, strict=True):
        np.testing.assert_array_equal(doubled[np.newaxis, start : start + WINDOW_SAMPLES], fed)


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0, 4.505, 9.0, 20.0])
def test_dnsmos_equals_reference(seconds, scorer, referee):
    audio = speech_16k(seconds)
    ours, theirs = scorer.score(audio, "reference"), referee(audio, 16_000, False)
    assert ours.sig == pytest.approx(theirs["sig_mos"], abs=1e-4)
    assert ours.bak == pytest.approx(theirs["bak_mos"], abs=1e-4)
    assert ours.ovrl == pytest.approx(theirs["ovrl_mos"], abs=1e-4)
    assert ours.p808 == pytest.approx(theirs["p808_mos"], abs=1e-4)
    assert ours.windows == len(window_starts(len(audio), "reference"))


def test_all_windows_are_every_whole_second_of_the_doubled_clip():
    assert window_starts(20 * 16_000, "all") == [second * 16_000 for second in range(11)]
    assert len(window_starts(20 * 16_000, "reference")) == 7
    assert window_starts(WINDOW_SAMPLES, "all") == [0]
    assert window_starts(WINDOW_SAMPLES - 1, "all") == [16_000 * i for i in range(10)]
    for seconds in range(1, 16):  # below 16 s the reference skips nothing
        num_samples = seconds * 16_000
        if repeated_samples(num_samples) < 16 * 16_000:
            assert window_starts(num_samples, "all") == window_starts(num_samples, "reference")


def test_the_mean_is_over_the_windows(scorer):
    audio = speech_16k(11.01)
    windows = [audio[start : start + WINDOW_SAMPLES] for start in window_starts(len(audio), "all")]
    alone = [scorer.score(window, "all").ovrl for window in windows]
    assert len(alone) == 3
    assert scorer.score(audio, "all").ovrl == pytest.approx(np.mean(alone), abs=1e-6)


def test_no_samples_are_a_bad_record_not_an_endless_loop(scorer):
    with pytest.raises(BadRecord, match="empty_audio"):
        scorer.score(np.empty(0, np.float32), "reference")


@pytest.mark.parametrize(
    "audio",
    [np.full(WINDOW_SAMPLES, np.nan, np.float32), np.zeros((WINDOW_SAMPLES, 2), np.float32)],
    ids=["score_not_finite", "the_network_raises"],
)
def test_a_failing_model_is_a_stage_error_that_names_the_clip(scorer, audio):
    with pytest.raises(StageError, match="clip-7") as caught:
        scorer.score(audio, "reference", clip_id="clip-7")
    assert caught.value.clip_id == "clip-7"
    assert caught.value.stage == "score"
    if audio.ndim == 2:
        assert caught.value.__cause__ is not None


def test_an_unusable_model_is_refused_with_its_reason(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.onnx cannot be read"):
        find_model(str(tmp_path / "nowhere.onnx"))
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="onnxruntime cannot load"):
        DnsmosScorer(str(garbage))
    other = Path(find_model().path).with_name("model_v8.onnx")
    with pytest.raises(ConfigError, match=r"not a DNSMOS P\.835 model"):
        DnsmosScorer(str(other))


def test_another_file_than_the_planned_one_is_refused(tmp_path):
    copy = tmp_path / "sig_bak_ovr.onnx"
    shutil.copy(find_model().path, copy)
    assert find_model(str(copy)).sha256 == find_model().sha256
    with pytest.raises(ConfigError, match=find_model().sha256):
        DnsmosScorer(str(copy), expected_sha256="0" * 64)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has CUDA"
)
def test_a_missing_gpu_provider_never_becomes_the_cpu():
    require_provider("cpu")
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        require_provider("cuda")
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        DnsmosScorer(find_model().path, provider="cuda", engine="onnxruntime")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_without_a_gpu_torch_is_refused_and_never_the_cpu():
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        DnsmosScorer(find_model().path, provider="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seconds", [0.3, 9.0, 20.0, 41.0])
def test_a_gpu_scores_as_a_cpu(seconds, scorer):
    exact = DnsmosScorer(find_model().path, provider="cuda")
    rounded = DnsmosScorer(find_model().path, provider="cuda", precision="bf16")
    audio = speech_16k(seconds)
    expected, found = scorer.score(audio, "all"), exact.score(audio, "all")
    assert found.ovrl == pytest.approx(expected.ovrl, abs=2e-5)
    assert found.sig == pytest.approx(expected.sig, abs=2e-5)
    assert found.bak == pytest.approx(expected.bak, abs=2e-5)
    assert exact.score(audio, "all") == found
    assert 0 < abs(rounded.score(audio, "all").ovrl - found.ovrl) < BF16_OVRL_ERROR


def test_onnxruntime_with_bf16_on_cuda_is_refused():
    with pytest.raises(ConfigError, match=r"cannot be used with score\."):
        DnsmosScorer(find_model().path, "cuda", engine="onnxruntime", precision="bf16")


def test_bf16_is_refused_where_the_cpu_would_only_emulate_it(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_f": True})
    require_precision("fp32", "cpu")
    require_precision("bf16", "cuda")
    with pytest.raises(ConfigError, match="neither AVX-512 BF16 nor AMX"):
        require_precision("bf16", "cpu")
    with pytest.raises(ConfigError, match=r"score\.precision: fp32"):
        DnsmosScorer(find_model().path, precision="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 9.0, 20.0])
@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_bf16_stays_within_its_stated_error(engine, seconds, scorer, monkeypatch):
    # Emulated where the CPU lacks it: slower, the same rounding.
    monkeypatch.setattr("stages.dnsmos.engines.require_precision", lambda *_: None)
    if engine == "native":
        name = runnable_in_bf16()[0]
        monkeypatch.setattr("stages.dnsmos.kernels.bf16_target", lambda: name)
    bf16 = DnsmosScorer(find_model().path, precision="bf16", engine=engine)
    audio = speech_16k(seconds)
    ours, exact = bf16.score(audio, "reference"), scorer.score(audio, "reference")
    assert 0 < abs(ours.ovrl - exact.ovrl) < ovrl_error("bf16", engine)
    assert bf16.score(audio, "reference") == ours


@pytest.mark.slow
def test_finding_the_model_imports_neither_speechmos_nor_librosa():
    code = (
        "import sys; from stages.dnsmos.scorer import find_model; find_model();"
        "print(sorted({'speechmos', 'librosa', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
