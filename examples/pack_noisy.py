"""Pack a folder tree of WAV files into a WebDataset tar: `pack_noisy.py FOLDER OUT.tar`.

The transcript is the digit that a file of the free spoken digit dataset is named by, and the
file's own name elsewhere; beside each `<key>.wav` stands `<key>.json`, as in Emilia.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def main(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w") as tar:
        for path in sorted(folder.rglob("*.wav")):
            key = f"{path.parent.name}/{path.stem.replace('.', '_')}"
            digit = path.parent.name == "digits_8k"
            text = DIGITS[int(path.stem[0])] if digit else path.stem.replace("_", " ")
            add(tar, f"{key}.wav", path.read_bytes())
            add(tar, f"{key}.json", json.dumps({"text": text}).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
