"""Launches of the encoder: of few sizes, each recorded once, with copies beside the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koe.vocabulary import FRAME_SAMPLES, SLOTS
from stages.snac.pieces import Piece, starts

# Launches on their way at once: one computes, one waits, and the host fills the third.
LAUNCHES_IN_FLIGHT = 3

Encode = Callable[[Tensor, Tensor], Tensor]  # audio [2048 F], inside [F] to codes [F, 7]


class Recorded:
    """A function of tensors of fixed shapes: on CUDA a graph of it, replayed; on a CPU itself.

    What it returns is overwritten by the next call.
    """

    def __init__(self, function: Encode, inputs: Sequence[Tensor], pool: Any) -> None:
        """Run the function once on copies of `inputs`, then record it.

        Graphs that share a `pool` share memory: they run one after the other, and each result is
        read before the next.
        """
        self._function = function
        self._inputs = [given.clone() for given in inputs]
        self._graph = None
        if inputs[0].is_cuda:
            # The first run compiles, chooses kernels, and finds out whether memory suffices.
            apart = torch.cuda.Stream()
            apart.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(apart):
                function(*self._inputs)
            torch.cuda.current_stream().wait_stream(apart)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        if self._graph is None:
            return self._function(*self._inputs)
        self._graph.replay()
        return self._output


class Launch:
    """The codes of a launch that may still run."""

    def __init__(self, found: Tensor, some: Sequence[Piece], done: torch.cuda.Event | None) -> None:
        self._found, self.pieces, self._done = found, some, done
        self._codes: list[np.ndarray] | None = None

    def codes(self) -> list[np.ndarray]:
        """Wait, and return the codes of the frames that each piece keeps: int16 [keep, 7]."""
        if self._codes is None:
            if self._done is not None:
                self._done.synchronize()
            found = self._found.numpy()
            places = zip(self.pieces, starts(self.pieces), strict=True)
            self._codes = [found[at + one.skip :][: one.keep].copy() for one, at in places]
        return self._codes


class Launcher:
    """Starts launches of 1, 2, 4, ... chunks, whatever holds the pieces."""

    def __init__(self, encode: Encode, chunk_frames: int, device: torch.device) -> None:
        self._encode, self._chunk_frames, self._device = encode, chunk_frames, device
        self._recorded: dict[int, Recorded] = {}  # by frames
        self._slots: list[_Slot] = []
        self._next = 0
        on_cuda = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if on_cuda else None
        self._pool = torch.cuda.graph_pool_handle() if on_cuda else None

    def capacity(self, frames: int) -> int:
        """Return the frames of the smallest launch that holds `frames`."""
        capacity = self._chunk_frames
        while capacity < frames:
            capacity *= 2
        return capacity

    def start(self, some: Sequence[Piece], frames: int) -> Launch:
        """Encode pieces that take `frames` frames, and return at once.

        Raises: torch.OutOfMemoryError when the device does not hold a launch of that size.
        """
        capacity = self.capacity(frames)
        slot = self._slot(capacity)
        audio, inside = slot.filled(some, capacity)
        on_device = self._copied(slot, audio, inside)
        if capacity not in self._recorded:
            self._recorded[capacity] = Recorded(self._encode, on_device, self._pool)
        found = slot.found[:capacity]
        found.copy_(self._recorded[capacity](*on_device), non_blocking=True)
        if slot.done is not None:
            slot.done.record()
        slot.launch = Launch(found, some, slot.done)
        return slot.launch

    def _copied(self, slot: _Slot, *host: Tensor) -> list[Tensor]:
        """Copy to the device beside what is computed there; what follows waits for it."""
        beside = nullcontext() if self._copies is None else torch.cuda.stream(self._copies)
        with beside:
            copies = [
                to[: len(given)].copy_(given, non_blocking=True)
                for to, given in zip(slot.on_device, host, strict=True)
            ]
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)
        return copies

    def _slot(self, capacity: int) -> _Slot:
        """Return the buffers whose turn it is, large enough and free."""
        if len(self._slots) <= self._next:
            self._slots.append(self._new_slot(capacity))
        slot = self._slots[self._next]
        slot.empty()
        if slot.capacity < capacity:
            slot = self._slots[self._next] = self._new_slot(capacity)
        self._next = (self._next + 1) % LAUNCHES_IN_FLIGHT
        return slot

    def _new_slot(self, capacity: int) -> _Slot:
        slot = _Slot(capacity, self._device)
        if self._copies is not None:  # what used this memory before may still run
            self._copies.wait_stream(torch.cuda.current_stream())
        return slot


class _Slot:
    """Buffers of one launch, on the host in pages that the device copies by itself."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.capacity = capacity
        self._audio = torch.zeros(capacity * FRAME_SAMPLES, pin_memory=on_cuda)
        self._inside = torch.zeros(capacity, dtype=torch.uint8, pin_memory=on_cuda)
        self.on_device = [
            torch.empty_like(one, device=device) for one in (self._audio, self._inside)
        ]
        self.found = torch.zeros(capacity, SLOTS, dtype=torch.int16, pin_memory=on_cuda)
        self.done = torch.cuda.Event() if on_cuda else None
        self.launch: Launch | None = None

    def empty(self) -> None:
        """Let the last launch of these buffers take what it needs of them."""
        if self.launch is not None:
            self.launch.codes()

    def filled(self, some: Sequence[Piece], capacity: int) -> tuple[Tensor, Tensor]:
        """Lay the pieces out: samples [2048 capacity], and which frames are theirs [capacity]."""
        audio, inside = self._audio[: capacity * FRAME_SAMPLES], self._inside[:capacity]
        inside.zero_()
        samples, end = audio.numpy(), 0
        for one, at in zip(some, starts(some), strict=True):
            begin = at * FRAME_SAMPLES
            samples[end:begin] = 0
            end = begin + len(one.audio)
            samples[begin:end] = one.audio
            inside[at : at + one.frames] = 1
        samples[end:] = 0
        return audio, inside
