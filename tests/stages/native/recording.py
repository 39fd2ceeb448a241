"""Records what compiled functions are given and what they make of it, for `replay.c` to repeat.

A file of calls holds little-endian int64 and bytes: the number of calls; of each its name, the number of
arguments, and each as -2 and a number, -1 and a buffer, or a length and so many buffers. A buffer, or a
name, is its size and its bytes. The results are the bytes of all buffers after each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.native.compiler import Argument, Library


@dataclass
class Recording:
    """Calls as `replay` reads them, the results that it should write, and the functions called."""

    calls: list[bytes] = field(default_factory=list)
    results: list[bytes] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def file(self) -> bytes:
        return _number(len(self.calls)) + b"".join(self.calls)

    def add(self, name: str, values: tuple[Argument, ...], call: Callable[[], int]) -> int:
        parts = [_sized(name.encode()), _number(len(values)), *map(_described, values)]
        self.calls.append(b"".join(parts))
        returned = call()
        self.results.extend(buffer for value in values for buffer in _buffers(value))
        self.names.add(name)
        return returned


class RecordedLibrary(Library):
    """A library whose calls are recorded."""

    def __init__(self, library: Library, recording: Recording) -> None:
        self._library, self._recording = library, recording

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        if name.endswith("_floats"):  # a size, which moves no memory
            return function
        return lambda *values: self._recording.add(name, values, lambda: function(*values))


def _described(value: Argument) -> bytes:
    if isinstance(value, int):
        return _number(-2) + _number(value)
    kind = -1 if isinstance(value, Tensor | np.ndarray) else len(value)
    return _number(kind) + b"".join(map(_sized, _buffers(value)))


def _buffers(value: Argument) -> Iterator[bytes]:
    """Copy the memory of an argument: all that lies between its first and its last value."""
    if isinstance(value, Tensor):
        steps = zip(value.shape, value.stride(), strict=True)
        length = 1 + sum((size - 1) * step for size, step in steps)
        yield torch.as_strided(value, (length,), (1,)).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif not isinstance(value, int):
        for item in value:
            yield from _buffers(item)


def _sized(data: bytes) -> bytes:
    return _number(len(data)) + data


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)
