"""What tests ask of the records of a source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stages.sources.base import Record, SpeechFiles
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig


def reason(record: Record) -> str:
    """Return why a record cannot be used; empty for a good one."""
    return record.bad.reason if record.bad else ""


def read_all(source: SpeechFiles) -> list[Record]:
    """Read every unit of a source; each must hold as many records as were planned."""
    records: list[Record] = []
    for unit in source.units():
        part = list(source.read(unit))
        assert len(part) == unit.records <= source.unit_records
        records += part
    return records


def same_for_all_sizes(sizes: Iterable[int] = (1, 2, 3, 1000), **settings: Any) -> list[Record]:
    """Read a source of these settings in units of several sizes, which must agree."""
    config = SpeechSourceConfig.model_validate({"name": "s", **settings})
    first, *others = [read_all(speech_source(config, size)) for size in sizes]
    for other in others:
        assert repr(other) == repr(first)
    return first
