"""DNSMOS on many clips at once: the windows of as many clips as a GPU computes best together.

Clips of equal numbers of windows make up a batch, so that a batch is one tensor without padding
and a run of koe has few shapes. Everything on the device is queued: while it computes a batch the
next ones are decoded, laid out and copied.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.dnsmos.network import (
    EDGE_COLUMNS,
    EDGE_FRAMES,
    FRAME_HOP,
    FRAME_SAMPLES,
    HOP_COLUMNS,
    HOP_FRAMES,
    HOP_SAMPLES,
    WINDOW_COLUMNS,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Clip,
    Part,
    computing,
    consecutive,
)
from stages.native.memory import Bound, halving, measured_limit

# About 45 windows of clips of usual lengths, some thousand tiles of work for each of a GPU's
# processors; more at once cost memory and save nothing.
FRAMES_AT_ONCE = 16_384
# More windows of one clip share hardly more, and would make shapes that hardly another clip has.
_MOST_WINDOWS = 32
_WAITING_BATCHES = 8  # clips wait for others like them; no more batches than this are held
_QUEUED_BATCHES = 2  # on the device before the first is waited for


@dataclass(frozen=True)
class Piece:
    """`num` windows of a clip, each one hop after the one before it, the first at sample `start`."""

    clip: Clip
    start: int
    num: int

    @property
    def frames(self) -> int:
        """Return how many frames are computed for it: its own, and the edges of its windows."""
        return WINDOW_FRAMES + (HOP_FRAMES + 2 * EDGE_FRAMES) * (self.num - 1)

    def write(self, out: np.ndarray) -> None:
        """Write its samples: those of the clip, repeated without end, from `start` on."""
        audio, start = self.clip.audio, self.start % len(self.clip.audio)
        filled = min(len(out), len(audio) - start)
        out[:filled] = audio[start : start + filled]
        if filled == len(out):
            return
        wrapped = min(len(out) - filled, start)
        out[filled : filled + wrapped] = audio[:wrapped]
        filled += wrapped  # whole copies of the clip from here on
        while filled < len(out):
            more = min(filled, len(out) - filled)
            out[filled : filled + more] = out[:more]
            filled += more


def pieces(clip: Clip) -> Iterator[Piece]:
    """Cut a clip's windows into pieces of few enough, all about as large."""
    for first, num in consecutive(clip.starts):
        parts = -(-num // _MOST_WINDOWS)
        bounds = [num * part // parts for part in range(parts + 1)]
        for begin, end in itertools.pairwise(bounds):
            yield Piece(clip, first + begin * HOP_SAMPLES, end - begin)


def cost(batch: Sequence[Piece]) -> int:
    """Return the frames that are computed for a batch."""
    return sum(piece.frames for piece in batch)


def alike(items: Iterable[Piece], limit: Callable[[], float]) -> Iterator[list[Piece]]:
    """Group pieces of as many windows, `limit()` frames per batch at most, or a single piece.

    Pieces wait for others like them; when those that wait come to several batches, the largest
    group goes ahead.
    """
    waiting: dict[int, list[Piece]] = defaultdict(list)
    held = 0
    for piece in items:
        group = waiting[piece.num]
        group.append(piece)
        held += piece.frames
        full = cost(group) + piece.frames > limit()
        if full or held > _WAITING_BATCHES * limit():
            largest = piece.num if full else max(waiting, key=lambda num: cost(waiting[num]))
            held -= cost(waiting[largest])
            yield waiting.pop(largest)
    yield from (waiting[num] for num in sorted(waiting, reverse=True))


@dataclass(frozen=True)
class _Started:
    """A batch on its way: `raw` [pieces, windows, 3] on the host, complete when `ready` is."""

    batch: Sequence[Piece]
    raw: Tensor
    ready: torch.cuda.Event | None


class BatchedNetwork:
    """The three parts of the network on a device of torch's, for many clips at once."""

    def __init__(
        self,
        parts: tuple[Part, Part, Part],
        device: str = "cuda",
        frames_at_once: int = FRAMES_AT_ONCE,
        gpu_share: float = 1.0,
    ) -> None:
        """Bind the parts (see `Parts`; they take several clips). On a CPU memory is not bounded.

        `gpu_share` of the GPU is this process's; `frames_at_once` 0 computes piece by piece.
        """
        self._spectrogram, self._shared, self._head = parts
        self._device = torch.device(device)
        self._share = gpu_share
        self._bound = Bound(frames_at_once, "DNSMOS")
        self._on_gpu = self._device.type == "cuda"
        self._copying = torch.cuda.Stream(self._device) if self._on_gpu else None
        self._measured = not self._on_gpu

    def raw_scores_of(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, np.ndarray]]:
        """Yield every clip with the raw outputs of its windows, float32 [windows, 3].

        Clips come in the order in which they are done.
        Raises: StageError when torch fails, or memory lacks for a single piece of a clip.
        """
        found: dict[Clip, dict[int, np.ndarray]] = defaultdict(dict)
        for piece, raw in self._raw_of(piece for clip in clips for piece in pieces(clip)):
            parts = found[piece.clip]
            parts[piece.start] = raw
            if sum(map(len, parts.values())) == len(piece.clip.starts):
                yield piece.clip, np.concatenate([parts[start] for start in sorted(parts)])
                del found[piece.clip]

    def _raw_of(self, items: Iterable[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
        started: deque[_Started] = deque()
        for batch in alike(items, lambda: self._bound.limit):
            started.extend(self._start(batch))
            while len(started) > _QUEUED_BATCHES:
                yield from self._finish(started.popleft())
        while started:
            yield from self._finish(started.popleft())

    def _start(self, batch: Sequence[Piece]) -> list[_Started]:
        with computing([piece.clip for piece in batch]):
            if not self._measured:
                self._measure(batch[0])
            return halving(batch, self._queue, cost, self._bound)

    def _measure(self, piece: Piece) -> None:
        """Bound batches by what the longest piece, computed once, takes of the GPU's memory."""
        longest = Piece(piece.clip, piece.start, _MOST_WINDOWS)
        found = measured_limit(
            self._device, lambda: self._queue([longest]), longest.frames, self._share
        )
        self._bound.limit = min(self._bound.limit, found)
        self._measured = True

    def _queue(self, batch: Sequence[Piece]) -> _Started:
        """Start a batch of pieces of as many windows: one copy in, one copy out."""
        num = batch[0].num
        num_samples = WINDOW_SAMPLES + HOP_SAMPLES * (num - 1)
        samples = torch.empty(len(batch), num_samples, pin_memory=self._on_gpu)
        for piece, row in zip(batch, samples.numpy(), strict=True):
            piece.write(row)
        raw = self.raw_scores(self._moved(samples), num)
        if not self._on_gpu:
            return _Started(batch, raw, None)
        host = torch.empty(raw.shape, pin_memory=True).copy_(raw, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return _Started(batch, host, ready)

    def _moved(self, samples: Tensor) -> Tensor:
        """Copy pinned samples to the GPU beside what it computes; on a CPU, return them."""
        if self._copying is None:
            return samples
        with torch.cuda.stream(self._copying):
            moved = samples.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._copying)
        moved.record_stream(now)  # whose use of the memory the allocator then waits for
        return moved

    def _finish(self, started: _Started) -> Iterator[tuple[Piece, np.ndarray]]:
        if started.ready is not None:
            with computing([piece.clip for piece in started.batch]):
                started.ready.synchronize()
        yield from zip(started.batch, started.raw.numpy(), strict=True)

    def raw_scores(self, samples: Tensor, num: int) -> Tensor:
        """Return raw scores [pieces, num, 3] of samples [pieces, those of `num` windows]."""
        power = self._spectrogram(samples.unfold(1, FRAME_SAMPLES, FRAME_HOP))
        features = self._shared(power)
        windows = features.unfold(2, WINDOW_COLUMNS, HOP_COLUMNS).permute(0, 2, 1, 4, 3)
        windows = windows.clone(memory_format=torch.contiguous_format)
        if num > 1:
            edges = self._shared(_edges(power, num - 1)).unflatten(0, (2, len(samples), num - 1))
            windows[:, 1:, :, :EDGE_COLUMNS] = edges[0, ..., :EDGE_COLUMNS, :]
            windows[:, :-1, :, -EDGE_COLUMNS:] = edges[1, ..., -EDGE_COLUMNS:, :]
        return self._head(windows.flatten(0, 1)).unflatten(0, (len(samples), num))


def _edges(power: Tensor, num: int) -> Tensor:
    """Cut the first frames of every window but the first, then the last of every one but the last.

    `power` [pieces, 1, frames, 161]; returns [2 * pieces * num, 1, EDGE_FRAMES, 161].
    """
    places = (HOP_FRAMES, WINDOW_FRAMES - EDGE_FRAMES)
    cut = [power[:, 0, place:].unfold(1, EDGE_FRAMES, HOP_FRAMES)[:, :num] for place in places]
    return torch.stack(cut).flatten(0, 2).movedim(2, 1).unsqueeze(1).contiguous()
