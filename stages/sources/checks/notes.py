"""What the records of a source have that looks as if it should be read, and is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.audio.decode import SEGMENT_TOLERANCE_SECONDS
from stages.sources.base import AudioLocation, Record, SourceFiles
from stages.sources.checks.look_alikes import (
    Names,
    names_of_clips,
    names_of_messages,
    names_of_samples,
)
from stages.sources.fields import is_blank, lookup, message_list, number_of
from stages.sources.settings import SpeechFields, SpeechSourceConfig

_UNANSWERED = "the last message of the user has no answer, and is left out"
_NO_LENGTH = (
    "a clip with a start and no length runs to the end of a file that other clips share: "
    "fields.seconds, fields.end_seconds"
)


class Notes:
    """Counts, over records of a source, what is there and is not read."""

    def __init__(self, source: SourceFiles[Any]) -> None:
        settings = source.settings
        self._speech: SpeechFields | None = None
        self._messages: tuple[str, Names] | None = None  # the list of them, and what one may hold
        if isinstance(settings, SpeechSourceConfig):
            self._speech = settings.fields
            self.names = names_of_clips(settings.fields, source.own_names)
        else:
            fields, layout = settings.fields, settings.layout
            self.names = names_of_samples(fields, layout)
            if layout != "instruction":
                self._messages = fields.chat_names(layout)[0], names_of_messages(fields, layout)
        self._counts: Counter[str] = Counter()
        # of each channel of each file: has the segment no length?
        self._segments: dict[tuple[AudioLocation, str], list[bool]] = {}

    def add(self, record: Record) -> None:
        """Count a record, whether it can be used or not."""
        left_out = record.left_out
        if self._messages:
            name, names = self._messages
            parts = [part for part in left_out if part.startswith(f"{name}.")]
            left_out = [part for part in left_out if part not in parts]
            self._counts.update(_of_messages(record.fields, parts, name, names))
        self._counts.update(self.names.not_read(record.fields, left_out))
        if record.audio and self._speech:
            is_open = _has_no_length(record.fields, self._speech)
            channel = str(lookup(record.fields, self._speech.channel))
            self._segments.setdefault((record.audio, channel), []).append(is_open)

    def add_length(self, record: Record, seconds: float) -> None:
        """Count a clip that is all of its audio of `seconds`, but says to be of another length."""
        names = self._speech
        if names is None or not names.seconds:
            return
        segment = (names.start_seconds, names.end_seconds)
        stated = number_of(lookup(record.fields, names.seconds))
        if stated is None or not all(is_blank(lookup(record.fields, name)) for name in segment):
            return
        if abs(stated - seconds) > SEGMENT_TOLERANCE_SECONDS:
            self._counts[
                f"`{names.seconds}` is not the length of the audio, all of which is the clip"
            ] += 1

    def add_unanswered(self) -> None:
        """Count a conversation whose last message is left out."""
        self._counts[_UNANSWERED] += 1

    def counts(self) -> dict[str, int]:
        """Return the number of records by what is to be said of them, in alphabetical order."""
        counts = Counter(self._counts)
        counts[_NO_LENGTH] = sum(sum(s) for s in self._segments.values() if len(s) > 1)
        return {note: number for note, number in sorted(counts.items()) if number}


def _of_messages(
    fields: Mapping[str, Any], left_out: Sequence[str], name: str, names: Names
) -> set[str]:
    """Return what is to be said of the messages called `name`; `left_out` are fields of them."""
    messages = message_list(lookup(fields, name)) or []
    found = {
        note for item in messages if isinstance(item, Mapping) for note in names.not_read(item)
    }
    return found.union(names.not_read({}, [part.removeprefix(f"{name}.") for part in left_out]))


def _has_no_length(values: Mapping[str, Any], fields: SpeechFields) -> bool:
    start, *ends = (
        lookup(values, name) for name in (fields.start_seconds, fields.end_seconds, fields.seconds)
    )
    return not is_blank(start) and all(is_blank(end) for end in ends)
