"""The demo's clips and samples in the layouts that koe reads: one function a source.

Each returns files by their path in the corpus. Broken records stand among the good ones.
"""

from __future__ import annotations

import csv
import io
import tarfile
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo import broken
from pipeline.demo.broken import to_json
from pipeline.demo.clips import Clip

T = TypeVar("T")
Files = dict[str, bytes]

PARQUET = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("text", pa.string()),
        pa.field("speaker", pa.string()),
    ]
)


def spread(good: list[T], bad: list[T]) -> list[T]:
    """Put the items of `bad` among those of `good` at even distances, both in their order."""
    mixed: list[T] = []
    for place, item in enumerate(good, 1):
        mixed.append(item)
        first, last = ((place + shift) * len(bad) // len(good) for shift in (-1, 0))
        mixed += bad[first:last]
    return mixed


def manifest_files(clips: list[Clip]) -> Files:
    """Lay out a JSONL manifest with NeMo's keys beside its audio files."""
    bad_files, bad_lines, last_line = broken.broken_manifest(_plain(clips))
    lines = [
        to_json(clip.manifest_entry() | {"audio_filepath": f"audio/{clip.file_name}"})
        for clip in clips
    ]
    # the two lines that share an id stay neighbours
    *single, first_twin, second_twin = bad_lines
    lines = [*spread(lines, single), first_twin, second_twin, last_line]
    audio = {clip.file_name: clip.audio for clip in clips} | bad_files
    return {
        "speech/manifest/manifest.jsonl": _lines(lines),
        **{f"speech/manifest/audio/{name}": data for name, data in audio.items()},
    }


def tar_files(clips: list[Clip]) -> Files:
    """Lay out WebDataset tars: .json beside .mp3 or .flac, the third with broken members."""
    bad = broken.broken_members(_plain(clips))
    third = len(clips) // 4
    shares = [clips[third::2], clips[third + 1 :: 2], clips[:third]]
    members = [
        [
            member
            for clip in share
            for member in (
                (clip.file_name, clip.audio),
                (f"{clip.plan.id}.json", to_json(clip.manifest_entry()).encode()),
            )
        ]
        for share in shares
    ]
    archives = [_tar(members[0]), _tar(members[1]), _tar([*members[2], *bad])]
    # the last member's data, padding and the end mark are cut away, and half of the audio too
    end = archives[2].rindex(bad[-1][1]) + len(bad[-1][1]) // 2
    archives[2] = archives[2][:end]
    return {f"speech/tar/speech-{n:03d}.tar": data for n, data in enumerate(archives)}


def parquet_files(clips: list[Clip]) -> Files:
    """Lay out the Audio feature of Hugging Face datasets: struct<bytes, path>, text."""
    rows: list[dict[str, Any]] = [
        {
            "id": clip.plan.id,
            "audio": {"bytes": clip.audio, "path": clip.file_name},
            "text": clip.plan.text,
            "speaker": clip.plan.speaker,
        }
        for clip in clips
    ]
    table = pa.Table.from_pylist(spread(rows, broken.broken_rows(_plain(clips))), schema=PARQUET)
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=16, compression="zstd")
    return {"speech/parquet/speech-000.parquet": file.getvalue()}


def folder_files(clips: list[Clip]) -> Files:
    """Lay out a folder of WAV files with metadata.csv."""
    bad_files, bad_rows = broken.broken_folder(_plain(clips))
    rows = [[clip.file_name, clip.plan.text, clip.plan.speaker] for clip in clips]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([["file_name", "text", "speaker"], *spread(rows, bad_rows)])
    audio = {clip.file_name: clip.audio for clip in clips} | bad_files
    return {
        "speech/folder/metadata.csv": table.getvalue().encode(),
        **{f"speech/folder/{name}": data for name, data in audio.items()},
    }


def text_files(rows: list[dict[str, str]], dialogues: list[dict[str, Any]]) -> Files:
    """Lay out instruction samples and conversations as JSONL."""
    lines = spread([to_json(row) for row in rows], broken.broken_samples())
    return {
        "text/instructions.jsonl": _lines(lines),
        "text/conversations.jsonl": _lines([to_json(dialogue) for dialogue in dialogues]),
    }


def _plain(clips: list[Clip]) -> Clip:
    """Choose the clip that broken records are copied from: the first that nothing degrades."""
    return next((clip for clip in clips if not clip.plan.degradation), clips[0])


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    """Write an archive whose headers hold neither time nor owner."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
