"""Batches of similar length where a GPU's memory runs out: fewer clips at once, and none lost."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from koe.errors import StageError
from stages.snac.batches import Grouped

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
