"""Clip audio wherever it lies: a file, a byte range of a tar, or a cell of a Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa

from koe.errors import BadRecord, ConfigError, StorageError, attempt
from stages.audio.decode import AudioHeader, read_header
from stages.sources.base import AudioLocation
from stages.sources.compressed import opened
from stages.sources.files import is_absent, num_bytes, open_binary, reading, stamp, what_else
from stages.sources.parquet_file import CellReader
from stages.sources.streams import is_compressed

T = TypeVar("T")
# A file of audio is held in memory while its clips are decoded. These are 18 hours of 16-bit WAV at
# 16 kHz, or a day and a half of MP3 at 128 kbit/s.
MAX_AUDIO_BYTES = 1 << 31
FILE, TAR, PARQUET = "file", "tar", "parquet"


class ClipReader:
    """Reads clips one after another; keeps one archive open and the last audio in memory.

    It must not be used by several threads at once. Close it, or use it in a `with` block. Tars
    may be compressed; `index_folder`: as in `SourceFiles`.
    """

    def __init__(self, index_folder: str = "") -> None:
        self._index_folder = index_folder
        self._archive: Any = None  # an open tar, or the reader of a Parquet column
        self._opened_archive = ExitStack()
        self._archive_key: tuple[str, ...] = ()
        self._last: tuple[AudioLocation, bytes] | None = None

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._opened_archive.close()
        self._archive, self._archive_key, self._last = None, (), None

    def read(self, place: AudioLocation) -> bytes:
        """Return the encoded audio at `place`.

        Raises: BadRecord `missing_audio` when the file does not exist or the cell is null;
        StorageError when the storage fails or an archive has changed.
        """
        if self._last is not None and self._last[0] == place:
            return self._last[1]  # consecutive clips often lie in one long recording
        data = self._read(place)
        self._last = (place, data)
        return data

    def header(self, place: AudioLocation) -> tuple[AudioHeader, int]:
        """Return the header of the audio at `place`, and the size of the audio in bytes.

        Reads no more than the format needs, except in Parquet, where cells are read completely.

        Raises: BadRecord, also for what `stages.audio.decode.read_header` refuses; StorageError.
        """
        if place.kind == PARQUET:
            data = self.read(place)
            return read_header(data), len(data)
        if place.kind == TAR:
            _require_size(place.num_bytes)
            with reading(place.path):
                archive = self._opened(_tar, place.path, self._index_folder)
                return read_header(archive, place.offset, place.num_bytes), place.num_bytes
        with reading(place.path), open_audio(place.path) as file:
            size = num_bytes(file)
            _require_size(size)
            return read_header(file, 0, size), size

    def _read(self, place: AudioLocation) -> bytes:
        if place.kind == PARQUET:
            return self._opened(_cells, place.path, place.member).read(place.offset)
        if place.kind == FILE:
            with reading(place.path), open_audio(place.path) as file:
                return file.read()
        with reading(place.path):
            archive = self._opened(_tar, place.path, self._index_folder)
            archive.seek(place.offset)
            data = archive.read(place.num_bytes)
        if len(data) != place.num_bytes:
            raise StorageError(
                f"{place.path} is shorter than it was when its clips were listed",
                f"{place.member} should end at byte {place.offset + place.num_bytes}",
                "Restore the file, or run again from ingest.",
            )
        return data

    def _opened(self, opener: Callable[..., AbstractContextManager[T]], *key: str) -> T:
        """Open an archive, unless it is the one that is open already."""
        if self._archive is None or self._archive_key != key:
            self.close()
            self._archive = self._opened_archive.enter_context(opener(*key))
            self._archive_key = key
        return self._archive


def _tar(path: str, index_folder: str) -> AbstractContextManager[BinaryIO]:
    return opened(path, stamp(path) if is_compressed(path) else "", index_folder)


def _cells(path: str, column: str) -> AbstractContextManager[CellReader]:
    return closing(CellReader(path, column))


def _require_size(num_bytes: int) -> None:
    if num_bytes > MAX_AUDIO_BYTES:
        detail = f"{num_bytes:,} bytes of audio, of at most {MAX_AUDIO_BYTES:,}"
        raise BadRecord("record_too_large", detail)


def open_audio(path: str) -> BinaryIO:
    """Open a file of audio.

    Raises: BadRecord `missing_audio` where there is no such file; OSError.
    """
    if "\0" in path:
        raise BadRecord("missing_audio", "the path contains a NUL character")
    try:
        if kind := what_else(path):
            raise BadRecord("missing_audio", f"{path} is {kind}, not a file")
        return open_binary(path)
    except OSError as error:
        if is_absent(error):
            raise BadRecord("missing_audio", f"{path}: {error.strerror or error}") from None
        raise
    except ConfigError as error:
        if not isinstance(error.__cause__, ImportError):  # no URL; a missing package can be had
            raise BadRecord("missing_audio", f"{path}: {error.why}") from None
        raise


def read_clips(clips: pa.Table, index_folder: str = "") -> Iterator[bytes | BadRecord]:
    """Yield the encoded audio of every row of a CLIP-like table, in order.

    Yields a BadRecord instead of bytes where the audio is missing or unreadable.

    `index_folder`: as in `SourceFiles`.

    Raises: StorageError when the storage fails, which is not the clip's fault.
    """
    columns = ["audio_kind", "audio_path", "audio_member", "audio_offset", "audio_bytes"]
    with ClipReader(index_folder) as reader:
        for row in clips.select(columns).to_pylist():
            yield attempt(reader.read, AudioLocation(*row.values()))
