"""The first records of a source, read while planning: do they have what the configuration names?"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from koe.errors import ConfigError
from koe.schema import Unit
from stages.sources.base import Record, SourceFiles
from stages.sources.fields import find, lookup
from stages.sources.notes import Notes
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig

FIRST_RECORDS = 100  # of a unit
_UNITS = 10  # spread over the source, that are read where the first lacks a field
# Where all records of a unit are unusable for one of these, a key of the source is wrong.
_REASONS = {"missing_audio": "audio", "missing_id": "id", "missing_transcript": "text"}


def check_first_records(source: SourceFiles[Any], units: Sequence[Unit]) -> dict[str, int]:
    """Check that the fields of a source's settings exist, and count what its records have beside.

    Returns what is to be said of the first unit's records, with their number (see `Notes`).
    Raises: ConfigError where none of the records read has a field that is needed, or that the
    configuration names otherwise than usual; StorageError.
    """
    first = _first(source, units[0]) if units else []
    notes = Notes(source)
    for record in first:
        notes.add(record)
    records, others = list(first), iter(_spread(units))
    while records and _problem(source, records) and (unit := next(others, None)):
        records += _first(source, unit)
    if problem := _problem(source, records):
        raise problem
    return notes.counts()


def _first(source: SourceFiles[Any], unit: Unit) -> list[Record]:
    return list(islice(source.records_of(unit), FIRST_RECORDS))


def _spread(units: Sequence[Unit]) -> list[Unit]:
    """Return units that are spread over the source up to its last, without the first."""
    places = {number * (len(units) - 1) // _UNITS for number in range(1, _UNITS + 1)}
    return [units[place] for place in sorted(places) if place > 0]


def _problem(source: SourceFiles[Any], records: Sequence[Record]) -> ConfigError | None:
    """Return what is wrong with a source's settings; None if these records have all that is needed."""
    having = [record.fields for record in records if record.fields]

    def has(name: str) -> bool:
        return any(find(fields, name) for fields in having)

    for key, name in _needed(source.settings, has).items():
        if having and not has(name):
            return _absent(source, key, name, having)
    reasons = {record.bad.reason if record.bad else "" for record in records}
    if len(reasons) == 1 and (key := _REASONS.get(*reasons)):
        bad = records[0].bad
        return ConfigError(
            f"source {source.name} finds no {key} in any of its first {len(records):,} records",
            f"of the first, {bad.detail if bad else ''}",
            f"Set fields.{key} of the source.",
        )
    return _wrong_messages(source, having)


def _needed(
    settings: SpeechSourceConfig | TextSourceConfig, has: Callable[[str], bool]
) -> Mapping[str, str]:
    if isinstance(settings, SpeechSourceConfig):
        return settings.fields.required()
    return settings.fields.required(settings.layout, has)


def _absent(
    source: SourceFiles[Any], key: str, name: str, having: Sequence[Mapping[str, Any]]
) -> ConfigError:
    names = list(dict.fromkeys(str(name) for fields in having for name in fields))
    notes = Notes(source)
    near = difflib.get_close_matches(name, names, n=1)
    near = near or [other for other in names if notes.role_of(other) == key]
    hint = f"did you mean {near[0]!r}?" if near else f"they have {', '.join(names):.300}"
    return ConfigError(
        f"source {source.name} has no field {name!r} for {key}",
        f"none of its first {len(having):,} records has it ({hint})",
        f"Set fields.{key} of the source.",
    )


def _wrong_messages(
    source: SourceFiles[Any], having: Iterable[Mapping[str, Any]]
) -> ConfigError | None:
    """Say which part of a message none of them has, in the layouts of chats."""
    settings = source.settings
    if isinstance(settings, SpeechSourceConfig) or settings.layout == "instruction":
        return None
    name, role, content = settings.fields.chat_names(settings.layout)
    lists = [found for fields in having if isinstance(found := lookup(fields, name), list)]
    messages = [message for found in lists for message in found if isinstance(message, Mapping)]
    for key, part in (("role", role), ("content", content)):
        if messages and not any(find(message, part) for message in messages):
            names = ", ".join(dict.fromkeys(str(n) for message in messages for n in message))
            return ConfigError(
                f"source {source.name} has no field {part!r} for {key} in its {name}",
                f"the first {len(messages):,} messages have {names:.300}",
                f"Set layout, or fields.{key}, of the source.",
            )
    return None
