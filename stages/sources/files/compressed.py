"""Compressed files as the streams that they hold, which can be read from any byte on."""

from __future__ import annotations

import io
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import BinaryIO, cast

import indexed_gzip

from stages.sources.files.lines import num_bytes
from stages.sources.files.opening import open_binary, stamp
from stages.sources.files.source_index import StreamIndex, build_index, load_index, save_index
from stages.sources.files.streams import Damage, Piece, is_compressed, pieces
from stages.sources.planning import Gap

_RECENT_PIECES = 4  # kept, because tars are read with small steps back
_KEEP_INDEX_BYTES = 8 << 20  # a shorter stream is as quickly read from its start


class Decompressed(io.RawIOBase):
    """A compressed file that reads and seeks like the stream in it.

    With an index, reading begins at the checkpoint before the place asked for; without one at the
    start of the stream, or where the last read ended. The bytes are the same either way.
    """

    def __init__(self, path: str, index: StreamIndex | None = None) -> None:
        super().__init__()
        self._path, self._file = path, open_binary(path)
        self._index: StreamIndex | None = None
        self._gzip: _GzipBlocks | None = None
        self._place, self._next = 0, 0  # of the reader; of the next piece
        self._pieces: Iterator[Piece] = pieces(path, self._file)
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT_PIECES)
        self._damage: Damage | None = None
        self._size: int | None = None
        if index:
            # one of another file is refused, and the stream is read from its start
            with suppress(indexed_gzip.ZranError):
                self._use(index)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset += self.index().num_bytes
        elif whence == os.SEEK_CUR:
            offset += self._place
        self._place = max(offset, 0)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill the buffer, unless the stream ends; a raw file may give less, but readers forget it."""
        done = 0
        while done < len(buffer) and (data := self._at(self._place, len(buffer) - done)):
            buffer[done : done + len(data)] = data
            done += len(data)
            self._place += len(data)
        return done

    def index(self) -> StreamIndex:
        """Return the size, damage and checkpoints of the stream, which it reads to the end for."""
        if self._index is None:
            with open_binary(self._path) as file:
                self._use(build_index(self._path, file))
        assert self._index is not None
        return self._index

    def _use(self, index: StreamIndex) -> None:
        self._gzip = _GzipBlocks(self._file, index) if index.gzip else None
        self._index, self._size = index, index.num_bytes

    def _at(self, place: int, num_bytes: int) -> bytes:
        """Return at most `num_bytes` from a place on; nothing only at the end."""
        if self._size is not None and place >= self._size:
            return b""
        for start, data in self._recent:
            if start <= place < start + len(data):
                return data[place - start : place - start + num_bytes]
        if self._gzip:
            try:
                self._recent.clear()  # blocks are large
                self._recent.append(self._gzip.block(place))
                return self._at(place, num_bytes)
            except indexed_gzip.ZranError:
                self._restart(0)  # in a damaged block: what precedes the damage can be reached
                self._gzip = None
        self._go_to(place)
        return self._at(place, num_bytes)

    def _go_to(self, place: int) -> None:
        """Decompress until the piece that holds `place`, or the end of the stream."""
        frames = self._index.frames if self._index else ((0, 0),)
        begin = frames[bisect_right(frames, (place, 1 << 63)) - 1]
        if place < self._next or begin[0] > self._next:
            self._restart(*begin)
        while self._next <= place:
            try:
                piece = next(self._pieces, None)
            except Damage:
                piece = None
            if piece is None:
                self._size = self._next
                return
            if piece.data:
                self._recent.append((self._next, piece.data))
                self._next += len(piece.data)

    def _restart(self, place: int, frame: int = 0) -> None:
        self._pieces, self._next = pieces(self._path, self._file, frame), place
        self._recent.clear()


class _GzipBlocks:
    """The ranges between the checkpoints of a gzip file, each decompressed as a whole.

    indexed_gzip goes back to a checkpoint for every read, so a smaller read would take as long.
    """

    def __init__(self, file: BinaryIO, index: StreamIndex) -> None:
        # A buffer of one byte, so that nothing beyond the block is asked for.
        self._file = indexed_gzip.IndexedGzipFile(fileobj=file, buffer_size=1)
        self._file.import_index(fileobj=io.BytesIO(index.gzip))
        starts = [start for start, _ in self._file.seek_points()]
        self._starts = [start for start in starts if start < index.num_bytes]
        self._end = index.num_bytes

    def block(self, place: int) -> tuple[int, bytes]:
        """Return the block that holds a place, and its first byte. Raises: ZranError."""
        number = bisect_right(self._starts, place) - 1
        start = self._starts[number]
        stop = self._starts[number + 1] if number + 1 < len(self._starts) else self._end
        self._file.seek(start)
        return start, self._file.read(stop - start)


_lock = threading.Lock()
_idle: dict[tuple[str, str, str], BinaryIO] = {}  # the stream that was read last, where it ended


@contextmanager
def scanned(path: str, index_folder: str = "") -> Iterator[BinaryIO]:
    """Open a file to plan its units; the index of a compressed one is kept in `index_folder`."""
    if not is_compressed(path):
        with open_binary(path) as file:
            yield file
        return
    with Decompressed(path, stream_index(path, index_folder)) as stream:
        yield cast(BinaryIO, io.BufferedReader(stream))


def stream_index(path: str, index_folder: str = "") -> StreamIndex:
    """Return the index of a compressed file, and keep it in `index_folder` if it is worth it."""
    return _stream_index(path, stamp(path), index_folder)


@lru_cache(maxsize=1)
def _stream_index(path: str, mark: str, index_folder: str) -> StreamIndex:
    if index_folder and (kept := load_index(index_folder, path, mark)):
        return kept
    with open_binary(path) as file:
        index = build_index(path, file)
    if index_folder and index.num_bytes > _KEEP_INDEX_BYTES:
        save_index(index_folder, path, mark, index)
    return index


def damage(path: str, index: StreamIndex) -> Gap | None:
    """Return the end of a compressed file that cannot be read; it counts its compressed bytes."""
    if not index.why:
        return None
    with open_binary(path) as file:
        lost = max(1, num_bytes(file) - index.place)
    return Gap(index.num_bytes, index.num_bytes + lost, index.why)


@contextmanager
def opened(path: str, mark: str, index_folder: str = "") -> Iterator[BinaryIO]:
    """Open a file, which has the stamp `mark`, to read a unit of it.

    A compressed stream stays open behind the unit, so that the next one need not begin anew.
    """
    if not is_compressed(path):
        with open_binary(path) as file:
            yield file
        return
    key = (path, mark, index_folder)
    with _lock:
        stream = _idle.pop(key, None)
    if stream is None:
        index = load_index(index_folder, path, mark) if index_folder else None
        stream = cast(BinaryIO, io.BufferedReader(Decompressed(path, index)))
    try:
        yield stream
    except OSError:
        stream.close()
        raise
    finally:
        if not stream.closed:
            _keep(key, stream)


def _keep(key: tuple[str, str, str], stream: BinaryIO) -> None:
    with _lock:
        for other in _idle.values():
            other.close()
        _idle.clear()
        _idle[key] = stream
