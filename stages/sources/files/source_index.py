"""Where a compressed stream can be entered: found once when it is planned, kept beside the plan."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import BinaryIO

import indexed_gzip

from stages.sources.files.kept import keep, kept
from stages.sources.files.moves import name_of
from stages.sources.files.streams import Damage, is_zstd, pieces

FOLDER = "source_index"  # in the run directory


def index_folder(run_dir: str) -> str:
    """Return where a run keeps the checkpoints of compressed sources."""
    return f"{run_dir.rstrip('/')}/{FOLDER}"


_SUFFIX = ".idx"

# A checkpoint of gzip keeps 32 KiB of the stream. Entering the stream costs half of this spacing
# on average (8 ms per 4 MiB), so it grows only where there would be thousands of checkpoints.
_MIN_SPACING, _MAX_SPACING = 4 << 20, 32 << 20
_SPACINGS = 1024


@dataclass(frozen=True)
class StreamIndex:
    """What is known of a compressed stream: its size, damage, and places to begin from.

    `num_bytes` is how much of it can be decompressed. `why` says why the file gives no more,
    `place` from which of its bytes on; empty for a file that is whole. `frames` are (byte of the
    stream, byte of the file) where frames of Zstandard begin. `gzip` is what indexed_gzip needs.
    """

    num_bytes: int
    why: str = ""
    place: int = 0
    frames: tuple[tuple[int, int], ...] = ((0, 0),)
    gzip: bytes = b""


def build_index(path: str, file: BinaryIO) -> StreamIndex:
    """Decompress an open file once, without keeping what comes out."""
    num_bytes, frames, why, place = 0, [(0, 0)], "", 0
    try:
        for data, frame in pieces(path, file):
            if frame is not None and num_bytes - frames[-1][0] >= _MIN_SPACING:
                frames.append((num_bytes, frame))
            num_bytes += len(data)
    except Damage as damage:
        why, place = str(damage), damage.place
    gzip = b"" if is_zstd(path) or num_bytes <= 2 * _MIN_SPACING else _gzip_checkpoints(file)
    return StreamIndex(num_bytes, why, place, tuple(frames), gzip)


def _gzip_checkpoints(file: BinaryIO) -> bytes:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    spacing = min(max(size // _SPACINGS, _MIN_SPACING), _MAX_SPACING)
    exported = io.BytesIO()
    with indexed_gzip.IndexedGzipFile(fileobj=file, spacing=spacing) as indexed:
        # of a damaged stream, the checkpoints before the damage are good
        with suppress(indexed_gzip.ZranError):
            indexed.build_full_index()
        indexed.export_index(fileobj=exported)
    return exported.getvalue()


def save_index(folder: str, path: str, stamp: str, index: StreamIndex) -> None:
    """Keep the index of the file at `path` in `folder`. Raises: StorageError."""
    head = json.dumps({**asdict(index), "gzip": len(index.gzip)}).encode()
    keep(folder, name_of(folder, path, stamp, _SUFFIX), head + b"\n" + index.gzip)


def load_index(folder: str, path: str, stamp: str) -> StreamIndex | None:
    """Return what `save_index` kept; None where there is nothing or it is incomplete."""
    data = kept(folder, name_of(folder, path, stamp, _SUFFIX))
    if data is None:
        return None
    head, _, gzip = data.partition(b"\n")
    try:
        values = json.loads(head)
        frames = tuple((a, b) for a, b in values.pop("frames"))
        complete = values.pop("gzip") == len(gzip)
        return StreamIndex(**values, frames=frames, gzip=gzip) if complete else None
    except (ValueError, TypeError, KeyError):
        return None
