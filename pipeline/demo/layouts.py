"""The layouts that the demo's clips and samples are stored in: one function for each source.

Each returns files by their path in the corpus. A dozen records are broken on purpose; they are
made from good ones and stand among them.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo.clips import Clip, encode

T = TypeVar("T")
Files = dict[str, bytes]

PARQUET = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class Broken:
    """A broken record: its name, its source, and the reason it must be quarantined for."""

    name: str
    source: str
    reason: str
    what: str


BROKEN = (
    Broken("cut-audio", "manifest", "truncated_audio", "an audio file that ends after 40 %"),
    Broken("empty-file", "manifest", "empty_audio", "a file of no bytes"),
    Broken("zeros", "manifest", "all_zero_audio", "two seconds of zero samples"),
    Broken("missing-file", "manifest", "missing_audio", "an entry whose file does not exist"),
    Broken("no-transcript", "manifest", "missing_transcript", "an entry with an empty text"),
    Broken("broken-line", "manifest", "broken_json", "a line that ends in the middle"),
    Broken("repeated", "manifest", "duplicate_id", "the first entry once more, as the second line"),
    Broken("cut-tar", "tar", "unreadable_bytes", "an archive that ends inside its last member"),
    Broken("null-cell", "parquet", "missing_audio", "a row whose audio is null"),
    Broken("extra-cell", "folder", "broken_row", "a row with one cell too many"),
    Broken("broken-sample", "instructions", "broken_json", "a line that ends in the middle"),
    Broken("no-answer", "instructions", "missing_answer", "a sample with an empty output"),
)


def manifest_files(clips: list[Clip]) -> Files:
    """Lay out a JSONL manifest with NeMo's keys beside its audio files."""
    entries = [
        clip.manifest_entry() | {"audio_filepath": f"audio/{clip.file_name}"} for clip in clips
    ]
    bad_audio = {
        f"cut-audio.{clips[0].codec}": clips[0].audio[: len(clips[0].audio) * 2 // 5],
        "empty-file.wav": b"",
        "zeros.wav": encode(np.zeros(2 * 16_000, np.float32), 16_000, "wav"),
    }
    bad = [
        entries[0] | {"id": name.partition(".")[0], "audio_filepath": f"audio/{name}"}
        for name in (*bad_audio, "missing-file.wav")
    ]
    bad.append(entries[0] | {"id": "no-transcript", "text": ""})
    bad_lines = [to_json(entry) for entry in bad]
    bad_lines.append(to_json(entries[0] | {"id": "broken-line"})[:-40])
    lines = [to_json(entries[0]), *spread([to_json(entry) for entry in entries], bad_lines)]
    audio = {clip.file_name: clip.audio for clip in clips} | bad_audio
    return {
        "speech/manifest/manifest.jsonl": _lines(lines),
        **{f"speech/manifest/audio/{name}": data for name, data in audio.items()},
    }


def tar_files(clips: list[Clip]) -> Files:
    """Lay out WebDataset tars: .json beside .mp3 or .flac. The second tar is cut off."""
    first, second = _members(clips[::2]), _members(clips[1::2])
    audio = clips[0].audio
    complete = _tar([*second, (f"cut-tar.{clips[0].codec}", audio)])
    cut = complete[: complete.rindex(audio) + len(audio) // 2]  # half of the last member is missing
    return {"speech/tar/speech-000.tar": _tar(first), "speech/tar/speech-001.tar": cut}


def parquet_files(clips: list[Clip]) -> Files:
    """Lay out the Audio feature of Hugging Face datasets: struct<bytes, path>, text."""
    rows: list[dict[str, Any]] = [
        {"id": clip.id, "audio": {"bytes": clip.audio, "path": clip.file_name}, "text": clip.text}
        for clip in clips
    ]
    bad = [{"id": "null-cell", "audio": None, "text": clips[0].text}]
    table = pa.Table.from_pylist(spread(rows, bad), schema=PARQUET)
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=16, compression="zstd")
    return {"speech/parquet/speech-000.parquet": file.getvalue()}


def folder_files(clips: list[Clip]) -> Files:
    """Lay out a folder of WAV files with metadata.csv."""
    rows = [[clip.file_name, clip.text] for clip in clips]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([["file_name", "text"], *spread(rows, [[*rows[0], "extra-cell"]])])
    return {
        "speech/folder/metadata.csv": table.getvalue().encode(),
        **{f"speech/folder/{clip.file_name}": clip.audio for clip in clips},
    }


def text_files(rows: list[dict[str, Any]], conversations: list[dict[str, Any]]) -> Files:
    """Lay out instruction samples and conversations as JSONL."""
    bad = [
        to_json(rows[0] | {"index": "broken-sample"})[:-12],
        to_json(rows[0] | {"index": "no-answer", "output": ""}),
    ]
    return {
        "text/instructions.jsonl": _lines(spread([to_json(row) for row in rows], bad)),
        "text/conversations.jsonl": _lines([to_json(row) for row in conversations]),
    }


def to_json(fields: dict[str, Any]) -> str:
    """Write one line of JSON that leaves Japanese readable."""
    return json.dumps(fields, ensure_ascii=False)


def spread(good: list[T], bad: list[T]) -> list[T]:
    """Put the items of `bad` among those of `good` at even distances, both in their order."""
    mixed: list[T] = []
    for count, item in enumerate(good, 1):
        mixed.append(item)
        first, last = ((count + shift) * len(bad) // len(good) for shift in (-1, 0))
        mixed += bad[first:last]
    return mixed


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _members(clips: list[Clip]) -> list[tuple[str, bytes]]:
    return [
        member
        for clip in clips
        for member in (
            (clip.file_name, clip.audio),
            (f"{clip.id}.json", to_json(clip.manifest_entry()).encode()),
        )
    ]


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    """Write an archive whose headers hold neither time nor owner."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
