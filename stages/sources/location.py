"""Clip audio wherever it lies: a file, a byte range of a tar, or a cell of a Parquet file."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa

from koe.errors import BadRecord, ConfigError, StorageError
from stages.audio.contents import BLOCK_BYTES, CACHED_BYTES, BlockCache, Blocks
from stages.audio.decode import AudioHeader, read_header
from stages.audio.recording import Recording
from stages.audio.sndfile import UNREADABLE
from stages.boundary import attempt_read
from stages.sources.base import AudioLocation
from stages.sources.files.compressed import opened
from stages.sources.files.lines import num_bytes
from stages.sources.files.moves import load_moves, present_path
from stages.sources.files.opening import (
    is_absent,
    is_remote,
    open_binary,
    read_range,
    reading,
    stamp,
)
from stages.sources.files.streams import is_compressed
from stages.sources.parquet.file import CellReader

T = TypeVar("T")
FILE, TAR, PARQUET = "file", "tar", "parquet"
# Audio of at most so many bytes is read as a whole; of larger audio, blocks as they are wanted.
WHOLE_BYTES = 4 << 20
# Object storage takes as long to answer as to send some MB.
_REMOTE_BLOCK_BYTES = 8 << 20
_MAX_HEADERS = 1 << 12


class ClipReader:
    """Reads clips one after another; keeps one archive open, and what it found out about audio.

    Many clips are segments of one recording: its header, or the recording itself, is kept for the
    others, whatever their order, as long as the memory for that is not full. It must not be used by
    several threads at once, but its recordings may. Close it, or use it in a `with` block. Tars may
    be compressed; `index_folder`: as in `SourceFiles`.
    """

    def __init__(self, index_folder: str = "") -> None:
        self._index_folder = index_folder
        self._archive: Any = None  # an open tar, or the reader of a Parquet column
        self._opened_archive = ExitStack()
        self._archive_key: tuple[str, ...] = ()
        self._headers: OrderedDict[AudioLocation, tuple[AudioHeader, int] | BadRecord] = (
            OrderedDict()
        )
        self._recordings: OrderedDict[AudioLocation, Recording] = OrderedDict()
        self._blocks = BlockCache()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._opened_archive.close()
        self._archive, self._archive_key = None, ()

    def read(self, place: AudioLocation) -> bytes:
        """Return the encoded audio at `place`.

        Raises: BadRecord `missing_audio` when the file does not exist or the cell is null;
        StorageError when the storage fails or an archive has changed.
        """
        if place.kind == PARQUET:
            return self._opened(_cells, place.path, place.member).read(place.offset)
        if place.kind == FILE:
            with reading(place.path), open_audio(place.path) as file:
                return file.read()
        with reading(place.path):
            archive = self._opened(_tar, place.path, self._index_folder)
            archive.seek(place.offset)
            return _complete(archive.read(place.num_bytes), place, 0, place.num_bytes)

    def recording(self, place: AudioLocation, keep: bool = False) -> Recording:
        """Return the audio at `place`, and `keep` it for the clips that are still to come.

        Raises: as `read`, and BadRecord `changed_audio`; what the recording reads later raises the same.
        """
        found = self._recordings.pop(place, None) or self._recording(place)
        if keep:
            self._recordings[place] = found
            held = sum(recording.num_bytes_held for recording in self._recordings.values())
            while held > CACHED_BYTES and len(self._recordings) > 1:
                held -= self._recordings.popitem(last=False)[1].num_bytes_held
        return found

    def _recording(self, place: AudioLocation) -> Recording:
        size = place.num_bytes
        if place.kind == FILE:
            with reading(place.path), open_audio(place.path) as file:
                size = num_bytes(file)
                _require_size(place, size)
                if size <= WHOLE_BYTES:
                    return Recording(file.read())
        if place.kind == PARQUET or size <= WHOLE_BYTES:
            return Recording(self.read(place))
        read = partial(_read_part, place, self._index_folder)
        block_bytes = _REMOTE_BLOCK_BYTES if is_remote(place.path) else BLOCK_BYTES
        return Recording(Blocks(size, read, self._blocks, block_bytes))

    def header(self, place: AudioLocation) -> tuple[AudioHeader, int]:
        """Return the header of the audio at `place`, and the size of the audio in bytes.

        Reads no more than the format needs, except in Parquet, where cells are read completely.

        Raises: BadRecord, also for what `stages.audio.decode.read_header` refuses; StorageError.
        """
        found = self._headers.get(place)
        if found is None:
            found = self._headers[place] = attempt_read(UNREADABLE, self._header, place)
            if len(self._headers) > _MAX_HEADERS:
                self._headers.popitem(last=False)
        self._headers.move_to_end(place)
        if isinstance(found, BadRecord):
            raise BadRecord(found.reason, found.detail)
        return found

    def _header(self, place: AudioLocation) -> tuple[AudioHeader, int]:
        if place.kind == PARQUET:
            data = self.read(place)
            return read_header(data), len(data)
        if place.kind == TAR:
            with reading(place.path):
                archive = self._opened(_tar, place.path, self._index_folder)
                return read_header(archive, place.offset, place.num_bytes), place.num_bytes
        with reading(place.path), open_audio(place.path) as file:
            size = num_bytes(file)
            return read_header(file, 0, size), size

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


def open_audio(path: str) -> BinaryIO:
    """Open a file of audio.

    Raises: BadRecord `missing_audio` where there is no such file; OSError.
    """
    if "\0" in path:
        raise BadRecord("missing_audio", "the path contains a NUL character")
    try:
        return open_binary(path)
    except OSError as error:
        if is_absent(error):
            raise BadRecord("missing_audio", f"{path}: {error.strerror or error}") from None
        raise
    except ConfigError as error:
        if not isinstance(error.__cause__, ImportError):  # no URL; a missing package can be had
            raise BadRecord("missing_audio", f"{path}: {error.why}") from None
        raise


def _require_size(place: AudioLocation, size: int) -> None:
    """Refuse a file that is not as large as when it was ingested: its clip would be cut out of another.

    Raises: BadRecord with reason changed_audio.
    """
    if place.num_bytes not in (0, size):
        raise BadRecord(
            "changed_audio",
            f"{place.path} has {size:,} bytes and had {place.num_bytes:,} when it was ingested; "
            "`koe run --force ingest` reads it again",
        )


def _read_part(place: AudioLocation, index_folder: str, start: int, stop: int) -> bytes:
    """Read a part of audio that lies in a file or tar, which is opened for it: in any thread."""
    with reading(place.path):
        if place.kind == TAR and is_compressed(place.path):
            with _tar(place.path, index_folder) as archive:
                archive.seek(place.offset + start)
                data = archive.read(stop - start)
        else:
            offset = place.offset if place.kind == TAR else 0
            data = read_range(place.path, offset + start, offset + stop)
    return _complete(data, place, start, stop)


def _complete(data: bytes, place: AudioLocation, start: int, stop: int) -> bytes:
    if len(data) != stop - start:
        raise StorageError(
            f"{place.path} is shorter than it was when its clips were listed",
            f"{place.member or 'it'} should hold the bytes {start} to {stop}, {len(data)} are there",
            "Restore the file, or run again from ingest.",
        )
    return data


def recordings(clips: pa.Table, index_folder: str = "") -> Iterator[Recording | BadRecord]:
    """Yield the audio of every row of a CLIP-like table, in order: one object for all of a file.

    Yields a BadRecord where the audio is missing or unreadable. A recording is kept until its last
    row, or until the memory for it is full. `index_folder`: as in `SourceFiles`.

    Raises: StorageError when the storage fails, which is not the clip's fault.
    """
    places = _places(clips, index_folder)
    uses = Counter(places)
    with ClipReader(index_folder) as reader:
        for place in places:
            uses[place] -= 1
            yield attempt_read(UNREADABLE, reader.recording, place, keep=uses[place] > 0)


def _places(clips: pa.Table, index_folder: str) -> list[AudioLocation]:
    """Return where the audio of every row lies now, wherever it was when its clips were listed."""
    columns = ["audio_kind", "audio_path", "audio_member", "audio_offset", "audio_bytes"]
    places = [AudioLocation(*row.values()) for row in clips.select(columns).to_pylist()]
    moves = load_moves(index_folder)
    if not moves:
        return places
    sources = clips["source"].to_pylist()
    named = {(source, place.path) for source, place in zip(sources, places, strict=True)}
    present = {
        (source, path): present_path(path, moves[source])
        for source, path in named
        if source in moves
    }
    return [
        replace(place, path=present.get((source, place.path), place.path))
        for source, place in zip(sources, places, strict=True)
    ]


def read_clips(clips: pa.Table, index_folder: str = "") -> Iterator[bytes | BadRecord]:
    """Yield the encoded audio of every row of a CLIP-like table, in order, as `recordings` does."""
    for found in recordings(clips, index_folder):
        yield found if isinstance(found, BadRecord) else found.contents[: len(found.contents)]
