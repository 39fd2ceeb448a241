"""Sources of every kind with broken records at given places, for the laws."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stages.sources.base import SourceFiles
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig

Generator = np.random.Generator
Content = tuple[dict[str, Any], bytes]  # the fields of a record, and its audio
Writer = Callable[[Path, Sequence[Content], set[int], Generator], None]


@dataclass(frozen=True)
class Kind:
    """A kind of source: `write` breaks the records whose numbers are given.

    `names`: the fields that a record has there.
    """

    write: Writer
    source: dict[str, Any]
    file: str
    names: tuple[str, ...] = ("text", "messages", "x")
    has_audio: bool = True

    def open(self, folder: Path, unit_records: int) -> SourceFiles[Any]:
        values = {"name": "s", "paths": [str(folder / self.file)], **self.source}
        if self.has_audio:
            return speech_source(SpeechSourceConfig(**values), unit_records)
        return text_source(TextSourceConfig(**values), unit_records)


def contents(rng: Generator, number: int) -> list[Content]:
    """Make records whose texts hold what readers take for marks of their own."""
    marks = ['"', "'", "{", "}", "[", "]", ",", "\\", "\n", "\t", "|"]
    marks += ["}, {", '", "', "日本", "🎌", "ustar"]
    made = []
    for place in range(number):
        text = "".join(rng.choice(marks, rng.integers(0, 9)))
        nested = [{"role": "user", "content": text}, {"role": text, "n": place}]
        fields = {"text": f"{place}:{text}", "messages": nested, "x": {"y": [place, None]}}
        made.append((fields, rng.bytes(int(rng.integers(0, 3000)))))
    return made


# --- tars ---------------------------------------------------------------------------------------


def member(name: str, data: bytes, style: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(style, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def spoil_member(data: bytes, rng: Generator) -> bytes:
    """Break the last header of a member, or what surrounds it."""
    spoiled = bytearray(data)
    way = rng.choice(["flip", "noise", "zeros", "page", "cut", "insert", "size", "checksum"])
    if way == "flip":
        spoiled[int(rng.integers(0, 512))] ^= int(rng.integers(1, 256))
    elif way == "noise":
        spoiled[:512] = rng.bytes(512)
    elif way == "zeros":
        spoiled[:512] = bytes(512)
    elif way == "page":
        spoiled[:] = bytes(len(spoiled))
    elif way == "cut":
        del spoiled[: int(rng.integers(1, len(spoiled) + 1))]
    elif way == "insert":
        spoiled[100:100] = rng.bytes(int(rng.integers(1, 700)))
    elif way == "size":
        spoiled[124:136] = b"%011o\0" % int(rng.integers(0, 20_000))
    elif way == "checksum":
        spoiled[148:156] = b"999999\0 "
    return bytes(spoiled)


def write_tar(style: int, joined: bool = False) -> Writer:
    def write(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
        data = io.BytesIO()
        for number, (fields, audio) in enumerate(records):
            name = f"{'長' * 40 if style != tarfile.USTAR_FORMAT else 'd'}/{number:05d}"
            parts = [
                member(f"{name}.json", json.dumps(fields).encode(), style),
                member(f"{name}.wav", audio, style),
            ]
            if number in broken:
                spoiled = int(rng.integers(0, 2))
                parts[spoiled] = spoil_member(parts[spoiled], rng)
            data.write(b"".join(parts))
            if joined and rng.random() < 0.2:
                data.write(bytes(512 * int(rng.integers(1, 30))))
        data.write(bytes(1024))
        (folder / "a.tar").write_bytes(data.getvalue())

    return write


# --- lines and arrays of JSON -------------------------------------------------------------------


def spoil_json(text: str, rng: Generator) -> bytes:
    """Break one object of JSON, which begins with its first key in any case."""
    ways: list[Callable[[], str]] = [
        lambda: text.replace("text", "te\txt", 1),
        lambda: text.replace(": ", ":: ", 2).replace(":: ", ": ", 1),
        lambda: text[: len(text) // 2],
        lambda: text[:-1],
        lambda: text + "}",
        lambda: text[:-1] + ", }",
        lambda: text.replace('"x"', '"x', 1),
        lambda: text.replace('"x"', 'x"', 1),
        lambda: text.replace(": [", ": ", 1),
        lambda: text.replace("]", "", 1),
        lambda: text.replace("null", "nil", 1),
        lambda: "oops",
        lambda: "null",
        lambda: "{" + text,
        lambda: text.replace("0", "\ud800", 1),
        lambda: text.replace('"x"', "\x00", 1),
        lambda: text.replace('"x"', '"\\q"', 1),
    ]
    return ways[rng.integers(0, len(ways))]().encode("utf-8", "surrogatepass")


def write_lines(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
    lines = []
    for number, (fields, audio) in enumerate(records):
        (folder / f"{number}.wav").write_bytes(audio)
        text = json.dumps({"audio_filepath": f"{number}.wav", **fields}, ensure_ascii=False)
        lines.append(spoil_json(text, rng) if number in broken else text.encode())
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))


def write_array(separator: str, indent: int | None = None) -> Writer:
    def write(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
        parts = []
        for number, (fields, _) in enumerate(records):
            text = json.dumps(fields, ensure_ascii=False, indent=indent)
            parts.append(spoil_json(text, rng) if number in broken else text.encode())
        data = b"[" + parts[0]
        for part in parts[1:]:
            is_missing = part is parts[len(parts) // 2] and broken and rng.random() < 0.3
            data += separator.replace(",", "" if is_missing else ",").encode() + part
        (folder / "a.json").write_bytes(data + b"\n]\n")

    return write


# --- lines of JSON that name members of tars --------------------------------------------------------


def nemo_line(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    return {"audio_filepath": f"{number}.wav", "shard_id": number % 3, **fields}


def cut_line(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    part = {"id": f"{number}-0", "start": 0, "duration": 1, "channel": 0, **fields}
    source = {"type": "shar", "channels": [0], "source": ""}
    cut = {"id": str(number), "start": 0, "duration": 1, "channel": 0, "supervisions": [part]}
    return {**cut, "recording": {"id": "r", "sources": [source], "channel_ids": [0]}}


def write_beside(
    line: Callable[[int, dict[str, Any]], dict[str, Any]], file: str, tar: str, in_tar: bool
) -> Writer:
    """Write records beside tars, the broken ones with a spoilt line, or with a spoilt member."""

    def write(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
        lines, tars = [], {tar.format(shard): b"" for shard in range(3)}
        for number, (fields, audio) in enumerate(records):
            part = member(f"{number}.wav", audio, tarfile.USTAR_FORMAT)
            spoilt = in_tar and number in broken
            tars[tar.format(number % 3)] += spoil_member(part, rng) if spoilt else part
            text = json.dumps(line(number, fields), ensure_ascii=False)
            is_sound = in_tar or number not in broken
            lines.append(text.encode() if is_sound else spoil_json(text, rng))
        (folder / file).write_bytes(b"\n".join(lines))
        for name, data in tars.items():
            (folder / name).write_bytes(data + bytes(1024))

    return write


# --- Parquet ------------------------------------------------------------------------------------


def write_parquet(
    folder: Path, records: Sequence[Content], broken: set[int], rng: Generator
) -> None:
    """Write texts of which some are no UTF-8; pyarrow writes such bytes without a look at them."""
    texts = [fields["text"].encode() for fields, _ in records]
    for number in broken:
        texts[number] = bytes(rng.choice([b"\xff", b"\xed\xa0\x80", b"a\xc3"]))
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts))]
    column = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    audio = pa.array([audio for _, audio in records], pa.binary())
    rows = int(rng.integers(1, len(records) + 1))
    pq.write_table(pa.table({"audio": audio, "text": column}), folder / "a.parquet", row_group_size=rows)  # fmt: skip


def write_pages(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
    """Write a row group for each record, and damage the pages of some; pages have checksums."""
    path = folder / "a.parquet"
    table = pa.table(
        {
            "audio": pa.array([audio for _, audio in records], pa.binary()),
            "text": [fields["text"] for fields, _ in records],
        }
    )
    pq.write_table(table, path, row_group_size=1, use_dictionary=False, write_page_checksum=True)
    data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    for number in broken:
        column = metadata.row_group(number).column(int(rng.integers(0, 2)))
        size = column.total_compressed_size
        first = column.data_page_offset + int(rng.integers(0, size))
        last = min(first + int(rng.integers(1, 50)), column.data_page_offset + size)
        for place in range(first, last):
            data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(data)


# --- compressed files and sets in several files -------------------------------------------------


def compressed(write: Writer, name: str, suffix: str) -> Writer:
    """Write a file and compress it, in members or frames that end anywhere."""

    def write_compressed(
        folder: Path, records: Sequence[Content], broken: set[int], rng: Generator
    ) -> None:
        write(folder, records, broken, rng)
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        ends = [0, *sorted(rng.integers(0, len(data) + 1, int(rng.integers(0, 4)))), len(data)]
        parts = [data[start:stop] for start, stop in pairwise(ends)]
        compress = gzip.compress if suffix == ".gz" else zstandard.compress
        (folder / f"{name}{suffix}").write_bytes(b"".join(map(compress, parts)))

    return write_compressed


def write_shar(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
    """Write cuts beside the tar with their audio; broken is a cut's line, or its member."""
    lines, tar = [], io.BytesIO()
    for number, (fields, audio) in enumerate(records):
        place: dict[str, Any] = {"start": 0, "duration": 1.0, "channel": 0}
        recording = {
            "id": str(number),
            "sources": [{"type": "shar", "channels": [0], "source": ""}],
        }
        cut = {"id": f"c{number}", **place, "type": "MonoCut", "recording": recording}
        cut["supervisions"] = [{"id": f"s{number}", **place, **fields}]
        line = json.dumps(cut, ensure_ascii=False)
        part = member(f"c{number}.wav", audio, tarfile.GNU_FORMAT)
        is_line = bool(rng.integers(0, 2))
        if number in broken and not is_line:
            part = spoil_member(part, rng)
        lines.append(spoil_json(line, rng) if number in broken and is_line else line.encode())
        tar.write(part)
    (folder / "cuts.000000.jsonl").write_bytes(b"\n".join(lines))
    (folder / "recording.000000.tar").write_bytes(tar.getvalue() + bytes(1024))


def write_nemo(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
    """Write a manifest beside the tar whose members it names; broken is a line or a member."""
    lines, tar = [], io.BytesIO()
    for number, (fields, audio) in enumerate(records):
        line = json.dumps({"audio_filepath": f"{number}.wav", "shard_id": 0, **fields})
        part = member(f"{number}.wav", audio, tarfile.PAX_FORMAT)
        is_line = bool(rng.integers(0, 2))
        if number in broken and not is_line:
            part = spoil_member(part, rng)
        lines.append(spoil_json(line, rng) if number in broken and is_line else line.encode())
        tar.write(part)
    (folder / "manifest_0.json").write_bytes(b"\n".join(lines))
    (folder / "audio_0.tar").write_bytes(tar.getvalue() + bytes(1024))


TAR = {"kind": "webdataset"}
JSON = {"kind": "json"}
NEMO = {"kind": "nemo_tarred"}
SHAR, CUTS = {"kind": "shar"}, "cuts.0.jsonl"
KINDS = {
    "ustar": Kind(write_tar(tarfile.USTAR_FORMAT), TAR, "a.tar"),
    "gnu": Kind(write_tar(tarfile.GNU_FORMAT), TAR, "a.tar"),
    "pax": Kind(write_tar(tarfile.PAX_FORMAT), TAR, "a.tar"),
    "joined": Kind(write_tar(tarfile.USTAR_FORMAT, joined=True), TAR, "a.tar"),
    "manifest": Kind(write_lines, {"kind": "manifest"}, "a.jsonl"),
    "nemo_lines": Kind(write_beside(nemo_line, "m.json", "audio_{}.tar", False), NEMO, "m.json"),
    "nemo_tars": Kind(write_beside(nemo_line, "m.json", "audio_{}.tar", True), NEMO, "m.json"),
    "shar_lines": Kind(write_beside(cut_line, CUTS, "recording.0.tar", False), SHAR, CUTS),
    "shar_tars": Kind(write_beside(cut_line, CUTS, "recording.0.tar", True), SHAR, CUTS),
    "parquet": Kind(write_parquet, {"kind": "parquet"}, "a.parquet", ("text",)),
    "lines": Kind(write_lines, {"kind": "jsonl"}, "a.jsonl", has_audio=False),
    "array": Kind(write_array(", "), JSON, "a.json", has_audio=False),
    "array_lines": Kind(write_array(",\n"), JSON, "a.json", has_audio=False),
    "array_pretty": Kind(write_array(",\n  ", indent=2), JSON, "a.json", has_audio=False),
    "pages": Kind(write_pages, {"kind": "parquet"}, "a.parquet", ("text",)),
    "tar.gz": Kind(compressed(write_tar(tarfile.USTAR_FORMAT), "a.tar", ".gz"), TAR, "a.tar.gz"),
    "tar.zst": Kind(compressed(write_tar(tarfile.GNU_FORMAT), "a.tar", ".zst"), TAR, "a.tar.zst"),
    "manifest.gz": Kind(
        compressed(write_lines, "a.jsonl", ".gz"), {"kind": "manifest"}, "a.jsonl.gz"
    ),
    "lines.zst": Kind(
        compressed(write_lines, "a.jsonl", ".zst"),
        {"kind": "jsonl"},
        "a.jsonl.zst",
        has_audio=False,
    ),
    "array.gz": Kind(
        compressed(write_array(",\n"), "a.json", ".gz"), JSON, "a.json.gz", has_audio=False
    ),
    "nemo": Kind(write_nemo, {"kind": "nemo_tarred"}, "manifest_0.json"),
    "shar": Kind(write_shar, {"kind": "shar"}, "cuts.000000.jsonl"),
    "shar.gz": Kind(
        compressed(write_shar, "cuts.000000.jsonl", ".gz"), {"kind": "shar"}, "cuts.000000.jsonl.gz"
    ),
}
