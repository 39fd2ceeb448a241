"""What tests ask of the records of a source."""

from __future__ import annotations

from stages.sources.base import Record


def reason(record: Record) -> str:
    """Return why a record cannot be used; empty for a good one."""
    return record.bad.reason if record.bad else ""
