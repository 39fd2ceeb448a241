"""Lines of a file, and how many bytes a record may have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from koe.errors import BadRecord

# Of one record: a longer one could take all memory of a worker.
MAX_RECORD_BYTES = 1 << 26
_PASSED_BYTES = 1 << 20  # read at once of what is passed over


def lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, stop, line) of every line in a byte range that is not blank.

    Of a line that is longer than MAX_RECORD_BYTES, it yields the beginning, which is too long too.
    """
    file.seek(start)
    place = start
    while stop is None or place < stop:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        begin, place = place, place + len(line)
        if len(line) > MAX_RECORD_BYTES:
            place += _pass_line(file, line)
        content = line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line
        if content.strip():
            yield begin, place, content


def _pass_line(file: BinaryIO, line: bytes) -> int:
    """Read the rest of a line that begins with `line`; return how many bytes it has."""
    num_read = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(_PASSED_BYTES)
        num_read += len(line)
    return num_read


def require_size(size: int, what: str) -> None:
    """Raise BadRecord with reason record_too_large for more bytes than a record may have."""
    if size > MAX_RECORD_BYTES:
        detail = f"{what} has more than {MAX_RECORD_BYTES:,} bytes"
        raise BadRecord("record_too_large", detail)


def num_bytes(file: BinaryIO) -> int:
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size
