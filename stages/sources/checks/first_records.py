"""The first records of a source, read while planning: do they have what the configuration names?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

from koe.errors import BadRecord, ConfigError, attempt
from koe.printable import shorten
from koe.schema import SPEECH, Unit
from stages.boundary import planned
from stages.sources.base import Record, SourceFiles
from stages.sources.checks.absent import absent_field
from stages.sources.checks.formats import format_of
from stages.sources.checks.notes import Notes
from stages.sources.fields import find, is_blank, lookup, message_list, name_of, number_of
from stages.sources.files.encodings import require_utf8
from stages.sources.files.opening import reading
from stages.sources.files.places import OTHER_PROTOCOL, OUTSIDE, named_outside
from stages.sources.location import FILE, open_audio
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig

FIRST_RECORDS = 100  # of a unit
_UNITS = 10  # spread over the source, that are read where the first lacks a field
_FILES = 20  # of audio, of which at least one must be there
_HEAD_BYTES = 1 << 16
_OF_TEXT = ("manifest", "jsonl", "json")
_SPEECH_KINDS = ("webdataset", "parquet", "manifest")
_TEXT_KINDS = ("parquet", "jsonl", "json")
_FEW_TEXTS = 3  # fewer say nothing
# Where all records of a unit are unusable for one of these, a key of the source is wrong.
_REASONS = {"missing_audio": "audio", "missing_id": "id", "missing_transcript": "text"}


def check_first_records(source: SourceFiles[Any], units: Sequence[Unit]) -> dict[str, int]:
    """Check that a source can be read as its settings say, and count what its records have beside.

    Returns what is to be said of the first unit's records, with their number (see `Notes`).
    Raises: ConfigError where none of the records read has a field that is needed, or that the
    configuration names otherwise than usual, or where it holds another type of value in all; where
    one names a file that the source may not read; where none of the audio that they name is there;
    where no record can be read, because the file is of another format. StorageError.
    """
    with planned(source.name):
        return _checked(source, units) if units else {}


def _checked(source: SourceFiles[Any], units: Sequence[Unit]) -> dict[str, int]:
    records = _first(source, units[0])
    _require_inside(source, records)
    notes = Notes(source)
    for record in records:
        notes.add(record)
    more = chain(
        (partial(_first, source, unit) for unit in _spread(units)),
        # A field that some records have need not be among the first hundred.
        [lambda: list(islice(source.records_of(units[0]), FIRST_RECORDS, None))],
    )
    while problem := _problem(source, records) or _other_format(source, units[0], records):
        if (read := next(more, None)) is None:
            raise problem
        records += read()
    return {**notes.counts(), **_without_letters(source, records)}


def _require_inside(source: SourceFiles[Any], records: Sequence[Record]) -> None:
    """Refuse a source of which a record names a file outside of its folder, or all a protocol.

    Of millions of records with absolute paths, none would be left.
    """
    bad = [(record.location, record.bad) for record in records if record.bad]
    outside = [(place, found) for place, found in bad if found.reason == OUTSIDE]
    if len(bad) == len(records) and all(found.reason == OTHER_PROTOCOL for _, found in bad):
        outside = bad
    for location, found in outside[:1]:
        raise named_outside(source.name, location, found)


def _without_letters(source: SourceFiles[Any], records: Sequence[Record]) -> dict[str, int]:
    """Say so where transcripts are all numbers, as in a column of speakers."""
    if not isinstance(source.settings, SpeechSourceConfig):
        return {}
    name = source.settings.fields.text
    texts = [text for record in records if isinstance(text := lookup(record.fields, name), str)]
    if len(texts) < _FEW_TEXTS or any(letter.isalpha() for text in texts for letter in text):
        return {}
    shown = ", ".join(f"`{text:.20}`" for text in texts[:_FEW_TEXTS])
    return {
        f"no transcript has a letter ({shown}): is fields.text right, or the layout?": len(texts)
    }


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
            names = list(dict.fromkeys(str(name) for fields in having for name in fields))
            lacking = f"none of its first {len(having):,} records has it"
            return absent_field(source.settings, key, name, names, "field", lacking)
    reasons = {record.bad.reason if record.bad else "" for record in records}
    if len(reasons) == 1 and (key := _REASONS.get(*reasons)):
        bad = records[0].bad
        return ConfigError(
            f"source {source.name} finds no {key} in any of its first {len(records):,} records",
            f"of the first, {bad.detail if bad else ''}",
            f"Set fields.{key} of the source.",
        )
    if not having:
        return None
    return (
        _wrong_type(source, having) or _wrong_messages(source, having) or _no_audio(source, records)
    )


def _needed(
    settings: SpeechSourceConfig | TextSourceConfig, has: Callable[[str], bool]
) -> Mapping[str, str]:
    if isinstance(settings, SpeechSourceConfig):
        return settings.fields.required()
    return settings.fields.required(settings.layout, has)


def _wrong_messages(
    source: SourceFiles[Any], having: Iterable[Mapping[str, Any]]
) -> ConfigError | None:
    """Say which part of a message none of them has, in the layouts of chats."""
    settings = source.settings
    if isinstance(settings, SpeechSourceConfig) or settings.layout == "instruction":
        return None
    name, role, content = settings.fields.chat_names(settings.layout)
    lists = [message_list(lookup(fields, name)) or [] for fields in having]
    messages = [message for found in lists for message in found if isinstance(message, Mapping)]
    for key, part in (("role", role), ("content", content)):
        if messages and not any(find(message, part) for message in messages):
            names = ", ".join(dict.fromkeys(str(n) for message in messages for n in message))
            return ConfigError(
                f"source {source.name} has no field {part!r} for {key} in its {name}",
                f"the first {len(messages):,} messages have {names or 'no fields':.300}",
                f"Set layout, or fields.{key}, of the source.",
            )
    return None


def _wrong_type(
    source: SourceFiles[Any], having: Sequence[Mapping[str, Any]]
) -> ConfigError | None:
    """Say which field holds no value that can be used, but others."""
    for key, name, what, can_be_used in _types(source.settings):
        records = having
        if isinstance(source.settings, SpeechSourceConfig) and key == "seconds":
            # it is read only beside a start or an end
            names = source.settings.fields.start_seconds, source.settings.fields.end_seconds
            records = [f for f in having if not all(is_blank(lookup(f, name)) for name in names)]
        values = [value for fields in records if not is_blank(value := lookup(fields, name))]
        if values and not any(map(can_be_used, values)):
            return ConfigError(
                f"source {source.name} cannot take {key} from field {name!r}",
                f"it must be {what}, and none of the {len(values):,} values in the first records is; "
                f"the first is {values[0]!r:.80}",
                f"Set fields.{key} of the source.",
            )
    return None


def _types(
    settings: SpeechSourceConfig | TextSourceConfig,
) -> Iterator[tuple[str, str, str, Callable[[Any], bool]]]:
    """Yield the key of each field of one type, its name, that type in words, and a test for it."""
    if isinstance(settings, SpeechSourceConfig):
        fields = settings.fields
        yield "text", fields.text, "text", _is_text
        for key in ("start_seconds", "end_seconds", "seconds", "ovrl"):
            if name := getattr(fields, key):
                yield key, name, "a number", _is_number
        if fields.speaker:
            yield "speaker", fields.speaker, "text or a number", _is_name
        if fields.channel:
            yield "channel", fields.channel, "a number", _is_channel
        return
    for key, name in settings.fields.named(settings.layout).items():
        if key in ("instruction", "input", "output", "system"):
            yield key, name, "text", _is_text
        elif key in ("messages", "history"):
            yield key, name, "a list", _is_list


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return number_of(value) is not None


def _is_name(value: Any) -> bool:
    return name_of(value) is not None


def _is_channel(value: Any) -> bool:
    return value == "average" or _is_number(value)


def _is_list(value: Any) -> bool:
    return message_list(value) is not None


def _no_audio(source: SourceFiles[Any], records: Sequence[Record]) -> ConfigError | None:
    """Say that none of the files of audio is there, by some of them."""
    places = [record.audio for record in records if record.audio and record.audio.kind == FILE]
    some = places[:: max(1, len(places) // _FILES)]
    absent: list[str] = []
    for place in some:
        if not isinstance(found := attempt(_touch, place.path), BadRecord):
            return None
        absent.append(found.detail)
    if not absent:
        return None
    return ConfigError(
        f"source {source.name} finds none of the audio that its first records name",
        f"of {len(absent)} files tried, the first is {shorten(absent[0], 300)}",
        "Set audio_root of the source to the folder that the paths start from.",
    )


def _touch(path: str) -> None:
    with reading(path), open_audio(path):
        pass


def _other_format(
    source: SourceFiles[Any], unit: Unit, records: Sequence[Record]
) -> ConfigError | None:
    """Say what a file is of which no record can be read.

    Raises: ConfigError where it is text in another encoding.
    """
    if not records or any(record.fields or not record.bad for record in records):
        return None
    with source.opened(unit) as file:
        head = file.read(_HEAD_BYTES)
    kind, found = source.settings.kind, format_of(head)
    if found is None or kind in found.kinds:
        if kind in _OF_TEXT:
            require_utf8(source.name, unit.path, head)
        return None
    known = _SPEECH_KINDS if source.modality == SPEECH else _TEXT_KINDS
    other = next((kind for kind in found.kinds if kind in known), None)
    return ConfigError(
        f"source {source.name}, which is of kind {kind}, can read no record of {unit.path}",
        f"it is {found.name}",
        f"Set kind: {other}." if other else found.remedy,
    )
