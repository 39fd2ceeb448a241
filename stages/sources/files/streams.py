"""Compressed streams, piece by piece: gzip (RFC 1952) and Zstandard (RFC 8878)."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

SUFFIXES = {".gz": "", ".tgz": ".tar", ".zst": "", ".tzst": ".tar"}

_GZIP_MAGIC = b"\x1f\x8b"
_READ_BYTES = {"gzip": 1 << 16, "zstd": 1 << 14}  # zstandard does not bound what it gives for them
_MAX_PIECE_BYTES = 1 << 20


class Damage(Exception):
    """The rest of a compressed stream cannot be read; what precedes it is whole.

    `place` is the byte of the compressed file from which on nothing was read.
    """

    def __init__(self, why: str, place: int) -> None:
        super().__init__(why)
        self.place = place


class Piece(NamedTuple):
    """Bytes of the stream, and the byte of the file where the frame begins that they begin."""

    data: bytes
    frame: int | None


def is_compressed(path: str) -> bool:
    """Tell by its name whether a file holds a compressed stream."""
    return path.lower().endswith(tuple(SUFFIXES))


def plain_name(name: str) -> str:
    """Return the name of the stream in a file: `a.jsonl` of `a.jsonl.gz`, `a.tar` of `a.tgz`."""
    for suffix, instead in SUFFIXES.items():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] + instead
    return name


def is_zstd(path: str) -> bool:
    return path.lower().endswith((".zst", ".tzst"))


def pieces(path: str, file: BinaryIO, frame: int = 0) -> Iterator[Piece]:
    """Yield the stream of an open file from a frame on; of gzip, only from the first byte on.

    Raises: Damage.
    """
    return _zstd_pieces(file, frame) if is_zstd(path) else _gzip_pieces(file)


def _gzip_pieces(file: BinaryIO) -> Iterator[Piece]:
    """Yield what the members of a gzip file hold; zeros may follow them, as on tapes."""
    file.seek(0)
    data = file.read(_READ_BYTES["gzip"])
    if not data.startswith(_GZIP_MAGIC):
        raise Damage(f"it begins with {data[:8]!r}, not as gzip does" if data else "it is empty", 0)
    while data:
        decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not decoder.eof:
            if not data and not (data := file.read(_READ_BYTES["gzip"])):
                raise Damage("the gzip stream breaks off", file.tell())
            before = decoder.copy()
            try:
                out = decoder.decompress(data, _MAX_PIECE_BYTES)
            except zlib.error as error:
                out, read = _until_error(before.decompress, data, zlib.error)
                yield Piece(out, None)
                place = file.tell() - len(data) + read
                raise Damage(
                    f"the gzip stream is damaged: {error}{_suspect(error)}", place
                ) from None
            data = decoder.unconsumed_tail
            yield Piece(out, None)
        data = decoder.unused_data.lstrip(b"\0")
        while not data and (data := file.read(_READ_BYTES["gzip"])):
            data = data.lstrip(b"\0")
        if data and not _GZIP_MAGIC.startswith(data[:2]):
            place = file.tell() - len(data)
            raise Damage(f"no gzip stream follows its end at byte {place}", place)


def _suspect(error: Exception) -> str:
    """Say what a wrong checksum means: it comes behind what it is of, and does not say what is wrong."""
    is_checksum = "check" in str(error)
    return "; records that were read of it before may be wrong too" if is_checksum else ""


def _zstd_pieces(file: BinaryIO, frame: int) -> Iterator[Piece]:
    """Yield what the frames of a Zstandard file hold, skippable frames passed over."""
    while True:
        file.seek(frame)
        decoder = zstandard.ZstdDecompressor().decompressobj()
        read, first = 0, True
        while not decoder.eof:
            data = file.read(_READ_BYTES["zstd"])
            if not data:
                if read:
                    raise Damage("the Zstandard stream breaks off", frame + read)
                if frame == 0:
                    raise Damage("it is empty", 0)
                return
            try:
                out = decoder.decompress(data)
            except zstandard.ZstdError as error:
                file.seek(frame)
                again = zstandard.ZstdDecompressor().decompressobj()
                for _ in range(read // _READ_BYTES["zstd"]):
                    again.decompress(file.read(_READ_BYTES["zstd"]))
                out, sound = _until_error(again.decompress, data, zstandard.ZstdError)
                yield Piece(out, frame if first else None)
                why = f"the Zstandard stream is damaged: {error}{_suspect(error)}"
                raise Damage(why, frame + read + sound) from None
            yield Piece(out, frame if first else None)
            read, first = read + len(data), False
        frame += read - len(decoder.unused_data)


def _until_error(
    decompress: Callable[[bytes], bytes], data: bytes, error: type[Exception]
) -> tuple[bytes, int]:
    """Decompress byte by byte up to the error in `data`, which took what precedes it with it.

    Returns what precedes it, and how many bytes of `data` that took.
    """
    parts: list[bytes] = []
    with contextlib.suppress(error):
        for place in range(len(data)):
            parts.append(decompress(data[place : place + 1]))
    return b"".join(parts), len(parts)
