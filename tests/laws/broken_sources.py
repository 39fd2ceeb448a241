"""Sources of every kind with broken records at given places, for the laws."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Generator = np.random.Generator
Content = tuple[dict[str, Any], bytes]  # the fields of a record, and its audio
Writer = Callable[[Path, Sequence[Content], set[int], Generator], None]


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
