"""Unpack J-CHAT's shards into audio and a manifest: `jchat_manifest.py SHARDS OUT`.

SHARDS holds Lhotse Shar files, `cuts.000000.jsonl.gz` beside `recording.000000.tar`. A cut is a
dialogue; each of its speaker segments becomes a clip whose text is the transcript's pieces that
have their middle in it.
"""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def clips(cut: dict[str, Any], audio: str) -> Iterator[dict[str, Any]]:
    """Yield a record of koe's manifest for each speaker segment that holds text."""
    parts = sorted(cut["supervisions"], key=lambda part: part["start"])
    segments = [(part, []) for part in parts if part.get("speaker")]
    for piece in parts:
        middle = piece["start"] + piece["duration"] / 2
        for segment, texts in segments:
            if 0 <= middle - segment["start"] <= segment["duration"]:
                texts.append(piece.get("text") or "")
                break
    for segment, texts in segments:
        start, end = segment["start"], segment["start"] + segment["duration"]
        start, end = max(start, 0.0), min(end, cut["duration"])
        if "".join(texts).strip() and end > start:
            yield {
                "audio_filepath": audio,
                "offset": round(start, 3),
                "duration": round(end - start, 3),
                "text": "".join(texts).strip(),
                "speaker": f"{cut['id']}/{segment['speaker']}",
            }


def main(shards: Path, out: Path) -> None:
    for cuts in sorted(shards.glob("cuts.*.jsonl.gz")):
        number = cuts.name.split(".")[1]
        folder = out / number
        with tarfile.open(shards / f"recording.{number}.tar") as tar:
            members = [member for member in tar if not member.name.endswith(".json")]
            tar.extractall(folder, members, filter="data")
        audio = {member.name.rpartition(".")[0]: f"{number}/{member.name}" for member in members}
        with (
            gzip.open(cuts, "rt", encoding="utf-8") as lines,
            open(out / f"{number}.jsonl", "w", encoding="utf-8") as manifest,
        ):
            for cut in map(json.loads, lines):
                for clip in clips(cut, audio[cut["id"]]):
                    manifest.write(json.dumps(clip, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
