"""Clips of about the same length, encoded together by an engine that takes them padded to one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, flatten_codes
from stages.native.memory import Bound, halving, measured_limit
from stages.snac.guarding import Attempt, guarded, named
from stages.snac.pieces import num_frames

# Clips padded to one length, [clips, samples], and the number of frames of each, to the codes of
# each in three codebooks, int64 on any device.
Encode = Callable[[Tensor, Sequence[int]], list[list[Tensor]]]
Clip = tuple[int, np.ndarray]  # its place in `names`, and float32 [samples] at 24 kHz

# Clips wait for others of about their length; no more audio than this many batches is held.
_WAITING_BATCHES = 16
_FIRST_SAMPLES = 10 * CODEC_HZ  # of the batch whose need of memory bounds the others


class Grouped:
    """Encodes clips in batches of similar length, each clip as if it were alone."""

    def __init__(self, encode: Encode, device: str = "cpu", gpu_share: float = 1.0) -> None:
        """`gpu_share` of a GPU's memory, by what a first batch takes, bounds the others."""
        self._encode = encode
        self._bound = Bound(math.inf, "SNAC")
        if device == "cuda":
            silence = [(0, np.zeros(_FIRST_SAMPLES, np.float32))]
            with guarded(Attempt("measure the memory", "silence")):
                self._bound.limit = measured_limit(
                    torch.device(device),
                    lambda: self._encoded(silence),
                    _samples(silence),
                    gpu_share,
                )

    def stream(
        self, clips: Iterable[Clip], batch_samples: int, names: Sequence[str]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the codes of clips, as `codec.Codec.stream` describes it."""
        attempt = Attempt("", "")

        def encoded(batch: Sequence[Clip]) -> list[tuple[int, list[Tensor]]]:
            doing = f"encode {len(batch)} x {padded_samples(len(batch[0][1]))} samples"
            attempt.now(doing, named(names, (clip for clip, _ in batch)))
            return self._encoded(batch)

        for batch in similar_length_batches(clips, batch_samples):
            with guarded(attempt):
                parts = halving(batch, encoded, _samples, self._bound)
            for clip, codebooks in itertools.chain.from_iterable(parts):
                yield clip, flatten_codes([one.numpy() for one in codebooks])

    def _encoded(self, batch: Sequence[Clip]) -> list[tuple[int, list[Tensor]]]:
        frames = [num_frames(len(audio)) for _, audio in batch]
        padded = np.zeros((len(batch), max(frames) * FRAME_SAMPLES), np.float32)
        for row, (_, audio) in zip(padded, batch, strict=True):
            row[: len(audio)] = audio  # SNAC too pads to complete frames with zeros
        encoded = self._encode(torch.from_numpy(padded), frames)
        return [(clip, codes) for (clip, _), codes in zip(batch, encoded, strict=True)]


def padded_samples(num_samples: int) -> int:
    """Return the length to which SNAC pads a clip on the right: complete frames of 2048."""
    return num_frames(num_samples) * FRAME_SAMPLES


def _samples(batch: Sequence[Clip]) -> int:
    return len(batch) * max(padded_samples(len(audio)) for _, audio in batch)


def similar_length_batches(clips: Iterable[Clip], batch_samples: int) -> Iterator[list[Clip]]:
    """Group clips by length, `batch_samples` per batch at most, padding included.

    A clip longer than that is alone in its batch.
    """
    waiting: list[Clip] = []
    samples = 0
    for row, audio in clips:
        waiting.append((row, audio))
        samples += padded_samples(len(audio))
        if samples >= _WAITING_BATCHES * batch_samples:
            yield from _batches(waiting, batch_samples)
            waiting, samples = [], 0
    yield from _batches(waiting, batch_samples)


def _batches(clips: list[Clip], batch_samples: int) -> Iterator[list[Clip]]:
    """Cut clips, the longest first, into batches of at most `batch_samples`."""
    batch: list[Clip] = []
    for row, audio in sorted(clips, key=lambda clip: -len(clip[1])):
        if batch and (len(batch) + 1) * padded_samples(len(batch[0][1])) > batch_samples:
            yield batch
            batch = []
        batch.append((row, audio))
    if batch:
        yield batch
