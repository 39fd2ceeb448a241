"""The stream serial of Ogg files, and the checksum that covers it (RFC 3533, section 6)."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule, serial, page, crc, segments


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


_CRC_TABLE = _crc_table()


def page_crc(page: bytes) -> int:
    """Return the checksum of a page whose own checksum field is zero."""
    crc = 0
    for byte in page:
        crc = ((crc << 8) & 0xFFFFFFFF) ^ _CRC_TABLE[(crc >> 24) ^ byte]
    return crc


def pin_serial(data: bytes, serial: int) -> bytes:
    """Give every page of a single-stream Ogg file the stream serial `serial`.

    Raises: ValueError where no page begins.
    """
    pages, place = [], 0
    while place < len(data):
        magic, version, flags, granule, _, number, _, num_segments = _HEADER.unpack_from(
            data, place
        )
        if magic != b"OggS":
            raise ValueError(f"no Ogg page begins at byte {place}")
        body = place + _HEADER.size
        stop = body + num_segments + sum(data[body : body + num_segments])
        fields = (magic, version, flags, granule, serial, number)
        blank = _HEADER.pack(*fields, 0, num_segments) + data[body:stop]
        pages.append(_HEADER.pack(*fields, page_crc(blank), num_segments) + data[body:stop])
        place = stop
    return b"".join(pages)
