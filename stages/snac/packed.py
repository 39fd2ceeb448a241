"""A stream of clips through a GPU: packed into launches, with a few of them on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from koe.vocabulary import FRAME_SAMPLES, flatten_codes
from stages.native.memory import Bound, halving, measured_limit
from stages.snac.guarding import Attempt, guarded, named
from stages.snac.launches import LAUNCHES_IN_FLIGHT, Launch, Launcher
from stages.snac.on_gpu import RowsEncoder
from stages.snac.pieces import GAP, Piece, filled, frames_taken, pieces

# 87 s: in larger launches no kernel would have more to do than a GPU can do at once.
MOST_CHUNKS = 4


class PackedEncoder:
    """Encodes clips in their order, each as if it were alone, as many at once as fit."""

    def __init__(
        self, encoder: RowsEncoder, device: torch.device, tf32: bool = False, gpu_share: float = 1.0
    ) -> None:
        """On CUDA, `gpu_share` of the memory, by what the first launch takes, bounds the others."""
        chunk = encoder.chunk_frames
        self._tf32, self._least = tf32, chunk
        self._longest, self._context = chunk - 2 * GAP, encoder.context
        self._launcher = Launcher(encoder.encode, chunk, device)
        self._bound = Bound(MOST_CHUNKS * chunk, "SNAC")
        if device.type == "cuda":
            silence = next(pieces(0, np.zeros(FRAME_SAMPLES, np.float32), 1, 0))
            with guarded(Attempt("measure the memory", "silence"), tf32):
                fits = measured_limit(
                    device, lambda: self._start([silence]).codes(), chunk, gpu_share
                )
            self._bound.limit = min(self._bound.limit, fits)

    def stream(
        self, clips: Iterable[tuple[int, np.ndarray]], batch_samples: int, names: Sequence[str]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the codes of clips, as `codec.Codec.stream` describes it."""
        running: deque[Launch] = deque()
        begun: list[np.ndarray] = []  # codes of a clip whose last piece is not there yet
        attempt = Attempt("", "")

        def started(some: Sequence[Piece]) -> Launch:
            attempt.now(*_described(some, names))
            return self._start(some)

        most = batch_samples // FRAME_SAMPLES
        cut = (piece for clip in clips for piece in pieces(*clip, self._longest, self._context))
        for batch in filled(cut, lambda: self._frames_at_once(most)):
            with guarded(attempt, self._tf32):
                running.extend(halving(batch, started, self._cost, self._bound))
            while len(running) >= LAUNCHES_IN_FLIGHT:
                yield from _finished(running.popleft(), begun, names)
        while running:
            yield from _finished(running.popleft(), begun, names)

    def _frames_at_once(self, most: int) -> int:
        """Return the largest launch within `most` frames and within memory, one chunk at least."""
        frames = self._least
        while 2 * frames <= min(most, self._bound.limit):
            frames *= 2
        return frames

    def _cost(self, some: Sequence[Piece]) -> int:
        """Return the frames of a launch; 0 for the least, which fewer pieces would not make smaller."""
        capacity = self._launcher.capacity(frames_taken(some))
        return capacity if capacity > self._least else 0

    def _start(self, some: Sequence[Piece]) -> Launch:
        return self._launcher.start(some, frames_taken(some))


def _finished(
    launch: Launch, begun: list[np.ndarray], names: Sequence[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Wait for a launch, and yield the clips that end in it; `begun` is what they began with."""
    with guarded(Attempt(*_described(launch.pieces, names))):
        codes = launch.codes()
    for piece, found in zip(launch.pieces, codes, strict=True):
        begun.append(found)
        if piece.last:
            yield piece.clip, _flat(np.concatenate(begun))
            begun.clear()


def _described(some: Sequence[Piece], names: Sequence[str]) -> tuple[str, str]:
    """Say what is done in a launch, and of which clips."""
    doing = f"encode {frames_taken(some)} frames at once"
    return doing, named(names, (piece.clip for piece in some))


def _flat(frames: np.ndarray) -> np.ndarray:
    """Bring the codes of frames, level by level [F, 7], into the order of tokens: uint16 [7 F]."""
    levels = np.split(frames.astype(np.uint16), [1, 3], axis=1)
    return flatten_codes([level.reshape(-1) for level in levels])
