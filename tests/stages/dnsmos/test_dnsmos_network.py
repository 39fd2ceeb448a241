"""Windows that share their computation must score as windows computed alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import stages.dnsmos.network as network
from stages.dnsmos.network import (
    HOP_SAMPLES,
    WINDOW_SAMPLES,
    Network,
    Part,
    UnknownNetwork,
    consecutive,
    cut,
    split_bands,
)
from stages.dnsmos.on_torch import torch_parts
from stages.dnsmos.onnx_session import open_session, runner
from stages.dnsmos.scorer import find_model
from tests.stages.speech import speech_16k

MODEL = Path(find_model().path).read_bytes()
PARTS = cut(MODEL)


def _run(model: bytes):
    return runner(open_session(model, "cpu", "test"))


def _part(model: bytes) -> Part:
    run = _run(model)
    return lambda values: torch.from_numpy(run(values.contiguous().numpy()))


@pytest.fixture(scope="module")
def cut_network() -> Network:
    parts = (PARTS.spectrogram, PARTS.shared, PARTS.head)
    return Network(*(_part(part) for part in parts), map)


@pytest.fixture(scope="module")
def uncut():
    """The uncut model on one window at a time, each computed once."""
    session, answers = _run(MODEL), {}

    def raw(window: np.ndarray) -> np.ndarray:
        key = window.tobytes()
        if key not in answers:
            answers[key] = session(window[np.newaxis])[0]
        return answers[key]

    return raw


def _alone(uncut, audio, starts) -> np.ndarray:
    return np.stack([uncut(audio[start : start + WINDOW_SAMPLES]) for start in starts])


@pytest.mark.slow
@pytest.mark.parametrize(
    "starts",
    [[0], [0, 1], [3], [0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 6, 7]],
    ids=["one", "two", "later", "seven", "gaps"],
)
def test_shared_windows_score_as_windows_alone(cut_network, uncut, starts):
    audio = speech_16k(17)
    places = [HOP_SAMPLES * start for start in starts]
    found = cut_network.raw_scores(audio, places)
    np.testing.assert_allclose(found, _alone(uncut, audio, places), rtol=0, atol=5e-5)


@pytest.mark.slow
def test_silence_before_a_window_matters_only_inside_it(cut_network, uncut):
    """A window's edges see its own zero padding, never the loud neighbour beyond them."""
    audio = np.zeros(WINDOW_SAMPLES + 2 * HOP_SAMPLES, np.float32)
    audio[:HOP_SAMPLES] = np.random.default_rng(0).uniform(-1, 1, HOP_SAMPLES)
    audio[-HOP_SAMPLES:] = audio[:HOP_SAMPLES]
    starts = [0, HOP_SAMPLES, 2 * HOP_SAMPLES]
    found = cut_network.raw_scores(audio, starts)
    np.testing.assert_allclose(found, _alone(uncut, audio, starts), rtol=0, atol=5e-5)


@pytest.mark.slow
def test_bands_bound_memory_and_change_nothing(cut_network, uncut, monkeypatch):
    audio, starts = speech_16k(13), [HOP_SAMPLES * i for i in range(4)]
    monkeypatch.setattr(network, "_BAND_FRAMES", 150)
    monkeypatch.setattr(network, "_EDGES_AT_ONCE", 2)
    largest = []
    shared = cut_network.shared

    def spy(power):
        largest.append(power.shape[0] * power.shape[2])
        return shared(power)

    banded = Network(cut_network.spectrogram, spy, cut_network.head, map)
    found = banded.raw_scores(audio, starts)
    np.testing.assert_allclose(found, _alone(uncut, audio, starts), rtol=0, atol=5e-5)
    assert len(largest) > 8
    assert max(largest) <= 150 + 24 + 4  # context, and complete columns


@pytest.mark.parametrize("num_frames", [900, 1000, 2000, 2100, 4100, 6000])
def test_bands_cover_the_frames_in_complete_columns(num_frames):
    bands = list(split_bands(num_frames))
    firsts = [band.start + 4 * band.skip for band in bands]
    assert firsts[0] == 0
    assert all(
        a + 4 * band.keep == b for band, (a, b) in zip(bands, pairwise(firsts), strict=False)
    )
    assert firsts[-1] + 4 * bands[-1].keep == num_frames == bands[-1].stop
    for band in bands:
        assert band.start % 4 == band.stop % 4 == 0
        assert band.stop - band.start <= 2024 + 4


def test_starts_are_grouped_by_whole_hops():
    assert list(consecutive([0])) == [(0, 1)]
    assert list(consecutive([0, 16_000, 48_000, 64_000, 112_000])) == [
        (0, 2),
        (48_000, 2),
        (112_000, 1),
    ]


@pytest.mark.slow
def test_the_cut_parts_take_any_number_of_frames_and_threads_change_nothing(cut_network):
    audio, starts = speech_16k(12), [0, HOP_SAMPLES, 2 * HOP_SAMPLES]
    with ThreadPoolExecutor(3) as pool:
        threaded = Network(cut_network.spectrogram, cut_network.shared, cut_network.head, pool.map)
        np.testing.assert_array_equal(
            threaded.raw_scores(audio, starts), cut_network.raw_scores(audio, starts)
        )


def _amplitudes(log_power: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Return the amplitude of every bin, as a share of the largest that its frame could give.

    A bin is a sum of 320 products whose rounding is that of the largest, so in a bin that is
    10,000 times quieter than its frame the logarithm differs in the third decimal.
    """
    largest = samples[0].double().norm(dim=1) * np.linalg.norm(PARTS.filters, axis=2).max()
    return 10 ** (log_power[0, 0].double() / 2) / largest.clamp(min=1e-6)[:, None]


def test_torch_computes_every_part_as_onnxruntime_does(cut_network):
    spectrogram, shared, head = torch_parts(PARTS, "cpu", "fp32")
    samples = torch.from_numpy(speech_16k(10)).unfold(0, 320, 160).unsqueeze(0)
    samples = torch.cat([samples, torch.zeros(1, 3, 320)], dim=1)  # the least power
    power = cut_network.spectrogram(samples)
    found, expected = (_amplitudes(part, samples) for part in (spectrogram(samples), power))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # 8 roundings of FP32
    features = cut_network.shared(power[:, :, :900])
    torch.testing.assert_close(shared(power[:, :, :900]), features, rtol=1e-4, atol=1e-4)
    windows = torch.cat([features, features.flip(2)])
    torch.testing.assert_close(head(windows), cut_network.head(windows), rtol=0, atol=2e-5)


def test_the_network_of_torch_scores_as_windows_alone(uncut):
    audio, starts = speech_16k(13), [HOP_SAMPLES * i for i in range(3)]
    found = Network(*torch_parts(PARTS, "cpu", "fp32"), map).raw_scores(audio, starts)
    np.testing.assert_allclose(found, _alone(uncut, audio, starts), rtol=0, atol=5e-5)


def test_another_network_is_refused():
    other = Path(find_model().path).with_name("model_v8.onnx").read_bytes()
    with pytest.raises(UnknownNetwork, match="expected"):
        cut(other)


def test_cutting_leaves_the_model_of_the_package_as_it_is():
    session = onnxruntime.InferenceSession(MODEL)
    assert session.get_inputs()[0].shape[1:] == [WINDOW_SAMPLES]
