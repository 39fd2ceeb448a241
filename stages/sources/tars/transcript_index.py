"""Where the rows of a table lie, by the audio that they name: for tables of millions of rows.

It takes 16 bytes a row and is read while planning alone, from a file that processes share.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from koe.errors import BadRecord
from stages.sources.files.compressed import opened
from stages.sources.files.kept import keep, kept_numbers
from stages.sources.files.moves import name_of
from stages.sources.tables.forms import AudioTable
from stages.sources.tables.rows import Row, Table, read_rows

ABSENT = -(1 << 63)  # instead of the byte of a row
_SUFFIX = ".rows"
_SMALL_CHUNK = 1 << 13  # read at once where single rows are wanted
_NEAR_BYTES = 1 << 13  # rows so near to each other are read in one pass

Numbers = npt.NDArray[np.int64]


def plain_path(path: str) -> str:
    """Return the form of a path in which those of a table and of a tar are compared."""
    return path.replace("\\", "/").removeprefix("./")


def hash_of(text: str) -> int:
    """Return a hash of 63 bits."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class TranscriptIndex:
    """The rows of a table, sorted by the hash of their audio's path.

    `rows` are the bytes at which they begin; for a path that has rows of different content, the
    first one's with all bits inverted. `broken` are those of rows that cannot be read.
    """

    hashes: Numbers
    rows: Numbers
    broken: Numbers

    def find(self, paths: Sequence[str]) -> Numbers:
        """Return for each path what `rows` has for it, or ABSENT."""
        if not len(self.hashes):
            return np.full(len(paths), ABSENT)
        wanted = np.fromiter((hash_of(plain_path(path)) for path in paths), np.int64, len(paths))
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[places] == wanted, self.rows[places], ABSENT)


def transcript_index(
    path: str, stamp: str, table: AudioTable, index_folder: str
) -> TranscriptIndex:
    """Return the index of the table at `path`; it is made once, and kept in `index_folder`.

    Nothing is kept if the folder is empty. Making it takes some 80 bytes of memory a row.

    Raises: OSError.
    """
    return _transcript_index(path, stamp, table, index_folder)


@lru_cache(maxsize=1)
def _transcript_index(
    path: str, stamp: str, table: AudioTable, index_folder: str
) -> TranscriptIndex:
    name = name_of(index_folder, path, f"{stamp}|{table}", _SUFFIX)
    if index_folder and (stored := kept_numbers(index_folder, name)) is not None:
        return _unpacked(stored)
    index = _build(path, stamp, table, index_folder)
    if index_folder:
        parts = (np.array([len(index.hashes)]), index.hashes, index.rows, index.broken)
        keep(index_folder, name, np.concatenate(parts).tobytes())
    return index


def _unpacked(numbers: Numbers) -> TranscriptIndex:
    size = int(numbers[0])
    return TranscriptIndex(*np.split(numbers[1:], [size, 2 * size]))


def _build(path: str, stamp: str, table: AudioTable, index_folder: str) -> TranscriptIndex:
    hashes, rows, contents, broken = (array("q") for _ in range(4))
    with opened(path, stamp, index_folder) as file:
        for row in read_rows(file, table.rows, table.rows.start, None):
            values = table.values(row)
            if isinstance(values, BadRecord):
                broken.append(row.start)
                continue
            hashes.append(hash_of(plain_path(values[table.audio])))
            rows.append(row.start)
            contents.append(hash_of("\0".join(row.cells)))
    return TranscriptIndex(*_sorted(*map(_numbers, (hashes, rows, contents))), _numbers(broken))


def _numbers(values: array[int]) -> Numbers:
    return np.frombuffer(values, np.int64) if values else np.empty(0, np.int64)


def _sorted(hashes: Numbers, rows: Numbers, contents: Numbers) -> tuple[Numbers, Numbers]:
    """Sort by hash, keep the first row of each, and mark those whose rows differ."""
    order = np.argsort(hashes, kind="stable")
    hashes, rows, contents = hashes[order], rows[order], contents[order]
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    differs = ~is_first[1:] & (contents[1:] != contents[:-1])
    groups = np.cumsum(is_first) - 1
    hashes, rows = hashes[is_first], rows[is_first]
    ambiguous = groups[1:][differs]
    rows[ambiguous] = ~rows[ambiguous]
    return hashes, rows


def rows_at(
    path: str, stamp: str, table: Table, places: Iterable[int], index_folder: str
) -> Iterator[Row]:
    """Yield the rows of a table that begin at these bytes, in the order of the file.

    Raises: OSError.
    """
    wanted = sorted(set(places))
    with opened(path, stamp, index_folder) as file:
        for run in _runs(wanted):
            asked = set(run)
            for row in read_rows(file, table, run[0], run[-1] + 1, _SMALL_CHUNK):
                if row.start in asked:
                    yield row


def _runs(places: Sequence[int]) -> Iterator[list[int]]:
    """Group sorted places that lie near to each other."""
    run: list[int] = []
    for place in places:
        if run and place - run[-1] > _NEAR_BYTES:
            yield run
            run = []
        run.append(place)
    if run:
        yield run
