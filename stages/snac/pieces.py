"""How clips of any length fill launches of one length: cut where they are long, with gaps between.

A piece is surrounded by a frame of nothing, more than any of the encoder's convolutions reaches, so
that each finds the zeros that it finds where a clip ends alone. A clip longer than a launch is cut
into pieces that overlap by what the encoder sees around a frame; only the frames in the middle of
each count, and they are those of the complete clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from koe.vocabulary import FRAME_SAMPLES

GAP = 1  # frames around a piece


@dataclass(frozen=True)
class Piece:
    """Frames of a clip that are encoded at once: `skip` of context, `keep` that count, and context.

    `audio` is float32 [samples], of frames that the clip's end may cut short; `last` is the clip's
    last piece.
    """

    clip: int
    audio: np.ndarray
    skip: int
    keep: int
    last: bool

    @property
    def frames(self) -> int:
        return num_frames(len(self.audio))


def num_frames(samples: int) -> int:
    """Return how many frames a clip has: SNAC pads it on the right to complete ones."""
    return -(-samples // FRAME_SAMPLES)


def pieces(clip: int, audio: np.ndarray, most: int, context: int) -> Iterator[Piece]:
    """Cut a clip into pieces of at most `most` frames, which see `context` frames beyond their own.

    The cuts depend on the clip's length alone.
    """
    total = num_frames(len(audio))
    count = 1 if total <= most else -(-total // (most - 2 * context))
    for part in range(count):
        start, stop = total * part // count, total * (part + 1) // count
        low, high = max(0, start - context), min(total, stop + context)
        samples = audio[low * FRAME_SAMPLES : high * FRAME_SAMPLES]
        yield Piece(clip, samples, start - low, stop - start, part == count - 1)


def frames_taken(some: Sequence[Piece]) -> int:
    """Return the frames that pieces take in a launch, gaps included."""
    return GAP + sum(piece.frames + GAP for piece in some)


def starts(some: Sequence[Piece]) -> list[int]:
    """Return the frame of the launch at which each piece begins."""
    lengths = [piece.frames + GAP for piece in some]
    return list(accumulate(lengths[:-1], initial=GAP))


def filled(found: Iterable[Piece], limit: Callable[[], int]) -> Iterator[list[Piece]]:
    """Gather pieces in their order, as many as `limit` frames hold; it is asked before each."""
    batch: list[Piece] = []
    taken = GAP
    for piece in found:
        if batch and taken + piece.frames + GAP > limit():
            yield batch
            batch, taken = [], GAP
        batch.append(piece)
        taken += piece.frames + GAP
    if batch:
        yield batch
