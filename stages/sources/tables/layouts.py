"""The tables that published corpora come with, by name: what separates cells, and what they hold.

A layout is data. Its paths of audio start from the table's folder, or from `audio_root`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

LayoutName = Literal[
    "ljspeech", "css10", "vits", "vits_speaker", "bert_vits", "common_voice", "reazonspeech",
    "jsut", "jvs", "librispeech", "list",
]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How the lines of a table are read.

    `columns` None means that the first line names them. `fields` are the names that
    `sources.speech[].fields` has unless it is given others. `file` is the table's usual name,
    which stands for it where a path is a folder. `named_in` finds more fields, by the groups of a
    regular expression: in the table's path (key ""), or in a column.
    """

    delimiter: str
    columns: tuple[str, ...] | None
    file: str = ""
    audio_path: str | None = None  # with columns in braces; None: the column file_name holds it
    optional: int = 0  # how many of the last columns may be missing
    fields: Mapping[str, str] = field(default_factory=dict)
    named_in: tuple[tuple[str, str], ...] = ()


_ID_TEXT = ("id", "text")
_SPEAKER = {"speaker": "speaker"}

LAYOUTS: dict[LayoutName, Layout] = {
    # LJ001-0001|text|normalized text; a common variant has no third column
    "ljspeech": Layout(
        "|", ("id", "text", "normalized_text"), "metadata.csv", "wavs/{id}.wav", optional=1
    ),
    # meian/meian_0000.wav|text|romanized text|seconds
    "css10": Layout("|", ("file_name", "text", "normalized_text", "duration"), "transcript.txt"),
    "vits": Layout("|", ("file_name", "text")),
    "vits_speaker": Layout("|", ("file_name", "speaker", "text"), fields=_SPEAKER),
    "bert_vits": Layout("|", ("file_name", "speaker", "language", "text"), "esd.list", fields=_SPEAKER),
    "common_voice": Layout(
        "\t", None, "validated.tsv", "clips/{path}",
        fields={"audio": "path", "text": "sentence", "speaker": "client_id"},
    ),
    # 000/0000f0b7c6c1d.flac, tab, text; the audio lies in 000.tar
    "reazonspeech": Layout("\t", ("file_name", "text")),
    "jsut": Layout(":", _ID_TEXT, "transcript_utf8.txt", "wav/{id}.wav"),
    # jvs001/parallel100/transcripts_utf8.txt: the folder is the speaker
    "jvs": Layout(
        ":", _ID_TEXT, "transcripts_utf8.txt", "wav24kHz16bit/{id}.wav", fields=_SPEAKER,
        named_in=(("", r"(?:^|/)(?P<speaker>jvs\d+)/[^/]*/[^/]*$"),),
    ),
    # 84-121123-0000 TEXT: speaker, chapter and number
    "librispeech": Layout(
        " ", _ID_TEXT, audio_path="{id}.flac", fields=_SPEAKER,
        named_in=(("id", r"^(?P<speaker>[^-]+)-"),),
    ),
    # a/b.wav, a space or a tab, text
    "list": Layout(" ", ("file_name", "text")),
}  # fmt: skip
assert set(LAYOUTS) == set(get_args(LayoutName))


def describe(layout: Layout) -> str:
    """Show the line that a layout expects, such as `file_name|speaker|text`."""
    if layout.columns is None:
        return f"a header with {', '.join(layout.fields.values())}"
    mark = {"\t": "<tab>", " ": "<space>"}.get(layout.delimiter, layout.delimiter)
    return mark.join(layout.columns)
