"""Tarred sets as NeMo's converter writes them, file by file and key by key.

The converter is scripts/speech_recognition/convert_to_tarred_audio_dataset.py of NeMo 2.6.0rc0. It
is no part of the package nemo_toolkit, and what it imports is large.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import soundfile

Entry = dict[str, Any]


def write_tarred(
    folder: Path,
    entries: list[Entry],
    num_shards: int = 2,
    *,
    slice_with_offset: bool = False,
    codec: str = "",
) -> None:
    """Write `audio_*.tar`, `tarred_audio_manifest.json` and `sharded_manifests/manifest_*.json`.

    `entries` name audio files, as a NeMo manifest does; each shard has as many of them. `codec`:
    the format that sliced audio is written in, which leaves the names in the manifests as they are.
    """
    (folder / "sharded_manifests").mkdir(parents=True)
    size = len(entries) // num_shards
    tarred: list[Entry] = []
    for shard in range(num_shards):
        part = entries[size * shard : size * (shard + 1)]
        with tarfile.open(folder / f"audio_{shard}.tar", "w", dereference=True) as tar:
            written = _write_shard(tar, part, shard, slice_with_offset, codec)
        write_manifest(folder / f"sharded_manifests/manifest_{shard}.json", written)
        tarred += written
    write_manifest(folder / "tarred_audio_manifest.json", tarred)


def write_manifest(path: Path, entries: list[Entry]) -> None:
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    path.write_text("".join(lines), encoding="utf-8")


def read_manifest(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write_shard(
    tar: tarfile.TarFile, entries: list[Entry], shard: int, slice_with_offset: bool, codec: str
) -> list[Entry]:
    written, count = [], dict[str, int]()
    for entry in entries:
        path = Path(entry["audio_filepath"])
        base = str(path.with_suffix("")).replace("/", "_").replace(".", "_")
        name = f"{base}{path.suffix}"
        kept = dict(entry)
        if slice_with_offset:
            start, length = (str(entry[key]).replace(".", "_") for key in ("offset", "duration"))
            name = f"{base}_{start}_{length}{path.suffix}"
            _add_part(tar, name, path, entry["offset"], entry["duration"], codec)
            kept["source_audio_offset"] = kept.pop("offset")
        elif name not in count:
            tar.add(path, arcname=name)
            count[name] = 1
        else:
            number = count[name]
            count[name] += 1
            name = f"{base}-sub{number}{path.suffix}"
        written.append({**kept, "audio_filepath": name, "shard_id": shard})
    return written


def _add_part(
    tar: tarfile.TarFile, name: str, path: Path, offset: float, seconds: float, codec: str
) -> None:
    audio_hz = soundfile.info(path).samplerate
    part, _ = soundfile.read(path, frames=int(seconds * audio_hz), start=int(offset * audio_hz))
    file = io.BytesIO()
    kind = codec or path.suffix[1:]
    soundfile.write(file, part, audio_hz, format=kind)
    info = tarfile.TarInfo(f"{name.split('.')[0]}.{kind}")
    info.size = len(file.getvalue())
    file.seek(0)
    tar.addfile(info, file)
