"""The bytes of an audio file: in memory, or in blocks that are read as they are wanted.

A recording of ten hours is larger than what a worker may hold. Walks and cuts take slices of either kind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock
from typing import NamedTuple, Protocol

BLOCK_BYTES = 1 << 20
CACHED_BYTES = 64 << 20


class Contents(Protocol):
    """What `bytes` and `Blocks` have in common."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int = 0, stop: int = 0, /) -> int: ...
    def startswith(self, prefix: bytes, start: int = 0, /) -> bool: ...


class Range(NamedTuple):
    """The bytes [start, stop) of a file."""

    contents: Contents
    start: int
    stop: int


def whole(contents: Contents) -> Range:
    return Range(contents, 0, len(contents))


def chunks(contents: Contents, start: int, stop: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes from `start` to `stop` in chunks, each with its place.

    A chunk holds the first `overlap` bytes of the next one too.
    """
    while start < stop:
        yield start, contents[start : min(start + BLOCK_BYTES + overlap, stop)]
        start += BLOCK_BYTES


class BlockCache:
    """The blocks of files that were used last, of `max_bytes` in all; threads may share it."""

    def __init__(self, max_bytes: int = CACHED_BYTES) -> None:
        self._max_bytes, self._num_bytes, self._lock = max_bytes, 0, Lock()
        self._blocks: OrderedDict[tuple[object, int], bytes] = OrderedDict()

    def get(self, key: tuple[object, int], read: Callable[[], bytes]) -> bytes:
        """Return a block, which `read` gives unless it is here; threads may both read it."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = read()
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._num_bytes += len(block)
            while self._num_bytes > self._max_bytes and len(self._blocks) > 1:
                self._num_bytes -= len(self._blocks.popitem(last=False)[1])
        return block


class Blocks:
    """A file of `num_bytes` of which `read(start, stop)` gives the bytes; for slices, like `bytes`.

    Raises: whatever `read` raises.
    """

    def __init__(
        self,
        num_bytes: int,
        read: Callable[[int, int], bytes],
        cache: BlockCache | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._num_bytes, self._read, self._block_bytes = num_bytes, read, block_bytes
        self._cache = cache or BlockCache(4 * block_bytes)
        self._key = object()

    def __len__(self) -> int:
        return self._num_bytes

    def __getitem__(self, where: slice, /) -> bytes:
        start, stop, _ = where.indices(self._num_bytes)
        if start >= stop:
            return b""
        size = self._block_bytes
        parts = [self._block(number) for number in range(start // size, (stop - 1) // size + 1)]
        first = start - start % size
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        return joined[start - first : stop - first]

    def find(self, sub: bytes, start: int = 0, stop: int | None = None, /) -> int:
        stop = self._num_bytes if stop is None else min(stop, self._num_bytes)
        for place, chunk in chunks(self, start, stop, len(sub) - 1):
            found = chunk.find(sub)
            if found >= 0:
                return place + found
        return -1

    def startswith(self, prefix: bytes, start: int = 0, /) -> bool:
        return self[start : start + len(prefix)] == prefix

    def _block(self, number: int) -> bytes:
        start = number * self._block_bytes
        stop = min(start + self._block_bytes, self._num_bytes)
        return self._cache.get((self._key, number), lambda: self._read(start, stop))
