"""Names that the fields of records have in corpora and in the tools that read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from stages.sources.fields import is_blank, lookup
from stages.sources.settings import ConversationLayout, SpeechFields, TextFields

# By key of `fields`, or where there is no key by another word: what it is, and names of it.
Roles = Mapping[str, tuple[str, str]]
_MEDIA = "image images audio audios video videos"
_SPEECH: Roles = {
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
        "text txt transcript transcription sentence normalized_text raw_text "
        "normalized_transcription",
    ),
    "ovrl": ("a DNSMOS score", "dnsmos dns_mos ovrl mos mos_ovrl ovrl_mos dnsmos_ovrl"),
    "id": ("the id", "id _id utt_id utterance_id uttid clip_id segment_id sid"),
}
_BESIDE: Roles = {
    "system": ("a system text", "system system_prompt system_message"),
    "history": ("earlier turns", "history"),
    "tools": ("tools that may be called", "tools functions tool_definitions"),
    "id": ("the id", "id _id uuid conversation_id sample_id"),
    "(media)": ("media that the text is about", _MEDIA),
}
_INSTRUCTION: Roles = {
    "instruction": ("what the user asks", "instruction prompt question query"),
    "input": ("what follows what the user asks", "input context"),
    "output": ("the answer", "output response answer completion chosen"),
    **_BESIDE,
}
_CHAT: Roles = {
    "messages": (
        "the conversation",
        "messages conversations conversation dialogue utterances chosen",
    ),
    **_BESIDE,
}
_MESSAGE: Roles = {
    "role": ("who writes a message", "role from author speaker"),
    "content": ("the text of a message", "content value text"),
    "(thoughts)": ("what was thought before it", "reasoning_content reasoning thinking thought"),
    "(weight)": ("how much a message counts", "weight loss loss_mask train trainable"),
    "(media)": ("media that a message is about", _MEDIA),
}


@dataclass(frozen=True)
class Names:
    """The names that fields usually have, and those that the settings of a source read.

    `read` maps keys of `fields` to names; `own` are read whatever the settings say.
    """

    roles: Roles
    read: Mapping[str, str | None]
    own: frozenset[str] = frozenset()

    def role_of(self, name: str) -> str | None:
        """Return the key of `fields` that a field looks like by its name."""
        return self._keys.get(_plain(name.rpartition(".")[2]))

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {name: key for key, (_, names) in self.roles.items() for name in names.split()}

    def not_read(self, fields: Mapping[str, Any], left_out: Collection[str] = ()) -> Iterator[str]:
        """Yield what is to be said of fields that look like something and are not read.

        One that says the same as the field that is read in its place needs no word. `left_out` names
        further fields, of unknown values.
        """
        for name in dict.fromkeys((*self._given(fields), *left_out)):
            key = self.role_of(name)
            if key is None or self._is_read(name):
                continue
            value = lookup(fields, name)
            is_same = value == lookup(fields, self.read.get(key)) or is_blank(value)
            if name in left_out or not is_same:
                remedy = f": fields.{key}" if key[0] != "(" else ""
                yield f"`{name}` looks like {self.roles[key][0]} and is not read{remedy}"

    def _given(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """Yield the names of a record's fields, and of those beside a nested field that is read."""
        yield from fields
        for parent in self._parents:
            beside = lookup(fields, parent)
            if isinstance(beside, Mapping):
                yield from (f"{parent}.{name}" for name in beside)

    @cached_property
    def _parents(self) -> list[str]:
        return sorted({parent_of(name) for name in self.read.values() if name} - {""})

    def _is_read(self, name: str) -> bool:
        return name in self.own or any(
            read == name or read.startswith(f"{name}.") for read in self.read.values() if read
        )


def names_of_clips(fields: SpeechFields, own: frozenset[str]) -> Names:
    return Names(_SPEECH, fields.model_dump(), own)


def names_of_samples(fields: TextFields, layout: ConversationLayout) -> Names:
    return Names(_INSTRUCTION if layout == "instruction" else _CHAT, fields.named(layout))


def names_of_messages(fields: TextFields, layout: ConversationLayout) -> Names:
    _, role, content = fields.chat_names(layout)
    return Names(_MESSAGE, {"role": role, "content": content})


def parent_of(name: str) -> str:
    """Return the dotted name of the field that holds one; empty for one that lies in none."""
    return name.rpartition(".")[0]


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
