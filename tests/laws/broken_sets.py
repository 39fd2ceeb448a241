"""Sets in several files with broken records at given places: NeMo's manifests and Lhotse's Shar."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.laws.broken_sources import Content, Generator, Writer, member, spoil_json, spoil_member


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


def one_spoilt(line: str, part: bytes, rng: Generator, is_broken: bool) -> tuple[bytes, bytes]:
    """Return a record's line and its member of the tar, of which a broken one has one spoilt."""
    is_line = bool(rng.integers(0, 2))
    if is_broken and not is_line:
        part = spoil_member(part, rng)
    return (spoil_json(line, rng) if is_broken and is_line else line.encode()), part


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
        written, part = one_spoilt(line, part, rng, number in broken)
        lines.append(written)
        tar.write(part)
    (folder / "cuts.000000.jsonl").write_bytes(b"\n".join(lines))
    (folder / "recording.000000.tar").write_bytes(tar.getvalue() + bytes(1024))


def write_nemo(folder: Path, records: Sequence[Content], broken: set[int], rng: Generator) -> None:
    """Write a manifest beside the tar whose members it names; broken is a line or a member."""
    lines, tar = [], io.BytesIO()
    for number, (fields, audio) in enumerate(records):
        line = json.dumps({"audio_filepath": f"{number}.wav", "shard_id": 0, **fields})
        part = member(f"{number}.wav", audio, tarfile.PAX_FORMAT)
        written, part = one_spoilt(line, part, rng, number in broken)
        lines.append(written)
        tar.write(part)
    (folder / "manifest_0.json").write_bytes(b"\n".join(lines))
    (folder / "audio_0.tar").write_bytes(tar.getvalue() + bytes(1024))
