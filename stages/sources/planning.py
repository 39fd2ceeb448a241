"""How source files are cut into units, several files at a time."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from koe.schema import Unit
from stages.sources.files.listing import SourceFile, stamp_with_beside
from stages.sources.files.opening import is_empty, reading

_ALONE_SECONDS = 2.0  # before other processes help, which take about as long to start


class Span(NamedTuple):
    """The bytes of a record; `state` as in `Unit`, for a unit that begins with it."""

    start: int
    stop: int
    state: str = ""


class Gap(NamedTuple):
    """A range of a file's bytes in which no record can be read, and why."""

    start: int
    stop: int
    why: str
    state: str = ""
    reason: str = "unreadable_bytes"


class Broken(NamedTuple):
    """The bytes of a record that cannot be read.

    If no record of its file that can be read has as many, it may have been several.
    """

    start: int
    stop: int


@dataclass(frozen=True)
class Slice:
    """A run of records in one file; fields as in `Unit`."""

    start: int
    stop: int
    records: int
    gaps: int = 0
    lost_bytes: int = 0
    lost_records: int = 0
    state: str = ""


_EMPTY_FILE = Slice(0, 0, 1, gaps=1, lost_records=1)

Slices = Callable[[SourceFile], Iterable[Slice]]
# Returns the units of a file that was planned before, by its path and stamp; None for any other.
Known = Callable[[str, str], Sequence[Unit] | None]


def scan_all(path: str, stamp: str) -> None:
    """Know no file, so that every file is scanned."""


def cut(
    spans: Iterable[tuple[int, int] | Span | Gap | Broken], unit_records: int
) -> Iterator[Slice]:
    """Cut the records of a file, given as (start, stop), into slices of at most `unit_records`.

    A gap counts as a record, wherever it lies. How many records it held is estimated from the mean
    size of those that can be read, which is known when the file has been read to its end. The same
    goes for what is broken and larger than any of them.
    """
    slices: list[_Cut] = []
    num_read = bytes_read = largest = 0
    for span in spans:
        start, stop = span[0], span[1]
        if not slices or slices[-1].records == unit_records:
            slices.append(_Cut(start, getattr(span, "state", "")))
        part = slices[-1]
        part.stop, part.records = stop, part.records + 1
        if isinstance(span, Gap):
            part.gaps.append(stop - start)
        elif isinstance(span, Broken):
            part.broken.append(stop - start)
        else:
            num_read, bytes_read = num_read + 1, bytes_read + stop - start
            largest = max(largest, stop - start)
    for part in slices:
        gaps = part.gaps + [size for size in part.broken if size > largest > 0]
        lost = (max(1, round(size * num_read / (bytes_read or 1))) for size in gaps)
        found = (len(gaps), sum(gaps), sum(lost), part.state)
        yield Slice(part.start, part.stop, part.records, *found)


@dataclass
class _Cut:
    """A slice that is not complete yet, with the sizes of its gaps and of what is broken."""

    start: int
    state: str
    stop: int = 0
    records: int = 0
    gaps: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)


def plan_units(
    source: str, modality: str, files: Iterable[SourceFile], slices: Slices, known: Known = scan_all
) -> Iterator[Unit]:
    """Name the slices of all files; the names depend on each file alone, not on its neighbours.

    A name holds 48 bits of a hash of the file's relative name: with 32, two of 50,000 files would
    have the same one in a quarter of all corpora. When scanning takes long, one process per core
    scans files, for which `slices` must be picklable; the order of the units stays the same. An
    empty file is one quarantined record.
    """

    def named(file: SourceFile, mark: str, parts: Iterable[Slice]) -> Iterator[Unit]:
        prefix = unit_prefix(source, file.relative)
        with reading(file.path):
            for index, part in enumerate(parts):
                yield Unit(f"{prefix}{index:05d}", source, modality, file.path, mark, **vars(part))

    with _Scanner(slices) as scanner:
        waiting: deque[Iterable[Unit]] = deque()
        for file in files:
            mark = stamp_with_beside(file)
            planned = known(file.path, mark)
            if planned is None:
                parts = [_EMPTY_FILE] if is_empty(mark) else scanner.scan(file)
                planned = named(file, mark, parts)
            waiting.append(planned)
            while len(waiting) > scanner.num_ahead:
                yield from waiting.popleft()
        while waiting:
            yield from waiting.popleft()


def unit_prefix(source: str, relative: str) -> str:
    """Return what the names of a file's units begin with; `relative`: the file's name in its source."""
    return f"{source}-{hashlib.sha256(relative.encode()).hexdigest()[:12]}-"


class _Scanner:
    """Scans files in this process at first, and later in a pool of processes."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._workers = cores or 1
        self._pool: ProcessPoolExecutor | None = None
        self._alone_until = time.monotonic() + _ALONE_SECONDS

    def __enter__(self) -> _Scanner:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    @property
    def num_ahead(self) -> int:
        """Return how many files to submit before the slices of the first are asked for."""
        return 2 * self._workers if self._pool else 0

    def scan(self, file: SourceFile) -> Iterable[Slice]:
        if self._workers > 1 and not self._pool and time.monotonic() > self._alone_until:
            # spawned, because a fork of a process with threads may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context)
        if self._pool:
            return _result(self._pool.submit(_list_slices, self._slices, file))
        return self._slices(file)


def _result(future: Future[list[Slice]]) -> Iterator[Slice]:
    yield from future.result()


def _list_slices(slices: Slices, file: SourceFile) -> list[Slice]:
    return list(slices(file))
