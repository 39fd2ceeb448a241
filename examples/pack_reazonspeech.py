"""Put ReazonSpeech's transcripts beside its audio: `pack_reazonspeech.py NAMES.tsv OUT TAR...`.

Each tar is written anew into OUT with a `.txt` after each audio member, which makes it a
WebDataset. Audio without a transcript is left out, as the corpus' own loader does.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path


def read_transcripts(tsv: Path) -> dict[str, str]:
    """Map names of audio files to their text."""
    with open(tsv, encoding="utf-8") as lines:
        return dict(line.rstrip("\n").split("\t", 1) for line in lines)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def main(tsv: Path, out: Path, archives: list[Path]) -> None:
    transcripts = read_transcripts(tsv)
    out.mkdir(parents=True, exist_ok=True)
    for path in archives:
        with tarfile.open(path) as source, tarfile.open(out / path.name, "w") as target:
            for member in source:
                name = member.name.removeprefix("./")
                if name in transcripts and (audio := source.extractfile(member)):
                    add(target, name, audio.read())
                    text = transcripts[name].encode("utf-8")
                    add(target, f"{name.rpartition('.')[0]}.txt", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
