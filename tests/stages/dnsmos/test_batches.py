"""Many clips at once must score as each alone, whatever is beside it and however much fits."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import StageError
from stages.dnsmos import batches
from stages.dnsmos.batches import BatchedNetwork, Piece, alike, cost, pieces
from stages.dnsmos.network import HOP_SAMPLES, WINDOW_SAMPLES, Clip, Network, cut
from stages.dnsmos.on_torch import torch_parts
from stages.dnsmos.scorer import DnsmosScorer, find_model, window_starts
from tests.stages.dnsmos.simple import simple_parts
from tests.stages.speech import speech_16k

PARTS = cut(Path(find_model().path).read_bytes())
THRESHOLD = 2.5
_NUM_WINDOWS = st.lists(st.integers(1, 40), max_size=60)


def _clip(number: int, num_windows: int) -> Clip:
    starts = [HOP_SAMPLES * place for place in range(num_windows)]
    audio = np.random.default_rng(number).uniform(-1, 1, WINDOW_SAMPLES + starts[-1])
    return Clip(number, f"clip-{number}", audio.astype(np.float32), starts)


@given(st.integers(1, 400), st.integers(0, 1000), st.integers(1, 900))
def test_a_piece_is_the_clip_repeated_without_end(num_samples, start, length):
    audio = np.arange(num_samples, dtype=np.float32)
    out = np.full(length, np.nan, np.float32)
    Piece(Clip(0, "", audio, [start]), start, 1).write(out)
    np.testing.assert_array_equal(out, np.arange(start, start + length) % num_samples)


@given(st.lists(st.integers(0, 200), min_size=1, unique=True))
def test_pieces_are_few_windows_and_all_of_them(hops):
    starts = [HOP_SAMPLES * hop for hop in sorted(hops)]
    cut_up = list(pieces(Clip(0, "", np.zeros(1, np.float32), starts)))
    assert [p.start + HOP_SAMPLES * i for p in cut_up for i in range(p.num)] == starts
    assert max(piece.num for piece in cut_up) <= 32


@given(_NUM_WINDOWS, st.integers(0, 40_000))
def test_batches_hold_each_piece_once_and_what_is_allowed(numbers, limit):
    given_pieces = [
        piece
        for number, num in enumerate(numbers)
        for piece in pieces(
            Clip(number, "", np.zeros(1, np.float32), [HOP_SAMPLES * i for i in range(num)])
        )
    ]
    taken, held_most, out = 0, 0, 0

    def items():
        nonlocal taken
        for piece in given_pieces:
            taken += piece.frames
            yield piece

    grouped = []
    for batch in alike(items(), lambda: limit):
        grouped += batch
        held_most, out = max(held_most, taken - out), out + cost(batch)
        assert len({piece.num for piece in batch}) == 1
        assert len(batch) == 1 or cost(batch) <= limit
    assert sorted(grouped, key=id) == sorted(given_pieces, key=id)
    assert held_most <= 8 * limit + 2 * Piece(_EMPTY, 0, 32).frames or not grouped


_EMPTY = Clip(0, "", np.zeros(1, np.float32), [0])


def test_a_bound_that_is_lowered_holds_from_the_next_batch_on():
    allowed, sizes = {"frames": 4 * 900}, []
    for batch in alike([Piece(_EMPTY, 0, 1)] * 10, lambda: allowed["frames"]):
        sizes.append(len(batch))
        allowed["frames"] = 2 * 900
    assert sizes == [4, 2, 2, 2]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.lists(st.integers(100, 3 * WINDOW_SAMPLES), max_size=3),
    st.integers(0, 6_000),
)
def test_any_batch_assembles_the_windows_that_each_clip_has_alone(numbers, lengths, at_once):
    short = [
        Clip(100 + i, "", audio, window_starts(len(audio), "all"))
        for i, length in enumerate(lengths)
        for audio in [np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)]
    ]
    clips = [*(_clip(number, num) for number, num in enumerate(numbers)), *short]
    batched = BatchedNetwork(simple_parts(), "cpu", at_once)
    alone = dict(Network(*simple_parts(), map).raw_scores_of(clips))
    found = dict(batched.raw_scores_of(clips))
    assert set(found) == set(alone)
    for clip, raw in found.items():
        np.testing.assert_allclose(raw, alone[clip], rtol=2e-6, err_msg=str(clip.starts))


def test_gaps_between_windows_and_long_clips_are_put_together_again(monkeypatch):
    monkeypatch.setattr(batches, "_MOST_WINDOWS", 3)
    clip = _clip(0, 12)
    gaps = Clip(1, "", clip.audio, [clip.starts[i] for i in (0, 1, 3, 6, 7, 8, 9, 11)])
    found = dict(BatchedNetwork(simple_parts(), "cpu", 9_000).raw_scores_of([clip, gaps]))
    alone = dict(Network(*simple_parts(), map).raw_scores_of([clip, gaps]))
    for each in (clip, gaps):
        np.testing.assert_allclose(found[each], alone[each], rtol=2e-6)
    np.testing.assert_array_equal(found[gaps], found[clip][[0, 1, 3, 6, 7, 8, 9, 11]])


def _mixed_clips() -> list[tuple[int, str, np.ndarray]]:
    """Clips of one or two windows, some of them noisy, so that scores spread."""
    rng = np.random.default_rng(0)
    voice = speech_16k(40)
    lengths = (9.2, 4.6, 10.1, 0.3, 9.05)
    audios = [voice[round(16_000 * i) :][: round(16_000 * s)] for i, s in enumerate(lengths)]
    audios[1::3] = [audio + rng.normal(0, 0.02, len(audio)) for audio in audios[1::3]]
    return [(i, f"clip-{i}", audio.astype(np.float32)) for i, audio in enumerate(audios)]


def _scorer(network: BatchedNetwork) -> DnsmosScorer:
    scorer = DnsmosScorer(find_model().path)
    scorer._network = network
    return scorer


@pytest.mark.slow
@pytest.mark.law
def test_a_batch_scores_as_its_clips_alone():
    """In torch's FP32, with which a GPU computes: to 1e-5, and no decision differs."""
    clips, parts = _mixed_clips(), torch_parts(PARTS, "cpu", "fp32")
    alone, one_by_one = _scorer(BatchedNetwork(parts, "cpu", 0)), {}
    for key, clip_id, audio in clips:
        one_by_one[key] = alone.score(audio, "all", clip_id)
    together = dict(_scorer(BatchedNetwork(parts, "cpu", 6_000)).score_each(clips, "all"))
    reference = DnsmosScorer(find_model().path)
    for key, clip_id, audio in clips:
        found, expected = together[key], one_by_one[key]
        assert found.windows == expected.windows
        on_cpu = reference.score(audio, "all", clip_id)
        for name in ("sig", "bak", "ovrl"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-5)
            assert getattr(found, name) == pytest.approx(getattr(on_cpu, name), abs=2e-5)
        assert (found.ovrl > THRESHOLD) == (expected.ovrl > THRESHOLD)
    assert len({found.ovrl > THRESHOLD for found in together.values()}) == 2


class _Crowded:
    """Layers on a device that has memory for `room` clips at once."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, []
        self.parts = simple_parts()

    def shared(self, power: torch.Tensor) -> torch.Tensor:
        if power.shape[2] == 24:  # the edges of windows
            return self.parts[1](power)
        self.tried.append(len(power))
        if len(power) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.parts[1](power)

    def network(self, at_once: int) -> BatchedNetwork:
        return BatchedNetwork((self.parts[0], self.shared, self.parts[2]), "cpu", at_once)


@pytest.mark.parametrize("room", [1, 2, 3, 5])
def test_without_memory_for_a_batch_its_halves_are_computed(room, caplog):
    clips = [_clip(number, 1 + number % 2) for number in range(16)]
    crowded = _Crowded(room)
    with caplog.at_level(logging.WARNING):
        found = dict(crowded.network(9_000).raw_scores_of(clips))
    alone = dict(BatchedNetwork(simple_parts(), "cpu", 0).raw_scores_of(clips))
    for clip in clips:
        np.testing.assert_allclose(found[clip], alone[clip], rtol=2e-6)
    assert len([r for r in caplog.records if "too little free memory" in r.message]) == 1
    failed = [num for num in crowded.tried if num > room]
    assert len(failed) <= 4  # 8 clips at once, then 4, then 2: never again what failed once


def test_without_memory_for_one_clip_it_is_a_typed_error_and_no_clip_is_lost_in_silence():
    crowded = _Crowded(0)
    with pytest.raises(
        StageError, match="DNSMOS found too little memory for a single clip"
    ) as caught:
        list(crowded.network(9_000).raw_scores_of([_clip(0, 1), _clip(1, 1)]))
    assert "gpus_per_worker" in caught.value.remedy
    assert crowded.tried == [2, 1]


def test_another_failure_names_the_clips_of_the_batch():
    def broken(power: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    spectrogram, _, head = simple_parts()
    network = BatchedNetwork((spectrogram, broken, head), "cpu", 9_000)
    with pytest.raises(StageError, match="clip-0, clip-1") as caught:
        list(network.raw_scores_of([_clip(0, 1), _clip(1, 1)]))
    assert caught.value.stage == "score"
    assert "EXECUTION_FAILED" in caught.value.why


def test_what_reading_raises_is_not_blamed_on_the_network():
    def lost_mount():
        yield _clip(0, 1)
        raise OSError("lost mount")

    for network in (BatchedNetwork(simple_parts(), "cpu", 9_000), Network(*simple_parts(), map)):
        with pytest.raises(OSError, match="lost mount"):
            list(network.raw_scores_of(lost_mount()))


def test_batches_are_bounded_by_what_the_gpu_has(monkeypatch):
    asked: list[tuple[float, float]] = []

    def limit(device, run, of_cost: float, share: float) -> float:
        run()
        asked.append((of_cost, share))
        return 3_000.0

    monkeypatch.setattr(batches, "measured_limit", limit)
    sizes: list[int] = []
    spectrogram, shared, head = simple_parts()

    def spy(power: torch.Tensor) -> torch.Tensor:
        sizes.append(len(power))
        return shared(power)

    network = BatchedNetwork((spectrogram, spy, head), "cpu", 9_000, gpu_share=0.25)
    network._measured = False  # as on a GPU
    clips = [_clip(number, 1) for number in range(12)]
    assert len(dict(network.raw_scores_of(clips))) == 12
    assert len(dict(network.raw_scores_of(clips))) == 12
    assert asked == [(Piece(_EMPTY, 0, 32).frames, 0.25)]  # once
    assert sizes[:2] == [1, 62]  # a piece of 32 windows, and its edges
    # Ten clips were together before it was known, and are cut to what it allows.
    assert sizes[2:] == [2, 3, 2, 3, 2, 3, 3, 3, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_scores_a_batch_as_its_clips_alone():
    clips = _mixed_clips()
    for precision, bound in (("fp32", 1e-5), ("bf16", 0.03)):
        gpu = DnsmosScorer(find_model().path, "cuda", precision=precision)
        together = dict(gpu.score_each(clips, "all"))
        assert dict(gpu.score_each(clips, "all")) == together
        for key, clip_id, audio in clips:
            alone = gpu.score(audio, "all", clip_id)
            assert together[key].ovrl == pytest.approx(alone.ovrl, abs=bound)
