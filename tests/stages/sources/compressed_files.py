"""Compressed files for tests, by writers that differ in what they make."""

from __future__ import annotations

import gzip

import zstandard

from stages.sources.files import compressed


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def in_parts(compress, data: bytes, num_parts: int) -> bytes:
    """Compress parts one by one, as pzstd, pigz and `cat` leave them."""
    size = -(-len(data) // num_parts) or 1
    return b"".join(compress(data[at : at + size]) for at in range(0, len(data) or 1, size))


WRITERS = {
    "one.gz": gz,
    "members.gz": lambda data: in_parts(gz, data, 5),
    "padded.gz": lambda data: gz(data) + bytes(700),
    "one.zst": zstd,
    "frames.zst": lambda data: in_parts(zstd, data, 5),
    "skippable.zst": lambda data: (
        zstd(data[:99]) + b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(data[99:])
    ),
}


def forget_all():
    for stream in compressed._idle.values():
        stream.close()
    compressed._idle.clear()
    compressed._stream_index.cache_clear()
