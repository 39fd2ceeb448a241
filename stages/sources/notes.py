"""What the records of a source have that looks as if it should be read, and is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from stages.sources.base import AudioLocation, Record, SourceFiles
from stages.sources.fields import lookup
from stages.sources.settings import SpeechFields, SpeechSourceConfig

# By key of `fields`: what it is, and names that it has in corpora and in the tools that read them.
_SPEECH = {
    "start_seconds": (
        "the start of a segment",
        "start start_time start_seconds start_sec begin begin_time begin_seconds offset",
    ),
    "end_seconds": (
        "the end of a segment",
        "end end_time end_seconds end_sec stop stop_time stop_seconds",
    ),
    "seconds": (
        "the length of a segment",
        "duration duration_seconds duration_sec dur seconds length_seconds",
    ),
    "channel": ("the channel of a clip", "channel channel_id channel_selector audio_channel"),
    "speaker": ("the speaker", "speaker speaker_id speaker_name spk spk_id spkid client_id"),
    "text": (
        "the transcript",
        "text transcript transcription sentence normalized_text raw_text normalized_transcription",
    ),
    "ovrl": ("a DNSMOS score", "dnsmos dns_mos ovrl mos mos_ovrl ovrl_mos dnsmos_ovrl"),
    "id": ("the id", "id _id utt_id utterance_id uttid clip_id segment_id sid"),
}
_BESIDE = {
    "system": ("a system text", "system system_prompt system_message"),
    "history": ("earlier turns", "history"),
    "tools": ("tools that may be called", "tools functions tool_definitions"),
    "id": ("the id", "id _id uuid conversation_id sample_id"),
}
_INSTRUCTION = {
    "instruction": ("what the user asks", "instruction prompt question query"),
    "input": ("what follows what the user asks", "input context"),
    "output": ("the answer", "output response answer completion"),
    **_BESIDE,
}
_CHAT = {
    "messages": ("the conversation", "messages conversations conversation dialogue utterances"),
    **_BESIDE,
}
_NO_LENGTH = (
    "a clip with a start and no length runs to the end of a file that other clips share: "
    "fields.seconds, fields.end_seconds"
)


class Notes:
    """Counts, over records of a source, what is there and is not read."""

    def __init__(self, source: SourceFiles[Any]) -> None:
        settings = source.settings
        self._fields = settings.fields
        self._own = source.own_names
        if isinstance(settings, SpeechSourceConfig):
            roles, used = _SPEECH, {*settings.fields.named(), settings.fields.audio}
        else:
            roles = _INSTRUCTION if settings.layout == "instruction" else _CHAT
            used = set(settings.fields.named(settings.layout).values())
        self._used = frozenset(name for name in used if name)
        self._parents = sorted({name.rpartition(".")[0] for name in self._used} - {""})
        self._roles = {name: key for key, (_, names) in roles.items() for name in names.split()}
        self._what = {key: what for key, (what, _) in roles.items()}
        self._counts: Counter[str] = Counter()
        # of each channel of each file: has the segment no length?
        self._segments: dict[tuple[AudioLocation, str], list[bool]] = {}

    def add(self, record: Record) -> None:
        """Count a record, whether it can be used or not."""
        self._counts.update(self.look_alikes(record.fields, record.left_out))
        if record.audio and isinstance(self._fields, SpeechFields):
            is_open = _has_no_length(record.fields, self._fields)
            channel = str(lookup(record.fields, self._fields.channel))
            self._segments.setdefault((record.audio, channel), []).append(is_open)

    def counts(self) -> dict[str, int]:
        """Return the number of records by what is to be said of them, in alphabetical order."""
        counts = Counter(self._counts)
        counts[_NO_LENGTH] = sum(sum(s) for s in self._segments.values() if len(s) > 1)
        return {note: number for note, number in sorted(counts.items()) if number}

    def look_alikes(self, fields: Mapping[str, Any], left_out: Iterable[str] = ()) -> Iterator[str]:
        """Yield what is to be said of one record; `left_out` names fields that were not read."""
        names = [name for name in self._names(fields) if lookup(fields, name) not in (None, "", [])]
        for name in dict.fromkeys((*names, *left_out)):
            key = self.role_of(name)
            if key and not self._is_used(name):
                yield f"`{name}` looks like {self._what[key]} and is not read: fields.{key}"

    def role_of(self, name: str) -> str | None:
        """Return the key of `fields` that a field looks like by its name."""
        return self._roles.get(_plain(name.rpartition(".")[2]))

    def _names(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """Yield the names of a record's fields, and of those beside a nested field that is read."""
        yield from fields
        for parent in self._parents:
            beside = lookup(fields, parent)
            if isinstance(beside, Mapping):
                yield from (f"{parent}.{name}" for name in beside)

    def _is_used(self, name: str) -> bool:
        return name in self._own or any(
            used == name or used.startswith(f"{name}.") for used in self._used
        )


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _has_no_length(values: Mapping[str, Any], fields: SpeechFields) -> bool:
    start, *ends = (
        lookup(values, name) for name in (fields.start_seconds, fields.end_seconds, fields.seconds)
    )
    return start not in (None, "") and all(end in (None, "") for end in ends)
