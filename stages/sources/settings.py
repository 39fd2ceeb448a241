"""The settings of the sources: `sources.speech[]` and `sources.text[]` of `pipeline.yaml`."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from koe.settings import PathOrUrl, Strict
from stages.sources.tables.layouts import LAYOUTS, LayoutName

ConversationLayout = Literal["instruction", "messages", "sharegpt"]

_CHAT_NAMES = {
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}

# Keys of a message that calls tools, in OpenAI's layouts.
CALLS = ("tool_calls", "function_call")

_NAME = r"^[A-Za-z0-9_.]+$"
_ID = "The record's id; null: made from the file's name and the record's place in it."


def _names_besides(usual: dict[str, Any], names: dict[str, Any]) -> dict[str, str]:
    return {key: name for key, name in names.items() if name is not None and name != usual.get(key)}


class SpeechFields(Strict):
    """Names of the fields of a record; dots descend into nested fields, as in meta.text."""

    text: str = Field(default="text", min_length=1)
    """The transcript."""
    audio: str | None = None
    """The audio, or its path; in a webdataset the file extension; in shar the name of a cut's
    recording and of its tars. Null: the usual name for this kind of source."""
    id: str | None = Field(default=None, description=_ID)
    speaker: str | None = None
    """The speaker, for tokenize.speech_prompt; null: the source names none."""
    start_seconds: str | None = "offset"
    """Where the clip starts in its file, in seconds; a record that has only an end starts at 0."""
    seconds: str | None = "duration"
    """Length of the clip in seconds; used only where the record has a start or an end."""
    end_seconds: str | None = None
    """Where the clip ends in its file, in seconds. Start, length and end must agree within 0.1 s."""
    channel: str | None = None
    """The channel that is the clip, counted from 0 as NeMo's channel_selector and Lhotse count;
    null, or a record without it: the average of all."""
    ovrl: str | None = None
    """A DNSMOS score that the source already has, for score.scorer: source."""

    def required(self) -> dict[str, str]:
        """Map each key to the name of a field that the source must have, audio aside.

        It must have the transcript, and whatever the configuration names otherwise than usual.
        """
        usual = SpeechFields().model_dump(exclude={"text"})
        return _names_besides(usual, self.model_dump(exclude={"audio"}))

    def named(self) -> list[str]:
        """List the names in use, except that of the audio."""
        return [name for name in self.model_dump(exclude={"audio"}).values() if name is not None]


class SpeechSourceConfig(Strict):
    """A corpus of speech clips with their transcripts."""

    name: str = Field(pattern=_NAME)
    """Prefix of every clip's id."""
    kind: Literal["webdataset", "parquet", "manifest", "folder", "shar", "nemo_tarred"]
    """How records are stored: in tars, in Parquet, as lines of JSON, as a metadata file beside
    the audio, as Lhotse has them (Shar, manifests of cuts, and supervisions beside recordings), or as
    NeMo's lines of JSON that name members of tars."""
    paths: list[PathOrUrl] = Field(min_length=1)
    """Files, globs, or ranges such as JA-{000..029}.tar; fsspec URLs too."""
    tars: list[PathOrUrl] | None = Field(default=None, min_length=1)
    """Kind nemo_tarred: the tars of the manifests, as paths are given; the last number of a name is
    the shard. Null: audio_*.tar in the folder of a manifest, or above its folder if that is called
    sharded_manifests."""
    unlisted_audio: Literal["quarantine", "ignore"] = "quarantine"
    """Kinds shar and nemo_tarred: audio in the tars that no record names. It is quarantined as
    not_in_manifest, or ignored, as is right for a manifest that was filtered on purpose."""
    audio_root: PathOrUrl | None = None
    """The folder that relative audio paths start from, or that holds the tars of shar; null: that of
    the file that names them."""
    allow_outside: bool = False
    """Whether records may name audio anywhere, as by absolute paths; false: only below audio_root, or
    below the folder of the file that names it. Never by another protocol than these have."""
    supervisions: Literal["clips", "speakers_and_text"] = "clips"
    """Kind shar: what the supervisions of a cut are. clips: each is a clip with its text.
    speakers_and_text, as in J-CHAT: those with a speaker are clips, and the others are pieces of
    text, each part of the clip that holds its middle."""
    transcripts: PathOrUrl | None = None
    """Kind webdataset: a table with the transcripts of tars that hold audio alone, as ReazonSpeech
    has it. It is read as those of kind folder; its paths are those of the members of the tars."""
    layout: LayoutName | None = None
    """Kind folder, and transcripts: the corpus whose form the table has; null: the first line names
    the columns, or columns does."""
    columns: list[str] | None = Field(default=None, min_length=2)
    """Kind folder, and transcripts: the columns of a table whose first line does not name them;
    needs delimiter."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Kind folder, and transcripts: what separates the cells of a row, as in "|" or "\\t"; with ":"
    or " " the last cell is the rest of the line. Only tables with "," or ";" have quoting."""
    audio_path: str | None = Field(default=None, min_length=1)
    """Kind folder, and transcripts: the audio's path from columns in braces, as in wavs/{id}.wav;
    null: as the layout has it, or the column of fields.audio."""
    fields: SpeechFields = SpeechFields()

    @model_validator(mode="before")
    @classmethod
    def _names_of_layout(cls, data: Any) -> Any:
        """Give `fields` the names of the layout where the configuration gives none."""
        name = data.get("layout") if isinstance(data, dict) else None
        layout = next((LAYOUTS[known] for known in LAYOUTS if known == name), None)
        given = data.get("fields", {}) if layout else None
        if isinstance(given, SpeechFields):
            given = given.model_dump(exclude_unset=True)
        if layout is None or not isinstance(given, dict):
            return data
        names = dict(layout.fields)
        if data.get("kind") != "folder":
            names.pop("audio", None)  # there it is the extension of a member
        return {**data, "fields": {**names, **given}}

    @model_validator(mode="after")
    def _has_use_for_table_keys(self) -> SpeechSourceConfig:
        keys = ("layout", "columns", "delimiter", "audio_path")
        given = [key for key in keys if getattr(self, key) is not None]
        if self.transcripts is not None and self.kind != "webdataset":
            raise ValueError(f"transcripts is for kind webdataset, not {self.kind}: remove the key")
        if given and self.kind != "folder" and self.transcripts is None:
            raise ValueError(
                f"{given[0]} is for kind folder, or for transcripts, not {self.kind}: remove the key"
            )
        if self.layout is not None and (self.columns or self.delimiter):
            raise ValueError(
                f"layout {self.layout} has columns and delimiter of its own: remove either"
            )
        if self.columns is not None and self.delimiter is None:
            raise ValueError("columns needs delimiter: set it to what separates the cells")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError("columns repeats a name: give every column a name of its own")
        if self.delimiter is not None and self.delimiter in '"\r\n\0':
            raise ValueError("delimiter cannot be a quote or the end of a line")
        if self.audio_path is not None and not braces(self.audio_path):
            raise ValueError("audio_path names no column in braces: write it as in wavs/{id}.wav")
        return self

    @model_validator(mode="after")
    def _keeps_to_its_format(self) -> SpeechSourceConfig:
        if self.kind != "shar":
            if self.supervisions != "clips":
                raise ValueError(f"supervisions is for kind shar, not {self.kind}: remove the key")
            return self
        default = SpeechFields()
        for key in ("start_seconds", "end_seconds", "seconds", "channel"):
            if getattr(self.fields, key) != getattr(default, key):
                raise ValueError(
                    f"fields.{key} has no meaning for kind shar, whose supervisions say it "
                    "under Lhotse's own names: remove the key"
                )
        return self

    @model_validator(mode="after")
    def _has_use_for_tars(self) -> SpeechSourceConfig:
        if self.tars is not None and self.kind != "nemo_tarred":
            raise ValueError(f"tars is for kind nemo_tarred, not {self.kind}: remove the key")
        if self.unlisted_audio != "quarantine" and self.kind not in ("shar", "nemo_tarred"):
            raise ValueError(
                f"unlisted_audio is for kinds shar and nemo_tarred, not {self.kind}: remove the key"
            )
        return self

    @model_validator(mode="after")
    def _has_use_for_root(self) -> SpeechSourceConfig:
        key = "audio_root" if self.audio_root is not None else "allow_outside"
        if self.audio_root is None and not self.allow_outside:
            return self
        if self.kind == "webdataset":
            raise ValueError(
                f"{key} has no meaning for a webdataset, whose audio lies in its tars: remove the key"
            )
        if self.kind == "nemo_tarred":
            raise ValueError(
                f"{key} has no meaning for kind nemo_tarred, whose audio lies in tars: "
                "name these in tars"
            )
        return self


def braces(pattern: str) -> list[str]:
    """List the names in braces; none where a brace is not closed or holds more than a name."""
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError:
        return []
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(not spec and not conversion for _, _, spec, conversion in parts)
    return names if plain and not any(set(".[]") & set(name) for name in names) else []


class TextFields(Strict):
    """Names of the fields of an instruction sample; which of them are used depends on the layout."""

    id: str | None = Field(default=None, description=_ID)
    instruction: str = "instruction"
    """Layout instruction: what the user asks."""
    input: str = "input"
    """Layout instruction: follows what the user asks; may be missing or empty."""
    output: str = "output"
    """Layout instruction: the answer."""
    messages: str | None = None
    """The list of messages; null: messages, or in sharegpt conversations."""
    role: str | None = None
    """Who writes a message; null: role, or in sharegpt from."""
    content: str | None = None
    """The text of a message; null: content, or in sharegpt value."""
    system: str | None = "system"
    """A text beside the conversation that is put before what the user says first; null: is not
    read."""
    history: str | None = "history"
    """Earlier turns beside the conversation, a list of pairs of question and answer; null: is not
    read."""
    tools: str | None = "tools"
    """Tools that the assistant may call. The layouts have no place for them: a sample that has any
    is quarantined as unsupported_tools. Null: is not read."""

    def named(self, layout: ConversationLayout) -> dict[str, str]:
        """Map the keys that a layout reads to the names of the fields of a record."""
        keys = ("instruction", "input", "output") if layout == "instruction" else ("messages",)
        keys = (*keys, "id", "system", "history", "tools")
        names = self.model_dump(include=set(keys))
        if layout != "instruction":
            names["messages"] = self.chat_names(layout)[0]
        return {key: names[key] for key in keys if names[key] is not None}

    def required(self, layout: ConversationLayout, has: Callable[[str], bool]) -> dict[str, str]:
        """Map each key to the name of a field that the source must have; `has` tells if it does.

        It must have those that the layout cannot do without, and whatever the configuration names
        otherwise than usual. An instruction may be missing where there is an input.
        """
        optional = (
            {"output", "messages"} if has(self.input) else {"instruction", "output", "messages"}
        )
        usual = TextFields().model_dump(exclude=optional)
        return _names_besides(usual, self.named(layout))

    def chat_names(self, layout: ConversationLayout) -> tuple[str, str, str]:
        """Return the names of a conversation's messages, and of their role and content."""
        messages, role, content = _CHAT_NAMES[layout]
        return self.messages or messages, self.role or role, self.content or content


class TextSourceConfig(Strict):
    """A corpus of instruction samples."""

    name: str = Field(pattern=_NAME)
    """Prefix of every sample's id."""
    kind: Literal["jsonl", "json", "parquet"]
    """How samples are stored: one JSON object on each line, one JSON array of objects, or the rows
    of a Parquet file."""
    layout: ConversationLayout = "instruction"
    """instruction: fields instruction, input, output; messages: a list of role and content;
    sharegpt: a list of from and value."""
    paths: list[PathOrUrl] = Field(min_length=1)
    """Files, globs, or ranges such as part-{00..15}.jsonl; fsspec URLs too."""
    fields: TextFields = TextFields()
