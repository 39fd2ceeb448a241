"""Which record a process works on, known after its death.

A stage calls `began` before it decodes a record. Outside of a run that does nothing. Where several
threads decode, or a model works behind them, the last record begun is near the one that killed.
"""

from __future__ import annotations

RECORD_BYTES = 4096  # that are kept of a record's id

# One place for the whole process, whose threads may decode: the last one that began counts.
_place: memoryview | None = None


def keep_in(place: memoryview | None) -> None:
    """Keep the id of the last record begun in `place`, RECORD_BYTES of memory that outlives the process."""
    global _place
    _place = place


def began(record_id: str) -> None:
    """Note that the work on a record begins: one copy into mapped memory, no system call."""
    if _place is not None:
        data = record_id.encode("utf-8", "backslashreplace")[: RECORD_BYTES - 1] + b"\0"
        _place[: len(data)] = data
