"""Which record a process works on: known after its death, and refused where it is known to kill.

A stage calls `began` before it decodes a record, and `require_harmless` where it reads records
itself. Outside of a run both do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from koe.errors import BadRecord

KILLS = "kills_the_worker"  # the reason of records whose processing ends the process

RECORD_BYTES = 4096  # that are kept of a record's id

# One place for the whole process, whose threads may decode: the last one that began counts.
_place: memoryview | None = None
_harmful: Mapping[str, str] = {}


def keep_in(place: memoryview | None) -> None:
    """Keep the id of the last record begun in `place`, RECORD_BYTES of memory that outlives the process."""
    global _place
    _place = place


def began(record_id: str) -> None:
    """Note that the work on a record begins: one copy into mapped memory, no system call."""
    if _place is not None:
        data = record_id.encode("utf-8", "backslashreplace")[: RECORD_BYTES - 1] + b"\0"
        _place[: len(data)] = data


def require_harmless(record_id: str) -> None:
    """Note that the work on a record begins, unless it is known to end the process.

    Raises: BadRecord with reason kills_the_worker.
    """
    if record_id in _harmful:
        raise BadRecord(KILLS, _harmful[record_id])
    began(record_id)


@contextmanager
def refusing(harmful: Mapping[str, str]) -> Iterator[None]:
    """Refuse these records, each with what is said of it, until the block ends."""
    global _harmful
    before, _harmful = _harmful, harmful
    try:
        yield
    finally:
        _harmful = before
