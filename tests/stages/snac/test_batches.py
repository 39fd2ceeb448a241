"""Batches of similar length: bounded and complete, and where a GPU's memory runs out none is lost."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from koe.errors import StageError
from stages.snac.batches import Grouped, padded_samples, similar_length_batches

FRAME = 2_048


class _Device:
    """Gives as codes the first samples of each clip, and holds `room` samples of a batch."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def __call__(self, audio, frames):
        if audio.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        self.batches.append(len(audio))
        return [
            [clip[: n * k].to(torch.int64) for k in (1, 2, 4)]
            for clip, n in zip(audio, frames, strict=True)
        ]


def _clips(count: int):
    return [(clip, np.full(FRAME * (1 + clip % 3), clip, np.float32)) for clip in range(count)]


def _names(count: int) -> list[str]:
    return [f"clip {clip}" for clip in range(count)]


def test_memory_that_runs_out_halves_the_batch_says_so_once_and_loses_no_clip(caplog):
    device = _Device(room=7 * FRAME)
    grouped = Grouped(device)
    with caplog.at_level(logging.WARNING):
        found = dict(grouped.stream(_clips(40), 24 * FRAME, _names(40)))
        assert dict(grouped.stream(_clips(40), 24 * FRAME, _names(40))).keys() == found.keys()
    assert sorted(found) == list(range(40))
    for clip, codes in found.items():
        assert codes.tolist() == [clip] * 7 * (1 + clip % 3)
    assert max(device.batches) > 1
    (said,) = caplog.records
    assert "SNAC found too little free memory for a batch" in said.getMessage()


def test_where_one_clip_does_not_fit_the_error_names_it():
    grouped = Grouped(_Device(room=2 * FRAME))
    with pytest.raises(
        StageError, match=r"1 x 6144 samples of clip 'clip 2' because CUDA"
    ) as caught:
        list(grouped.stream(_clips(3), 24 * FRAME, _names(3)))
    assert caught.value.clip_id == "clip 2"
    assert "gpus_per_worker" in caught.value.remedy


def test_batches_are_of_similar_lengths_bounded_and_complete():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12 * FRAME, 300)
    batch_samples = 20 * FRAME
    held = taken = padding = 0

    def clips():
        nonlocal held, taken
        for row, size in enumerate(sizes):
            taken += 1
            held += padded_samples(size)
            assert held <= 17 * batch_samples + 12 * FRAME
            yield row, np.zeros(size, np.float32)

    seen = []
    for batch in similar_length_batches(clips(), batch_samples):
        lengths = [padded_samples(len(audio)) for _, audio in batch]
        assert len(batch) * max(lengths) <= batch_samples
        held -= sum(lengths)
        padding += len(batch) * max(lengths) - sum(lengths)
        seen += [row for row, _ in batch]
    assert padding < 0.05 * sum(map(padded_samples, sizes))
    assert sorted(seen) == list(range(300))
    assert held == 0


def test_without_batches_no_clip_waits():
    taken = []

    def clips():
        for row in range(5):
            taken.append(row)
            yield row, np.zeros(FRAME, np.float32)

    for number, batch in enumerate(similar_length_batches(clips(), 0)):
        assert [row for row, _ in batch] == [number]
        assert taken == list(range(number + 1))


def test_a_clip_longer_than_a_batch_is_encoded_alone():
    clips = [(0, np.zeros(50_000, np.float32)), (1, np.zeros(50_000, np.float32))]
    batches = list(similar_length_batches(clips, 24_000))
    assert [[row for row, _ in batch] for batch in batches] == [[0], [1]]
